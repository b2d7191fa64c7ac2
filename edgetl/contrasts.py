"""Whether one classifier is better than another, and how sure that is: right answers in, intervals and p-values out.

Answers come from several trainings of each: with several seeds, all of which answer the same images, or from the folds
of a cross-validation, which share out the images. Shares are in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import metrics

LEVEL = 0.95
LEAST_P = 1e-12  # below it a p-value is only known to be small

Values = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Share:
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Contrast(Share):
    """A mean difference, and the two-sided p-value of there being none."""

    p_value: float


def share_over_seeds(right: Values, confidence: float = LEVEL) -> Share:
    """How often trainings with several seeds are right.

    Wilson's interval with one seed, else `metrics.crossed_interval`, which covers seeds and images.

    Args:
        right: 0 or 1, [K, N]: seeds by images.
        confidence: of the interval.
    """
    mean = float(right.mean())
    if len(right) == 1:
        return Share(mean, *metrics.wilson_interval(round(float(right.sum())), right.size, confidence))
    low, high = metrics.crossed_interval(right, confidence)
    return Share(mean, max(0.0, low), high)


def over_seeds(differences: Values, confidence: float = LEVEL) -> Contrast:
    """How much more often the first is right, over seeds and images.

    One seed: the score interval over the images (Tango) and McNemar's exact test; nothing is said of other seeds. More:
    `metrics.crossed_interval`, and the p-value is one less the greatest confidence at which that leaves out zero, so
    that test and interval never contradict each other.

    Args:
        differences: right answers of the first less those of the second, -1, 0 or 1, [K, N]: seeds by images.
        confidence: of the interval.
    """
    mean = float(differences.mean())
    if len(differences) == 1:
        first, second = int((differences > 0).sum()), int((differences < 0).sum())
        interval = metrics.paired_interval(first, second, differences.size, confidence)
        return Contrast(mean, *interval, metrics.mcnemar(first, second))
    low, high = metrics.crossed_interval(differences, confidence)
    return Contrast(mean, low, high, _turning_point(lambda sure: metrics.crossed_interval(differences, sure)))


def share_over_folds(right: Sequence[Values], confidence: float = LEVEL) -> Share:
    """How often the trainings of a cross-validation are right on the images that each did not see.

    The interval is the wider one, on each side, of Wilson's over all images and of `folds_interval`.

    Args:
        right: 0 or 1, an array [n] for each fold.
        confidence: of the interval.
    """
    whole = np.concatenate(right)
    wilson = metrics.wilson_interval(round(float(whole.sum())), len(whole), confidence)
    low, high = _hull(wilson, folds_interval(right, confidence))
    return Share(float(whole.mean()), max(0.0, low), min(1.0, high))


def over_folds(differences: Sequence[Values], confidence: float = LEVEL) -> Contrast:
    """How much more often the first is right on the images that neither saw, over the folds of a cross-validation.

    Two views, and the less sure of them counts: the images, of which each is answered once (Tango's interval, McNemar's
    exact test), and the folds, which also show what another training set does (`folds_interval`, `folds_p_value`).
    Neither is enough alone: the first knows one training for each image, the second may see K folds agree by chance.

    Args:
        differences: right answers of the first less those of the second, -1, 0 or 1, an array [n] for each fold.
        confidence: of the interval.
    """
    whole = np.concatenate(differences)
    first, second = int((whole > 0).sum()), int((whole < 0).sum())
    images = metrics.paired_interval(first, second, len(whole), confidence)
    p_value = max(metrics.mcnemar(first, second), folds_p_value(differences))
    return Contrast(float(whole.mean()), *_hull(images, folds_interval(differences, confidence)), p_value)


def folds_interval(folds: Sequence[Values], confidence: float = LEVEL) -> tuple[float, float]:
    """Interval (low, high) of a mean over images, from how much the K folds of a cross-validation differ.

    Trainings of a cross-validation share most of their images, so the folds differ less than fresh data would: the
    variance of the mean is (1 / K + test / train) s^2 with K - 1 degrees of freedom, where test / train = 1 / (K - 1)
    and s^2 is the variance of the folds' means. C. Nadeau, Y. Bengio, Inference for the Generalization Error, Machine
    Learning 52 (2003) 239-281, "corrected resampled t-test"; that no unbiased variance exists: Y. Bengio,
    Y. Grandvalet, JMLR 5 (2004) 1089-1105.

    Args:
        folds: an array [n] for each of K >= 2 folds.
        confidence: of the interval.
    """
    from scipy.stats import t as student

    mean, error = _by_folds(folds)
    half = float(student.ppf((1 + confidence) / 2, len(folds) - 1)) * error
    return mean - half, mean + half


def folds_p_value(differences: Sequence[Values]) -> float:
    """Two-sided p-value of the mean difference being zero, by the test whose interval is `folds_interval`."""
    from scipy.stats import t as student

    mean, error = _by_folds(differences)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(student.sf(abs(mean) / error, len(differences) - 1))


def by_draws(by_seed: Values, again: Values, least: float = 0.0, confidence: float = LEVEL) -> Contrast:
    """How much a score that is no mean over images (mAP, R2) differs, over seeds and images.

    The mean over K seeds is seen anew in draws of the images with repetition (B. Efron, R. J. Tibshirani, An
    Introduction to the Bootstrap, 1993, chapters 6 and 13.3); its variance over these draws is V. The seeds' own means
    have the variance S. As in `metrics.crossed_interval`, both sources are joined by Howe's way:

        half width = sqrt(t_{K-1}^2 S / K + z^2 (V + least)),     with one seed the first part is left out.

    S holds some of the images' share, too, so that the interval is rather too wide. The p-value is one less the
    greatest confidence that leaves out zero.

    Args:
        by_seed: what differs, [K], over all images.
        again: its mean over the seeds in each draw, [D]; draws in which it cannot be told are NaN.
        least: added to the variance, so that the interval never closes where no draw differs: 1 / N^2 for a score that
            counts images, which half an image of each kind adds to that of a paired share (Agresti and Min 2005).
        confidence: of the interval.
    """
    from scipy.special import ndtri, stdtrit

    mean, seeds = float(by_seed.mean()), len(by_seed)
    over_images = float(again[np.isfinite(again)].var(ddof=1)) + least
    over_means = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0

    def interval(sure: float) -> tuple[float, float]:
        z = float(ndtri((1 + sure) / 2))
        t = float(stdtrit(seeds - 1, (1 + sure) / 2)) if seeds > 1 else 0.0
        half = math.sqrt(t**2 * over_means + z**2 * over_images)
        return mean - half, mean + half

    return Contrast(mean, *interval(confidence), _turning_point(interval))


def by_fold_draws(by_fold: Values, again: Values, least: float = 0.0, confidence: float = LEVEL) -> Contrast:
    """The same over the folds of a cross-validation, whose scores are averaged; the less sure of two views counts.

    As in `over_folds`: the images, of which each is answered once, and the folds.

    Args:
        by_fold: what differs, [K], of each fold.
        again: the mean over the folds in each draw, [D], in which the images of each fold are drawn by themselves.
        least: see `by_draws`.
        confidence: of the interval.
    """
    mean = np.array([by_fold.mean()])
    images, folds = by_draws(mean, again, least, confidence), [np.array([one]) for one in by_fold]
    ends = _hull((images.low, images.high), folds_interval(folds, confidence))
    return Contrast(float(mean[0]), *ends, max(images.p_value, folds_p_value(folds)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that may each be held against one level: the chance that any is wrongly below it stays at that level.

    The k-th least is multiplied by how many are left, and never falls below the one before.
    S. Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian J. of Statistics 6 (1979) 65-70.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return [float(one) for one in adjusted]


def _by_folds(folds: Sequence[Values]) -> tuple[float, float]:
    """Mean over all images, and its standard error by the differences between folds."""
    if len(folds) < 2:
        raise ValueError(f"{len(folds)} fold has no other to differ from")
    means = np.array([float(one.mean()) for one in folds])
    factor = 1 / len(folds) + 1 / (len(folds) - 1)
    return float(np.concatenate(folds).mean()), math.sqrt(factor * float(means.var(ddof=1)))


def _hull(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return min(first[0], second[0]), max(first[1], second[1])


def _turning_point(interval: Callable[[float], tuple[float, float]]) -> float:
    """One less the greatest confidence at which an interval leaves out zero, by bisection of its logarithm."""
    def leaves_out(p_value: float) -> bool:
        low, high = interval(1 - p_value)
        return low > 0 or high < 0

    small, large = math.log(LEAST_P), 0.0
    if leaves_out(LEAST_P):
        return LEAST_P
    if not leaves_out(1 - LEAST_P):
        return 1.0
    for _ in range(50):
        middle = (small + large) / 2
        small, large = (small, middle) if leaves_out(math.exp(middle)) else (middle, large)
    return math.exp(large)
