"""The part of the html page that tells where the time of a call goes."""

from __future__ import annotations

import dataclasses

from edgetl.bench import before_after, before_after_plot, layers, layers_plot, markup
from edgetl.bench.before_after import Pair
from edgetl.bench.report import Report, Row
from edgetl.bench.tables import numbered

CAPTION = ("From above: kinds of arithmetic, their operations, and the layers of each in the order in which they ran; "
           "as wide as the time that the profiler of the engine gives them.")


def content(made: Report) -> str:
    """What changed from fp32 to each variant, then each case that was profiled; empty where none was."""
    compared = [_pair(pair) for pair in before_after.pairs(made)]
    return "\n".join([*compared, *(_case(number, row) for number, row in numbered(made) if row.layers)])


def _pair(pair: Pair) -> str:
    (first, _), (second, row) = pair.before, pair.after
    operations = dataclasses.replace(before_after.by_operation(pair), caption="By operation, what changed most first")
    heading = f"<h3>{markup.escape(f'{second} {row.case} beside fp32 (number {first})')}</h3>"
    return "\n".join([heading, f"<p>{markup.escape(before_after.sentence(pair))}.</p>",
                      markup.figure(before_after_plot.bars(pair), before_after_plot.CAPTION),
                      markup.table(operations), markup.table(before_after.by_layer(pair))])


def _case(number: int, row: Row) -> str:
    heading = f"<h3>{markup.escape(f'{number} {row.case}')}</h3>"
    figure = markup.figure(layers_plot.icicle(row, number), CAPTION)
    return "\n".join([heading, figure, markup.table(layers.by_operation(number, row)),
                      markup.table(layers.slowest(number, row))])
