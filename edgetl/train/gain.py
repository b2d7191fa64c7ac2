"""The gain: how much better the taught student is than its control, on the same test images, and how sure that is.

Of one class an image it is taken of accuracy; of other tasks of their own score (mAP, R2, ...), see `task_scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import metrics, task_scores
from edgetl.predictions import Predictions
from edgetl.task_scores import Said

LEVEL = 0.95


@dataclass(frozen=True)
class Gain:
    """Scores (accuracies as shares in 0..1) and differences, one a seed; `low` and `high` bound the mean difference."""

    seeds: tuple[int, ...]
    student: tuple[float, ...]
    control: tuple[float, ...]
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    level: float
    images: int  # of the test split
    score: str | None = None  # what is compared; None: accuracy

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero, on either side."""
        return self.low > 0 or self.high < 0

    def sentence(self) -> str:
        """The gain in words: how much, over what, and whether it may be chance."""
        factor, digits, unit = (100, 1, "points") if self.score is None else (1, 3, f"of {self.score}")
        points = (f"gain {factor * self.mean:+.{digits}f} {unit} ({100 * self.level:g} %: "
                  f"{factor * self.low:+.{digits}f} to {factor * self.high:+.{digits}f})")
        if len(self.seeds) == 1:
            return (f"{points}, paired over {self.images} test images: {self._verdict()}. One seed says nothing of "
                    "the spread over seeds; --seeds 3 would.")
        return f"{points} over {len(self.seeds)} seeds and {self.images} test images: {self._verdict()}."

    def _verdict(self) -> str:
        if not self.significant:
            return "not significant, the teacher may not have helped"
        return "significant" if self.low > 0 else "significant, the teacher has done harm"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the verdict and the sentence included."""
        plain = {name: value for name, value in asdict(self).items() if name != "score" or value is not None}
        return {**plain, "significant": self.significant, "sentence": self.sentence()}


def between(seeds: Sequence[int], students: Sequence[Predictions], controls: Sequence[Predictions]) -> Gain:
    """The gain of students over their controls, seed by seed and image by image.

    With one seed the interval is paired over the images alone (Tango's), with more it covers seeds and images, see
    `metrics.crossed_interval`.

    Args:
        seeds: which student and control were trained with.
        students: their answers on the test split.
        controls: the same of the students that had no teacher.

    Raises:
        ValueError: the answers are not to the same images.
    """
    keys = students[0].keys
    if any(not np.array_equal(one.keys, keys) for one in (*students, *controls)):
        raise ValueError("answers to different images cannot be paired")
    right, plain = _right(students), _right(controls)
    differences = right - plain
    low, high = (metrics.paired_interval(int((differences > 0).sum()), int((differences < 0).sum()), len(keys), LEVEL)
                 if len(seeds) == 1 else metrics.crossed_interval(differences, LEVEL))
    return Gain(
        seeds=tuple(seeds),
        student=_by_seed(right),
        control=_by_seed(plain),
        differences=_by_seed(differences),
        mean=float(differences.mean()),
        low=low,
        high=high,
        level=LEVEL,
        images=len(keys),
    )


def of_task(seeds: Sequence[int], students: Sequence[Said], controls: Sequence[Said], score: str) -> Gain:
    """The gain in a task's own score, paired by drawing the same images for both, see `contrasts.by_draws`.

    Args:
        seeds: which student and control were trained with.
        students: what they said on the test split.
        controls: the same of the students that had no teacher.
        score: what the score is called.

    Raises:
        ValueError: the answers are not to the same images.
        DataError: the test images do not tell one training from another.
    """
    found = task_scores.over_seeds(students, controls)
    ours, plain = (tuple(one.value for one in side) for side in (students, controls))
    differences = tuple(one - other for one, other in zip(ours, plain, strict=True))
    return Gain(tuple(seeds), ours, plain, differences, found.mean, found.low, found.high, LEVEL,
                len(students[0].keys), score)


def _by_seed(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(one) for one in values.mean(axis=1))


def _right(found: Sequence[Predictions]) -> NDArray[np.float64]:
    return np.stack([one.right for one in found]).astype(np.float64)
