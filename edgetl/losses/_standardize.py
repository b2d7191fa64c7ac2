"""Logit standardization (Sun et al., CVPR 2024, arXiv:2403.01427)."""

from __future__ import annotations

import torch

EPSILON = 1e-7  # as the authors have it: an answer without spread has no order either, and becomes zero


def standardized(logits: torch.Tensor) -> torch.Tensor:
    """Z-scores of logits [N, K], each row with mean 0 and (unbiased) standard deviation 1.

    The student then need not match the size of the teacher's logits, only their relations.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (logits.std(dim=1, keepdim=True) + EPSILON)
