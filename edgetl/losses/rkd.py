"""Relational knowledge distillation (Park et al., CVPR 2019, arXiv:1904.05068).

    L = distance * mean_ij h( d_s[i, j] / m_s - d_t[i, j] / m_t ) + angle * mean_ijk h( c_s[i, j, k] - c_t[i, j, k] )

d are the distances between the embeddings of a batch and m their mean, which takes the scale out; c is the cosine of
the angle at j between i and k; h is Huber's loss with delta 1. Nothing is projected: only relations are compared, so
the widths may differ. distance = 25 and angle = 50 are the paper's for classification, with weight 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.losses import EMBEDDING, Answer, Corpus, Given

EPSILON = 1e-12  # under the root of a distance: its gradient at 0 is infinite


def distances(embeddings: torch.Tensor) -> torch.Tensor:
    """Distances [N, N] of embeddings [N, D], divided by the mean of those that are above 0; the diagonal is 0."""
    square = embeddings.pow(2).sum(dim=1)
    apart = (square[:, None] + square[None] - 2 * embeddings @ embeddings.T).clamp(min=EPSILON).sqrt()
    apart = apart.masked_fill(torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device), 0)
    return apart / apart[apart > 0].mean()


def angles(embeddings: torch.Tensor) -> torch.Tensor:
    """Cosines [N, N, N] at each embedding, between the directions to each two others."""
    towards = F.normalize(embeddings[None] - embeddings[:, None], dim=2)
    return torch.bmm(towards, towards.transpose(1, 2))


def rkd_loss(
    student_embeddings: torch.Tensor, teacher_embeddings: torch.Tensor, distance: float, angle: float
) -> torch.Tensor:
    """The weighted difference of distances and angles.

    Args:
        student_embeddings: [N, D_s], at least two.
        teacher_embeddings: [N, D_t]; no gradient flows into it.
        distance: weight of the distances.
        angle: weight of the angles.
    """
    teacher_embeddings = teacher_embeddings.detach()
    loss = distance * F.smooth_l1_loss(distances(student_embeddings), distances(teacher_embeddings))
    return loss + angle * F.smooth_l1_loss(angles(student_embeddings), angles(teacher_embeddings))


class Loss(nn.Module):
    """`rkd`: options distance (default 25), angle (50), and student and teacher, a layer each (default: what goes into
    the last layer; a map is averaged over its places)."""

    needs_teacher = True
    compares_images = True
    needs_labels = False
    features = EMBEDDING

    def __init__(self, distance: float = 25.0, angle: float = 50.0, student: str = "", teacher: str = "") -> None:
        super().__init__()
        self.distance, self.angle, self.student, self.teacher = distance, angle, student, teacher

    def build(self, student: Sequence[torch.Size], teacher: Sequence[torch.Size], corpus: Corpus) -> None:
        """Has nothing to make."""

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar, the mean over the pairs of layers; the labels are not asked."""
        pairs = zip(student.features, teacher.features, strict=True)
        return torch.stack([rkd_loss(ours, theirs, self.distance, self.angle) for ours, theirs in pairs]).mean()
