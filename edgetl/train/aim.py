"""What a network is trained to say where that is not one class an image: targets, score, and the unit of values.

Values are standardised while they are learned: a target is the distance from the mean of the training images' values in
their standard deviations. At the end that is taken back in the last layer, w' = s w and b' = s b + m, so that what is
kept, evaluated and handed on speaks in the unit of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl import head_metrics, heads
from edgetl.datasets import DataSet, Item
from edgetl.errors import DataError, EdgetlError
from edgetl.events import Event, Listener
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, SCORES, Head
from edgetl.losses import Answer, Given, Term
from edgetl.models import Network
from edgetl.splits import Splits
from edgetl.train.progress import Score


@dataclass(frozen=True)
class Aim:
    """What is asked of an image, and how values are standardised."""

    heads: tuple[Head, ...]
    mean: NDArray[np.float64]  # [outputs]; 0 for what is no value
    scale: NDArray[np.float64]  # [outputs]; 1 for what is no value

    @classmethod
    def of(cls, data: DataSet, parts: Splits) -> Aim | None:
        """The aim of a training; None where an image has one class.

        Raises:
            DataError: a column's training values are all the same, or the validation images cannot be scored.
        """
        if not data.heads:
            return None
        outputs = len(data.labels)
        mean, scale = np.zeros(outputs), np.ones(outputs)
        if data.heads[0].kind == REGRESS:
            known = np.ma.masked_invalid(heads.truth(data.heads, [item.answers for item in parts.train]))
            mean, scale = known.mean(axis=0).filled(0.0), known.std(axis=0).filled(0.0)
            for name, center, spread in zip(data.labels, mean, scale, strict=True):
                if not spread > 1e-9 * abs(center):
                    raise DataError(f"All training images have the same '{name}', {center:g}; nothing can be learned "
                                    "from that.", hint="Leave that column out with --label-columns.")
        aim = cls(data.heads, mean, scale)
        aim.require_scores(parts.val)
        return aim

    @property
    def kind(self) -> str:
        """The task."""
        return self.heads[0].kind

    def naming(self, listener: Listener) -> Listener:
        """The listener, told beside each figure of a training which score `val_accuracy` is."""
        def named(event: Event) -> None:
            told = {"score": SCORES[self.kind]} if event.kind in ("advance", "epoch") else {}
            listener(Event(event.stage, event.kind, {**event.values, **told}))

        return named

    def require_scores(self, val: Sequence[Item]) -> None:
        """Returns when the best epoch can be chosen on these images.

        Raises:
            DataError: none of them has a label, or their values do not differ.
        """
        if val and not np.isfinite(self._score(np.zeros((len(val), len(self.mean))), self.truth(val))):
            raise DataError(f"The {len(val)} validation images do not tell one training from another: their "
                            f"{SCORES[self.kind]} is not defined.",
                            hint="Give more of them (--val-fraction), or a val split with more labels.")

    def truth(self, items: Sequence[Item]) -> NDArray[np.float64]:
        """What is known of images, [N, outputs], in the unit of the table; see `heads.truth`. Of some it is nothing."""
        width = len(self.heads) if self.kind == CLASSIFY else len(self.mean)
        nothing = (math.nan,) * width
        return heads.truth(self.heads, [item.answers or nothing for item in items])

    def targets(self, items: Sequence[Item], smoothing: float = 0.0) -> torch.Tensor:
        """float32 [N, outputs] for the losses: standardised values, or probabilities; NaN where nothing is known.

        Smoothing spreads that share of a label over the classes of its head, or over having and not having it. Values
        have none.

        Args:
            items: the images.
            smoothing: that share.
        """
        known = (self.truth(items) - self.mean) / self.scale
        for head, part in heads.places(self.heads):
            among = {CLASSIFY: len(head.labels), MULTILABEL: 2}.get(head.kind)
            if among is not None:
                known[:, part] = known[:, part] * (1 - smoothing) + smoothing / among
        return torch.from_numpy(known.astype(np.float32))

    def right(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The score of a batch's images [N, outputs] added up, as far as it can be told of images one by one.

        The share of heads or labels that are right, or 1 less the mean squared standardised error, which over all
        training images is R2. An image of which nothing is known counts 0.
        """
        known = ~targets.isnan()
        found = torch.where(known, targets, 0)
        if self.kind == CLASSIFY:
            parts = [part for _, part in heads.places(self.heads)]
            hits = [logits[:, part].argmax(1) == found[:, part].argmax(1) for part in parts]
            return _mean_of_known(torch.stack(hits, 1).float(), torch.stack([known[:, p].all(1) for p in parts], 1))
        if self.kind == MULTILABEL:
            return _mean_of_known(((logits >= 0) == (found > 0.5)).float(), known)
        return _mean_of_known(1 - (logits - found).square(), known)

    def score(
        self, terms: Sequence[Term], targets: torch.Tensor, truth: NDArray[np.float64]
    ) -> Callable[[torch.Tensor], Score]:
        """What scores the logits [N, outputs] of some images.

        Args:
            terms: the losses of the training; of equal scores the lower loss is better.
            targets: of the images, without smoothing.
            truth: of the images.
        """
        def scored(logits: torch.Tensor) -> Score:
            with torch.no_grad():
                loss = total(terms, logits, targets)
            return Score(self._score(logits.double().numpy() * self.scale + self.mean, truth), float(loss))

        return scored

    def _score(self, answers: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
        return float(head_metrics.score(self.heads, answers, truth)[0])

    def require(self, network: Network) -> None:
        """Returns when the network's answers can be what is asked.

        Raises:
            EdgetlError: see `linear_head`.
        """
        if self.kind != CLASSIFY:
            linear_head(network)

    def begin(self, network: Network) -> None:
        """Lets a head that speaks in the unit of the table speak in standardised values."""
        self._rescale(network, 1 / self.scale, -self.mean / self.scale)

    def settle(self, network: Network) -> None:
        """Lets a head that speaks in standardised values speak in the unit of the table."""
        self._rescale(network, self.scale, self.mean)

    def _rescale(self, network: Network, factor: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
        if self.kind != REGRESS:
            return
        head = linear_head(network)
        by, plus = (torch.from_numpy(one).to(head.weight.device) for one in (factor, shift))
        with torch.no_grad():
            head.weight.copy_((head.weight.double() * by[:, None]).to(head.weight.dtype))
            head.bias.copy_((head.bias.double() * by + plus).to(head.bias.dtype))


def linear_head(network: Network) -> nn.Linear:
    """The last layer of a network whose answers may be any number.

    Raises:
        EdgetlError: it is no linear layer with a bias.
    """
    head = network.module.get_submodule(network.head)
    if isinstance(head, nn.Linear) and head.bias is not None:
        return head
    raise EdgetlError(f"{network.model} ends in {type(head).__name__}; --task multilabel and regress need a linear "
                      "layer with a bias there, whose answers may be any number.", hint="Choose another --teacher.")


def _mean_of_known(each: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The sum over rows of the mean over what is known in each, scalar."""
    return ((each * known).sum(1) / known.sum(1).clamp_min(1)).sum()


def total(terms: Sequence[Term], logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The weighted sum of losses on labels, scalar."""
    parts = [term.weight * term.loss(Answer(logits), None, Given(targets)) for term in terms]
    found: torch.Tensor = torch.stack(parts).sum()
    return found


class PerHead(nn.Module):
    """A loss on one class an image, taken of each head by itself: the mean over the heads.

    An image counts for the heads that are known of it; what it adds does not depend on the others of its batch. For a
    loss that asks the teacher alone all images count, whose answer is known of every one.
    """

    def __init__(self, loss: nn.Module, asked: Sequence[Head]) -> None:
        super().__init__()
        self.loss = loss
        self.parts = tuple(part for _, part in heads.places(asked))
        self.needs_teacher = bool(loss.needs_teacher)
        self.needs_labels = bool(getattr(loss, "needs_labels", True))
        self.compares_images = bool(getattr(loss, "compares_images", False))

    def forward(self, student: Answer, teacher: Answer | None, given: Given) -> torch.Tensor:
        """Scalar."""
        return torch.stack([self._of(part, student, teacher, given) for part in self.parts]).mean()

    def _of(self, part: slice, student: Answer, teacher: Answer | None, given: Given) -> torch.Tensor:
        targets = given.targets[:, part]
        known = ~targets.isnan().any(1) if self.needs_labels else torch.ones_like(targets[:, 0], dtype=torch.bool)
        if not known.any():
            return 0.0 * student.logits[:, part].sum()
        ours = Answer(student.logits[known, part])
        theirs = Answer(teacher.logits[known, part]) if teacher is not None else None
        index = given.index[known.to(given.index.device)] if given.index is not None else None
        found: torch.Tensor = self.loss(ours, theirs, Given(targets[known], index))
        return found * known.float().mean()
