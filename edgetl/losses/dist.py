"""Distillation from a stronger teacher (Huang et al., NeurIPS 2022, arXiv:2205.10536).

    L = T^2 * ( inter * mean_n (1 - r(p_s[n, :], p_t[n, :])) + intra * mean_k (1 - r(p_s[:, k], p_t[:, k])) )

p = softmax(z / T), and r is Pearson's correlation: over the classes of each image (inter), and over the images of the
batch for each class (intra). A correlation leaves scale and offset free, so a student that cannot be as sure as a
strong teacher is not punished for that. T^2: as in `kd`. The authors take weight 1 with inter = intra = 1 at T = 1 on
ImageNet, and 2 at T = 4 on CIFAR-100.
"""

from __future__ import annotations

import torch
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.losses import Answer, Given

EPSILON = 1e-8  # as the authors have it: what does not vary correlates with nothing


def pearson(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation of the rows of two matrices [R, C] -> [R]."""
    one, other = one - one.mean(dim=1, keepdim=True), other - other.mean(dim=1, keepdim=True)
    return nn.functional.cosine_similarity(one, other, dim=1, eps=EPSILON)


def dist_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, inter: float, intra: float, temperature: float
) -> torch.Tensor:
    """The weighted lack of correlation between and within classes, times T^2.

    Args:
        student_logits: [N, K].
        teacher_logits: [N, K]; no gradient flows into it.
        inter: weight of the correlation over the classes of an image.
        intra: weight of the correlation over the images for a class; of a single image there is none.
        temperature: T > 0.
    """
    student = torch.softmax(student_logits / temperature, dim=1)
    teacher = torch.softmax(teacher_logits.detach() / temperature, dim=1)
    between = 1 - pearson(student, teacher).mean()
    within = 1 - pearson(student.T, teacher.T).mean()
    return (inter * between + intra * within) * temperature**2


class Loss(nn.Module):
    """`dist`: options inter (default 1), intra (1), temperature (1)."""

    needs_teacher = True
    compares_images = True
    needs_labels = False

    def __init__(self, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise EdgetlError(f"The loss 'dist' has temperature={temperature}, expected a number above 0.")
        self.inter, self.intra, self.temperature = inter, intra, temperature

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar; the labels are not asked."""
        return dist_loss(student.logits, teacher.logits, self.inter, self.intra, self.temperature)
