"""Similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv:1907.09682).

    L = |G_s - G_t|_F^2 / N^2,  G = rows of Q Q^T brought to unit length,  Q = the map [N, C, H, W] as [N, C*H*W]

G says which images of the batch a network finds alike. Rows of unit length take the scale of the features out, N^2 the
size of the batch; channels and sizes may differ, for nothing is projected. Weight: 3,000, the paper's gamma.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgetl.losses import LAST
from edgetl.losses._pairs import Pairwise


def similarities(values: torch.Tensor) -> torch.Tensor:
    """[N, N] products of maps or embeddings [N, ...], rows of unit length."""
    flat = values.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def sp_loss(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the similarities of two maps [N, ...]; no gradient flows into the teacher's."""
    return F.mse_loss(similarities(student_map), similarities(teacher_map.detach()))


class Loss(Pairwise):
    """`sp`: options student and teacher, paths of layers (default: the last map of each)."""

    features = LAST
    compares_images = True

    def pair(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """See `sp_loss`."""
        return sp_loss(student, teacher)
