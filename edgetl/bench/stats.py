"""What a set of latencies says, and how sure that is: numpy in, float out, nothing assumed about the distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.floating[Any]]

# The least count n with which P(at most one of n samples lies above the percentile) <= 1 %, so that the greatest but
# one bounds it from above at 99 % confidence: early stopping of MLPerf Inference's LoadGen.
# V. J. Reddi et al., MLPerf Inference Benchmark, ISCA 2020; mlcommons/inference_policies, "Early stopping".
PERCENTILE_MINIMA = {90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; the ends are None where the samples cannot give one."""

    value: float
    low: float | None
    high: float | None
    confidence: float


def median_interval(samples: Sequence[float] | Samples, confidence: float = 0.95) -> Interval:
    """Median of `samples` and a distribution-free interval from their order statistics.

    The number of samples below the true median is Binomial(n, 1/2), so the r-th least and the r-th greatest sample
    enclose it with probability 1 - 2 P(Binomial <= r - 1). The greatest r that keeps `confidence` is taken; below
    6 samples there is none for 95 %. Assumes independent samples: slow drift makes the truth wider.
    H. A. David, H. N. Nagaraja, Order Statistics, 3rd ed., Wiley 2003, section 7.1.

    Raises:
        ValueError: no samples.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    if not len(ordered):
        raise ValueError("a median needs at least one sample")
    value = float(np.median(ordered))
    rank = _order_rank(len(ordered), confidence)
    if rank == 0:
        return Interval(value, None, None, confidence)
    return Interval(value, float(ordered[rank - 1]), float(ordered[-rank]), confidence)


def _order_rank(n: int, confidence: float) -> int:
    """Greatest r with 2 P(Binomial(n, 1/2) <= r - 1) <= 1 - confidence; 0 where there is none."""
    below, rank = 0.0, 0
    while rank < n // 2:
        # In logarithms: 2**n leaves the range of floats from n = 1024.
        below += math.exp(math.lgamma(n + 1) - math.lgamma(rank + 1) - math.lgamma(n - rank + 1) - n * math.log(2))
        if 2 * below > 1 - confidence:
            break
        rank += 1
    return rank


def percentile(samples: Sequence[float] | Samples, percent: float) -> float | None:
    """Smallest sample that at least `percent` % do not exceed, or None where the count does not bound it.

    Args:
        percent: a key of `PERCENTILE_MINIMA`.
    """
    if len(samples) < PERCENTILE_MINIMA[percent]:
        return None
    return float(np.percentile(np.asarray(samples, dtype=np.float64), percent, method="inverted_cdf"))


def needs(percent: float) -> str:
    """What stands in place of a percentile that too few samples do not bound, e.g. `needs 662 samples`."""
    return f"needs {PERCENTILE_MINIMA[percent]} samples"


def signed_rank(differences: Sequence[float] | Samples) -> float:
    """One-sided exact p-value of Wilcoxon's signed-rank test: how likely so much lies above zero if nothing does.

    Zeros say nothing and are left out; equal sizes share their ranks. Every sign is as likely as the other, so the sum
    of the positive ranks is counted over all 2**n choices of signs.
    F. Wilcoxon, Individual Comparisons by Ranking Methods, Biometrics Bulletin 1 (1945) 80-83.

    Args:
        differences: of pairs that were measured side by side.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    sizes = np.sort(np.abs(values))
    # Twice the mean rank of equal sizes: a whole number.
    first, last = (np.searchsorted(sizes, np.abs(values), side) for side in ("left", "right"))
    ranks = [int(rank) for rank in first + last + 1]
    counts = [1] + [0] * sum(ranks)  # counts[s]: choices of signs whose positive ranks sum up to s; exact for any n
    for rank in ranks:
        counts = [count + (counts[place - rank] if place >= rank else 0) for place, count in enumerate(counts)]
    seen = sum(rank for rank, value in zip(ranks, values, strict=True) if value > 0)
    return float(sum(counts[seen:]) / 2 ** len(ranks))


def speedup(reference: Samples, case: Samples, *, seed: int, confidence: float = 0.95, draws: int = 1000) -> Interval:
    """How many times faster `case` is: median(reference) / median(case), with a bootstrap interval.

    Both are [rounds, calls]. Rounds are drawn first, the same for both since they were measured side by side, and then
    calls within each: what drifts from round to round is part of the uncertainty. A single round has only its calls.
    A. C. Davison, D. V. Hinkley, Bootstrap Methods and their Application, CUP 1997, section 3.8 (two-level resampling).

    Raises:
        ValueError: the two do not have the same number of rounds, or are empty.
    """
    if len(reference) != len(case) or not reference.size or not case.size:
        raise ValueError(f"samples of shapes {reference.shape} and {case.shape} were not measured in the same rounds")
    generator = np.random.default_rng(seed)
    ratios = np.empty(draws)
    for draw in range(draws):
        rounds = generator.integers(0, len(reference), len(reference))
        ratios[draw] = np.median(_redrawn(reference[rounds], generator)) / np.median(_redrawn(case[rounds], generator))
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.median(reference) / np.median(case)), float(low), float(high), confidence)


def _redrawn(rounds: Samples, generator: np.random.Generator) -> Samples:
    return np.take_along_axis(rounds, generator.integers(0, rounds.shape[1], rounds.shape), axis=1)
