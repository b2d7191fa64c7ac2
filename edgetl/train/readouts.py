"""Read-outs of frozen features beside the linear probe: what they know without any training at all.

They are told and not exported. Where the nearest neighbours are about as right as the probe, the features already lie
in clusters of the classes; where the probe is far better, a linear layer has to pick out what matters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

NEIGHBOURS = (1, 5, 10, 20, 50)  # tried, the best on validation is told
SHARPNESS = 0.07  # a neighbour of similarity s weighs exp(s / SHARPNESS)
AT_ONCE = 256  # images whose similarities are held in memory


@dataclass(frozen=True)
class Neighbours:
    """How right the nearest training images are about the validation images. Shares in 0..1."""

    k: int  # the best of those tried; of equal ones the smallest
    val_accuracy: float
    tried: dict[int, float]  # accuracy on validation by number of neighbours

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "tried": {str(k): share for k, share in self.tried.items()}}

    def sentence(self) -> str:
        """The read-out in words."""
        several = f"the {self.k} nearest training images" if self.k > 1 else "the nearest training image"
        return f"nearest neighbours: by {several}, {100 * self.val_accuracy:.1f} % of the validation images"


def nearest_neighbours(
    train: torch.Tensor, train_labels: torch.Tensor, val: torch.Tensor, val_labels: torch.Tensor, classes: int
) -> Neighbours:
    """The best of several numbers of neighbours on validation.

    Similarity is the cosine, and each of the k nearest votes for its class with exp(similarity / 0.07): Z. Wu et al.,
    Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, arXiv:1805.01978, section 3.4.

    Args:
        train: features [N, F] of the training images.
        train_labels: int64 [N].
        val: features [M, F] of the validation images.
        val_labels: int64 [M].
        classes: how many there are.
    """
    counts = sorted({min(k, len(train)) for k in NEIGHBOURS})
    near, hits = F.normalize(train, dim=1), dict.fromkeys(counts, 0)
    for begin in range(0, len(val), AT_ONCE):
        asked = F.normalize(val[begin : begin + AT_ONCE], dim=1)
        similarity, place = (asked @ near.T).topk(counts[-1], dim=1)  # [B, k], the nearest first
        weight, said = ((similarity - 1) / SHARPNESS).exp(), train_labels[place]
        for k in counts:
            votes = torch.zeros(len(asked), classes).scatter_add_(1, said[:, :k], weight[:, :k])
            hits[k] += int((votes.argmax(1) == val_labels[begin : begin + AT_ONCE]).sum())
    tried = {k: found / len(val) for k, found in hits.items()}
    best = max(counts, key=lambda k: tried[k])
    return Neighbours(best, tried[best], tried)
