"""`edgetl predict`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.options import Json, Threads, WrongUsage
from edgetl.errors import EdgetlError, InputError

if TYPE_CHECKING:
    from edgetl.runtime.classifier import Classifier, Prediction

EXAMPLE = """
edgetl predict bundle photo.jpg
edgetl predict bundle photos --csv --top 3 > answers.csv
"""


def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle, folder or packed.", metavar="BUNDLE")],
    paths: Annotated[list[Path], typer.Argument(help="Images, and folders of images (searched to the bottom).",
                                                metavar="PATH...")],
    backend: Annotated[str, typer.Option(help="Backend to run on.")] = "auto",
    variant: Annotated[str, typer.Option(help="Variant of the bundle.")] = "auto",
    threads: Threads = 0,
    top: Annotated[int, typer.Option(help="Answers an image.", min=1)] = 1,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values with a header.")] = False,
) -> None:
    """Classify images and folders of images.

    Unreadable files are reported and counted, the others are still answered; exit 1 when there were any.
    """
    if as_json and as_csv:
        raise WrongUsage("--json and --csv contradict each other.", hint="Give one of them.")
    from edgetl import runtime

    files = list(find_images(paths))
    failed: list[tuple[Path, str]] = []
    with runtime.load(bundle, backend=backend, variant=variant, threads=threads) as classifier:
        answers = _answers(classifier, files, failed, top)
        if as_json:
            _print_json(answers, failed)
        elif as_csv:
            _print_csv(answers, min(top, len(classifier.labels)))
        else:
            _print_lines(answers)
    if failed:
        others = "; the others were" if len(failed) < len(files) else ""
        raise InputError(f"{len(failed)} of {len(files)} files could not be classified{others}.")


def _print_lines(answers: Iterable[tuple[Path, Prediction]]) -> None:
    for path, answer in answers:
        print(f"{path}  " + "  ".join(f"{label} {100 * score:.1f} %" for label, score in answer.top), flush=True)


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """Every file that was named, and every image below every folder that was named, sorted.

    Raises:
        EdgetlError: a folder holds no image.
    """
    from edgetl.datasets import IMAGE_ENDINGS

    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(one for one in path.rglob("*") if one.suffix.lower() in IMAGE_ENDINGS and one.is_file())
        if not found:
            raise EdgetlError(f"{path} holds no images ({', '.join(sorted(IMAGE_ENDINGS))}).", hint="Check the path.")
        yield from found


def _answers(classifier: Classifier, files: Iterable[Path], failed: list[tuple[Path, str]],
             top: int) -> Iterator[tuple[Path, Prediction]]:
    for path in files:
        try:
            yield path, classifier.predict(path, top=top)
        except InputError as problem:
            failed.append((path, problem.message))
            print(f"error: {problem.message}", file=sys.stderr)


def _print_json(answers: Iterable[tuple[Path, Prediction]], failed: list[tuple[Path, str]]) -> None:
    from edgetl.cli import present

    found = [{"path": str(path), "label": answer.label, "index": answer.index, "score": answer.score,
              "top": [{"label": label, "score": score} for label, score in answer.top]}
             for path, answer in answers]
    present.document({"predictions": found, "failed": [{"path": str(path), "error": why} for path, why in failed]})


def _print_csv(answers: Iterable[tuple[Path, Prediction]], top: int) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    more = [name for rank in range(2, top + 1) for name in (f"label_{rank}", f"score_{rank}")]
    writer.writerow(["path", "label", "score", *more])
    for path, answer in answers:
        writer.writerow([path, *(cell for label, score in answer.top for cell in (label, f"{score:.6f}"))])
