"""Feature maps of two networks made comparable: the larger is pooled to the size of the smaller."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def same_size(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both maps [N, C, H, W] at the smaller height and the smaller width of the two, by average pooling."""
    size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
    return pooled(one, size), pooled(other, size)


def pooled(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The map [N, C, H, W] averaged to `size`; itself where it has that size."""
    return values if tuple(values.shape[2:]) == size else F.adaptive_avg_pool2d(values, size)
