"""Figures of a report as SVG text that takes its ink from the page, so that one drawing serves light and dark."""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgetl.bench import stats
from edgetl.bench.report import Report, Row
from edgetl.bench.tables import milliseconds, numbered, printable, right, score_name

INK = "#010203"  # drawn by matplotlib, replaced by `currentColor`: the colour of the text around the figure
NAME_LENGTH = 40  # letters of the width of a figure
WIDTH_IN = 4.4  # 317 points: a phone draws a point a little larger than a pixel, so 10-point letters can be read
# Okabe and Ito's palette, told apart with colour-blind eyes, less its black; its blue is lighter, to be seen on black.
COLORS = ("#1F8AD0", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ON_COLOR = "#101010"  # letters on these colours: each gives at least 4.5:1, white on them would not
SHAPES = ("o", "s", "D", "h", "p", "8")  # all have room for a number
STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "legend.frameon": False, "savefig.transparent": True, "axes.grid": True, "grid.color": INK,
    "grid.alpha": 0.15, "axes.axisbelow": True, "text.parse_math": False}  # a folder's name may hold dollar signs


def latency_against_accuracy(report: Report) -> str | None:
    """A scatter of the cases with both numbers, with intervals; None where no case has both."""
    points = [(number, row) for number, row in numbered(report) if judged(row) is not None]
    name = score_name(report)
    if not points:
        return None
    with drawing(3.4) as (figure, axes):
        for backend in dict.fromkeys(row.backend for _, row in points):
            _scatter(axes, report, backend, [point for point in points if point[1].backend == backend])
        axes.set_xlabel("median latency of one call, ms (left is faster)")
        axes.set_ylabel(f"test {name or 'accuracy, %'} (up is better)")
        latency_axis(axes, [second for _, row in points for second in _whiskers(row)])
        axes.margins(y=0.15)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        told = [f"{number} {row.case}: {milliseconds(_middle(row))} ms, {right(row)}{'' if name else ' %'}"
                for number, row in points]
        return svg(figure, "scatter", f"Latency against {name or 'accuracy'}", "; ".join(told))


def judged(row: Row) -> tuple[float, float, float] | None:
    """Accuracy in percent, or the task's score, with its interval where there is one; None where none is known."""
    if row.accuracy is not None:
        found = row.accuracy
        return 100 * found.accuracy, 100 * found.accuracy_low, 100 * found.accuracy_high
    if row.score is None or row.score.value is None:
        return None
    value, low, high = row.score.value, row.score.low, row.score.high
    return value, value if low is None else low, value if high is None else high


def _scatter(axes: Any, report: Report, backend: str, points: Sequence[tuple[int, Row]]) -> None:
    ink, shape = look(report, backend)
    for place, (number, row) in enumerate(points):
        found = judged(row)
        assert found is not None
        x, (y, low, high) = _middle(row) * 1000, found
        axes.errorbar([x], [y], yerr=[[y - low], [high - y]], color=ink, alpha=0.5, linewidth=1, capsize=2)
        axes.plot([x], [y], shape, markersize=12, color=ink, linestyle="none", label=backend if place == 0 else None)
        axes.annotate(str(number), (x, y), ha="center", va="center", color=ON_COLOR, fontsize=8.5, fontweight="bold")


def latency_distribution(report: Report) -> str | None:
    """A strip of every sample with its box for each measured case; None where nothing was measured.

    Each strip is relative to its own median, or the slowest case would squeeze all others into a line.
    """
    rows = numbered(report)
    return strips(rows, "strips", list(dict.fromkeys(row.backend for row in report.rows))) if rows else None


def strips(rows: Sequence[tuple[int, Row]], name: str, backends: Sequence[str]) -> str:
    """The strips of some rows, each with its number in the tables.

    Args:
        rows: measured ones.
        name: of the figure, unique in its page.
        backends: in the order of their colours.
    """
    with drawing(0.55 + 0.5 * len(rows)) as (figure, axes):
        generator = np.random.default_rng(0)
        for place, (number, row) in enumerate(rows, start=1):
            _strip(axes, -place, row, color(backends, row.backend), generator)
            # Not part of the layout: a long name must not squeeze the drawing into a line.
            axes.annotate(f"{number}  {brief(row.case)}: {milliseconds(_middle(row))} ms", (0, -place + 0.28),
                          xycoords=("axes fraction", "data"), fontsize=10, in_layout=False)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-len(rows) - 0.35, -0.35)
        axes.set_xlabel("latency of a call / median of its case")
        _ratio_axis(axes, max(max(row.measurement.seconds) / _middle(row) for _, row in rows))
        return svg(figure, name, "Latency of every call", "; ".join(_spoken(number, row) for number, row in rows))


def _strip(axes: Any, height: float, row: Row, ink: str, generator: np.random.Generator) -> None:
    samples = np.asarray(row.measurement.seconds) / _middle(row)
    shown = samples if len(samples) <= 1000 else generator.choice(samples, 1000, replace=False)  # the page stays small
    axes.plot(shown, height + generator.uniform(-0.15, 0.15, len(shown)), ".", markersize=3, alpha=0.6, color=ink,
              markeredgewidth=0)
    line = {"color": INK, "linewidth": 1}
    # Whiskers reach the least and greatest sample: no outlier is left out.
    axes.boxplot([samples], positions=[height], orientation="horizontal", widths=0.3, whis=(0, 100), showfliers=False,
                 manage_ticks=False, boxprops=line, whiskerprops=line, capprops=line,
                 medianprops={**line, "linewidth": 2})


def _ratio_axis(axes: Any, greatest: float) -> None:
    """Linear where all calls lie within twice the median, else logarithmic with plain numbers."""
    if greatest > 2:
        logarithmic(axes)


def _spoken(number: int, row: Row) -> str:
    seconds = row.measurement.seconds
    return (f"{number} {row.case}: median {milliseconds(_middle(row))} ms, least {milliseconds(min(seconds))}, "
            f"greatest {milliseconds(max(seconds))}")


def brief(name: str, most: int = NAME_LENGTH) -> str:
    """A name that fits into a figure: of a long one its begin and its end, for there the cases differ."""
    line = " ".join(printable(name).split())
    half = (most - 1) // 2
    return line if len(line) <= most else f"{line[:half]}…{line[-half:]}"


def look(report: Report, backend: str) -> tuple[str, str]:
    """Colour and marker of a backend, the same in every figure."""
    backends = list(dict.fromkeys(row.backend for row in report.rows))
    return color(backends, backend), SHAPES[backends.index(backend) % len(SHAPES)]


def color(backends: Sequence[str], backend: str) -> str:
    """The colour of a backend, by its place among those of a page."""
    return COLORS[backends.index(backend) % len(COLORS)]


def _middle(row: Row) -> float:
    return stats.median_interval(row.measurement.seconds).value


def _whiskers(row: Row) -> tuple[float, float]:
    return _middle(row) * 0.85, _middle(row) * 1.18


def latency_axis(axes: Any, seconds: Sequence[float]) -> None:
    """Makes the horizontal axis one in milliseconds, logarithmic where the range is wide."""
    low, high = min(seconds) * 1000, max(seconds) * 1000
    if high / low > 3:
        logarithmic(axes)
        axes.set_xlim(low * 0.93, high * 1.07)


def logarithmic(axes: Any) -> None:
    """Makes the horizontal axis logarithmic, with plain numbers at 1, 2 and 5: powers are hard to read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


@contextlib.contextmanager
def drawing(height_in: float) -> Iterator[tuple[Any, Any]]:
    """A `blank` figure and its only axes."""
    with blank(height_in) as figure:
        yield figure, figure.add_subplot()


@contextlib.contextmanager
def blank(height_in: float) -> Iterator[Any]:
    """A figure in the page's width and style; pyplot, which would keep the figure alive, is not used."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def svg(figure: Any, name: str, title: str, description: str) -> str:
    """The figure as an <svg> element for an html page: named for screen readers, inked by the page.

    Args:
        figure: of matplotlib.
        name: begins every id within, so that several figures may stand in one page.
        title: what a screen reader calls the figure.
        description: what it reads out in its place.
    """
    import matplotlib

    target = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(target, format="svg", metadata={"Date": None})
    drawn = target.getvalue()
    drawn = drawn[drawn.index("<svg"):]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn)  # html needs none, and a page without URLs loads none
    drawn = drawn.replace(INK, "currentColor")
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawn)
    heading = (f'<title id="{name}-title">{html.escape(printable(title))}</title>'
               f'<desc id="{name}-desc">{html.escape(printable(description))}</desc>')
    return re.sub(r"<svg[^>]*>", lambda found: _opening(found[0], name) + heading, drawn, count=1)


def _opening(tag: str, name: str) -> str:
    box = re.search(r'viewBox="[^"]*"', tag)
    assert box is not None
    return f'<svg {box[0]} role="img" aria-labelledby="{name}-title" aria-describedby="{name}-desc">'
