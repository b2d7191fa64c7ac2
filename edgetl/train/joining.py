"""A labelled source data set that is trained together with the target: one backbone, two heads.

Every step shows images of both, `--source-ratio` of them the source's, each judged by a head of its own. The backbone
sees them one after the other: batch norms normalise each by its own statistics, and remember those of the target alone,
which are what the network is used on (statistics that mix two domains fit neither: Li et al., "Revisiting batch
normalization for practical domain adaptation", 2016, arXiv:1603.04779). An epoch is one pass over the target's images;
the source's go round at their own pace, in an order that depends on nothing but seed and epoch. Only the target's head
is kept, and only target images validate.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl import datasets, splits
from edgetl.datasets import DataSet, Item
from edgetl.errors import DataError
from edgetl.events import Event
from edgetl.losses import Term
from edgetl.models import Network
from edgetl.recipe_finetune import Finetune
from edgetl.train import damaged, distributed, store
from edgetl.train.loader import ORDER, Batch, TrainLoader
from edgetl.train.moving import Moves
from edgetl.train.probe import BeforeHead
from edgetl.train.setting import Setting
from edgetl.train.task import ClassifierTask, share_of

OTHER = 104729  # keeps the source's random numbers apart from the target's


@dataclass(frozen=True)
class Source:
    """The images of a source data set that join the training."""

    data: DataSet
    items: tuple[Item, ...]
    fingerprint: str  # of the whole data set
    left_out: int = 0  # images that are also among the target's validation or test images

    def to_json(self) -> dict[str, Any]:
        """What run.json says."""
        return {
            "name": self.data.name,
            "fingerprint": self.fingerprint,
            "images": len(self.items),
            "classes": list(self.data.labels),
            "left_out": self.left_out,
            "notes": list(self.data.notes),
        }


def gather(options: Finetune, place: Setting) -> Source:
    """The source's training images; all of them where it has no splits of its own.

    Left out, with a warning, is what is byte for byte also a validation or test image of the target.

    Raises:
        DataError: the source cannot be read, has fewer than two images to train on, or more that are damaged than
            --max-bad allows.
    """
    data = datasets.open_data(str(options.source))
    digests = splits.content_digests(data)
    known = splits.content_digests(place.data)
    held_out = {known[item.key] for item in (*place.parts.val, *place.parts.test)}
    mine = [item for item in data.items if item.split in (None, "train")]
    kept = tuple(item for item in mine if digests[item.key] not in held_out)
    if len(kept) < 2:
        raise DataError(
            f"--source {options.source} has {len(kept)} training images that the target does not hold out, expected "
            "at least 2."
        )
    if len(kept) < len(mine):
        text = f"{len(mine) - len(kept)} images of --source are also in val or test of the data; left out."
        place.listener(Event(place.stage, "warning", {"text": text}))
    whole = splits.fingerprint_of(data, digests)
    with distributed.current().by_node():  # the others find in the cache what cannot be decoded
        sound = damaged.sound(options.max_bad, data, kept, whole, place.folder, place.listener, place.stage)
    return Source(data, sound, whole, len(mine) - len(kept))


@dataclass(frozen=True)
class JointBatch(Batch):
    """A batch of target images, with one of the source's beside it."""

    source: Batch | None = None


class SourceLoader(TrainLoader):
    """The source's images, so many a step as go with the target's."""

    def __init__(self, own: TrainLoader, source: Source, place: Setting, ratio: float) -> None:
        """See `JointLoader`."""
        wanted = own.preprocess
        with distributed.current().by_node():  # the others find the images prepared
            pixels = store.open_store(
                source.data, source.items, source.fingerprint, wanted, place.listener, place.stage
            )
        # Another batch size than this could be, which `sizes` says, has no effect: the steps are the target's.
        super().__init__(
            pixels, source.items, len(source.data.labels), wanted, own.options, 1, own.device, cells=own.cells
        )
        counts = [len(part) for part in np.array_split(np.arange(len(own.labels)), own.steps)]
        self.sizes = [max(1, round(count * ratio / (1 - ratio))) for count in counts]
        self.steps, self.smallest = own.steps, min(self.sizes)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The rows of an epoch: where the last one ended in an endless row of permutations, and as many as it needs."""
        wanted, images = sum(self.sizes), len(self.labels)
        first, begin = divmod(epoch * wanted, images)
        rounds = range(first, (epoch * wanted + wanted - 1) // images + 1)
        rows = np.concatenate([self._rng(ORDER, number).permutation(images) for number in rounds])
        return rows[begin : begin + wanted]

    def _split(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return np.split(order, np.cumsum(self.sizes)[:-1])

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.options.seed, OTHER, *stream])


class JointLoader(TrainLoader):
    """Batches of the target with batches of the source beside them."""

    def __init__(self, own: TrainLoader, source: SourceLoader) -> None:
        """Takes over what one is asked for besides batches.

        Args:
            own: of the target.
            source: with as many steps.
        """
        self.__dict__.update(vars(own))
        self.own, self.source = own, source
        self.smallest = min(own.smallest, source.smallest)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """See `TrainLoader.epoch`; each batch is a `JointBatch`."""
        own, others = self.own.epoch(epoch, start), self.source.epoch(epoch, start)
        with contextlib.closing(own), contextlib.closing(others):
            yield from (beside(batch, other) for batch, other in zip(own, others, strict=True))


def beside(batch: Batch, source: Batch) -> JointBatch:
    """A target batch with a source batch beside it."""
    return JointBatch(**{one.name: getattr(batch, one.name) for one in dataclasses.fields(batch)}, source=source)


class JointTask(ClassifierTask):
    """A network on the target's losses, and on the cross-entropy of a second head with the source's labels."""

    def __init__(
        self, network: Network, terms: tuple[Term, ...], place: Setting, source: Source, options: Finetune,
        moves: Moves | None = None,
    ) -> None:  # fmt: skip
        """See `ClassifierTask`.

        Args:
            network: with the target's head.
            terms: the target's losses.
            place: around the training.
            source: what joins it.
            options: the share and the weight of the source.
            moves: which parameters of the network move when.
        """
        super().__init__(network, terms, moves=moves, aim=place.aim)
        self._place, self._joining, self._ratio = place, source, options.source_ratio
        self._weight, self._head = options.source_weight, network.head
        with torch.no_grad():
            device = next(network.module.parameters()).device
            images = torch.zeros((2, *network.preprocess.input_shape), device=device)
            width = BeforeHead(network).eval()(images).shape[1]
        second = nn.Linear(width, len(source.data.labels))
        nn.init.normal_(second.weight, std=0.01)  # quiet, as the target's new head
        nn.init.zeros_(second.bias)
        self.losses.append(second)  # moves with the losses, is resumed with them, and is not in the network

    def own_images(self, size: int) -> int:
        """How many of a step's images are the target's; see `ClassifierTask`."""
        return max(1, size - round(size * self._ratio))

    def loading(self, loader: TrainLoader) -> TrainLoader:
        """The target's batches with the source's beside them; see `ClassifierTask`."""
        return JointLoader(loader, SourceLoader(loader, self._joining, self._place, self._ratio))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """As `ClassifierTask.forward`, of the target; "source" is the second head's loss."""
        assert isinstance(batch, JointBatch) and batch.source is not None
        logits, others = self._both(batch, batch.source)
        with torch.autocast(logits.device.type, enabled=False):
            parts = {term.name: self._part(term, logits, None, batch) for term in self.terms}
            theirs = F.cross_entropy(others.float(), batch.source.targets)
        own = [term.weight * share_of(batch, term) * parts[term.name] for term in self.terms]
        loss = torch.stack([*own, self._weight * _share(batch.source) * theirs]).sum()
        return {"loss": loss, "logits": logits, **parts, "source": theirs * _by_images(batch, batch.source)}

    def _both(self, batch: Batch, source: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the target's images by its head, and of the source's by the second."""
        caught: list[torch.Tensor] = []
        hook = self.network.get_submodule(self._head).register_forward_pre_hook(
            lambda _, inputs: caught.append(inputs[0])
        )
        try:
            logits = self.input(batch.images)
            with untracked(self.network):
                self.input(source.images)
        finally:
            hook.remove()
        features = caught[1].mean((2, 3)) if caught[1].ndim == 4 else caught[1]
        return logits, self.losses[-1](features)


@contextlib.contextmanager
def untracked(module: nn.Module) -> Iterator[None]:
    """Leaves the statistics of batch norms as they were, though those in training mode normalise by the batch."""
    layers = [one for one in module.modules() if isinstance(one, _BatchNorm) and one.training]
    own = [dict(layer.named_buffers(recurse=False)) for layer in layers]
    for layer, values in zip(layers, own, strict=True):
        for name, value in values.items():
            setattr(layer, name, value.clone())  # what is learned in the block is thrown away with the copy
    try:
        yield
    finally:
        for layer, values in zip(layers, own, strict=True):
            for name, value in values.items():
                setattr(layer, name, value)


def _share(batch: Batch) -> float:
    """By how much a part of a step counts in the step's mean, for gradients that are averaged over the processes."""
    return 1.0 if batch.whole is None else distributed.current().size * len(batch.labels) / batch.whole[0]


def _by_images(batch: Batch, source: Batch) -> float:
    """Factor by which a mean over source images counts where it is added up as one over target images."""
    if batch.whole is None or source.whole is None:
        return 1.0
    return len(source.labels) / source.whole[0] * batch.whole[0] / len(batch.labels)

