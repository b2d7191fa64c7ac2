"""Results on stdout: aligned text for people, one JSON document for programs; hints go to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def document(value: Any) -> None:
    """Prints one JSON document."""
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[bool] = ()) -> None:
    """Prints aligned columns; figures to the right; nothing is cut, whatever the terminal's width."""
    lines = [list(columns), *([*row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    right = [*numeric, *[False] * (len(columns) - len(numeric))]
    for line in lines:
        cells = (cell.rjust(width) if to_right else cell.ljust(width)
                 for cell, width, to_right in zip(line, widths, right, strict=True))
        print("  ".join(cells).rstrip())


def pairs(values: Mapping[str, Any]) -> None:
    """Prints `name  value` lines; what is None is left out."""
    known = {name: value for name, value in values.items() if value is not None}
    width = max(map(len, known), default=0)
    for name, value in known.items():
        print(f"{name.ljust(width)}  {value}")


def hint(text: str) -> None:
    """Says on stderr what to do next."""
    print(text, file=sys.stderr)


def percent(share: float | None) -> str:
    """A share in 0..1 as percent; a dash where nothing was measured."""
    return "-" if share is None else f"{100 * share:.1f} %"


def accuracy(found: Mapping[str, Any] | None) -> str | None:
    """`88.2 % of 372 images, 95 % interval 84.5 to 91.1`, or None where nothing was measured."""
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
    return {
        "run": folder,
        "stage": record.get("stage"),
        "model": record["model"],
        "parameters": f"{record['parameters']:,}" if "parameters" in record else None,
        "kept": percent(record["kept"]) + " of the teacher's parameters" if "kept" in record else None,
        "input": " x ".join(map(str, record["preprocess"]["size_hw"])) + " px",
        "classes": _classes(record["labels"]),
        "data": record.get("data", {}).get("source"),
        "validation": accuracy(metrics.get("val")),
        "test": accuracy(metrics.get("test")),
        "control, val": accuracy(control.get("val")),
        "control, test": accuracy(control.get("test")),
    }


def bundle_pairs(folder: Path, manifest: Any) -> dict[str, Any]:
    """What there is to say about a bundle, its variants apart."""
    size = manifest.preprocess.size_hw
    return {
        "bundle": folder,
        "name": manifest.name,
        "classes": _classes(manifest.labels),
        "input": f"{size[0]} x {size[1]} px, {manifest.preprocess.resize_mode}, {manifest.preprocess.interpolation}",
        "golden": f"{manifest.golden.get('count')} {manifest.golden.get('kind')}" if manifest.golden else None,
    }


def variants(manifest: Any) -> None:
    """Prints one line a variant, the default first; accuracy and agreement as the export measured them."""
    columns = ("variant", "file", "MB", "backends", "split", "accuracy", "agreement")
    rows = []
    nothing: Mapping[str, Any] = {}
    for variant in manifest.variants:
        for found in variant.evaluations or (nothing,):
            share = found.get("accuracy")
            rows.append((variant.name, variant.file, f"{variant.size_bytes / 1e6:.2f}", ",".join(variant.backends),
                         found.get("split", "-"), percent(share), percent(found.get("agreement"))))
    table(columns, rows, numeric=(False, False, True, False, False, True, True))


def report(made: Any) -> None:
    """Prints the tables of a benchmark."""
    from edgetl.bench import tables

    for number, one in enumerate(tables.tables(made)):
        print(("\n" if number else "") + one.caption)
        table(one.columns, one.rows, numeric=[one.numeric(column) for column in range(len(one.columns))])
