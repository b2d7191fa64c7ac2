"""The part of the html page that tells where the time of a call goes."""

from __future__ import annotations

from edgetl.bench import layers, layers_plot, markup
from edgetl.bench.report import Report, Row
from edgetl.bench.tables import numbered

CAPTION = ("From above: kinds of arithmetic, their operations, and the layers of each in the order in which they ran; "
           "as wide as the time that the profiler of the engine gives them.")


def content(made: Report) -> str:
    """Figure and tables of each case that was profiled; empty where none was."""
    return "\n".join(_case(number, row) for number, row in numbered(made) if row.layers)


def _case(number: int, row: Row) -> str:
    heading = f"<h3>{markup.escape(f'{number} {row.case}')}</h3>"
    figure = markup.figure(layers_plot.icicle(row, number), CAPTION)
    return "\n".join([heading, figure, markup.table(layers.by_operation(number, row)),
                      markup.table(layers.slowest(number, row))])
