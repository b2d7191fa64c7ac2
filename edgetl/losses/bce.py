"""Binary cross-entropy of each label by itself, for images that have several labels or none.

    L = -1/K sum_k [ y_k log s(z_k) + (1 - y_k) log(1 - s(z_k)) ],  s(z) = 1 / (1 + exp(-z)),  mean over the batch

The sum is over the labels of which it is known whether the image has them (y_k is not NaN), and K counts all: every
answer that is there weighs the same, and what an image adds does not depend on the others of its batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.heads import MULTILABEL
from edgetl.losses import Answer, Given


def bce_loss(student_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy.

    Args:
        student_logits: [N, K].
        targets: probabilities [N, K]; NaN where nothing is known.
    """
    known = ~targets.isnan()
    each = F.binary_cross_entropy_with_logits(student_logits, torch.where(known, targets, 0), reduction="none")
    return (each * known).mean()


class Loss(nn.Module):
    """`bce`: has no options."""

    needs_teacher = False
    needs_labels = True
    tasks = (MULTILABEL,)

    def forward(self, student: Answer, teacher: Answer | None, given: Given) -> torch.Tensor:
        """Scalar; the teacher is not asked."""
        return bce_loss(student.logits, given.targets)
