"""The table of what MLPerf's scenarios found, with everything that makes a figure count for less."""

from __future__ import annotations

from edgetl.bench.mlperf import MIN_DURATION_S, NOT_A_RESULT, Scenario
from edgetl.bench.report import Report
from edgetl.bench.tables import MISSING, Table, local, milliseconds, numbered, significant

COLUMNS = ("#", "case", "scenario", "result", "metric", "valid", "early stopping", "queries", "min duration",
           "min queries", "inputs")


def tables(made: Report) -> tuple[Table, ...]:
    """One row a scenario of a case; nothing without --mode mlperf."""
    rows = tuple((str(number), row.case, found.name, local(_result(found), made), *_cells(found))
                 for number, row in numbered(made) for found in row.mlperf)
    caption = f"MLPerf's scenarios: {NOT_A_RESULT}; estimates hold with 99 % confidence"
    return (Table(caption, COLUMNS, rows),) if rows else ()


def _result(found: Scenario) -> str:
    if found.reason is not None:
        return found.reason
    if found.samples_per_s is not None:
        return f"{significant(found.samples_per_s, 3)} /s"
    if found.estimate_s is None:
        return f"needs {found.early_stopping_needs} queries"
    return f"{milliseconds(found.estimate_s)} ms"


def _cells(found: Scenario) -> tuple[str, ...]:
    if found.reason is not None:
        return (found.metric, "no", *[MISSING] * 5)
    no_estimate = found.estimate_s is None and found.samples_per_s is not None
    stopping = "not asked for" if no_estimate else _yes(found.early_stopping_satisfied)
    return (found.metric, _valid(found), stopping, str(found.queries), _duration(found), _queries(found),
            found.inputs)


def _valid(found: Scenario) -> str:
    return "shortened" if found.valid and not found.full_length else _yes(found.valid)


def _duration(found: Scenario) -> str:
    said = f"{_yes(found.duration_satisfied)}, {significant(found.duration_s, 3)} of {found.min_duration_s:g} s"
    return said if found.full_length else f"{said}, where MLPerf asks for {MIN_DURATION_S:g}"


def _queries(found: Scenario) -> str:
    if found.name == "offline":
        return f"{_yes(found.queries_satisfied)}, {found.samples} of {found.min_samples} samples"
    return f"{_yes(found.queries_satisfied)}, {found.queries} of {found.min_queries}"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
