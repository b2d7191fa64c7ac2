"""Distillation of standardized logits (Sun et al., CVPR 2024, arXiv:2403.01427).

    L = T^2 * KL( softmax(Z(z_t) / T) || softmax(Z(z_s) / T) ),  Z(z) = (z - mean(z)) / std(z),  mean over the batch

Z: a small student need not reach the size of the teacher's logits, only their relations. T^2: as in `kd`. The authors
weight the term by 9 at T = 2, since the gradient passes through the division by the student's spread.
"""

from __future__ import annotations

import torch
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.losses import Answer, Given
from edgetl.losses._divergence import soft_divergence
from edgetl.losses._standardize import standardized


def logit_standardization_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean divergence of the softened z-scores of both, times T^2.

    Args:
        student_logits: [N, K].
        teacher_logits: [N, K]; no gradient flows into it.
        temperature: T > 0.
    """
    return soft_divergence(standardized(student_logits), standardized(teacher_logits), temperature)


class Loss(nn.Module):
    """`logit-standardization`: option temperature (default 2)."""

    needs_teacher = True
    needs_labels = False

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise EdgetlError(
                f"The loss 'logit-standardization' has temperature={temperature}, expected a number above 0."
            )
        self.temperature = temperature

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar; the labels are not asked."""
        return logit_standardization_loss(student.logits, teacher.logits, self.temperature)
