"""The score below which a prediction is better rejected: found on the validation split, reported on the test split.

"At least 95 % of the accepted answers are right" is a promise about images that nobody has seen, so the share of right
ones among the accepted validation images is not enough: that share is itself uncertain, and the best of many thresholds
looks better than it is. A threshold is taken only where the lower Clopper-Pearson bound of the accuracy among what it
accepts reaches the target, as Y. Geifman and R. El-Yaniv do (Selective Classification for Deep Neural Networks, NIPS
2017, arXiv:1705.08500). They search by halves, whose steps depend on the data; here the thresholds accept twentieths of
the images, fixed in advance, and each has a twentieth of the risk (Bonferroni; A. N. Angelopoulos et al., Learn then
Test, arXiv:2110.01052). The promise is about images like those of validation; `runtime.drift` watches whether they are.
Where validation has also chosen the epoch and the temperature, it is a little too kind: the record has the test
split's figures beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import metrics
from edgetl.evaluate import Evaluation

CONFIDENCE = 0.95  # with which the target is reached
STEPS = 20  # thresholds tried: they accept 1/20, 2/20, ... of the validation images
MARGIN = 1e-6  # of a threshold above the score that it leaves out
EVERYTHING = 0.0  # the threshold below which no score is


@dataclass(frozen=True)
class Acceptance:
    """What a threshold does with the images of a split."""

    n: int
    accepted: int
    correct: int  # of the accepted
    confidence: float

    @property
    def accuracy_low(self) -> float | None:
        """Lower bound of the accuracy among what is accepted; None where nothing is."""
        return metrics.lower_bound(self.correct, self.accepted, self.confidence) if self.accepted else None

    def reaches(self, target: float) -> bool:
        """Whether the accuracy among the accepted is shown to be at least `target`."""
        low = self.accuracy_low
        return low is not None and low >= target

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; shares in 0..1, None where nothing was accepted."""
        return {"n": self.n, "accepted": self.accepted, "coverage": self.accepted / self.n,
                "accuracy": self.correct / self.accepted if self.accepted else None, "accuracy_low": self.accuracy_low}


@dataclass(frozen=True)
class Threshold:
    """The outcome of a search: a threshold with its record for the manifest, or why there is none."""

    target: float  # share in 0..1
    reject_below: float | None
    record: dict[str, Any] | None = None
    refusal: str | None = None  # a sentence without its full stop


def acceptance(found: Evaluation, reject_below: float, confidence: float = CONFIDENCE) -> Acceptance:
    """What a threshold does with the images of an evaluation."""
    scores, right = _scores(found)
    kept = scores >= reject_below
    return Acceptance(found.n, int(kept.sum()), int(right[kept].sum()), confidence)


def search(val: Evaluation, target: float, *, variant: str) -> Threshold:
    """The smallest of the thresholds among what is accepted by which at least `target` is shown to be right.

    Args:
        val: of the default variant on the VALIDATION images.
        target: share of right answers, 0 to 1.
        variant: its name.
    """
    tried = [(threshold, acceptance(val, threshold, 1 - (1 - CONFIDENCE) / STEPS)) for threshold in _thresholds(val)]
    held = [threshold for threshold, one in tried if one.reaches(target)]
    if not held:
        return Threshold(target, None, refusal=_refusal([one for _, one in tried], target, variant))
    record = {"target_accuracy": target, "confidence": CONFIDENCE, "thresholds_tried": STEPS, "variant": variant,
              "split": "val", "n": val.n, "checks": []}
    return Threshold(target, min(held), record)


def checked(threshold: Threshold, evaluations: Sequence[tuple[str, str, Evaluation]]) -> dict[str, Any] | None:
    """The record with what the threshold does for (variant, split, evaluation); `holds` is said of validation only.

    One check at a fixed threshold: the whole risk is its own. Of the default variant the search has shown more.
    """
    if threshold.record is None or threshold.reject_below is None:
        return None
    checks = []
    for variant, split, found in evaluations:
        one = acceptance(found, threshold.reject_below)
        checks.append({"variant": variant, "split": split, **one.to_json(),
                       "holds": one.reaches(threshold.target) if split == "val" else None})
    return {**threshold.record, "checks": checks}


def _thresholds(val: Evaluation) -> list[float]:
    """Just above the score of the first image that a threshold does not accept, for each number that is to be accepted.

    Above and not at the last accepted one: given the score of the first that is left out, those above it are a sample
    of all that will ever be above it, which is what the bound supposes. Equal scores are left out together.
    """
    scores = np.sort(_scores(val)[0])[::-1]
    counts = sorted({max(1, val.n * step // STEPS) for step in range(1, STEPS + 1)})
    return [EVERYTHING if count == val.n else _just_above(scores[count], scores) for count in counts]


def _just_above(score: float, scores: NDArray[np.float64]) -> float:
    """A threshold that leaves `score` out, however another machine rounds it, and accepts what is greater."""
    greater = scores[scores > score]
    halfway = (score + float(greater.min())) / 2 if len(greater) else np.inf
    return float(max(np.nextafter(score, 2), min(score + MARGIN, halfway)))


def _scores(found: Evaluation) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Top scores [N] as the runtime's, and whether the answers are right [N]."""
    return metrics.softmax(found.logits).max(axis=1), found.logits.argmax(axis=1) == found.labels


def _refusal(tried: Sequence[Acceptance], target: float, variant: str) -> str:
    best = max(tried, key=lambda one: one.accuracy_low or 0.0)
    shown = ("which accepts nothing" if not best.accepted else
             f"which shows {100 * (best.accuracy_low or 0):.1f} % (with {100 * CONFIDENCE:g} % confidence over {STEPS} "
             "thresholds)")
    return (f"No score was found above which {100 * target:g} % of the answers of {variant} are right: of {best.n} "
            f"validation images, {best.correct} of the {best.accepted} surest are, {shown}")
