"""A benchmark's outcomes as JUnit XML, which every CI reads: a test each, with the reason where it is not green."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from edgetl.bench.report import MEASURED, PENDING, Report, Row
from edgetl.bench.tables import Table, local, printable, summary

PASSED, FAILURE, ERROR, SKIPPED = "passed", "failure", "error", "skipped"


@dataclass(frozen=True)
class Test:
    """One test case."""

    name: str
    group: str  # what CI shows it under
    seconds: float  # how long measuring took
    outcome: str = PASSED  # "failure": the answer is no; "error": there is none; "skipped": it could not be decided
    reason: str | None = None  # of every outcome but "passed"
    output: str = ""  # the figures, in lines


def page(report: Report) -> str:
    """A suite with one test a case: measured, an error with its reason, or skipped where it was not begun."""
    told = _told(summary(report))
    tests = [Test(row.case, f"edgetl.bench.{row.backend}", math.fsum(row.measurement.seconds), _outcome(row),
                  None if row.measured else local(row.measurement.reason or "no reason was given", report),
                  told.get(row.case, "")) for row in report.rows]
    return suite("edgetl bench", tests)


def _outcome(row: Row) -> str:
    return {MEASURED: PASSED, PENDING: SKIPPED}.get(row.measurement.status, ERROR)


def _told(table: Table) -> Mapping[str, str]:
    """The figures of each case, a line a column."""
    place = table.columns.index("case")
    return {row[place]: "\n".join(f"{name}: {cell}" for name, cell in zip(table.columns, row, strict=True)
                                  if name not in ("#", "case")) for row in table.rows}


def suite(name: str, tests: Sequence[Test]) -> str:
    """The XML of one suite, in the form that Jenkins, GitLab and GitHub's actions have in common (xUnit, junit-10).

    Args:
        name: of the suite.
        tests: its cases; what no XML may hold is written as escapes.
    """
    counts = {"tests": len(tests), **{f"{kind}s": sum(test.outcome == kind for test in tests)
                                      for kind in (FAILURE, ERROR)}}
    sums = {**{key: str(count) for key, count in counts.items()}, "time": _seconds(sum(one.seconds for one in tests))}
    whole = ElementTree.Element("testsuites", {"name": printable(name), **sums})
    skipped = str(sum(test.outcome == SKIPPED for test in tests))
    inner = ElementTree.SubElement(whole, "testsuite", {"name": printable(name), **sums, "skipped": skipped})
    for test in tests:
        _add(inner, test)
    ElementTree.indent(whole)
    text: str = ElementTree.tostring(whole, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _add(inner: ElementTree.Element, test: Test) -> None:
    case = ElementTree.SubElement(inner, "testcase", {
        "classname": printable(test.group), "name": printable(test.name), "time": _seconds(test.seconds)})
    if test.outcome != PASSED:
        reason = printable(test.reason or "no reason was given")
        kind = {} if test.outcome == SKIPPED else {"type": f"edgetl.{test.outcome}"}
        # The whole in the text too: CI shows one of the two, or cuts the message at its first line.
        ElementTree.SubElement(case, test.outcome, {**kind, "message": reason}).text = reason
    if test.output:
        ElementTree.SubElement(case, "system-out").text = printable(test.output)


def _seconds(value: float) -> str:
    return f"{value:.3f}"
