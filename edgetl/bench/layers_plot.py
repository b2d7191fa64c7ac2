"""The layers of a call as an icicle: arithmetic, operations, layers, each as wide as the time it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetl.bench import plots
from edgetl.bench.layers import arithmetic, operations
from edgetl.bench.report import LayerTime, Row
from edgetl.bench.tables import percent
from edgetl.runtime.layers import KINDS

LETTERS = 58  # of the smallest size that fit side by side into the figure's width
# Colour and pattern of a kind of arithmetic: a page is also printed, and not everybody sees the colours.
LOOKS = {"integer": (plots.COLORS[2], ""), "float": (plots.COLORS[1], "///"), "converting": (plots.COLORS[3], "..."),
         "moving": (plots.COLORS[5], "\\\\\\"), "unknown": ("#8a8f98", "xxx")}


def icicle(row: Row, number: int) -> str | None:
    """The figure as an <svg> element; None where the case was not profiled."""
    if not any(one.share for one in row.layers):
        return None
    with plots.drawing(2.4) as (figure, axes):
        begin = 0.0
        for kind in KINDS:
            begin = _kind(axes, begin, [one for one in row.layers if one.kind == kind])
        axes.set(xlim=(0, 1), ylim=(-0.05, 3.0), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1.0])
        axes.set_xticklabels(["0", "25", "50", "75", "100"])
        axes.set_xlabel("share of the layers' time, %")
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        _legend(axes, row.layers)
        told = "; ".join(f"{op}: {percent(_share(found))} % in {len(found)} layers"
                         for op, found in operations(row.layers))
        return plots.svg(figure, f"layers-{number}", f"Layers of {row.case}", f"{arithmetic(row.layers)}; {told}")


def _kind(axes: Any, begin: float, found: Sequence[LayerTime]) -> float:
    """The cells of one arithmetic: its own above, its operations below it, and their layers; returns where it ends."""
    if not found:
        return begin
    share, kind = _share(found), found[0].kind
    _cell(axes, begin, share, 2, f"{kind} {percent(share)} %", kind)
    for op, layers in operations(found):
        _cell(axes, begin, _share(layers), 1, f"{op} {percent(_share(layers))} %", kind)
        for one in layers:
            _cell(axes, begin, one.share, 0, one.name, kind)
            begin += one.share
    return begin


def _share(found: Sequence[LayerTime]) -> float:
    return sum(one.share for one in found)


def _cell(axes: Any, left: float, width: float, level: int, words: str, kind: str) -> None:
    color, hatch = LOOKS[kind]
    hatch = hatch if level else ""  # in the thin cells of layers it would be all there is to see
    axes.barh(level + 0.45, width, left=left, height=0.9, color=color, hatch=hatch, edgecolor=plots.INK, linewidth=0.3)
    if len(words) <= width * LETTERS:  # a name of which the half is missing names nothing; the table has it
        # The pattern does not run through the letters.
        axes.text(left + width / 2, level + 0.45, plots.brief(words), ha="center", va="center", fontsize=9,
                  color=plots.ON_COLOR, clip_on=True,
                  bbox={"boxstyle": "square,pad=0.1", "facecolor": color, "linewidth": 0})


def _legend(axes: Any, layers: Sequence[LayerTime]) -> None:
    from matplotlib.patches import Patch

    shown = [kind for kind in KINDS if any(one.kind == kind for one in layers)]
    handles = [Patch(facecolor=LOOKS[kind][0], hatch=LOOKS[kind][1], edgecolor=plots.INK, linewidth=0.3, label=kind)
               for kind in shown]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)
