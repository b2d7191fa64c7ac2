"""How right a classifier is, and how sure that is: numpy in, float out. Shares are in 0..1."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.runtime import classifier

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def top1(logits: Logits, labels: Labels) -> float:
    """Share of rows of `logits` [N, K] whose greatest entry is at `labels` [N]; the first of equal ones counts."""
    _check(logits, labels)
    return float(np.mean(logits.argmax(axis=1) == labels))


def topk(logits: Logits, labels: Labels, k: int) -> float:
    """Share of rows of `logits` [N, K] that have `labels` [N] among their `k` greatest entries.

    Entries that equal the label's own and come before it are greater, so that `topk(..., 1)` is `top1`.
    """
    _check(logits, labels)
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1])[None, :] < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    return float(np.mean(rank < k))


def confusion(predicted: Labels, labels: Labels, classes: int) -> NDArray[np.int64]:
    """Counts [K, K]: rows are the true class, columns the predicted one."""
    if len(predicted) != len(labels):
        raise ValueError(f"{len(predicted)} predictions for {len(labels)} labels")
    cells = np.bincount(np.asarray(labels) * classes + np.asarray(predicted), minlength=classes * classes)
    return cells.astype(np.int64).reshape(classes, classes)


def macro_f1(matrix: NDArray[np.integer[Any]]) -> float:
    """Mean over classes of 2 tp / (2 tp + fp + fn) from a confusion matrix [K, K].

    A class that is neither a label nor a prediction has no F1 and is left out of the mean.
    """
    hits = np.diag(matrix).astype(np.float64)
    total = matrix.sum(axis=0) + matrix.sum(axis=1)
    present = total > 0
    if not present.any():
        raise ValueError("a confusion matrix without samples has no F1")
    return float(np.mean(2 * hits[present] / total[present]))


def agreement(first: Logits, second: Logits) -> float:
    """Share of rows in which both [N, K] have the greatest entry at the same place, right or wrong."""
    if first.shape != second.shape:
        raise ValueError(f"logits of shapes {first.shape} and {second.shape} do not belong together")
    if not len(first):
        raise ValueError("an agreement needs at least one row")
    return float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))


def softmax(logits: Logits, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities [N, K] of `logits` [N, K] divided by `temperature`."""
    return classifier.softmax(np.asarray(logits, dtype=np.float64) / temperature)


def ece(logits: Logits, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over `bins` equal widths of confidence.

    sum_b |B_b| / N * |accuracy(B_b) - confidence(B_b)|, bins (0, 1/b], (1/b, 2/b], ...
    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.
    """
    _check(logits, labels)
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def weighted_accuracy(correct: NDArray[np.bool_], weights: NDArray[np.floating[Any]]) -> float:
    """Share of the weight [N] that lies on right answers [N]."""
    if len(correct) != len(weights) or not np.sum(weights) > 0:
        raise ValueError("a weighted accuracy needs one weight for each answer and a positive sum")
    return float(np.sum(np.where(correct, weights, 0.0)) / np.sum(weights))


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of a share of which `correct` of `n` were seen.

    E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22 (1927) 209-212.
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"{correct} of {n} is not a share")
    from scipy.stats import binomtest

    found = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def lower_bound(correct: int, n: int, confidence: float = 0.95) -> float:
    """Share above which the true share lies with at least this confidence, when `correct` of `n` were seen.

    The one-sided exact bound: the share at which so many, or more, are seen with probability 1 - confidence.
    C. J. Clopper and E. S. Pearson, Biometrika 26 (1934) 404-413.
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"{correct} of {n} is not a share")
    from scipy.stats import binomtest

    return float(binomtest(correct, n, alternative="greater").proportion_ci(confidence, method="exact").low)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two classifiers err equally often, from what only one of them got right.

    The smaller count is Binomial(only_first + only_second, 1/2) under the hypothesis.
    Q. McNemar, Psychometrika 12 (1947) 153-157; exact form: Fagerland et al., BMC Med. Res. Methodol. 13 (2013) 91.
    """
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def paired_interval(only_first: int, only_second: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of accuracy(first) - accuracy(second), both measured on the same `n` samples.

    The score interval: all differences that the score test does not reject. It stays honest without any discordant
    pair, where it is +- z^2 / (n + z^2). T. Tango, Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design, Statistics in Medicine 17 (1998) 891-908.

    Args:
        only_first: samples that only the first got right.
        only_second: samples that only the second got right.
        n: all samples.
    """
    if only_first < 0 or only_second < 0 or only_first + only_second > n or n == 0:
        raise ValueError(f"{only_first} and {only_second} discordant pairs do not fit into {n} samples")
    z, seen = _z(confidence), (only_first - only_second) / n

    def score(difference: float) -> float:
        return _tango_score(only_first, only_second, n, difference)

    # The score falls as the supposed difference grows, from above +z at -1 to below -z at 1.
    return _crossing(score, z, -1.0, seen), _crossing(score, -z, seen, 1.0)


def crossed_interval(differences: NDArray[np.floating[Any]], confidence: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of the mean difference between two classifiers, over seeds and samples that are both drawn.

    d_ks is +1, 0 or -1: only the first, both or neither, or only the second is right on sample s when both were
    trained with seed k. d_ks = gain + a_k + b_s + e_ks has two sources that cross, so the variance of the mean is
    var(a)/K + var(e)/(K N) + var(b)/N. The first two are what the means of the seeds show, with K - 1 degrees of
    freedom: mean square A. The third is what the means of the samples show beyond the rest: mean square B less E. Both
    halves are joined as W. G. Howe does, Approximate Confidence Limits on the Mean of X + Y Where X and Y Are Two
    Tabled Independent Random Variables, JASA 69 (1974) 789-794:

        half width = sqrt(t_{K-1}^2 A / (K N) + z^2 (max(B - E, 0) + K / (N - 1)) / (K N))

    K / (N - 1) is half a sample of each kind added (A. Agresti, Y. Min, Statistics in Medicine 24 (2005) 729-740), so
    that the interval never closes where nothing happened to differ. Why both sources count: H. H. Clark, The
    Language-as-Fixed-Effect Fallacy, J. Verbal Learning and Verbal Behavior 12 (1973) 335-359; X. Bouthillier et al.,
    Accounting for Variance in Machine Learning Benchmarks, MLSys 2021, arXiv:2103.03098. How often it holds the truth:
    benchmarks/gain_coverage.py.

    Args:
        differences: [K, N], of K >= 2 seeds on the same N samples.
        confidence: of the interval.
    """
    seeds, n = differences.shape
    if seeds < 2 or n < 1:
        raise ValueError(f"differences of shape {differences.shape} are not [K, N] with two seeds or more")
    if n == 1:
        return -1.0, 1.0
    from scipy.stats import t as student

    mean = float(differences.mean())
    by_seed, by_sample = differences.mean(axis=1), differences.mean(axis=0)
    a = n * float(by_seed.var(ddof=1))
    b = seeds * float(by_sample.var(ddof=1))
    rest = differences - by_seed[:, None] - by_sample[None, :] + mean
    e = float((rest**2).sum()) / ((seeds - 1) * (n - 1))
    samples = max(b - e, 0.0) + seeds / (n - 1)
    t, z = float(student.ppf((1 + confidence) / 2, seeds - 1)), _z(confidence)
    half = math.sqrt((t**2 * a + z**2 * samples) / (seeds * n))
    return max(-1.0, mean - half), min(1.0, mean + half)


def f1_interval(hits: int, misses: int, false_alarms: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of the F1 of one class.

    F1 = 2 j / (1 + j) rises with j = hits / (hits + misses + false_alarms), which is a share and has Wilson's interval.
    Compared with others by K. F. Y. Lam, V. Gopal, J. Qian, Confidence Intervals for the F1 Score, arXiv:2309.14621.

    Args:
        hits: images of the class that were answered with it.
        misses: images of the class that were answered with another.
        false_alarms: images of other classes that were answered with it.
        confidence: of the interval.
    """
    low, high = wilson_interval(hits, hits + misses + false_alarms, confidence)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def _tango_score(only_first: int, only_second: int, n: int, difference: float) -> float:
    # `rare` is the most likely P(only the second is right) when the difference is as supposed: a quadratic's root.
    a = 2 * n
    b = -only_first - only_second + (2 * n - only_first + only_second) * difference
    c = -only_second * difference * (1 - difference)
    rare = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * rare + difference * (1 - difference))
    distance = only_first - only_second - n * difference
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _crossing(falling: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function crosses `level`, by bisection to the last bit that matters."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > level else (low, middle)
    return (low + high) / 2


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _check(logits: Logits, labels: Labels) -> None:
    if logits.ndim != 2 or labels.shape != (len(logits),) or not len(logits):
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} are not [N, K] and [N] with N > 0")
