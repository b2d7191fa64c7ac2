"""From logits to labels: softmax, the best few, and what an application gets to see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import InputError

if TYPE_CHECKING:
    from edgetl.runtime.drift import Drift

FEW = 8  # up to so many are found one after the other, which takes less than sorting, for 2 classes as for thousands


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a classifier says of one image."""

    label: str
    index: int  # of the label in Classifier.labels
    score: float  # softmax probability, 0 to 1; of logits that the bundle's temperature was laid over
    top: tuple[tuple[str, float], ...]  # the most probable labels with their scores, best first
    rejected: bool = False  # the score is below the bundle's reject_below: better asked again than believed


class Answers:
    """Makes predictions of logits, with what one bundle says of its labels.

    Right after a graph has run, the caches hold nothing of what is needed here, and every call into numpy costs two or
    three times what it does in a loop of its own: hence few calls, and only the shown scores are divided.
    """

    def __init__(self, labels: tuple[str, ...], reject_below: float | None = None, drift: Drift | None = None,
                 temperature: float | None = None) -> None:
        """Keeps the labels.

        Args:
            labels: K of them.
            reject_below: predictions of a lower score are rejected; None rejects none.
            drift: is given the scores of every prediction.
            temperature: what logits are divided by before they become scores; None leaves them as they are.

        Raises:
            InputError: `drift` counts another number of classes.
        """
        if drift is not None and drift.classes != len(labels):
            raise InputError(f"drift counts {drift.classes} classes; this bundle has {len(labels)} labels.",
                             hint="Make it with Drift(len(labels)).")
        self._labels = labels
        self._least = -1.0 if reject_below is None else reject_below
        self._drift = drift
        # As long as a row: numpy divides by that in half the time that it takes to make an array of a number.
        self._divisors = None if temperature is None else np.full(len(labels), temperature)
        self._ones = np.ones(len(labels))

    def __call__(self, logits: NDArray[np.float32], tops: Sequence[int]) -> list[Prediction | None]:
        """A prediction for each row of [N, K] with the best `tops[n]` labels; None where the row is not finite."""
        found = [self._of(logits[place], top) for place, top in enumerate(tops)]
        if self._drift is not None:
            known = logits[[one is not None for one in found]]
            self._drift.update(softmax(known if self._divisors is None else known / self._divisors))
        return found

    def _of(self, row: NDArray[np.float32], top: int) -> Prediction | None:
        left = row.astype(np.float64) if self._divisors is None else row / self._divisors
        try:
            finite = math.isfinite(left.dot(self._ones))  # in float64 no sum of float32 overflows
        except RuntimeWarning:  # where warnings are errors: +inf and -inf together
            finite = False
        if not finite:
            return None
        first = int(left.argmax())
        powers = np.exp(left - left[first])  # the greatest is taken off, so that exp() cannot overflow
        total = float(powers.dot(self._ones))
        places = _best(left, first, min(top, len(self._labels)))
        shown = tuple([(self._labels[place], powers.item(place) / total) for place in places])
        label, score = shown[0]
        return Prediction(label, first, score, shown, score < self._least)


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Probabilities [N, K] of logits [N, K], in float64."""
    # The largest is taken off first, so that exp() cannot overflow.
    greatest = np.maximum.reduce(logits, axis=-1, keepdims=True)
    powers: NDArray[np.float64] = np.subtract(logits, greatest, dtype=np.float64)
    np.exp(powers, out=powers)
    powers /= np.add.reduce(powers, axis=-1, keepdims=True)
    return powers


def _best(left: NDArray[np.float64], first: int, count: int) -> list[int]:
    """Places of the `count` greatest values (at least the `first`), of equal ones that which stands first.

    Writes over `left`.
    """
    if count > FEW:
        order: list[int] = np.argsort(-left, kind="stable")[:count].tolist()
        return order
    places = [first]
    for _ in range(1, count):
        left[places[-1]] = -math.inf
        places.append(int(left.argmax()))
    return places
