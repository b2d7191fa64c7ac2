"""`edgetl predict`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.options import Json, Threads, WrongUsage
from edgetl.errors import EdgetlError, InputError

if TYPE_CHECKING:
    from edgetl.runtime.classifier import Classifier, Prediction
    from edgetl.runtime.manifest import Manifest
    from edgetl.runtime.task_prediction import TaskPrediction

    Answer = Prediction | TaskPrediction

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
    """Say of images and folders of images what a bundle was trained to say.

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
            _print_csv(answers, _columns(classifier.manifest, top))
        else:
            _print_lines(answers)
    if failed:
        others = "; the others were" if len(failed) < len(files) else ""
        raise InputError(f"{len(failed)} of {len(files)} files could not be classified{others}.")


def _print_lines(answers: Iterable[tuple[Path, Prediction]]) -> None:
    from edgetl.runtime.task_prediction import cells

    for path, answer in answers:
        print(f"{path}  " + "  ".join(cells(answer, lambda score: f"{100 * score:.1f} %")), flush=True)


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

    found = [{"path": str(path), **_plain(answer)} for path, answer in answers]
    present.document({"predictions": found, "failed": [{"path": str(path), "error": why} for path, why in failed]})


def _plain(answer: Answer) -> dict[str, Any]:
    """JSON values of an answer, each label beside its score by name."""
    from edgetl.runtime import Prediction
    from edgetl.runtime.task_prediction import HeadsPrediction, LabelsPrediction

    if isinstance(answer, Prediction):
        return {"label": answer.label, "index": answer.index, "score": answer.score, "top": _named(answer.top)}
    if isinstance(answer, LabelsPrediction):
        return {"labels": list(answer.labels), "scores": _named(answer.scores)}
    if isinstance(answer, HeadsPrediction):
        return {"heads": {name: _plain(one) for name, one in answer.heads.items()}}
    return {"values": dict(answer.values)}


def _named(scores: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": label, "score": score} for label, score in scores]


def _columns(manifest: Manifest, top: int) -> list[str]:
    """The header of the table beside the path."""
    if not manifest.heads:
        more = [name for rank in range(2, min(top, len(manifest.labels)) + 1) for name in (f"label_{rank}",
                                                                                           f"score_{rank}")]
        return ["label", "score", *more]
    if manifest.task == "classify":
        return [name for head in manifest.heads for name in (head.name, f"{head.name} score")]
    return list(manifest.labels) if manifest.task == "regress" else ["labels", *manifest.labels]


def _print_csv(answers: Iterable[tuple[Path, Prediction]], columns: Sequence[str]) -> None:
    """Labels that are said stand together in one cell, and the probability of each label in a column of its own."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", *columns])
    for path, answer in answers:
        writer.writerow([path, *_cells(answer, columns)])


def _cells(answer: Answer, columns: Sequence[str]) -> list[str]:
    from edgetl.runtime import Prediction
    from edgetl.runtime.task_prediction import HeadsPrediction, LabelsPrediction

    if isinstance(answer, Prediction):
        return [cell for label, score in answer.top for cell in (label, f"{score:.6f}")]
    if isinstance(answer, LabelsPrediction):
        scores = dict(answer.scores)
        return ["|".join(answer.labels), *(f"{scores[label]:.6f}" for label in columns[1:])]
    if isinstance(answer, HeadsPrediction):
        return [cell for one in answer.heads.values() for cell in (one.label, f"{one.score:.6f}")]
    return [f"{value:.9g}" for value in answer.values.values()]
