"""Cross-entropy with the labels.

    L = -sum_k y_k log softmax(z)_k,  mean over the batch

y is one-hot, smoothed (Szegedy et al., CVPR 2016, arXiv:1512.00567) or mixed (Zhang et al., ICLR 2018,
arXiv:1710.09412); the loader writes it, so this loss takes probabilities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.losses import Answer, Given


def labels_loss(student_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy.

    Args:
        student_logits: [N, K].
        targets: probabilities [N, K].
    """
    return F.cross_entropy(student_logits, targets)


class Loss(nn.Module):
    """`labels`: has no options."""

    needs_teacher = False
    needs_labels = True

    def forward(self, student: Answer, teacher: Answer | None, given: Given) -> torch.Tensor:
        """Scalar; the teacher is not asked."""
        return labels_loss(student.logits, given.targets)
