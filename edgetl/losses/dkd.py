"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv:2203.08679).

    L = T^2 * ( alpha * KL(b_t || b_s) + beta * KL(q_t || q_s) ),  mean over the batch

With p = softmax(z / T) and the image's class y: b = (p_y, 1 - p_y) is how sure a network is of the class, and q is its
opinion on the other classes alone, a softmax over K - 1 logits. Plain `kd` weights the second part by 1 - p_t,y, which
is nearly nothing where the teacher is sure; here its weight beta is free. T^2: as in `kd`. The authors weight the term
by 1 and let it grow from 0 over the first 20 epochs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.losses import Answer, Given, _temperature
from edgetl.losses._standardize import standardized


def dkd_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> torch.Tensor:
    """Mean of the two weighted divergences, times T^2.

    Args:
        student_logits: [N, K].
        teacher_logits: [N, K]; no gradient flows into it.
        labels: int64 [N].
        alpha: weight of the part on the image's class.
        beta: weight of the part on all others; of two classes it is 0.
        temperature: T > 0.
    """
    sure_s, others_s = _decoupled(student_logits / temperature, labels)
    sure_t, others_t = _decoupled(teacher_logits.detach() / temperature, labels)
    target = F.kl_div(sure_s, sure_t, reduction="batchmean", log_target=True)
    other = F.kl_div(others_s, others_t, reduction="batchmean", log_target=True)
    return (alpha * target + beta * other) * temperature**2


def _decoupled(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of (p_y, 1 - p_y) [N, 2], and of the softmax over the other classes [N, K - 1]."""
    chosen = F.one_hot(labels, logits.shape[1]).bool()
    own, others = logits[chosen][:, None], logits[~chosen].view(len(logits), -1)
    both = torch.cat([own, others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(both, dim=1), F.log_softmax(others, dim=1)


class Loss(nn.Module):
    """`dkd`: options alpha (default 1), beta (8), temperature (4, or auto), standardize (0; 1 takes z-scores).

    Of a mixed image the class with the greater share counts. Images without a label have no class to set apart from the
    others, so they are left out.
    """

    needs_teacher = True
    needs_labels = True

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float | str = "4", standardize: float = 0.0
    ) -> None:
        super().__init__()
        if standardize not in (0, 1):
            raise EdgetlError(f"The loss 'dkd' has standardize={standardize:g}, expected 0 or 1.")
        self.alpha, self.beta, self.standardize = alpha, beta, bool(standardize)
        self.temperature = _temperature.read("dkd", temperature)  # None until it is fitted

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar."""
        if self.temperature is None:
            raise RuntimeError("temperature=auto was not fitted to the teacher")
        answers = student.logits, teacher.logits
        ours, theirs = map(standardized, answers) if self.standardize else answers
        return dkd_loss(ours, theirs, given.targets.argmax(dim=1), self.alpha, self.beta, self.temperature)
