"""Figures over many reports of one machine, in the style of those of a single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.bench import plots, stats
from edgetl.bench.collection import Found, Key
from edgetl.bench.plots import INK, ON_COLOR, brief
from edgetl.bench.tables import megabytes, milliseconds, percent

LEAST_AREA, GREATEST_AREA = 130.0, 1100.0  # of a marker, in square points: the least has room for its number
PANEL_IN, BAR_IN = 1.25, 0.46
MOST_TICKS = 9  # labels under a history

Numbered = Sequence[tuple[int, Found]]


def on_front(points: Sequence[tuple[float, float, float | None]]) -> list[bool]:
    """Which of (latency, accuracy, size) are beaten by no other: none is as good in all three and better in one.

    A size that is not known is taken as greater than any.
    """
    costs = [(latency, -accuracy, float("inf") if size is None else size) for latency, accuracy, size in points]
    return [not any(all(a <= b for a, b in zip(other, one, strict=True)) and other != one for other in costs)
            for one in costs]


def front(found: Numbered, name: str, backends: Sequence[str]) -> str:
    """A scatter of latency and accuracy with the size as area of the marker; those on the front have a thick rim.

    Args:
        found: rows with accuracy, on the same images, with the number that the table gives them.
        name: of the figure, unique in its page.
        backends: of the machine, in the order of their colours.
    """
    points = [point(one) for _, one in found]
    best = on_front(points)
    with plots.blank(3.8) as figure:
        axes = figure.add_subplot()
        greatest = max((size for _, _, size in points if size), default=1.0)
        for (number, one), (x, y, size), on in zip(found, points, best, strict=True):
            _marker(axes, number, x * 1000, y * 100, GREATEST_AREA * (size or 0) / greatest, on,
                    plots.color(backends, one.row.backend))
        _steps(axes, [(x * 1000, y * 100) for x, y, _ in points])
        axes.set_xlabel("median latency of one call, ms (left is faster)")
        axes.set_ylabel("test accuracy, % (up is better)")
        plots.latency_axis(axes, [x * factor for x, _, _ in points for factor in (0.8, 1.25)])
        axes.margins(x=0.12, y=0.18)
        _legend(axes, [one for one in backends if one in {found.row.backend for _, found in found}], backends)
        told = [f"{number} {one.row.case}: {milliseconds(x)} ms, {percent(y)} %, "
                f"{megabytes(one.row.size_bytes)} MB{', on the front' if on else ''}"
                for (number, one), (x, y, _), on in zip(found, points, best, strict=True)]
        return plots.svg(figure, name, "Latency, accuracy and size", "; ".join(told))


def point(one: Found) -> tuple[float, float, float | None]:
    """Median latency in seconds, accuracy as a share, and size in bytes where it is known."""
    assert one.row.accuracy is not None
    size = one.row.size_bytes
    return middle(one).value, one.row.accuracy.accuracy, None if size is None else float(size)


def middle(one: Found) -> stats.Interval:
    """The median of a row's latencies."""
    return stats.median_interval(one.row.measurement.by_round())


def _marker(axes: Any, number: int, x: float, y: float, area: float, on: bool, color: str) -> None:
    axes.scatter([x], [y], s=max(LEAST_AREA, area), color=color, zorder=2,
                 edgecolors=INK, linewidths=2.2 if on else 0.5)
    axes.annotate(str(number), (x, y), ha="center", va="center", color=ON_COLOR, fontsize=8, fontweight="bold",
                  zorder=4)


def _steps(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """The most accuracy that is to be had up to each latency."""
    edge: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda one: (one[0], -one[1])):
        if not edge or y > edge[-1][1]:
            edge.append((x, y))
    axes.plot(*zip(*edge, strict=True), drawstyle="steps-post", color=INK, alpha=0.6, linewidth=1, linestyle="--",
              zorder=1)


def _legend(axes: Any, shown: Sequence[str], backends: Sequence[str]) -> None:
    for backend in shown:
        axes.scatter([], [], s=60, color=plots.color(backends, backend), label=backend)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def bars(found: Numbered, name: str, backends: Sequence[str]) -> str:
    """A bar a case for its median latency with its interval; cases that differ in the backend stand together."""
    with plots.blank(0.7 + BAR_IN * len(found)) as figure:
        axes = figure.add_subplot()
        for place, (number, one) in enumerate(found):
            median = middle(one)
            # The rim keeps light colours apart from the paper.
            axes.barh(-place, median.value * 1000, height=0.32, color=plots.color(backends, one.row.backend),
                      edgecolor=INK, linewidth=0.5)
            if median.low is not None and median.high is not None:
                axes.plot([median.low * 1000, median.high * 1000], [-place] * 2, color=INK, linewidth=2)
            axes.annotate(f"{number}  {brief(one.row.case)}: {milliseconds(median.value)} ms", (0, -place + 0.26),
                          xycoords=("axes fraction", "data"), fontsize=10, in_layout=False)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-len(found) + 0.6, 0.7)
        axes.set_xlim(left=0)
        axes.set_xlabel("median latency of one call, ms")
        told = [f"{number} {one.row.case}: {milliseconds(middle(one).value)} ms" for number, one in found]
        return plots.svg(figure, name, "Latency by backend", "; ".join(told))


def history(series: Mapping[Key, Sequence[Found]], order: Sequence[str], numbers: Mapping[Key, int], name: str,
            backends: Sequence[str]) -> str:
    """A panel a case: its median latency with its interval, report after report.

    Args:
        series: what to draw, the oldest first.
        order: paths of the dated reports, the oldest first: the places on the axis.
        numbers: those that the table gives the cases.
        name: of the figure, unique in its page.
        backends: of the machine, in the order of their colours.
    """
    places = {path: place for place, path in enumerate(order)}
    names = {str(one.entry.path): one.entry.short_commit or one.entry.when[:10]
             for found in series.values() for one in found}
    with plots.blank(0.8 + PANEL_IN * len(series)) as figure:
        panels = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (key, found) in zip(panels, series.items(), strict=True):
            _panel(axes, found, [places[str(one.entry.path)] for one in found], plots.color(backends, key.backend))
            axes.set_title(f"{numbers[key]}  {brief(key.case)}, ms", loc="left", fontsize=10)
        step = -(-len(order) // MOST_TICKS)
        ticks = [place for place in range(len(order)) if (len(order) - 1 - place) % step == 0]
        panels[-1].set_xticks(ticks, [brief(names.get(order[place], ""), 12) for place in ticks], rotation=35,
                              ha="right")
        panels[-1].set_xlim(-0.4, len(order) - 0.6)
        told = [f"{numbers[key]} {key.case}: from {milliseconds(middle(found[0]).value)} to "
                f"{milliseconds(middle(found[-1]).value)} ms over {len(found)} reports"
                for key, found in series.items()]
        return plots.svg(figure, name, "Latency from report to report", "; ".join(told))


def _panel(axes: Any, found: Sequence[Found], places: Sequence[int], color: str) -> None:
    medians = [middle(one) for one in found]
    axes.plot(places, [one.value * 1000 for one in medians], "o-", color=color, markersize=5, linewidth=1.5)
    for place, one in zip(places, medians, strict=True):
        if one.low is not None and one.high is not None:
            axes.plot([place, place], [one.low * 1000, one.high * 1000], color=INK, linewidth=1.2)
    least = min(one.low or one.value for one in medians) * 1000
    greatest = max(one.high or one.value for one in medians) * 1000
    # At least a tenth of the value is shown, or noise fills the panel and looks like news.
    spare = max(0.1 * greatest - (greatest - least), 0) / 2 + 0.1 * (greatest - least)
    axes.set_ylim(least - spare, greatest + spare)
    axes.yaxis.set_major_locator(_locator())


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)
