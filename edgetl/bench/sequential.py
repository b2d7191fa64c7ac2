"""The decision of a gate: whether NEW is slower than BASE by a margin that must not get through. Numbers in, words out.

**What is asked.** With `--max-regression m` a slowdown of m is stopped and one of m / 2 is let through; between the two
either may happen, by which is nearer. Such a zone is needed: whoever stops all beyond m and lets through all up to m
decides by a coin at m itself, whatever the number of samples. So there are two hypotheses, and each can be rejected:

- "the slowdown is m / 2 or less": rejected means FAIL, wrongly at most `FALSE_ALARM` of the times;
- "the slowdown is m or more": rejected means PASS, wrongly at most `LET_THROUGH` of the times.

If nothing has changed the true slowdown is 0, far on the near side of m / 2, so false alarms between equals are rarer
still. A. Wald, Sequential Tests of Statistical Hypotheses, Annals of Mathematical Statistics 16 (1945) 117-186 (two
hypotheses with a zone of indifference, sampling until one is rejected).

**The data** are logarithms of NEW over BASE, one of each pair of fresh processes (`edgetl.bench.pairs`), and a slowdown
shifts them. Who of a pair is BASE was drawn, so without a difference each lies as likely above zero as below by as
much, whatever the distribution, and however the noise comes and goes from pair to pair. Wilcoxon's signed-rank test
needs no more. Its bounds are order statistics of the means of every two values (Walsh averages), and its estimate is
their median. F. Wilcoxon, Biometrics Bulletin 1 (1945) 80-83; J. L. Hodges, E. L. Lehmann, Annals of Mathematical
Statistics 34 (1963) 598-611; M. Hollander, D. A. Wolfe, E. Chicken, Nonparametric Statistical Methods, 3rd ed., Wiley
2014, sections 3.2 and 3.3. Its tail probabilities are `scipy.stats.wilcoxon`'s, exact.

**The looks.** The bounds are looked at several times while pairs come in, and every look may err. The errors allowed
are spent as the budget passes: up to the share t of it, log(1 + (e - 1) t) of them (the Pocock-type function of
K. K. G. Lan, D. L. DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70 (1983) 659-663, with
calendar time as the clock as in Lan, DeMets, Biometrics 45 (1989) 1017-1020). Each look gets what was spent since the
one before; that they sum up to no more than was allowed (Boole) needs nothing of how looks depend on one another. What
the clock shows does not depend on who of a pair is which, so it may decide when to look.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgetl.bench.stats import Interval

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
FALSE_ALARM = 0.01  # most often that a slowdown of `INNOCENT` of the margin is stopped
LET_THROUGH = 0.05  # most often that one of the whole margin is let through
INNOCENT = 0.5  # of the margin
LEAST_PAIRS = 7  # with fewer no bound at the level FALSE_ALARM exists: 2**-7 is below it, 2**-6 is not
GROWTH = 1.2  # a look is worth its share of errors when there are so many times the pairs of the one before

FLOOR_PAIRS, LEAST_FLOOR_PAIRS = 4, 2  # of BASE against itself, before NEW is measured
FLOOR_SHARE = 0.2  # of the budget, which they may take at most where there are enough
HOPELESS = 3.0  # how much smaller than it looks at first the noise may be found to be
MAD = float(NormalDist().inv_cdf(0.75))  # middle of |x| of a standard normal


@dataclass(frozen=True)
class Look:
    """What was known, and said, at one look."""

    pairs: int
    share: float  # of the budget that had passed
    ratio: Interval  # NEW over BASE; the bounds of all looks hold together with its confidence
    verdict: str | None  # "pass" | "fail", or None: go on


@dataclass(frozen=True)
class Outcome:
    """How a gate ended."""

    verdict: str  # "pass" | "fail" | "inconclusive"
    floor: tuple[float, ...]  # log ratios of BASE against itself
    log_ratios: tuple[float, ...]  # of NEW against BASE, one a pair
    looks: tuple[Look, ...]
    elapsed_s: float
    pair_s: float  # that a pair took, in the middle
    hopeless: str | None = None  # "noise" | "time": why it ended before NEW was measured

    @property
    def ratio(self) -> Interval | None:
        """NEW over BASE at the last look."""
        return self.looks[-1].ratio if self.looks else None

    @property
    def noise(self) -> float:
        """How much two processes of BASE differ, in the middle, as a share of the latency."""
        return float(np.median(np.expm1(np.abs(self.floor))))


class Decision:
    """Looks at growing numbers of pairs and says when it is clear.

    Args:
        margin: the slowdown that must not get through, 0.05 for 5 %.
        false_alarm: see `FALSE_ALARM`.
        let_through: see `LET_THROUGH`.
    """

    def __init__(self, margin: float, *, false_alarm: float = FALSE_ALARM, let_through: float = LET_THROUGH) -> None:
        self.limit, self.innocent = math.log1p(margin), math.log1p(INNOCENT * margin)
        self.allowed = {FAIL: false_alarm, PASS: let_through}
        self.spent = {FAIL: 0.0, PASS: 0.0}
        self.looks: list[Look] = []

    def due(self, pairs: int, share: float) -> bool:
        """Whether a look at so many pairs, after that share of the budget, can say anything that is new."""
        before = self.looks[-1].pairs if self.looks else 0
        return pairs >= GROWTH * before and rank(pairs, self._level(PASS, share)) is not None

    def look(self, log_ratios: Sequence[float], share: float) -> Look:
        """What the pairs say so far; the last look of a budget has the share 1."""
        levels = {side: self._level(side, share) for side in (FAIL, PASS)}
        middle, low, high = bounds(log_ratios, below=levels[FAIL], above=levels[PASS])
        # Where there are too few pairs for a bound nothing was risked: the level is kept for the next look.
        self.spent |= {side: self.spent[side] + levels[side]
                       for side, bound in ((FAIL, low), (PASS, high)) if bound is not None}
        ratio = Interval(math.exp(middle), None if low is None else math.exp(low),
                         None if high is None else math.exp(high), 1 - sum(self.allowed.values()))
        found = Look(len(log_ratios), share, ratio, self._verdict(middle, low, high))
        self.looks.append(found)
        return found

    def _level(self, side: str, share: float) -> float:
        """The error that a look may make on one side."""
        return max(0.0, self.allowed[side] * spending(share) - self.spent[side])

    def _verdict(self, middle: float, low: float | None, high: float | None) -> str | None:
        slower = low is not None and low > self.innocent
        quick = high is not None and high < self.limit
        if slower and quick:  # within the zone, for certain: by which is nearer
            return FAIL if middle >= (self.innocent + self.limit) / 2 else PASS
        return FAIL if slower else PASS if quick else None


def spending(share: float) -> float:
    """Share of the allowed errors that may be spent up to a share of the budget (Lan and DeMets 1983, Pocock-type)."""
    return math.log1p((math.e - 1) * min(share, 1.0))


def bounds(values: Sequence[float], *, below: float, above: float) -> tuple[float, float | None, float | None]:
    """Estimate, lower and upper bound of the centre of a symmetric distribution.

    Args:
        values: a sample, at least one.
        below: how often the lower bound may lie above the centre.
        above: how often the upper bound may lie below it; a bound is None where the sample is too small for that.
    """
    means = _walsh(np.asarray(values, dtype=np.float64))
    ranks = rank(len(values), below), rank(len(values), above)
    return (float(np.median(means)), None if ranks[0] is None else float(means[ranks[0]]),
            None if ranks[1] is None else float(means[-1 - ranks[1]]))


def _walsh(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of every two values and of each with itself, in rising order."""
    first, second = _pairings(len(values))
    return np.sort((values[first] + values[second]) / 2)


@functools.cache
def _pairings(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    first, second = np.triu_indices(n)
    return first, second


def rank(n: int, level: float) -> int | None:
    """Greatest c with P(W <= c) <= level, W the sum of positive ranks of n values around their centre; None if none."""
    low, high = -1, n * (n + 1) // 4  # P(W <= high) is a half or more
    if n == 0 or level >= 0.5:
        raise ValueError(f"no rank for {n} values at the level {level}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tail(n, middle) <= level else (low, middle)
    return low if low >= 0 else None


@functools.cache
def tail(n: int, c: int) -> float:
    """P(W <= c) of Wilcoxon's signed-rank statistic W of n values without ties, exact."""
    from scipy import stats

    signed = np.arange(1.0, n + 1)
    left = c
    for size in range(n, 0, -1):  # a sample whose positive ranks sum up to c, for scipy to judge
        if left >= size:
            left -= size
        else:
            signed[size - 1] = -size
    return float(stats.wilcoxon(signed, alternative="less", method="exact").pvalue)


def conduct(measure: Callable[[bool], float], clock: Callable[[], float], *, margin: float, budget_s: float,
            told: Callable[[Look], None] = lambda look: None) -> Outcome:
    """A whole gate: first BASE against itself, then NEW against BASE until it is clear or the budget is spent.

    Args:
        measure: the log ratio of a new pair; of BASE with itself where it is given True.
        clock: seconds since the measuring began.
        margin: the slowdown that must not get through, 0.05 for 5 %.
        budget_s: how long it may take; no pair is begun that would, by those before it, end later.
        told: hears of every look.
    """
    begun_s = clock()
    floor = _floor(measure, clock, budget_s)
    pair_s = (clock() - begun_s) / len(floor)
    hopeless = _hopeless(floor, margin, int((budget_s - clock()) / pair_s))
    if hopeless is not None:
        return Outcome(INCONCLUSIVE, floor, (), (), clock(), pair_s, hopeless)
    decision, log_ratios = Decision(margin), list[float]()
    ended_s, lasted = clock(), [pair_s]
    while True:
        log_ratios.append(measure(False))
        begun_s, ended_s = ended_s, clock()
        lasted.append(ended_s - begun_s)
        last = ended_s + float(np.median(lasted)) > budget_s
        share = 1.0 if last else ended_s / budget_s
        if last or decision.due(len(log_ratios), share):
            look = decision.look(log_ratios, share)
            told(look)
            if last or look.verdict is not None:
                return Outcome(look.verdict or INCONCLUSIVE, floor, tuple(log_ratios), tuple(decision.looks),
                               clock(), float(np.median(lasted)))


def _floor(measure: Callable[[bool], float], clock: Callable[[], float], budget_s: float) -> tuple[float, ...]:
    found: list[float] = []
    while len(found) < LEAST_FLOOR_PAIRS or (len(found) < FLOOR_PAIRS and clock() < FLOOR_SHARE * budget_s):
        found.append(measure(True))
    return tuple(found)


def _hopeless(floor: Sequence[float], margin: float, pairs: int) -> str | None:
    """Why so many pairs could not decide anything; None where they might."""
    if pairs < LEAST_PAIRS:
        return "time"
    return "noise" if pairs_needed(floor, margin * HOPELESS) > pairs else None


def pairs_needed(log_ratios: Sequence[float], margin: float) -> int:
    """About how many pairs tell equals from a slowdown of `margin` in such noise, of which 0 is the centre.

    The upper bound must come down to the margin: by the normal law, the scale being the middle deviation.
    """
    scale = float(np.median(np.abs(log_ratios))) / MAD
    z = NormalDist().inv_cdf(1 - LET_THROUGH / 4)  # of the looks, the last may use about a quarter of all
    return max(LEAST_PAIRS, math.ceil((z * scale / math.log1p(margin)) ** 2))
