"""Whether a classifier is as sure as it is right, and one temperature that makes it so: numpy in, float out.

Temperature scaling divides all logits by one number T before softmax, fitted on the VALIDATION split by the likelihood.
It moves no answer: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.metrics import Labels, Logits, softmax

BINS = 15
LEAST, MOST = 1e-3, 1e3  # temperatures beyond say nothing: every score would be 1, or 1/K
ALL_RIGHT = "every answer is right, so that the likelihood grows as long as the temperature falls"
NO_BETTER = "the answers are no better than even scores for all labels, which is what an endless temperature gives"
TOO_FAR = f"the likelihood is greatest at a temperature outside {LEAST:g} to {MOST:g}"


@dataclass(frozen=True)
class Temperature:
    """The outcome of a fit: the temperature, or why there is none."""

    value: float | None
    n: int  # images it was fitted on
    refusal: str | None = None  # a clause without its full stop

    @property
    def divisor(self) -> float:
        """What logits are divided by; 1 where there is no temperature."""
        return 1.0 if self.value is None else self.value


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width over the score of the answer, 0 to 1; None where a bin holds no image."""

    count: tuple[int, ...]
    confidence: tuple[float | None, ...]  # mean score
    accuracy: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: list(values) for name, values in asdict(self).items()}


def nll(logits: Logits, labels: Labels, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of `labels` [N] under `logits` [N, K], in nats."""
    return float(nlls(logits, labels, temperature).mean())


def nlls(logits: Logits, labels: Labels, temperature: float = 1.0) -> NDArray[np.float64]:
    """Negative log-likelihood [N] of each label, in nats; finite where the probability is too small for a float."""
    scaled = np.asarray(logits, np.float64) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]
    return found


def brier(logits: Logits, labels: Labels, temperature: float = 1.0) -> float:
    """Mean over images of sum_k (p_k - [k is the label])^2, 0 to 2. G. W. Brier, Mon. Weather Rev. 78 (1950) 1-3."""
    return float(briers(logits, labels, temperature).mean())


def briers(logits: Logits, labels: Labels, temperature: float = 1.0) -> NDArray[np.float64]:
    """The Brier score [N] of each image."""
    probabilities = softmax(logits, temperature)
    own = probabilities[np.arange(len(labels)), labels]
    found: NDArray[np.float64] = (probabilities**2).sum(axis=1) - 2 * own + 1
    return found


def confidences(logits: Logits, labels: Labels, temperature: float = 1.0
                ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The score [N] of each answer, and whether it is right [N]."""
    probabilities = softmax(logits, temperature)
    return probabilities.max(axis=1), np.asarray(logits).argmax(axis=1) == labels


def places(confidence: NDArray[np.float64], bins: int = BINS) -> NDArray[np.int64]:
    """Which of the bins (0, 1/bins], (1/bins, 2/bins], ... each score [N] lies in."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def reliability(logits: Logits, labels: Labels, temperature: float = 1.0, bins: int = BINS) -> Reliability:
    """How right the answers are, by how sure they are: the bins of `metrics.ece`."""
    confidence, right = confidences(logits, labels, temperature)
    place = places(confidence, bins)
    count = np.bincount(place, minlength=bins)

    def means(values: NDArray[Any]) -> tuple[float | None, ...]:
        sums = np.bincount(place, weights=values, minlength=bins)
        return tuple(float(total / n) if n else None for total, n in zip(sums, count, strict=True))

    return Reliability(tuple(int(n) for n in count), means(confidence), means(right))


def ece_equal_mass(logits: Logits, labels: Labels, temperature: float = 1.0, bins: int = BINS) -> float:
    """Expected calibration error over bins of as many images each, by score; of fewer images than bins, one a bin.

    J. Nixon et al., Measuring Calibration in Deep Learning, CVPR Workshops 2019, arXiv:1904.01685: where most scores
    lie close to 1, bins of equal width look at a handful of images only.
    """
    confidence, right = confidences(logits, labels, temperature)
    order = np.argsort(confidence, kind="stable")
    gaps = (right - confidence)[order]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, min(bins, len(gaps)))) / len(gaps))


def fit_temperature(logits: Logits, labels: Labels) -> Temperature:
    """The temperature with the greatest likelihood of `labels` [N] under `logits` [N, K].

    The negative log-likelihood is convex in b = 1/T, with the slope mean(sum_k p_k z_k - z_label). It starts at
    mean(mean_k z_k - z_label) for b = 0 and ends at mean(max_k z_k - z_label), which is 0 where all answers are right:
    so there is exactly one minimum, or none, and a bracketing solver finds it.

    Args:
        logits: of the validation images, finite.
        labels: their classes.
    """
    from scipy.optimize import brentq

    values = np.asarray(logits, np.float64)
    own = values[np.arange(len(labels)), labels]
    if np.all(own == values.max(axis=1)):
        return Temperature(None, len(labels), ALL_RIGHT)
    if np.mean(values.mean(axis=1) - own) >= 0:
        return Temperature(None, len(labels), NO_BETTER)

    def slope(logarithm: float) -> float:
        return float(np.mean((softmax(values, math.exp(logarithm)) * values).sum(axis=1) - own))

    low, high = math.log(LEAST), math.log(MOST)
    if slope(low) <= 0 or slope(high) >= 0:
        return Temperature(None, len(labels), TOO_FAR)
    return Temperature(math.exp(brentq(slope, low, high, xtol=1e-10, rtol=1e-12)), len(labels))
