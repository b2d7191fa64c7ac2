"""Hints from feature maps (Romero et al., ICLR 2015, arXiv:1412.6550).

    L = mean( (r(f_s) - f_t)^2 )

r is a 1x1 convolution that brings the student's channels to the teacher's; it belongs to the loss. Maps of different
size are compared at the smaller one. The mean (not the sum) over all values keeps the scale free of the layer's size.
Weight: 100 in the literature that compares methods (Tian et al. 2020, table 9 of arXiv:1910.10699).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.losses import LAST, Answer, Corpus, Given
from edgetl.losses._pairs import same_size


def fitnet_loss(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of maps [N, C, H, W] of equal channels; no gradient flows into the teacher's."""
    return F.mse_loss(*same_size(student_map, teacher_map.detach()))


class Loss(nn.Module):
    """`fitnet`: options student and teacher, paths of layers, as many as each other (default: the last map of each)."""

    needs_teacher = True
    needs_labels = False
    features = LAST

    def __init__(self, student: str = "", teacher: str = "") -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.regressors = nn.ModuleList()

    def build(self, student: Sequence[torch.Size], teacher: Sequence[torch.Size], corpus: Corpus) -> None:
        """Makes the regressors for maps of these shapes [C, H, W]."""
        self.regressors.extend(nn.Conv2d(ours[0], theirs[0], 1) for ours, theirs in zip(student, teacher, strict=True))

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar, the mean over the pairs of layers; the labels are not asked."""
        pairs = zip(self.regressors, student.features, teacher.features, strict=True)
        return torch.stack([fitnet_loss(regress(ours), theirs) for regress, ours, theirs in pairs]).mean()
