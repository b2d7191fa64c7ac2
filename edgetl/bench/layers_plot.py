"""The layers of a call as an icicle: operations above, the layers of each below, as wide as the time they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetl.bench import plots
from edgetl.bench.layers import arithmetic, operations
from edgetl.bench.report import LayerTime, Row
from edgetl.bench.tables import percent

LETTERS = 92  # of the smallest size that fit side by side into the figure's width
# Colour and pattern of a kind of arithmetic: a page is also printed, and not everybody sees the colours.
LOOKS = {"integer": (plots.COLORS[2], ""), "float": (plots.COLORS[1], "///"), "converting": (plots.COLORS[3], "..."),
         "moving": (plots.COLORS[5], "\\\\\\"), "unknown": ("#8a8f98", "xxx")}


def icicle(row: Row, number: int) -> str | None:
    """The figure as an <svg> element; None where the case was not profiled."""
    if not row.layers or not any(one.share for one in row.layers):
        return None
    with plots.drawing(1.9) as (figure, axes):
        begin = 0.0
        for op, found in operations(row.layers):
            share = sum(one.share for one in found)
            _cell(axes, begin, share, 1, f"{op} {percent(share)} %", kinds(found))
            _layers(axes, begin, found)
            begin += share
        axes.set(xlim=(0, 1), ylim=(-0.05, 2.0), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1.0])
        axes.set_xticklabels(["0", "25", "50", "75", "100"])
        axes.set_xlabel("share of the layers' time, %")
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        _legend(axes, row.layers)
        told = "; ".join(f"{op}: {percent(sum(one.share for one in found))} % in {len(found)} layers"
                         for op, found in operations(row.layers))
        return plots.svg(figure, f"layers-{number}", f"Layers of {row.case}", f"{arithmetic(row.layers)}; {told}")


def _layers(axes: Any, begin: float, found: Sequence[LayerTime]) -> None:
    """The layers of one operation in the order in which they ran."""
    for one in found:
        _cell(axes, begin, one.share, 0, one.name, one.kind)
        begin += one.share


def _cell(axes: Any, left: float, width: float, level: int, words: str, kind: str) -> None:
    color, hatch = LOOKS[kind]
    axes.barh(level + 0.45, width, left=left, height=0.9, color=color, hatch=hatch, edgecolor=plots.INK, linewidth=0.3)
    room = int(width * LETTERS)
    if room >= 4:
        # The pattern does not run through the letters.
        axes.text(left + width / 2, level + 0.45, plots.brief(words, room), ha="center", va="center", fontsize=8,
                  color=plots.ON_COLOR, clip_on=True,
                  bbox={"boxstyle": "square,pad=0.1", "facecolor": color, "linewidth": 0})


def kinds(found: Sequence[LayerTime]) -> str:
    """The arithmetic that all these layers have; "unknown" where they differ."""
    all_of_them = {one.kind for one in found}
    return all_of_them.pop() if len(all_of_them) == 1 else "unknown"


def _legend(axes: Any, layers: Sequence[LayerTime]) -> None:
    from matplotlib.patches import Patch

    shown = dict.fromkeys(kinds(found) for _, found in operations(layers)) | dict.fromkeys(one.kind for one in layers)
    handles = [Patch(facecolor=LOOKS[kind][0], hatch=LOOKS[kind][1], edgecolor=plots.INK, linewidth=0.3,
                     label="mixed or unknown" if kind == "unknown" else kind) for kind in shown]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)
