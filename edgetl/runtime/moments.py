"""What is kept of a classifier's answers: the moments of its top scores and entropies, and how often each class came.

Sums of weights, means and squared deviations can be merged and decayed without the answers themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.runtime.fields import Table

MOST = 2**53  # whole numbers up to here are exact in JSON readers that know only doubles
SLACK = 1e-9  # of a mean above its greatest value: rounding


@dataclass(frozen=True)
class Moments:
    """Weight, mean and sum of weighted squared deviations of a number; merged as T. F. Chan et al. 1983 do."""

    weight: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def variance(self) -> float:
        """Mean squared deviation."""
        return self.squares / self.weight if self.weight > 0 else 0.0

    def merged(self, other: Moments) -> Moments:
        """The moments of both together."""
        weight = self.weight + other.weight
        if weight == 0:
            return self
        apart, share = other.mean - self.mean, other.weight / weight
        return Moments(weight, self.mean + apart * share,
                       self.squares + other.squares + apart * apart * self.weight * share)

    def decayed(self, factor: float) -> Moments:
        """The same numbers with `factor` of their weight."""
        return Moments(self.weight * factor, self.mean, self.squares * factor)


@dataclass(frozen=True)
class Statistics:
    """What is kept of answers: top score, entropy in nats, and how often each class was the answer."""

    top: Moments
    entropy: Moments
    classes: NDArray[np.float64]  # [K], weights

    def merged(self, other: Statistics) -> Statistics:
        """The statistics of both together."""
        return Statistics(self.top.merged(other.top), self.entropy.merged(other.entropy), self.classes + other.classes)

    def decayed(self, factor: float) -> Statistics:
        """The same answers with `factor` of their weight."""
        return Statistics(self.top.decayed(factor), self.entropy.decayed(factor), self.classes * factor)


def nothing(classes: int) -> Statistics:
    """The statistics of no answer."""
    return Statistics(Moments(), Moments(), np.zeros(classes))


def statistics_of(scores: NDArray[np.float64], weights: NDArray[np.float64]) -> Statistics:
    """The statistics of probabilities [N, K] with these weights [N]."""
    logs = np.log(scores, out=np.zeros_like(scores), where=scores > 0)  # 0 log 0 is 0
    answers = np.bincount(scores.argmax(axis=1), weights=weights, minlength=scores.shape[1]).astype(np.float64)
    entropies = np.maximum(-(scores * logs).sum(axis=1), 0.0)  # not -0.0 or its like where one class has it all
    return Statistics(_moments(scores.max(axis=1), weights), _moments(entropies, weights), answers)


def _moments(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Moments:
    weight = float(weights.sum())
    mean = float(weights @ values) / weight
    return Moments(weight, mean, float(weights @ np.square(values - mean)))


def to_json(found: Statistics) -> dict[str, Any]:
    """{top, entropy}, each {mean, variance}, plain JSON values; None where nothing was counted."""
    empty = found.top.weight == 0
    return {name: {"mean": None if empty else one.mean, "variance": None if empty else one.variance}
            for name, one in (("top", found.top), ("entropy", found.entropy))}


def read_counted(table: Table, classes: int) -> Statistics:
    """The statistics in a JSON object {count, top, entropy, class_counts} of so many classes.

    Raises:
        BundleError: names the field, what was found and what was expected.
    """
    count = table.whole("count", low=1, high=MOST)
    counts = table.wholes("class_counts", count=classes, low=0, high=MOST)
    if sum(counts) != count:
        raise table.wrong("class_counts", f"numbers with the sum {count}")
    return Statistics(*_read_moments(table, float(count), classes), np.array(counts, np.float64))


def read_weighted(table: Table, classes: int) -> Statistics:
    """The statistics in a JSON object {weight, top, entropy, class_weights} of so many classes; raises likewise."""
    weights = table.numbers("class_weights")
    if len(weights) != classes or min(weights) < 0:
        raise table.wrong("class_weights", f"{classes} numbers from 0 up")
    return Statistics(*_read_moments(table, table.number("weight", above=0), classes), np.array(weights))


def _read_moments(table: Table, weight: float, classes: int) -> tuple[Moments, Moments]:
    made = []
    for name, most in (("top", 1.0), ("entropy", math.log(classes))):
        one = Table(table.table(name), f"{table.where}: {name}")
        mean = one.number("mean", low=0, high=most * (1 + SLACK))
        made.append(Moments(weight, mean, weight * one.number("variance", low=0, high=most * most)))
    return made[0], made[1]
