"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928).

    L = sum over layers of  mean( (a(f_s) - a(f_t))^2 ),  a(f) = v / |v|_2,  v = mean over channels of f^2, flattened

a says where a network looks: it has no channels, so nothing must be projected, and unit length takes the scale of the
features out. Maps of different size are compared at the smaller one. Weight: 1,000 (beta / 2 of the paper's code),
since a mean over unit vectors is small.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.losses import STAGES, Answer, Corpus, Given
from edgetl.losses._pairs import pooled


def attention(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Attention [N, height * width] of maps [N, C, H, W], of unit length, at `size`."""
    energy = values.pow(2).mean(dim=1, keepdim=True)
    return F.normalize(pooled(energy, size).flatten(1), dim=1)


def attention_loss(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the attentions of two maps [N, C, H, W]; channels and sizes may differ."""
    size = (min(student_map.shape[2], teacher_map.shape[2]), min(student_map.shape[3], teacher_map.shape[3]))
    return F.mse_loss(attention(student_map, size), attention(teacher_map.detach(), size))


class Loss(nn.Module):
    """`at`: options student and teacher, paths of layers (default: the last map of each resolution of both)."""

    needs_teacher = True
    features = STAGES

    def __init__(self, student: str = "", teacher: str = "") -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def build(self, student: Sequence[torch.Size], teacher: Sequence[torch.Size], corpus: Corpus) -> None:
        """Has nothing to make."""

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar, the sum over the pairs of layers; the labels are not asked."""
        pairs = zip(student.features, teacher.features, strict=True)
        return torch.stack([attention_loss(ours, theirs) for ours, theirs in pairs]).sum()
