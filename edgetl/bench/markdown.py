"""A report as GitHub-flavoured markdown: for pull requests, and for the summary of a job ($GITHUB_STEP_SUMMARY)."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from edgetl.bench import overview
from edgetl.bench.report import Report
from edgetl.bench.tables import Table, machine, notes, printable, shown

LIMIT_BYTES = 1_000_000  # GitHub refuses a step's summary of more than 1 MiB (1,048,576 bytes); others may add to it
# What begins emphasis, code, a link or a picture. An underscore within a word is only an underscore, and an interval
# such as [1.2, 3.4] is left readable.
SPECIAL = re.compile(r"[\\|`*~]|\[(?![-+0-9., ]+\])|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
BLOCK = re.compile(r"^(?=[#+\-=])|(?<=^[0-9])(?=[.)])")  # what makes a line a heading, a list or a rule


def page(report: Report) -> str:
    """The whole report; of one that is too long for a job's summary, whole sections from the first, and a remark."""
    parts = ["# Benchmark", *map(table, overview.all_tables(report))]
    known = [f"{name}: {shown(value)}" for name, value in machine(report).items()]
    for title, lines in (("Notes", [*notes(report), *overview.all_remarks(report)]), ("Machine", known)):
        if lines:
            parts.append(f"## {title}\n\n{bullets(lines)}")
    return limited(parts)


def table(found: Table) -> str:
    """A table under its caption."""
    rule = ["---:" if found.numeric(column) else "---" for column in range(len(found.columns))]
    lines = [[*map(escape, found.columns)], rule, *([*map(escape, row)] for row in found.rows)]
    return f"## {escape(found.caption)}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    """A list of texts that others wrote."""
    return "\n".join("- " + BLOCK.sub(r"\\", escape(line)) for line in lines)


def escape(text: str) -> str:
    """One line that is shown as it is: no markdown, no html and no character that moves the cursor."""
    line = SPECIAL.sub(r"\\\g<0>", " ".join(printable(text).split()))
    return html.escape(line, quote=False)


def limited(parts: Sequence[str], limit_bytes: int = LIMIT_BYTES) -> str:
    """The first parts that fit, with an empty line between two, and how many are left out."""
    kept: list[str] = []
    size = 0
    for part in parts:
        size += len(part.encode()) + 2
        if size > limit_bytes - 200:
            kept.append(f"{len(parts) - len(kept)} of {len(parts)} sections are left out here: the page would be "
                        "larger than what a job's summary may hold. report.html has all.")
            break
        kept.append(part)
    return "\n\n".join(kept) + "\n"
