"""Losses on pairs of layers, and feature maps of two networks made comparable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.losses import Answer, Corpus, Given


def same_size(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both maps [N, C, H, W] at the smaller height and the smaller width of the two, by average pooling."""
    size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
    return _pooled(one, size), _pooled(other, size)


def _pooled(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return values if tuple(values.shape[2:]) == size else F.adaptive_avg_pool2d(values, size)


class Pairwise(nn.Module):
    """A loss that is the sum of `pair` over pairs of layers, and learns nothing of its own."""

    needs_teacher = True
    needs_labels = False

    def __init__(self, student: str = "", teacher: str = "") -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def build(self, student: Sequence[torch.Size], teacher: Sequence[torch.Size], corpus: Corpus) -> None:
        """Has nothing to make."""

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar, the sum over the pairs of layers; the labels are not asked."""
        pairs = zip(student.features, teacher.features, strict=True)
        return torch.stack([self.pair(ours, theirs) for ours, theirs in pairs]).sum()

    def pair(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Scalar loss of the features of one layer of each."""
        raise NotImplementedError
