"""Squared error near the truth and absolute error far from it, for values (Girshick, ICCV 2015, arXiv:1504.08083).

    L = 1/K sum_k h(z_k - y_k),  h(e) = e^2 / (2 beta) where |e| < beta, else |e| - beta / 2,  mean over the batch

Beyond beta the gradient no longer grows, so that a few wrong values in a table do not lead the training. The values are
standardised as for `mse`, and beta counts in standard deviations. The sum is over the columns that are known of an
image (y_k is not NaN), and K counts all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.heads import REGRESS
from edgetl.losses import Answer, Given


def smooth_l1_loss(student_values: torch.Tensor, targets: torch.Tensor, beta: float) -> torch.Tensor:
    """Mean smoothed absolute error.

    Args:
        student_values: [N, K].
        targets: values [N, K]; NaN where nothing is known.
        beta: where the square ends, above 0.
    """
    known = ~targets.isnan()
    each = F.smooth_l1_loss(student_values, torch.where(known, targets, 0), reduction="none", beta=beta)
    return (each * known).mean()


class Loss(nn.Module):
    """`smooth-l1`: option beta (default 1)."""

    needs_teacher = False
    needs_labels = True
    tasks = (REGRESS,)

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not 0 < beta < float("inf"):
            raise EdgetlError(f"The loss 'smooth-l1' has beta={beta}, expected a number above 0.")
        self.beta = beta

    def forward(self, student: Answer, teacher: Answer | None, given: Given) -> torch.Tensor:
        """Scalar; the teacher is not asked."""
        return smooth_l1_loss(student.logits, given.targets, self.beta)
