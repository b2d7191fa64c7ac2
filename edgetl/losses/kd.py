"""Knowledge distillation (Hinton, Vinyals and Dean 2015, arXiv:1503.02531).

    L = T^2 * KL( softmax(z_t / T) || softmax(z_s / T) ),  mean over the batch

T^2: the gradients of soft targets shrink as 1/T^2, so the factor keeps the term's weight the same whatever T is.
"""

from __future__ import annotations

import torch
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.losses import Answer, Given
from edgetl.losses._divergence import soft_divergence


def kd_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean Kullback-Leibler divergence from the teacher's softened answer to the student's, times T^2.

    Args:
        student_logits: [N, K].
        teacher_logits: [N, K]; no gradient flows into it.
        temperature: T > 0.
    """
    return soft_divergence(student_logits, teacher_logits, temperature)


class Loss(nn.Module):
    """`kd`: option temperature (default 4)."""

    needs_teacher = True
    needs_labels = False

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise EdgetlError(f"The loss 'kd' has temperature={temperature}, expected a number above 0.")
        self.temperature = temperature

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar; the labels are not asked."""
        return kd_loss(student.logits, teacher.logits, self.temperature)
