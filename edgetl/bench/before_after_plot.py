"""The nodes of a variant beside those of float32: two bars an operation, by arithmetic, as long as their time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetl.bench import plots
from edgetl.bench.before_after import Change, Pair, changes, sentence
from edgetl.bench.layers_plot import LOOKS
from edgetl.bench.report import LayerTime
from edgetl.runtime.layers import KINDS

MOST = 7  # operations with bars of their own; the others share one pair
HEIGHT = 0.36  # of a bar, where operations lie 1 apart
ROW_IN, EDGES_IN = 0.42, 1.0
CAPTION = ("Of each operation the upper bar is fp32, the lower one this variant; what takes longest comes first. The "
           "times are those of the profiler of the engine, for a call.")


def bars(pair: Pair) -> str:
    """The figure as an <svg> element."""
    rows = _rows(pair)
    with plots.drawing(EDGES_IN + ROW_IN * len(rows)) as (figure, axes):
        for place, one in enumerate(rows):
            _bar(axes, -place + HEIGHT / 2, one.before)
            _bar(axes, -place - HEIGHT / 2, one.after)
        axes.set_yticks([-place for place in range(len(rows))], [plots.brief(one.operation, 20) for one in rows])
        axes.set_ylim(-len(rows) + 0.45, 0.55)
        axes.margins(x=0.14)  # for the figures at the ends of the bars
        axes.set_xlim(left=0)
        axes.set_xlabel("µs of a call")
        axes.tick_params(axis="y", length=0)
        _legend(axes, rows)
        number, row = pair.after
        return plots.svg(figure, f"before-after-{number}", f"Operations of {row.case} before and after", sentence(pair))


def _rows(pair: Pair) -> list[Change]:
    """The whole call, the operations that take most of either, and all others in one."""
    found = sorted(changes(pair), key=lambda one: -max(one.before_s, one.after_s))
    first, rest = (found, []) if len(found) <= MOST + 1 else (found[:MOST], found[MOST:])
    total = Change("all", pair.before[1].layers, pair.after[1].layers)
    others = Change(f"{len(rest)} others", *(tuple(one for change in rest for one in getattr(change, side))
                                             for side in ("before", "after")))
    return [total, *first, *([others] if rest else [])]


def _bar(axes: Any, height: float, layers: Sequence[LayerTime]) -> None:
    begin = 0.0
    for kind in KINDS:
        width = 1e6 * sum(one.median_s for one in layers if one.kind == kind)
        if width:
            color, hatch = LOOKS[kind]
            axes.barh(height, width, left=begin, height=HEIGHT, color=color, hatch=hatch, edgecolor=plots.INK,
                      linewidth=0.3)
        begin += width
    axes.annotate(f"{begin:.0f}", (begin, height), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)


def _legend(axes: Any, rows: Sequence[Change]) -> None:
    from matplotlib.patches import Patch

    kinds = {one.kind for row in rows for one in (*row.before, *row.after)}
    handles = [Patch(facecolor=LOOKS[kind][0], hatch=LOOKS[kind][1], edgecolor=plots.INK, linewidth=0.3, label=kind)
               for kind in KINDS if kind in kinds]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize=9)
