"""Classes of unequal size: three ways to keep the common ones from drowning the rare. Counts are the train split's.

    sampler       every epoch shows as many images as before, and of each class equally many: a rare class's images
                  again and again, a common class's in part, others in the next epoch
    loss          an image counts N / (K n_c), for N images of K classes, n_c of its own: the mean over the training
                  images is 1, so the scale of the loss stays
    logit-adjust  the loss sees z_k + tau log(n_k / N) with tau = 1, so that the network itself learns the logits that
                  are best for the mean over classes (Menon et al., ICLR 2021, arXiv:2007.07314)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.datasets import Item
from edgetl.losses import Answer, Given, Term

TAU = 1.0
Rows = Callable[[np.random.Generator], NDArray[np.int64]]  # rows of an epoch, in order


def counts_of(items: Sequence[Item], classes: int) -> NDArray[np.int64]:
    """Images of each class [K]; those without a label are not counted."""
    return np.bincount([item.label for item in items if item.label >= 0], minlength=classes)


def balanced_rows(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """len(labels) rows in random order, of each class that is there as many as of any other, up to one.

    An image comes as often as any other of its class, up to once.

    Args:
        labels: of all rows.
        rng: what draws; one of the same seed draws the same.
    """
    classes = rng.permutation(np.unique(labels))  # so that not always the same ones get the remainder
    counts = [len(share) for share in np.array_split(labels, len(classes))]
    drawn = [_cycled(np.flatnonzero(labels == one), count, rng) for one, count in zip(classes, counts, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def _cycled(rows: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many of the rows: all of them as often as they go into it, and a random part for the rest."""
    return np.concatenate([np.tile(rows, count // len(rows)), rng.permutation(rows)[: count % len(rows)]])


def rows_of(how: str, items: Sequence[Item]) -> Rows | None:
    """What draws the rows of an epoch; None where all are shown once."""
    if how != "sampler":
        return None
    labels = np.array([item.label for item in items], np.int64)
    return lambda rng: balanced_rows(labels, rng)


def balanced(terms: Sequence[Term], how: str, counts: NDArray[np.int64]) -> tuple[Term, ...]:
    """The losses with what `how` adds to them.

    Args:
        terms: losses on labels.
        how: none, sampler, loss or logit-adjust.
        counts: training images of each class [K]; a class without any counts as if it had one.
    """
    kinds: dict[str, Callable[[nn.Module], nn.Module]] = {
        "loss": lambda loss: Weighted(loss, class_weights(counts)),
        "logit-adjust": lambda loss: Adjusted(loss, log_prior(counts)),
    }
    if how not in kinds:
        return tuple(terms)
    return tuple(Term(term.name, term.weight, kinds[how](term.loss)) for term in terms)


def class_weights(counts: NDArray[np.int64]) -> torch.Tensor:
    """float32 [K]: N / (K n_c)."""
    present = np.maximum(counts, 1)
    return torch.from_numpy((counts.sum() / (np.count_nonzero(counts) * present)).astype(np.float32))


def log_prior(counts: NDArray[np.int64]) -> torch.Tensor:
    """float32 [K]: log(n_k / N)."""
    present = np.maximum(counts, 1)
    return torch.from_numpy(np.log(present / present.sum()).astype(np.float32))


def of_probe(how: str, counts: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """What the logistic regression of a linear probe is given; it sees each image once, so sampling is weighting."""
    if how in ("sampler", "loss"):
        return {"weights": class_weights(counts)}
    return {"prior": TAU * log_prior(counts)} if how == "logit-adjust" else {}


class Weighted(nn.Module):
    """A loss that is linear in the targets, of which each image counts by its class.

    The weight is that of the image, and with mixed or smoothed labels the mean of its classes': the targets of an image
    are all multiplied with it, so that what the network should say of an image does not change.
    """

    needs_teacher = False
    needs_labels = True

    def __init__(self, loss: nn.Module, weights: torch.Tensor) -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("weights", weights, persistent=False)
        self.weights: torch.Tensor

    def forward(self, student: Answer, teacher: Answer | None, given: Given) -> torch.Tensor:
        """Scalar; the teacher is not asked."""
        counted = given.targets * (given.targets @ self.weights)[:, None]
        found: torch.Tensor = self.loss(student, teacher, Given(counted, given.index))
        return found


class Adjusted(nn.Module):
    """A loss that sees the logits with the classes' prior added."""

    needs_teacher = False
    needs_labels = True

    def __init__(self, loss: nn.Module, prior: torch.Tensor) -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("prior", TAU * prior, persistent=False)
        self.prior: torch.Tensor

    def forward(self, student: Answer, teacher: Answer | None, given: Given) -> torch.Tensor:
        """Scalar; the teacher is not asked."""
        found: torch.Tensor = self.loss(Answer(student.logits + self.prior, student.features), teacher, given)
        return found
