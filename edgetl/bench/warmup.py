"""When a case is warm: calls go on until two windows of them show no trend, and how many that took is told.

A fixed number of calls is too few for one case and too many for another, and some never come to rest, which is worth
knowing: E. Barrett, C. F. Bolz-Tereick, R. Killick, S. Mount, L. Tratt, Virtual Machine Warmup Blows Hot and Cold,
OOPSLA 2017. As A. Georges, D. Buytaert, L. Eeckhout (Statistically Rigorous Java Performance Evaluation, OOPSLA 2007)
do, the last calls are looked at again and again; but not by their spread, which on a shared machine never gets small,
but by whether they still go anywhere.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WINDOW, LEAST = 20, 5  # calls in a window; fewer where so many would take too long
MOST_CALLS = 2000
TOLERANCE = 0.02  # two windows whose medians differ by less are alike, however sure the difference is
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class WarmUp:
    """How a warm-up ended."""

    calls: int
    seconds: float  # from the begin of the first call to the end of the last, pauses of the parent left out
    reason: str | None  # why the case does not count as stable; None when it does


def warm_up(measure: Callable[[int], Sequence[float]], *, first_s: float, limit_s: float,
            interval_s: float | None = None) -> WarmUp:
    """Calls until the last two windows are alike, or until they have taken `limit_s` or `MOST_CALLS`.

    Args:
        measure: makes so many calls and returns the seconds of each.
        first_s: about what a call takes.
        limit_s: seconds of calls after which it is given up.
        interval_s: from the begin of a call to the begin of the next; None is back to back.
    """
    calls, passed_s, typical_s = 0, 0.0, first_s
    earlier: Sequence[float] = ()
    while True:
        later = measure(_window(max(typical_s, interval_s or 0.0), limit_s))
        calls += len(later)
        passed_s += sum(max(one, interval_s or 0.0) for one in later)
        if earlier and stable(earlier, later):
            return WarmUp(calls, passed_s, None)
        if passed_s >= limit_s or calls >= MOST_CALLS:
            return WarmUp(calls, passed_s, _unstable(calls, passed_s, earlier, later))
        earlier, typical_s = later, statistics.median(later)


def _window(call_s: float, limit_s: float) -> int:
    """Calls of a window of which four fit into the limit."""
    if call_s * 4 * WINDOW <= limit_s:
        return WINDOW
    return max(LEAST, int(limit_s / (4 * call_s)))


def stable(earlier: Sequence[float], later: Sequence[float]) -> bool:
    """Whether two successive windows show no trend: their medians are alike, or the calls do not rise or fall in order.

    The trend is tested by Kendall's tau of the latencies with their order, two-sided, as H. B. Mann, Nonparametric
    Tests Against Trend, Econometrica 13 (1945) does. Calls that depend on the ones before pass for a trend more often
    than `SIGNIFICANCE` says, which costs a few more calls.
    """
    before, after = statistics.median(earlier), statistics.median(later)
    if abs(after - before) <= TOLERANCE * max(before, after):
        return True
    from scipy import stats

    both = [*earlier, *later]
    return bool(stats.kendalltau(range(len(both)), both).pvalue > SIGNIFICANCE)


def _unstable(calls: int, passed_s: float, earlier: Sequence[float], later: Sequence[float]) -> str:
    told = f"it did not become stable within {calls} calls and {passed_s:.3g} s"
    if not earlier:
        return f"{told}, which are too few to tell"
    before, after = (f"{statistics.median(one) * 1000:.3g}" for one in (earlier, later))
    return f"{told}: the medians of the last two windows of {len(later)} calls are {before} and {after} ms"
