"""The focal loss: cross-entropy that looks away from what is easy (Lin et al., ICCV 2017, arXiv:1708.02002).

    L = -sum_k y_k (1 - p_k)^gamma log p_k,  p = softmax(z),  mean over the batch

(1 - p)^gamma: an image of whose class the network is sure (p near 1) hardly counts, so that many easy images of common
classes do not drown the few hard ones. gamma = 0 is cross-entropy. The paper's factor alpha for rare classes is
`edgetl finetune --balance loss`, which every loss on labels can be combined with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.losses import Answer, Given


def focal_loss(student_logits: torch.Tensor, targets: torch.Tensor, gamma: float) -> torch.Tensor:
    """Mean focal loss.

    Args:
        student_logits: [N, K].
        targets: probabilities [N, K].
        gamma: of the factor, at least 0.
    """
    log_p = F.log_softmax(student_logits, dim=1)
    # 1 - p without loss of digits where p is nearly 1; at 0 itself a power below 1 would have no finite gradient.
    ease = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny).pow(gamma)
    return -(targets * ease * log_p).sum(1).mean()


class Loss(nn.Module):
    """`focal`: option gamma (default 2)."""

    needs_teacher = False
    needs_labels = True

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        if not 0 <= gamma < float("inf"):
            raise EdgetlError(f"The loss 'focal' has gamma={gamma}, expected a number of at least 0.")
        self.gamma = gamma

    def forward(self, student: Answer, teacher: Answer | None, given: Given) -> torch.Tensor:
        """Scalar; the teacher is not asked."""
        return focal_loss(student.logits, given.targets, self.gamma)
