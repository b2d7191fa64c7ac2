"""Whether two sets of answers are of the same world: effect sizes, and what chance makes of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetl.runtime.moments import Moments, Statistics

FALSE_ALARMS = 0.001  # share of comparisons that may raise an alarm although nothing has changed
EFFECT = 0.3  # shift of a mean in standard deviations that counts; 0.2 is "small", 0.5 "medium": J. Cohen, 1988
PSI = 0.25  # of the class mix: "significant shift", N. Siddiqi, Credit Risk Scorecards, Wiley 2006
LEAST_IMAGES = 100  # on either side: with fewer the tests' approximations are not good
LEAST_IN_CELL = 5  # images that a class must be expected to have to be looked at by itself (Cochran's rule)
# Least standard deviation of the top score, and of the entropy as a share of log(K). A model that is sure of every
# validation image has next to none, and would be called drifted for the first image it is less sure of.
LEAST_DEVIATION = 0.1
NAMES = {"top": "the mean top score", "entropy": "the mean entropy"}


@dataclass(frozen=True)
class DriftVerdict:
    """The comparison of recent answers with a reference."""

    status: str  # "stable" | "drifted" | "undecided": too few images on one side
    reasons: tuple[str, ...]  # sentences: what has changed, or what is lacking
    images: float  # so many independent images the recent answers are worth
    top_effect: float | None = None  # recent - reference mean, in standard deviations; None where undecided
    entropy_effect: float | None = None
    class_psi: float | None = None  # population stability index of the class mix

    @property
    def alarm(self) -> bool:
        """Whether the world has changed."""
        return self.status == "drifted"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "reasons": list(self.reasons), "alarm": self.alarm}


def judge(recent: Statistics, images: float, expected: Statistics, *, false_alarms: float, effect: float,
          psi: float) -> DriftVerdict:
    """The verdict on recent answers that are worth so many images; see `Drift.compare`."""
    lacking = tuple(f"{what} hold {count:.0f} images, and a comparison needs {LEAST_IMAGES}" for what, count
                    in (("the recent answers", images), ("the reference", expected.top.weight)) if count < LEAST_IMAGES)
    if lacking:
        return DriftVerdict("undecided", lacking, images)
    limit = _normal_quantile(1 - false_alarms / 12)  # a sixth for each test, half of it on each side
    greatest = {"top": 1.0, "entropy": math.log(len(recent.classes)) or 1.0}  # the entropy of one class is always 0
    effects: dict[str, float] = {}
    reasons: list[str] = []
    for name, most in greatest.items():
        now, then = getattr(recent, name), getattr(expected, name)
        effects[name], z = _shift(now, images, then, LEAST_DEVIATION * most)
        if abs(effects[name]) >= effect and abs(z) >= limit:
            reasons.append(f"{NAMES[name]} is {now.mean:.3f}, the reference's {then.mean:.3f}, "
                           f"{abs(effects[name]):.1f} standard deviations away")
    index, chance = _class_shift(recent, images, expected, 1 - false_alarms / 6)
    if index >= max(psi, chance):
        reasons.append(f"the classes are answered in other shares: their stability index is {index:.2f}, allowed is "
                       f"{max(psi, chance):.2f}")
    return DriftVerdict("drifted" if reasons else "stable", tuple(reasons), images, effects["top"],
                        effects["entropy"], index)


def _shift(now: Moments, images: float, then: Moments, floor: float) -> tuple[float, float]:
    """Cohen's d of two means and its z, both with the pooled deviation, which is not taken for less than `floor`.

    Pooled, since what is tested is that both are the same world; of a skewed score Welch's form alarms twice as often.
    """
    pooled = (now.variance * images + then.variance * then.weight) / (images + then.weight)
    effect = (now.mean - then.mean) / max(math.sqrt(pooled), floor)
    return effect, effect / math.sqrt(1 / images + 1 / then.weight)


def _class_shift(recent: Statistics, images: float, expected: Statistics, confidence: float) -> tuple[float, float]:
    """The population stability index of the classes, and what chance makes of it with this confidence.

    sum over cells of (p - q) ln(p / q). Classes too rare to be looked at one by one make one cell together, and half
    an image is added to each cell, so that an empty one has a logarithm.
    """
    n, m = images, expected.top.weight
    counts = recent.classes * (n / recent.top.weight), expected.classes
    rare = (counts[0] + counts[1]) / (n + m) * min(n, m) < LEAST_IN_CELL
    cells = [np.append(one[~rare], one[rare].sum()) if rare.any() else one for one in counts]
    width = len(cells[0])
    if width < 2:
        return 0.0, 0.0
    p, q = ((one + 0.5) / (one.sum() + 0.5 * width) for one in cells)
    index = float(((p - q) * np.log(p / q)).sum())
    return index, (1 / n + 1 / m) * _chi_square_quantile(confidence, width - 1)


def _normal_quantile(confidence: float) -> float:
    from statistics import NormalDist  # at module level it would be the half of this module's import time

    return NormalDist().inv_cdf(confidence)


def _chi_square_quantile(confidence: float, degrees: int) -> float:
    """By E. B. Wilson and M. M. Hilferty, PNAS 17 (1931) 684-688: the cube root is nearly normal."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + _normal_quantile(confidence) * math.sqrt(spread)) ** 3)
