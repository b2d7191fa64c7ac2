"""Contrastive representation distillation (Tian, Krishnan and Isola, ICLR 2020, arXiv:1910.10699).

    L = L(v_s, M_t) + L(v_t, M_s),   L(v, M) = -mean_n [ log h(v_n, M[n]) + sum over m of log (1 - h(v_n, M[m])) ]
    h(v, w) = e / (e + k / R),       e = exp(v . w / T) / Z

v are embeddings of 128 numbers and unit length, made from the features by a linear layer for each network; M_s and M_t
remember the embeddings of all R training images. A student's embedding is to match what the teacher made of the same
image (n) and no other of k images of other classes (m, drawn anew each time). k / R is how likely a pair of noise is,
and Z, which the first batch fixes, brings the mean of e to 1 / R, as noise-contrastive estimation wants it (Wu et al.,
CVPR 2018, arXiv:1805.01978). Weight: 0.8, the paper's, with T = 0.07, k = 16,384 and a momentum of 0.5.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.losses import EMBEDDING, Answer, Corpus, Given

EPSILON = 1e-7  # under the logarithms, as the authors have it


def contrast(pairs: torch.Tensor, images: int) -> torch.Tensor:
    """Mean of the noise-contrastive loss over a batch.

    Args:
        pairs: [N, 1 + k], e of the right pair in column 0 and of the wrong ones after it.
        images: R, of which the wrong ones were drawn.
    """
    noise = (pairs.shape[1] - 1) / images
    right = (pairs[:, 0] / (pairs[:, 0] + noise + EPSILON)).log()
    wrong = (noise / (pairs[:, 1:] + noise + EPSILON)).log().sum(dim=1)
    return -(right + wrong).mean()


class Memory(nn.Module):
    """Embeddings of all training images, and the constant Z of the pairs made with them; kept in the checkpoint."""

    def __init__(self, images: int, width: int) -> None:
        super().__init__()
        # Uniform with the variance 1 / width, so that a row has about unit length.
        bound = (3 / width) ** 0.5
        self.register_buffer("rows", torch.empty(images, width).uniform_(-bound, bound))
        self.register_buffer("z", torch.zeros(()))
        self.rows: torch.Tensor
        self.z: torch.Tensor

    def pairs(self, embeddings: torch.Tensor, chosen: torch.Tensor, temperature: float) -> torch.Tensor:
        """e [N, 1 + k] of embeddings [N, D] and rows [N, 1 + k]; the first call fixes Z."""
        found = torch.exp(torch.bmm(self.rows[chosen], embeddings[:, :, None])[:, :, 0] / temperature)
        if self.z == 0:
            self.z.copy_(found.detach().mean() * len(self.rows))
        return found / self.z

    @torch.no_grad()
    def remember(self, index: torch.Tensor, embeddings: torch.Tensor, momentum: float) -> None:
        """Moves the rows of a batch towards its embeddings [N, D]."""
        self.rows[index] = F.normalize(momentum * self.rows[index] + (1 - momentum) * embeddings, dim=1)


class Negatives(nn.Module):
    """Draws images of other classes."""

    def __init__(self, labels: Sequence[int]) -> None:
        super().__init__()
        every = torch.tensor(labels, dtype=torch.int64)
        counts = torch.bincount(every)
        # By class, so that the images of one class are a block that can be stepped over.
        self.register_buffer("order", torch.argsort(every, stable=True), persistent=False)
        self.register_buffer("labels", every, persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)
        self.order: torch.Tensor
        self.labels: torch.Tensor
        self.counts: torch.Tensor
        self.starts: torch.Tensor

    def draw(self, index: torch.Tensor, count: int) -> torch.Tensor:
        """Rows [N, count], each equally likely among those of other classes than the image's, with repetition."""
        own = self.labels[index]
        others = (len(self.labels) - self.counts[own])[:, None]
        drawn = (torch.rand(len(index), count, device=index.device) * others).long().clamp_(max=others - 1)
        return self.order[torch.where(drawn < self.starts[own][:, None], drawn, drawn + self.counts[own][:, None])]


class Loss(nn.Module):
    """`crd`: options temperature (default 0.07), negatives (16384), momentum (0.5), width (128), and student and
    teacher, a layer each (default: what goes into the last layer; a map is averaged over its places). Images without a
    label are left out: which images are of another class is not known of them."""

    needs_teacher = True
    compares_images = True
    needs_labels = True
    features = EMBEDDING

    def __init__(
        self,
        temperature: float = 0.07,
        negatives: float = 16384,
        momentum: float = 0.5,
        width: float = 128,
        student: str = "",
        teacher: str = "",
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise EdgetlError(f"The loss 'crd' has temperature={temperature}, expected a number above 0.")
        if not 0 <= momentum < 1:
            raise EdgetlError(f"The loss 'crd' has momentum={momentum}, expected a number from 0 to below 1.")
        if min(negatives, width) < 1 or not float(negatives).is_integer() or not float(width).is_integer():
            raise EdgetlError(
                f"The loss 'crd' has negatives={negatives:g} and width={width:g}, expected whole numbers above 0."
            )
        self.temperature, self.momentum, self.student, self.teacher = temperature, momentum, student, teacher
        self.negatives, self.width = int(negatives), int(width)
        self.projections = nn.ModuleList()
        self.memories = nn.ModuleList()
        self.others: Negatives | None = None

    def build(self, student: Sequence[torch.Size], teacher: Sequence[torch.Size], corpus: Corpus) -> None:
        """Makes the projections of embeddings [D] and the memories.

        Raises:
            EdgetlError: more than one layer, or only one class, of which there is no other.
        """
        if len(student) != 1 or len(teacher) != 1:
            raise EdgetlError(f"The loss 'crd' was given {len(student)} and {len(teacher)} layers, expected one each.")
        if len(set(corpus.labels)) < 2:
            raise EdgetlError("The loss 'crd' needs training images of at least two classes.")
        self.projections.extend(nn.Linear(shape[0][0], self.width) for shape in (student, teacher))
        self.memories.extend(Memory(len(corpus.labels), self.width) for _ in range(2))
        self.others = Negatives(corpus.labels)

    def forward(self, student: Answer, teacher: Answer, given: Given) -> torch.Tensor:
        """Scalar; the targets are not asked, the classes are those of the images' rows.

        Raises:
            EdgetlError: the batch does not say which images it holds.
        """
        if given.index is None or self.others is None:
            raise EdgetlError("The loss 'crd' needs to know the rows of the images, and was not told.")
        index = given.index.to(student.logits.device)
        answers = zip(self.projections, (student, teacher), strict=True)
        ours, theirs = (F.normalize(project(one.features[0]), dim=1) for project, one in answers)
        chosen = torch.cat([index[:, None], self.others.draw(index, self.negatives)], dim=1)
        mine, taught = (typing.cast(Memory, one) for one in self.memories)
        loss = contrast(taught.pairs(ours, chosen, self.temperature), len(taught.rows))
        loss = loss + contrast(mine.pairs(theirs, chosen, self.temperature), len(mine.rows))
        if self.training:
            mine.remember(index, ours.detach(), self.momentum)
            taught.remember(index, theirs.detach(), self.momentum)
        return loss
