"""Squared error, for values.

    L = 1/K sum_k (z_k - y_k)^2,  mean over the batch

The values are standardised: y_k is the distance from the training images' mean in their standard deviations, so that
columns of different units weigh the same. The sum is over the columns that are known of an image (y_k is not NaN), and
K counts all of them.
"""

from __future__ import annotations

import torch
from torch import nn

from edgetl.heads import REGRESS
from edgetl.losses import Answer, Given


def mse_loss(student_values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared error.

    Args:
        student_values: [N, K].
        targets: values [N, K]; NaN where nothing is known.
    """
    known = ~targets.isnan()
    return ((student_values - torch.where(known, targets, 0)).square() * known).mean()


class Loss(nn.Module):
    """`mse`: has no options."""

    needs_teacher = False
    needs_labels = True
    tasks = (REGRESS,)

    def forward(self, student: Answer, teacher: Answer | None, given: Given) -> torch.Tensor:
        """Scalar; the teacher is not asked."""
        return mse_loss(student.logits, given.targets)
