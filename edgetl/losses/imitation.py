"""The student's outputs brought to the teacher's, one by one: for values, and for logits as they stand.

    L = 1/K sum_k h(z_s,k - z_t,k),  h(e) = e^2 / (2 beta) where |e| < beta, else |e| - beta / 2,  mean over the batch

A value has no probabilities that could be softened: what a teacher knows beyond the table is its value for this very
view. Saputra et al. ("Distilling Knowledge From a Deep Pose Regressor Network", ICCV 2019, arXiv:1908.00858) call that
the imitation loss and add it to the one on the labels; Chen et al. (NIPS 2017, section 3.3) warn that a teacher's value
may lie anywhere, which is why h grows no faster than its argument beyond beta, as in `smooth-l1`: far-off answers do
not lead the training. Values are standardised for teacher and student alike, so beta counts in standard deviations of
the table. For logits: Ba and Caruana, NIPS 2014, arXiv:1312.6184.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS
from edgetl.losses import Answer, Given


def imitation_loss(student_outputs: torch.Tensor, teacher_outputs: torch.Tensor, beta: float) -> torch.Tensor:
    """Mean smoothed absolute difference.

    Args:
        student_outputs: [N, K].
        teacher_outputs: [N, K]; no gradient flows into it.
        beta: where the square ends, above 0.
    """
    return F.smooth_l1_loss(student_outputs, teacher_outputs.detach(), beta=beta)


class Loss(nn.Module):
    """`imitation`: option beta (default 1)."""

    needs_teacher = True
    needs_labels = False
    tasks = (CLASSIFY, MULTILABEL, REGRESS)

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not 0 < beta < float("inf"):
            raise EdgetlError(f"The loss 'imitation' has beta={beta}, expected a number above 0.")
        self.beta = beta

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar; the labels are not asked."""
        return imitation_loss(student.logits, teacher.logits, self.beta)
