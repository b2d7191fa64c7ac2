"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928).

    L = sum over layers of  mean( (a(f_s) - a(f_t))^2 ),  a(f) = v / |v|_2,  v = mean over channels of f^2, flattened

a says where a network looks: it has no channels, so nothing must be projected, and unit length takes the scale of the
features out. Maps of different size are compared at the smaller one. Weight: 1,000 (beta / 2 of the paper's code),
since a mean over unit vectors is small.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgetl.losses import STAGES
from edgetl.losses._pairs import Pairwise, same_size


def energy(values: torch.Tensor) -> torch.Tensor:
    """Mean square [N, 1, H, W] over the channels of maps [N, C, H, W]."""
    return values.pow(2).mean(dim=1, keepdim=True)


def attention_loss(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the attentions of two maps [N, C, H, W]; channels and sizes may differ."""
    ours, theirs = same_size(energy(student_map), energy(teacher_map.detach()))
    return F.mse_loss(F.normalize(ours.flatten(1), dim=1), F.normalize(theirs.flatten(1), dim=1))


class Loss(Pairwise):
    """`at`: options student and teacher, paths of layers (default: the last map of each resolution of both)."""

    features = STAGES

    def pair(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """See `attention_loss`."""
        return attention_loss(student, teacher)
