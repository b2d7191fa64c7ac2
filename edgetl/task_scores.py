"""What RUNs of a task said to each image, and by how much their scores differ: the pairing of other tasks' gains.

mAP and R2 are no means over images, so that nothing can be taken image by image; two RUNs are paired by drawing the
same images for both. `contrasts.by_draws` says how that becomes an interval and a p-value.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl import contrasts, head_metrics, predictions, rundir
from edgetl.contrasts import Contrast, Share
from edgetl.errors import DataError, EdgetlError
from edgetl.heads import REGRESS, Head
from edgetl.predictions import AGAIN

ANSWERS = "answers.npz"
PARTS = ("keys", "answers", "truth")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Said:
    """The answers of one RUN to the images of one split."""

    heads: tuple[Head, ...]
    keys: NDArray[np.str_]  # [N]
    answers: Floats  # [N, outputs]: logits, or values in the unit of the table
    truth: Floats  # [N, outputs]; NaN where nothing is known

    @functools.cached_property
    def value(self) -> float:
        """The score that trainings of the task are compared by.

        Raises:
            DataError: these images do not tell.
        """
        found = float(head_metrics.score(self.heads, self.answers, self.truth)[0])
        if not np.isfinite(found):
            raise DataError(f"The {len(self.keys)} images, {self.keys[0]} among them, do not tell one training from "
                            "another: too little is known of them.", hint="Give more images, or fewer --folds.")
        return found

    @functools.cached_property
    def again(self) -> Floats:
        """The score in each draw of the images [D]; all RUNs draw the same of the same images."""
        seed = int(rundir.sha256("\0".join(self.keys.tolist()).encode(errors="surrogateescape"))[:8], 16)
        drawn = head_metrics.resampled(len(self.keys), seed=seed)
        return head_metrics.score(self.heads, self.answers, self.truth, drawn)


def read(folder: Path, heads: tuple[Head, ...]) -> dict[str, Said]:
    """What a RUN said, by split; empty where it has no answers.

    Args:
        folder: the RUN.
        heads: what it answers.

    Raises:
        EdgetlError: the file is damaged, or is none of edgetl's.
    """
    path = folder / ANSWERS
    found = {split: Said(heads, *arrays) for split, arrays in predictions.by_split(path, PARTS, "answers").items()}
    outputs = sum(len(head.labels) for head in heads)
    if any(one.answers.shape != (len(one.keys), outputs) or one.truth.shape != one.answers.shape
           for one in found.values()):
        raise EdgetlError(f"{path} holds arrays of other shapes than [{outputs} outputs] an image.", hint=AGAIN)
    return found


def over_seeds(first: Sequence[Said], second: Sequence[Said]) -> Contrast:
    """By how much the first are better, seed by seed; all answer the same images."""
    by_seed, again = _differences(first, second)
    return contrasts.by_draws(by_seed, again.mean(axis=0), _least(first[:1]))


def over_folds(first: Sequence[Said], second: Sequence[Said]) -> Contrast:
    """By how much the first are better, fold by fold."""
    by_fold, again = _differences(first, second)
    return contrasts.by_fold_draws(by_fold, again.mean(axis=0), _least(first))


def _least(found: Sequence[Said]) -> float:
    """What `contrasts.by_draws` adds to the variance; errors of values differ from image to image by themselves."""
    images = sum(len(one.keys) for one in found)
    return 0.0 if found[0].heads[0].kind == REGRESS else 1 / images**2


def _differences(first: Sequence[Said], second: Sequence[Said]) -> tuple[Floats, Floats]:
    """[K] over all images and [K, D] in each draw.

    Raises:
        ValueError: two answer different images.
    """
    both = list(zip(first, second, strict=True))
    if any(not np.array_equal(one.keys, other.keys) for one, other in both):
        raise ValueError("answers to different images cannot be paired")
    return np.array([one.value - other.value for one, other in both]), np.stack(
        [one.again - other.again for one, other in both]
    )


def share(found: Sequence[Said], *, folds: bool) -> Share:
    """The mean score with its interval, over seeds or over folds, and images; no score is above 1."""
    values, again = np.array([one.value for one in found]), np.stack([one.again for one in found]).mean(axis=0)
    whole = (contrasts.by_fold_draws(values, again, _least(found)) if folds else
             contrasts.by_draws(values, again, _least(found[:1])))
    return Share(whole.mean, whole.low, min(1.0, whole.high))
