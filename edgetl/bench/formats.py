"""The files that stand beside report.json for other programs, and how each is drawn from a report."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from edgetl.bench import junit, markdown, stats
from edgetl.bench.report import MARKDOWN, Report, Row, figures
from edgetl.bench.tables import legible, local, machine_name, printable

JUNIT, CSV, ACTION = "junit.xml", "report.csv", "github-action-benchmark.json"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is a formula to a spreadsheet


def comma_separated(report: Report) -> str:
    """CSV with one line a case, its units in the names of the columns; what was not measured is an empty cell."""
    target = io.StringIO()
    lines = [_record(row, report) for row in report.rows]
    writer = csv.DictWriter(target, list(lines[0]) if lines else ["case"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return target.getvalue()


def _record(row: Row, report: Report) -> dict[str, Any]:
    measured, found = row.measurement, dataclasses.asdict(figures(row))
    median = stats.median_interval(measured.by_round()) if measured.seconds else None
    texts = {"case": row.case, "status": measured.status, "reason": local(measured.reason or "", report),
             "source": local(row.source, report), "kind": row.kind, "backend": row.backend, "variant": row.variant,
             "precision": row.precision, "arrival": measured.arrival}
    return {**{name: cell(text) for name, text in texts.items()},
            "threads": row.threads, "batch": row.batch, "calls": len(measured.seconds), "rounds": measured.rounds,
            "median_s": found.pop("median_s"),
            "median_low_s": median.low if median else None, "median_high_s": median.high if median else None,
            **{name: value for name, value in found.items() if name != "case"},
            "accuracy_low": row.accuracy.accuracy_low if row.accuracy else None,
            "accuracy_high": row.accuracy.accuracy_high if row.accuracy else None,
            "score_name": row.score.name if row.score else None, "score_low": row.score.low if row.score else None,
            "score_high": row.score.high if row.score else None}


def cell(text: str | None) -> str:
    """One line of text that no spreadsheet takes for a formula: an apostrophe stands before such a one."""
    line = " ".join(printable(text or "").split())
    return f"'{line}" if line.startswith(FORMULA) else line


def action(report: Report) -> str:
    """What github-action-benchmark reads with `tool: customSmallerIsBetter`: an array of {name, unit, value, ...}.

    Only figures of which less is better: median and tail latency, load, size, memory, and the share of wrong answers.
    A case that failed has none, and a figure that was not measured is left out.
    https://github.com/benchmark-action/github-action-benchmark#examples
    """
    return json.dumps([entry for row in report.rows if row.measured for entry in _entries(row, report)], indent=1,
                      allow_nan=False) + "\n"


def _entries(row: Row, report: Report) -> list[dict[str, Any]]:
    found = figures(row)
    median = stats.median_interval(row.measurement.by_round())
    half = None if median.low is None or median.high is None else max(median.high - median.value,
                                                                     median.value - median.low)
    wrong = None if row.accuracy is None else 100 * (1 - row.accuracy.accuracy)
    wrong_half = None if row.accuracy is None else 50 * (row.accuracy.accuracy_high - row.accuracy.accuracy_low)
    values = (("median latency", "ms", _times(found.median_s, 1e3), _times(half, 1e3)),
              ("p99 latency", "ms", _times(found.p99_s, 1e3), None),
              ("load", "ms", _times(found.load_s, 1e3), None),
              ("size", "MB", _times(found.size_bytes, 1e-6), None),
              ("peak memory", "MB", _times(found.memory_peak_bytes, 1e-6), None),
              ("wrong answers", "%", wrong, wrong_half))
    extra = (f"{len(row.measurement.seconds)} calls in {row.measurement.rounds} rounds, {row.measurement.arrival}, "
             f"batch {row.batch}, on {machine_name(report)}")
    return [_entry(f"{row.case}: {name}", unit, value, spread, extra) for name, unit, value, spread in values
            if value is not None]


def _entry(name: str, unit: str, value: float, spread: float | None, extra: str) -> dict[str, Any]:
    # `± x` is the form of range that the action knows how to bring to another unit.
    around = {} if spread is None else {"range": f"± {spread:.4g}"}
    return {"name": printable(name), "unit": unit, "value": value, **around, "extra": printable(extra)}


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


TEXTS: Mapping[str, Callable[[Report], str]] = {
    MARKDOWN: markdown.page, JUNIT: junit.page, CSV: comma_separated, ACTION: action}


def texts(report: Report) -> dict[str, str]:
    """Every text file that stands beside report.json and report.html, by its name."""
    return {name: legible(draw(report)) for name, draw in TEXTS.items()}
