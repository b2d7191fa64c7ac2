"""What a set of latencies says, and how sure that is: numpy in, float out, nothing assumed about the distribution.

Latencies of a benchmark are [rounds, calls]. Calls of one round resemble one another: the machine was warm or cold,
alone or not. So an interval from all calls as if each told something new is far too narrow (0.2 in place of 0.95 covers
the truth where rounds differ by 8 %; benchmarks/percentile_coverage.py). What is given as [rounds, calls] is therefore
judged by how much the rounds agree, and what is given as a flat list is taken at its word: independent samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.contrasts import holm as holm

Samples = NDArray[np.floating[Any]]

# The least count n with which P(at most one of n samples lies above the percentile) <= 1 %, so that the greatest but
# one bounds it from above at 99 % confidence: early stopping of MLPerf Inference's LoadGen.
# V. J. Reddi et al., MLPerf Inference Benchmark, ISCA 2020; mlcommons/inference_policies, "Early stopping".
PERCENTILE_MINIMA = {90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}
DRAWN_AT_ONCE = 2**20  # samples that a bootstrap holds in memory
BATCHES = 10  # what the calls of a single round are cut into, since they resemble their neighbours too


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; the ends are None where the samples cannot give one."""

    value: float
    low: float | None
    high: float | None
    confidence: float

    def ends(self) -> tuple[float, float]:
        """Both ends of an interval that is known to have them, as those of a bootstrap do.

        Raises:
            ValueError: it is open.
        """
        if self.low is None or self.high is None:
            raise ValueError(f"the interval of {self.value} is open: {self.low} to {self.high}")
        return self.low, self.high


def median_interval(samples: Sequence[float] | Samples, confidence: float = 0.95) -> Interval:
    """Median of `samples` and a distribution-free interval from their order statistics, see `percentile_interval`.

    Args:
        samples: independent ones, or [rounds, calls].
        confidence: of the interval.

    Raises:
        ValueError: no samples.
    """
    values = np.asarray(samples, dtype=np.float64)
    if not values.size:
        raise ValueError("a median needs at least one sample")
    low, high = _bounds(values, 0.5, confidence)
    return Interval(float(np.median(values)), low, high, confidence)


def percentile(samples: Sequence[float] | Samples, percent: float) -> float | None:
    """Smallest sample that at least `percent` % do not exceed, or None where the count does not bound it.

    Args:
        samples: in any shape.
        percent: a key of `PERCENTILE_MINIMA`.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.size < PERCENTILE_MINIMA[percent]:
        return None
    return float(np.percentile(values, percent, method="inverted_cdf"))


def percentile_interval(samples: Sequence[float] | Samples, percent: float, confidence: float = 0.95
                        ) -> Interval | None:
    """`percentile` with a distribution-free interval; None where there is no percentile.

    Of n independent samples, Binomial(n, p) lie below the true percentile, so two order statistics enclose it: the
    greatest and the least rank with (1 - confidence) / 2 beyond each. H. A. David, H. N. Nagaraja, Order Statistics,
    3rd ed., Wiley 2003, section 7.1.

    Of [rounds, calls] the same with fewer samples than there are: as many independent ones as would make the shares
    of calls below the percentile differ so much from round to round, and fewer again where a few rounds hardly tell
    how much they differ (R. S. Woodruff, JASA 47 (1952) 635-646, for quantiles of samples in clusters;
    E. L. Korn, B. I. Graubard, Survey Methodology 24 (1998) 193-201, for the effective count). Rounds are taken as
    independent. Where so few cannot bound the percentile on one side, that end is None. What has happened in none of
    the rounds nobody has seen, and no interval holds it: a neighbour who is there in one of five rounds is missed by a
    third of all benchmarks of five rounds, and by a hundredth of those of twenty.

    Args:
        samples: independent ones, or [rounds, calls].
        percent: a key of `PERCENTILE_MINIMA`.
        confidence: of the interval.
    """
    value = percentile(samples, percent)
    if value is None:
        return None
    return Interval(value, *_bounds(np.asarray(samples, dtype=np.float64), percent / 100, confidence), confidence)


def _bounds(samples: Samples, share: float, confidence: float) -> tuple[float | None, float | None]:
    """The interval's ends for the quantile at `share`; None each where there is none."""
    from scipy.stats import binom

    n, tail = samples.size, (1 - confidence) / 2
    low, high = int(binom.ppf(tail, n, share)), int(binom.isf(tail, n, share)) + 1  # ranks from 1
    if samples.ndim == 2:
        # Where rounds differ much, the percentile lies inside the round that is greatest, which therefore seems to
        # agree with the others; at twice the tail it does not.
        count = min(_effective_count(samples, one, tail) for one in {share, max(0.5, 2 * share - 1)})
        fewer_low, fewer_high = _ranks_of_fewer(n, count, share, tail)
        low, high = min(low, fewer_low), max(high, fewer_high)
    ordered = np.sort(samples, axis=None)
    return (float(ordered[low - 1]) if low >= 1 else None), (float(ordered[high - 1]) if high <= n else None)


def _effective_count(rounds: Samples, share: float, tail: float) -> float:
    """How many independent samples say as much about a quantile as these [rounds, calls]."""
    from scipy.stats import t as student

    if len(rounds) == 1:
        calls = rounds.shape[1]
        rounds = rounds[:, :calls - calls % BATCHES].reshape(BATCHES, -1) if calls >= BATCHES else rounds.T
    if len(rounds) == 1:
        return 0.0
    quantile = np.quantile(rounds, share, method="inverted_cdf")
    below = np.mean(rounds <= quantile, axis=1)
    mean = float(below.mean())
    independent = mean * (1 - mean) / rounds.size  # variance of the share, were the calls independent
    seen = float(below.var(ddof=1)) / len(rounds)
    count = rounds.size / max(1.0, seen / independent) if independent > 0 else len(rounds)
    return float(count * (student.isf(tail, rounds.size - 1) / student.isf(tail, len(rounds) - 1)) ** 2)


def _ranks_of_fewer(n: int, count: float, share: float, tail: float) -> tuple[int, int]:
    """Ranks among `n` samples that enclose the quantile if these are worth `count`; 0 and n + 1 stand for none.

    The exact interval of C. J. Clopper and E. S. Pearson, Biometrika 26 (1934) 404-413, for a count that need not be
    a whole number.
    """
    from scipy.stats import beta

    below, above = count * share, count * (1 - share)
    # The least, or the greatest, of so many samples leaves this much beyond it.
    low = math.floor(n * beta.ppf(tail, below, above + 1)) if (1 - share) ** count <= tail else 0
    high = math.ceil(n * beta.isf(tail, below + 1, above)) + 1 if share**count <= tail else n + 1
    return low, high


def needs(percent: float) -> str:
    """What stands in place of a percentile that too few samples do not bound, e.g. `needs 662 samples`."""
    return f"needs {PERCENTILE_MINIMA[percent]} samples"


def signed_rank(differences: Sequence[float] | Samples) -> float:
    """One-sided p-value of Wilcoxon's signed-rank test: how likely so much lies above zero if nothing does.

    Zeros say nothing and are left out. Exact up to 50 differences, from 14 on only while no two have one size.
    F. Wilcoxon, Individual Comparisons by Ranking Methods, Biometrics Bulletin 1 (1945) 80-83.

    Args:
        differences: of pairs that were measured side by side.
    """
    from scipy.stats import wilcoxon

    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    return float(wilcoxon(values, alternative="greater").pvalue) if len(values) else 1.0


def rank_test(first: Samples, second: Samples, alternative: str = "two-sided") -> float:
    """P-value of the Mann-Whitney test: how likely so many of `first` lie on one side of `second` by chance.

    Give it one number a round: calls of one round resemble one another, and would pass for that many witnesses.
    Exact up to 30 numbers a side that are all different; then by the normal approximation.
    H. B. Mann, D. R. Whitney, Annals of Mathematical Statistics 18 (1947) 50-60.

    Args:
        first: one number a round.
        second: the same of other rounds, which need not be as many.
        alternative: "greater" asks whether `first` is, "less" and "two-sided" likewise.
    """
    from scipy.stats import mannwhitneyu

    pooled = np.concatenate([first, second])
    if pooled.min() == pooled.max():
        return 1.0  # nothing to rank, for which the approximation divides zero by zero
    exact = len(np.unique(pooled)) == len(pooled) and max(len(first), len(second)) <= 30
    found = mannwhitneyu(first, second, alternative=alternative, method="exact" if exact else "asymptotic")
    return float(found.pvalue)


def speedup(reference: Samples, case: Samples, *, seed: int, confidence: float = 0.95, draws: int = 2000) -> Interval:
    """How many times faster `case` is: median(reference) / median(case), with a bootstrap interval.

    Both are [rounds, calls]. Rounds are drawn first, the same for both since they were measured side by side, and then
    calls within each: what drifts from round to round is part of the uncertainty. A single round has only its calls.
    A. C. Davison, D. V. Hinkley, Bootstrap Methods and their Application, CUP 1997, section 3.8 (two-level resampling).
    A bootstrap of few rounds is too narrow, since it divides by n where n - 1 would be right and has the tails of the
    normal in place of Student's; its levels are widened by both: T. C. Hesterberg, What Teachers Should Know About the
    Bootstrap, The American Statistician 69 (2015) 371-386, "expanded percentile".

    Raises:
        ValueError: the two do not have the same number of rounds, or are empty.
    """
    if len(reference) != len(case) or not reference.size or not case.size:
        raise ValueError(f"samples of shapes {reference.shape} and {case.shape} were not measured in the same rounds")
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(reference), (draws, len(reference)))
    slow, quick = (_drawn_log_medians(side, picks, generator) for side in (reference, case))
    return _spread(float(np.median(reference) / np.median(case)), slow - quick, len(reference), confidence)


def ratio(base: Samples, new: Samples, *, seed: int, confidence: float = 0.95, draws: int = 4000) -> Interval:
    """How many times as long `new` takes: median(new) / median(base), with a bootstrap interval.

    As `speedup`, but the two were measured at different times: their rounds, [rounds, calls] each, are drawn one
    independently of the other and need not be as many. With the sides swapped, the result is its reciprocal.

    Raises:
        ValueError: a side is empty.
    """
    if not base.size or not new.size:
        raise ValueError(f"samples of shapes {base.shape} and {new.shape} have no ratio")
    generator = np.random.default_rng(seed)
    # The quicker side draws first, whichever it is: swapped sides draw the same.
    swapped = _order(new) < _order(base)
    first, second = (_drawn_log_medians(side, generator.integers(0, len(side), (draws, len(side))), generator)
                     for side in ((new, base) if swapped else (base, new)))
    logs = first - second if swapped else second - first
    return _spread(float(np.median(new) / np.median(base)), logs, min(len(base), len(new)), confidence)


def _order(side: Samples) -> tuple[float, ...]:
    return float(np.median(side)), *np.sort(side, axis=None).tolist()


def _spread(value: float, logs: Samples, rounds: int, confidence: float) -> Interval:
    tail = _expanded((1 - confidence) / 2, rounds)
    low, high = np.exp(np.quantile(logs, [tail, 1 - tail]))
    return Interval(value, float(low), float(high), confidence)


def _expanded(tail: float, rounds: int) -> float:
    """The level at which to cut a bootstrap over so many rounds, so that `tail` is what lies beyond."""
    from scipy.stats import norm
    from scipy.stats import t as student

    if rounds < 2:
        return tail  # of one round nobody knows how rounds differ
    return float(norm.sf(student.isf(tail, rounds - 1) * math.sqrt(rounds / (rounds - 1))))


def _drawn_log_medians(rounds: Samples, picks: NDArray[np.integer[Any]], generator: np.random.Generator) -> Samples:
    """Logarithms [draws] of the medians over the rounds `picks` [draws, rounds], calls drawn anew in each."""
    calls = rounds.shape[1]
    found = np.empty(len(picks))
    step = max(1, DRAWN_AT_ONCE // rounds.size)
    for begin in range(0, len(picks), step):
        part = picks[begin:begin + step]
        drawn = rounds[part[:, :, None], generator.integers(0, calls, (*part.shape, calls))]
        found[begin:begin + step] = np.median(drawn.reshape(len(part), -1), axis=1)
    return np.log(found)
