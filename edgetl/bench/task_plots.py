"""What a RUN said against what is true, value by value, as SVG text that takes its ink from the page."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import head_metrics
from edgetl.bench import plots
from edgetl.bench.run_record import Trained
from edgetl.heads import REGRESS

COLUMNS = 6  # panels of a figure; a page of more is not read
POINTS = 800  # of a panel, drawn by lot; each of them is an element of the page
CAPTION = "Each point is a test image; on the dotted line what was said is true."


def values(run: Trained) -> str | None:
    """A panel a column, at most six: what was said of each test image against what is true; None of other tasks."""
    if run.said is None or run.heads[0].kind != REGRESS:
        return None
    columns = [place for place in range(run.said.truth.shape[1]) if np.isfinite(run.said.truth[:, place]).any()]
    shown = columns[:COLUMNS]
    if not shown:
        return None
    lines = -(-len(shown) // 2)
    wide = min(2, len(shown))
    with plots.blank(0.4 + (3.4 if wide == 1 else 2.2) * lines) as figure:
        panels = figure.subplots(lines, wide, squeeze=False).ravel()
        told = [_panel(axes, run.heads[0].labels[place], run.said.truth[:, place], run.said.answers[:, place])
                for axes, place in zip(panels, shown, strict=False)]
        for axes in panels[len(shown):]:
            axes.set_axis_off()
        figure.supxlabel("true", fontsize=10)
        figure.supylabel("said", fontsize=10)
        return plots.svg(figure, "values", "What was said against what is true", "; ".join(told))


def caption(run: Trained) -> str:
    """What the figure shows, and what of it is left out."""
    count = len(run.heads[0].labels) if run.heads else 0
    more = f" The first {COLUMNS} of {count} columns." if count > COLUMNS else ""
    drawn = f" {POINTS} images drawn by lot." if run.said is not None and len(run.said.keys) > POINTS else ""
    return CAPTION + more + drawn


def _panel(axes: Any, name: str, truth: NDArray[np.float64], said: NDArray[np.float64]) -> str:
    """Draws a column; it in words."""
    known = np.flatnonzero(np.isfinite(truth))
    if len(known) > POINTS:
        known = np.sort(np.random.default_rng(0).choice(known, POINTS, replace=False))
    x, y = truth[known], said[known]
    ends = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    axes.plot(ends, ends, color=plots.INK, linewidth=1, linestyle=":")
    axes.plot(x, y, "o", color=plots.COLORS[0], markersize=3.5, alpha=0.7, markeredgewidth=0)
    axes.set_title(name[:plots.NAME_LENGTH], loc="left", fontsize=10)
    axes.locator_params(nbins=4)  # two panels stand beside each other
    known_all = np.isfinite(truth)
    errors = head_metrics.value_errors(said[known_all], truth[known_all], np.ones((1, int(known_all.sum()))))
    r2 = float(errors["r2"][0])
    return (f"{name}: mean absolute error {float(errors['mae'][0]):.4g}"
            + (f", R2 {r2:.3f}" if np.isfinite(r2) else "") + f" on {int(known_all.sum())} images")
