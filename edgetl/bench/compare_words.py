"""A comparison as tables of text, markdown and files."""

from __future__ import annotations

import json
from pathlib import Path

from edgetl import rundir
from edgetl.bench import junit, markdown
from edgetl.bench.comparison import (
    FAIL,
    FALSE_ALARMS,
    INCONCLUSIVE,
    PASS,
    SIGNIFICANCE,
    Apart,
    Case,
    Comparison,
    change,
    to_json,
)
from edgetl.bench.stats import Interval
from edgetl.bench.tables import MISSING, Table, legible, megabytes, milliseconds

MARKDOWN, JUNIT = "comparison.md", "junit.xml"


def tables(found: Comparison) -> tuple[Table, ...]:
    """All tables of a comparison that have rows: what could be compared, and what not."""
    both = (cases(found), Table("Not compared", ("case", "reason"), tuple(map(_apart, found.apart))))
    return tuple(one for one in both if one.rows)


def cases(found: Comparison) -> Table:
    """One row a case that could be compared; what decides comes first."""
    gate = found.max_regression is not None
    columns = ("case", "verdict", *(("gate",) if gate else ()), "new / base", "95 % interval", "base ms", "new ms",
               "p", "points of accuracy", "size MB")
    rows = tuple((case.name, case.verdict, *((case.gate or MISSING,) if gate else ()), *_cells(case))
                 for case in found.cases)
    limit = "" if found.max_regression is None else f"; gate at {100 * found.max_regression:g} %"
    divided = f", divided by {found.factor.value:.3f} for the machines" if found.machines else ""
    return Table(f"Median latency of {found.new} over that of {found.base}{divided}; a change counts from "
                 f"{100 * found.least_effect:g} % with p at most {SIGNIFICANCE:g}{limit}", columns, rows)


def _cells(case: Case) -> tuple[str, ...]:
    return (f"{case.ratio.value:.3f}", _span(case.ratio), milliseconds(case.base_s), milliseconds(case.new_s),
            f"{case.p_value:.2g}", _points(case), _size(case))


def _span(ratio: Interval) -> str:
    low, high = ratio.ends()
    return f"[{low:.3f}, {high:.3f}]"


def _points(case: Case) -> str:
    points = case.accuracy_points
    if points is None:
        return case.accuracy_reason or MISSING
    low, high = points.ends()
    return f"{points.value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _size(case: Case) -> str:
    if case.base_bytes == case.new_bytes:
        return megabytes(case.base_bytes)
    return f"{megabytes(case.base_bytes)} to {megabytes(case.new_bytes)}"


def _apart(one: Apart) -> tuple[str, str]:
    return one.name, one.reason


def remarks(found: Comparison) -> list[str]:
    """What a reader must know beside the figures."""
    told = [*_machines(found), *found.notes]
    told.append("The intervals know what changed from round to round within each report, not what was particular to "
                "its processes or has changed on the machine since; 'edgetl gate' measures both side by side, again "
                "and again in fresh processes.")
    if found.max_regression is not None:
        told.append(f"The gate fails a case that is slower by more than {100 * found.max_regression:g} % in its whole "
                    f"interval and by a rank test, corrected for the number of cases, at {FALSE_ALARMS:g}; it "
                    "passes a case whose whole interval lies below that.")
    return told


def _machines(found: Comparison) -> list[str]:
    if not found.machines:
        return []
    factor = found.factor
    parts = ", ".join(f"{name.removesuffix('_s')} {one.value:.2f}" for name, one in factor.parts.items())
    return [f"Different machines ({', '.join(found.machines)}): all ratios are divided by {factor.value:.3f}, which is "
            f"what the calibration kernel takes on NEW's machine over BASE's ({parts}). The parts and their noise "
            f"allow for anything from {factor.low:.2f} to {factor.high:.2f}, which is in every interval. A network is "
            "no kernel: other instructions, caches and threads can move it beyond even that. Take this as orientation, "
            "not as a measurement."]


def line(found: Comparison) -> str:
    """How many cases got which answer, in one line."""
    counts = {word: sum(case.verdict == word for case in found.cases) for word in
              dict.fromkeys(case.verdict for case in found.cases)}
    told = ", ".join(f"{count} {word}" for word, count in counts.items()) or "nothing could be compared"
    apart = f", {len(found.apart)} not compared" if found.apart else ""
    worst = max(found.cases, key=lambda case: case.ratio.value, default=None)
    most = "" if worst is None else f"; highest ratio: {worst.name}, {change(worst.ratio)}"
    gate = "" if found.gate is None else f"{found.gate}: "
    return f"{gate}{told}{apart}{most}"


def page(found: Comparison) -> str:
    """The comparison as GitHub-flavoured markdown, for the summary of a job."""
    parts = ["# Comparison", markdown.escape(line(found)), *map(markdown.table, tables(found)),
             f"## Notes\n\n{markdown.bullets(remarks(found))}"]
    return markdown.limited(parts)


def suite(found: Comparison) -> str:
    """JUnit XML with a test a case: as the exit code, it says no only where --max-regression asked.

    What a gate could not decide is an error, for a skipped test would be taken as green.
    """
    words = {PASS: junit.PASSED, FAIL: junit.FAILURE, INCONCLUSIVE: junit.ERROR, None: junit.PASSED}
    tests = [junit.Test(case.name, "edgetl.compare", 0.0, words[case.gate],
                        None if case.gate in (PASS, None) else f"{case.verdict}: {change(case.ratio)}",
                        f"{case.verdict}: {change(case.ratio)}") for case in found.cases]
    gated = found.max_regression is not None
    tests += [junit.Test(one.name, "edgetl.compare", 0.0, junit.ERROR if gated and one.matters else junit.SKIPPED,
                         f"not compared: {one.reason}") for one in found.apart]
    return junit.suite("edgetl compare", tests)


def write(found: Comparison, out: Path, *, overwrite: bool) -> None:
    """comparison.json, comparison.md and junit.xml in the folder `out`.

    Raises:
        OutputError: `out` exists or cannot be written.
    """
    with rundir.building(out, overwrite=overwrite) as folder:
        rundir.write_text(folder / rundir.COMPARISON, json.dumps(to_json(found), indent=1, allow_nan=False) + "\n")
        rundir.write_text(folder / MARKDOWN, legible(page(found)))
        rundir.write_text(folder / JUNIT, suite(found))
