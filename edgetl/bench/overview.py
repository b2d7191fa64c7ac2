"""All tables and remarks of a report, those of sensors and layers included, as the terminal and markdown show them."""

from __future__ import annotations

from edgetl.bench import before_after, instruments, layers, mlperf_table, tables
from edgetl.bench.report import Report
from edgetl.bench.tables import Table


def all_tables(made: Report) -> tuple[Table, ...]:
    """The tables that have rows, the summary first."""
    return (*tables.tables(made), *mlperf_table.tables(made), *instruments.tables(made), *before_after.tables(made),
            *layers.tables(made))


def all_remarks(made: Report) -> list[str]:
    """What a reader must know beside the figures and the warnings."""
    return [*tables.remarks(made), *instruments.remarks(made),
            *(tables.local(text, made) for text in layers.reasons(made))]
