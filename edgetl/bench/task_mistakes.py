"""The answers of a RUN that are furthest from what is known, where an image has something else than one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl import metrics
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Head, places
from edgetl.task_scores import Said

NAMED = 6  # labels of an image
LEADS = {
    CLASSIFY: "The wrong answers with the highest scores, of all heads. Some may be wrong labels.",
    MULTILABEL: "Of the images with a wrong label, those with the largest loss: the mean binary cross-entropy of their "
                "labels. Some may be wrong labels.",
    REGRESS: "The answers that are furthest off, measured by how far the values of their column spread on these "
             "images. Some may be wrong values.",
}  # fmt: skip
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Hard:
    """An answer that is far from what is known of an image."""

    key: str  # of the image in its data set
    said: str
    known: str
    far: str  # how sure, or how far off


def hardest(found: Said, most: int) -> tuple[Hard, ...]:
    """At most so many answers that are wrong, the worst first."""
    kind = found.heads[0].kind
    if kind == CLASSIFY:
        return _of_classes(found, most)
    return _of_labels(found, most) if kind == MULTILABEL else _of_values(found, most)


def _of_classes(found: Said, most: int) -> tuple[Hard, ...]:
    wrong: list[tuple[float, int, Hard]] = []
    for head, part in places(found.heads):
        logits, truth = found.answers[:, part], found.truth[:, part]
        said, is_known = logits.argmax(axis=1), np.isfinite(truth).all(axis=1)
        sure = metrics.softmax(logits).max(axis=1)
        for row in np.flatnonzero(is_known & (said != np.nan_to_num(truth).argmax(axis=1))):
            told, right = (f"{head.name}: {head.labels[one]}" for one in (said[row], truth[row].argmax()))
            wrong.append((float(-sure[row]), int(row),
                          Hard(str(found.keys[row]), told, right, f"{100 * sure[row]:.0f} %")))
    return tuple(one for _, _, one in sorted(wrong, key=lambda one: one[:2])[:most])


def _of_labels(found: Said, most: int) -> tuple[Hard, ...]:
    known, has, said = np.isfinite(found.truth), found.truth == 1, found.answers >= 0
    # log(1 + exp(z)) - y z, without an overflow
    each = np.logaddexp(0, np.where(has, -found.answers, found.answers))
    losses = np.where(known, each, 0).sum(axis=1) / np.maximum(1, known.sum(axis=1))
    wrong = np.flatnonzero(((said != has) & known).any(axis=1))
    worst = wrong[np.argsort(-losses[wrong], kind="stable")][:most]
    (head,) = found.heads
    return tuple(Hard(str(found.keys[row]), _listed(head, said[row] & known[row]), _listed(head, has[row]),
                      f"loss {losses[row]:.2f}") for row in worst)


def _listed(head: Head, of: NDArray[np.bool_]) -> str:
    names = [head.labels[place] for place in np.flatnonzero(of)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more if names else "none"


def _of_values(found: Said, most: int) -> tuple[Hard, ...]:
    off = found.answers - found.truth
    spread = spreads(found.truth)
    far = np.where(np.isfinite(off), np.abs(off) / np.where(spread > 0, spread, 1), 0)
    order = np.argsort(-far, axis=None, kind="stable")[:most]
    (head,) = found.heads
    cells = [divmod(int(one), far.shape[1]) for one in order if far.flat[one] > 0]
    return tuple(Hard(str(found.keys[row]), f"{head.labels[column]} {found.answers[row, column]:.4g}",
                      f"{found.truth[row, column]:.4g}", f"{off[row, column]:+.4g}") for row, column in cells)


def spreads(truth: Floats) -> Floats:
    """Standard deviation of the known values of each column; 0 where none is known."""
    return np.array([float(column[np.isfinite(column)].std()) if np.isfinite(column).any() else 0.0
                     for column in truth.T])


def sentences(found: Sequence[Hard]) -> list[str]:
    """Each in words, for markdown."""
    return [f"{one.key}: is {one.known}, said {one.said} ({one.far})" for one in found]
