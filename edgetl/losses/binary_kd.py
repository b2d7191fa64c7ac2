"""Distillation of each label by itself, for images that have several labels or none.

    L = T^2 / K * sum_k KL( s(z_t,k / T) || s(z_s,k / T) ),  s(z) = 1 / (1 + exp(-z)),  mean over the batch

KL is that of two answers, yes and no: s_t log(s_t / s_s) + (1 - s_t) log((1 - s_t) / (1 - s_s)). A softmax over labels
would say that an image has one of them; here each is a question of its own, as in the logits' part of Yang et al.
("Multi-Label Knowledge Distillation", ICCV 2023, arXiv:2308.06453), who take no temperature, as is the default here.
T and T^2 are Hinton's, see `kd`. 1/K: as in `bce`, so that the two weigh alike however many labels there are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.heads import MULTILABEL
from edgetl.losses import Answer, Given


def binary_kd_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean divergence from the teacher's softened yes or no to the student's, times T^2.

    Args:
        student_logits: [N, K].
        teacher_logits: [N, K]; no gradient flows into it.
        temperature: T > 0.
    """
    student, teacher = student_logits / temperature, teacher_logits.detach() / temperature
    taught = torch.sigmoid(teacher)
    # The difference of two logarithms, each taken by itself: nothing overflows where a network is very sure.
    yes = F.logsigmoid(teacher) - F.logsigmoid(student)
    no = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    return (taught * yes + (1 - taught) * no).mean() * temperature**2


class Loss(nn.Module):
    """`binary-kd`: option temperature (default 1)."""

    needs_teacher = True
    needs_labels = False
    tasks = (MULTILABEL,)

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise EdgetlError(f"The loss 'binary-kd' has temperature={temperature}, expected a number above 0.")
        self.temperature = temperature

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar; the labels are not asked."""
        return binary_kd_loss(student.logits, teacher.logits, self.temperature)
