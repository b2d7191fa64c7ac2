"""The divergence between two softened answers, which `kd` and its kin are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def soft_divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch of logits [N, K].

    T^2: the gradients of soft targets shrink as 1/T^2, so the factor keeps the term's weight the same whatever T is.
    No gradient flows into the teacher's.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
