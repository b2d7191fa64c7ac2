"""Results on stdout: aligned text for people, one JSON document for programs; hints go to stderr."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def document(value: Any) -> None:
    """Prints one JSON document."""
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[bool] = (),
          wrap: bool = False) -> None:
    """Prints aligned columns; figures to the right; nothing is cut, whatever the terminal's width.

    Args:
        columns: their heads.
        rows: a text for each column.
        numeric: which columns, from the first, hold figures.
        wrap: on a terminal the last column goes on below itself where a line has no room for it.
    """
    lines = [list(columns), *([*row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    right = [*numeric, *[False] * (len(columns) - len(numeric))]
    before = sum(width + 2 for width in widths[:-1])
    for line in lines:
        *first, last = (cell.rjust(width) if to_right else cell.ljust(width)
                        for cell, width, to_right in zip(line, widths, right, strict=True))
        parts = _filled(last.rstrip(), before) if wrap else [last]
        for part in parts:
            print("  ".join((*first, part)).rstrip())
            first = [" " * len(cell) for cell in first]


def _filled(text: str, before: int) -> list[str]:
    """The text in lines that have room beside so many characters; one line where stdout is no terminal."""
    if not sys.stdout.isatty():
        return [text]
    room = max(20, shutil.get_terminal_size().columns - before)
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]


def item(text: str) -> None:
    """Prints a point of a list, on a terminal wrapped."""
    for place, line in enumerate(_filled(text, 2)):
        print(f"  {line}" if place else f"- {line}")


def pairs(values: Mapping[str, Any]) -> None:
    """Prints `name  value` lines; what is None is left out."""
    known = {name: value for name, value in values.items() if value is not None}
    width = max(map(len, known), default=0)
    for name, value in known.items():
        for place, line in enumerate(_filled(str(value), width + 2)):
            print(f"{(name if place == 0 else '').ljust(width)}  {line}")


def hint(text: str) -> None:
    """Says on stderr what to do next."""
    print(text, file=sys.stderr)


def percent(share: float | None) -> str:
    """A share in 0..1 as percent; a dash where nothing was measured."""
    return "-" if share is None else f"{100 * share:.1f} %"


def accuracy(found: Mapping[str, Any] | None) -> str | None:
    """`88.2 % of 372 images, 95 % interval 84.5 to 91.1`, or None where nothing was measured."""
    if found and "sentence" in found:  # of another task than one class an image
        return str(found["sentence"])
    if not found or found.get("accuracy") is None:
        return None
    bounds = ""
    if found.get("accuracy_low") is not None and found.get("accuracy_high") is not None:
        bounds = f", 95 % interval {100 * found['accuracy_low']:.1f} to {100 * found['accuracy_high']:.1f}"
    return f"{percent(found['accuracy'])} of {found['n']} images{bounds}"


def _classes(labels: Sequence[str]) -> str:
    return f"{len(labels)}: {', '.join(labels[:8])}" + (", ..." if len(labels) > 8 else "")


def run_pairs(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to say about a RUN."""
    metrics = record.get("metrics", {})
    control = metrics.get("control", {})
    gain = metrics.get("gain") or {}
    views = record.get("tta", {})
    return {
        "run": folder,
        "stage": record.get("stage"),
        "model": record["model"],
        "parameters": f"{record['parameters']:,}" if "parameters" in record else None,
        "kept": percent(record["kept"]) + " of the teacher's parameters" if "kept" in record else None,
        "input": " x ".join(map(str, record["preprocess"]["size_hw"])) + " px",
        "task": record.get("task"),
        "labels" if record.get("heads") else "classes": _classes(record["labels"]),
        "data": record.get("data", {}).get("source"),
        "validation": accuracy(metrics.get("val")),
        "test": accuracy(metrics.get("test")),
        f"test, {views.get('views')}": accuracy(views.get("test")),
        "calibration": _calibration(metrics),
        "control, val": accuracy(control.get("val")),
        "control, test": accuracy(control.get("test")),
        "gain": gain.get("sentence"),
    }


def _calibration(metrics: Mapping[str, Any]) -> str | None:
    """`ECE 8.1 points on test, 2.3 at temperature 1.62`; None of RUNs that earlier versions wrote."""
    fitted, split = metrics.get("temperature"), "test" if metrics.get("test") else "val"
    if not fitted:
        return None
    told = f"ECE {100 * metrics[split]['ece']:.1f} points on {split}"
    after = fitted["splits"][split].get("ece")
    return told if after is None else f"{told}, {100 * after:.1f} at temperature {fitted['value']:.3g}"


def taught(folder: Path, record: Mapping[str, Any], as_json: bool) -> None:
    """Prints what came of a distillation: its record, or each seed beside its control, the student beside its teacher,
    and what to do next."""
    if as_json:
        document({"run": str(folder), **record})
        return
    found, teacher = record["metrics"], record["teacher"]
    gain = found.get("gain")
    if gain is not None:
        _seeds(gain)
    theirs = teacher.get("metrics", {})
    pairs({
        "run": folder,
        "teacher": teacher["model"] + (f" and {len(record['teachers']) - 1} more" if "teachers" in record else ""),
        "student": record["student"] + _chosen(record),
        "validation": _from_to(theirs.get("val"), found.get("val")),
        "test": _from_to(theirs.get("test"), found.get("test")),
        "parameters": _share(teacher.get("parameters"), record["parameters"]),
        "multiplications": _share(teacher.get("macs"), record.get("macs")),
        "sparsity": _sparse(record.get("sparsity")),
        "gain": _gain(found),
    })
    hint(f"next: edgetl export {folder} --out BUNDLE, or edgetl report {folder} --out student.html")


def _sparse(found: Mapping[str, Any] | None) -> str | None:
    """`2:4 in 40 layers with 85.0 % of the multiplications, 14 left out`; None where nothing is sparse."""
    if found is None:
        return None
    return (f"{found['pattern']} in {found['layers']} layers with {percent(found['macs_share'])} of the "
            f"multiplications, {len(found['left_out'])} left out")


def _gain(metrics: Mapping[str, Any]) -> str:
    if "control" not in metrics:
        return "not known: --no-control"
    if metrics.get("gain") is None:
        return "not known: there are no test images"
    return str(metrics["gain"]["sentence"]).removeprefix("gain ")


def _chosen(record: Mapping[str, Any]) -> str:
    """Which of several seeds the RUN is."""
    if "best_seed" not in record:
        return ""
    return f" with seed {record['best_seed']}, of {len(record['seeds'])} the best on validation"


def _seeds(gain: Mapping[str, Any]) -> None:
    lines = zip(gain["seeds"], gain["student"], gain["control"], gain["differences"], strict=True)
    score = gain.get("score")  # of another task than one class an image
    rows = [(str(seed), percent(ours), percent(plain), f"{100 * more:+.1f}") if score is None else
            (str(seed), f"{ours:.3f}", f"{plain:.3f}", f"{more:+.3f}") for seed, ours, plain, more in lines]
    table(("seed", "student", "control", f"gain, {score or 'points'}"), rows, numeric=(True,) * 4)
    print()


def _from_to(teacher: Mapping[str, Any] | None, student: Mapping[str, Any] | None) -> str | None:
    """`88.2 % -> 86.5 % of 372 images, 95 % interval 82.6 to 89.7`; the teacher's is left out where it is not known."""
    ours = accuracy(student)
    if teacher is not None and "sentence" in teacher and ours is not None:  # of another task: `R2 0.81 on 37 images`
        return f"{str(teacher['sentence']).partition(' on ')[0]} -> {ours}"
    known = teacher is not None and teacher.get("accuracy") is not None
    return f"{percent(teacher['accuracy'])} -> {ours}" if teacher is not None and known and ours is not None else ours


def _share(whole: int | None, part: int | None) -> str | None:
    """`3,400,000 -> 1,190,000 (35.0 %)`, as far as both are known."""
    if part is None or not whole:
        return None if part is None else f"{part:,}"
    return f"{whole:,} -> {part:,} ({percent(part / whole)})"


def bundle_pairs(folder: Path, manifest: Any) -> dict[str, Any]:
    """What there is to say about a bundle, its variants apart."""
    from edgetl.runtime.manifest import features_length, golden_words, rejection_words

    length, reference = features_length(manifest), manifest.drift_reference
    size = manifest.preprocess.size_hw
    return {
        "bundle": folder,
        "name": manifest.name,
        **_said(manifest),
        "input": f"{size[0]} x {size[1]} px, {manifest.preprocess.resize_mode}, {manifest.preprocess.interpolation}",
        "golden": golden_words(manifest.golden) if manifest.golden else None,
        "features": None if length is None else f"{length} an image",
        "temperature": _temperatures(manifest),
        "reject below": rejection_words(manifest),
        "drift reference": None if reference is None else (
            f"{reference['count']} images of {reference['split']}, {reference['variant']}: mean top score "
            f"{reference['top']['mean']:.3f}, entropy {reference['entropy']['mean']:.3f} nats"),
    }


def _said(manifest: Any) -> dict[str, Any]:
    """The classes of a bundle; or its task, and what each head says."""
    if not manifest.heads:
        return {"classes": _classes(manifest.labels)}
    thresholds = sorted({one for head in manifest.heads for one in head.thresholds})
    return {"task": manifest.task, **{f"head '{head.name}'": _classes(head.labels) for head in manifest.heads},
            "said from": ", ".join(f"{one:g}" for one in thresholds) or None}


def _temperatures(manifest: Any) -> str | None:
    """`fp32 1.62`, or of several heads `fp32 shape 1.62`; None where scores are left as they are."""
    each = [f"{one.name} {one.temperature:.3g}" for one in manifest.variants if one.temperature is not None]
    each += [f"{one.name} {name} {value:.3g}" for one in manifest.variants for name, value in one.temperatures.items()]
    return ", ".join(each) or None


def _score(found: Mapping[str, Any]) -> str:
    """An accuracy in percent, or the score of another task as it is."""
    if "score_name" not in found:
        return percent(found.get("accuracy"))
    return "-" if found.get("score") is None else f"{found['score']:.3f}"


def variants(manifest: Any) -> None:
    """Prints one line a variant, the default first; accuracy and agreement as the export measured them."""
    named = next((row["score_name"] for one in manifest.variants for row in one.evaluations if row.get("score_name")),
                 "accuracy")
    columns = ("variant", "file", "MB", "backends", "split", named, "agreement")
    nothing: Mapping[str, Any] = {}
    rows = [(variant.name, variant.file, f"{variant.size_bytes / 1e6:.2f}", ",".join(variant.backends),
             found.get("split") or "-", _score(found), percent(found.get("agreement")))
            for variant in manifest.variants for found in variant.evaluations or (nothing,)]
    table(columns, rows, numeric=(False, False, True, False, False, True, True))


def report(made: Any) -> None:
    """Prints the tables of a benchmark; on a terminal only the columns that fit, of which the first decide most."""
    from edgetl.bench import overview

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for number, one in enumerate(overview.all_tables(made)):
        count = len(one.columns) if width is None else fitting([one.columns, *one.rows], width)
        print(("\n" if number else "") + one.caption)
        table(one.columns[:count], [row[:count] for row in one.rows],
              numeric=[one.numeric(column) for column in range(count)])
        if count < len(one.columns):
            print(textwrap.fill(f"The report also has: {', '.join(one.columns[count:])}.", width or 0))


def fitting(lines: Sequence[Sequence[str]], width: int) -> int:
    """How many of the first columns fit into so many characters; at least two: of what, and the first figure."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ends = list(itertools.accumulate(one + 2 for one in widths))
    return max(2, sum(end - 2 <= width for end in ends))
