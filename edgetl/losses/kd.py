"""Knowledge distillation (Hinton, Vinyals and Dean 2015, arXiv:1503.02531).

    L = T^2 * KL( softmax(z_t / T) || softmax(z_s / T) ),  mean over the batch

T^2: the gradients of soft targets shrink as 1/T^2, so the factor keeps the term's weight the same whatever T is.
With temperature "auto" T is fitted to how sure the teacher is, see `_temperature`.
"""

from __future__ import annotations

import torch
from torch import nn

from edgetl.losses import Answer, Given, _temperature
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
    """`kd`: option temperature (default auto)."""

    needs_teacher = True
    needs_labels = False

    def __init__(self, temperature: float | str = _temperature.AUTO) -> None:
        super().__init__()
        self.temperature = _temperature.read("kd", temperature)  # None until it is fitted

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar; the labels are not asked."""
        if self.temperature is None:
            raise RuntimeError("temperature=auto was not fitted to the teacher")
        return kd_loss(student.logits, teacher.logits, self.temperature)
