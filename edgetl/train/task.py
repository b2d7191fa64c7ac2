"""What the loop trains: a network on weighted losses, with or without a teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.losses import Answer, Corpus, Given, OnFeatures, Term
from edgetl.models import Network
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import channels, distributed
from edgetl.train.features import Layer, Layers, Tap, chosen, shapes
from edgetl.train.moving import Moves

if TYPE_CHECKING:
    from edgetl.train.aim import Aim
    from edgetl.train.loader import Batch, TrainLoader
    from edgetl.train.softlabels import Source


class Normalized(nn.Module):
    """A network fed with pixels: brings them to its own size and channels and normalises them in its own way."""

    def __init__(self, module: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.module, self.preprocess = module, preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, -1, 1, 1), persistent=False)
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of float pixels [N, C, H, W] in 0..255, as `channels.converted` takes them."""
        logits: torch.Tensor = self.module(self.prepared(images))
        return logits

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        """What the network itself takes, of the pixels that `forward` takes."""
        size = self.preprocess.size_hw
        if tuple(images.shape[2:]) != tuple(size):
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        images = channels.converted(images, self.preprocess)
        return (images * self.preprocess.scale - self.mean) / self.std


class ClassifierTask(nn.Module):
    """A network on the weighted sum of losses; the teacher, where there is one, answers on the very same views.

    Args:
        network: what learns.
        terms: the losses.
        teacher: a network that answers in every step, with features where a loss looks at them.
        corpus: what losses may know of the training images.
        source: where the teacher's logits come from, in place of `teacher` where both are given.
        moves: which parameters of the network move when; None leaves it to what computes gradients already.
        aim: what the network shall say of an image; None is one class.
        shown: how the views are drawn that student and teachers look at, see `channels.shown`; None: as the network
            and `teacher` want them.
    """

    def __init__(
        self,
        network: Network,
        terms: Sequence[Term],
        teacher: Network | None = None,
        corpus: Corpus | None = None,
        source: Source | None = None,
        moves: Moves | None = None,
        aim: Aim | None = None,
        shown: Preprocess | None = None,
    ) -> None:
        super().__init__()
        beside = () if teacher is None else (teacher.preprocess,)
        self.shown = channels.shown(network.preprocess, beside) if shown is None else shown
        self._moves, self._aim = moves, aim
        self.settled = moves.settled if moves is not None else 0
        self._still: tuple[nn.Parameter, ...] = ()
        if moves is not None:
            moves.settle(network.module)
        asking = [term.name for term in terms if term.loss.needs_teacher]
        if asking and teacher is None and source is None:
            raise EdgetlError(f"The loss '{asking[0]}' needs a teacher.", hint="Use `edgetl distill --teacher RUN`.")
        self._source = source if asking else None
        self.network = network.module
        self.input = Normalized(network.module, network.preprocess)
        self.teacher = Normalized(teacher.module, teacher.preprocess) if teacher is not None and asking else None
        self.terms = tuple(terms)
        self.of_labelled = frozenset(term.name for term in terms if needs_labels(term))
        self.losses = nn.ModuleList(term.loss for term in terms)
        self._heard = Heard(network, teacher, self.terms, corpus or Corpus()) if teacher is not None else None

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The parts "loss", "logits" [N, K], and each term under its own name, unweighted.

        Where the batch is a part of a step, "loss" is the batch's share of the step's loss, times the processes, over
        which gradients are averaged.
        """
        listening = self._heard.open() if self._heard is not None else contextlib.nullcontext()
        with listening:
            logits = self.input(batch.images)
            taught = self._taught(batch)
        with torch.autocast(logits.device.type, enabled=False):
            parts = {term.name: self._part(term, logits, taught, batch) for term in self.terms}
        loss = torch.stack([term.weight * share_of(batch, term) * parts[term.name] for term in self.terms]).sum()
        return {"loss": loss, "logits": logits, **parts}

    def _taught(self, batch: Batch) -> torch.Tensor | None:
        """The teacher's logits [N, K]; None where no loss asks for them."""
        said = self._source.answers(batch) if self._source is not None else None
        with torch.no_grad():  # after the source, which may run the same network: what is heard last counts
            own = self.teacher(batch.images) if self.teacher is not None else None
        return own if said is None else said

    def rehearse(self, images: torch.Tensor) -> None:
        """Has the teacher look at pixels [N, C, H, W] as in a step, and keeps nothing: what fits is found out so."""
        if self._source is not None:
            self._source.ask(images)
        if self.teacher is not None:
            with torch.no_grad():
                self.teacher(images)

    def _part(self, term: Term, logits: torch.Tensor, taught: torch.Tensor | None, batch: Batch) -> torch.Tensor:
        count = batch.labelled if needs_labels(term) else len(logits)
        ours, theirs = self._heard.of(term) if self._heard is not None else ((), ())
        ours, theirs = (tuple(one[:count] for one in features) for features in (ours, theirs))
        student = Answer(logits[:count].float(), ours)
        teacher = Answer(taught[:count].float(), theirs) if taught is not None else None
        given = Given(batch.targets[:count], batch.index[:count])
        if compares_images(term) and distributed.current().size > 1:
            student, teacher, given = of_all_processes(student, teacher, given)
        if not len(student.logits):
            return logits[:0].float().sum()
        part: torch.Tensor = term.loss(student, teacher, given)
        return part

    def right(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """How many of the labelled images are answered rightly; of another aim, its score added up over them."""
        known = len(logits)
        if self._aim is not None:
            return self._aim.right(logits.float(), batch.targets[:known])
        return (logits.argmax(1) == batch.labels[:known]).sum()

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The network's parameters and those that belong to the losses; never the teacher's."""
        yield from ((f"network.{name}", one) for name, one in self.network.named_parameters() if one.requires_grad)
        yield from ((f"losses.{name}", one) for name, one in self.losses.named_parameters())

    def state(self) -> Mapping[str, torch.Tensor]:
        """What the losses remember from step to step, besides their parameters, and what was counted of the answers."""
        counted = self._source.state() if self._source is not None else {}
        return {**dict(self.losses.named_buffers()), **{f"source.{name}": one for name, one in counted.items()}}

    def flush(self) -> None:
        """Writes down what was learned of the teacher."""
        if self._source is not None:
            self._source.flush()

    def told(self) -> Sequence[Mapping[str, int]]:
        """Figures of each store of the teacher's answers; empty where there is none."""
        return self._source.told() if self._source is not None else ()

    def train_mode(self, epoch: int | None = None) -> None:
        """Training mode for what moves in an epoch, evaluation mode for the rest and for the teacher.

        Args:
            epoch: from 0; None is one in which all moves that ever does.
        """
        self.train()
        if self.teacher is not None:
            self.teacher.eval()
        if self._moves is not None:
            self._moves.begin(self.network, epoch)
            self._hold(self._moves.at(None) - self._moves.at(epoch))

    def _hold(self, waiting: Collection[str]) -> None:
        """Keeps parameters that move in another epoch from moving in this one.

        Several processes have agreed on what they exchange gradients of, so there these are computed and dropped.
        """
        own = dict(self.network.named_parameters())
        self._still = tuple(own[name] for name in own if name in waiting)
        for name, parameter in own.items():
            if self._moves is not None and name in self._moves.begins:
                parameter.requires_grad_(name not in waiting or distributed.current().size > 1)

    def own_images(self, size: int) -> int:
        """How many of a step's images are those of the data itself."""
        return size

    def loading(self, loader: TrainLoader) -> TrainLoader:
        """What gives the batches, where the data's own are given by `loader`."""
        return loader

    def drop_gradients(self) -> None:
        """Forgets the gradients of what does not move in this epoch."""
        for parameter in self._still:
            parameter.grad = None


class Heard:
    """The features of student and teacher that the losses look at; none where no loss looks at features."""

    def __init__(self, student: Network, teacher: Network, terms: Sequence[Term], corpus: Corpus) -> None:
        looking = [term for term in terms if looks_at_features([term])]
        self._layers: dict[str, tuple[tuple[Layer, ...], tuple[Layer, ...]]] = {}
        if looking:
            ours, theirs = Layers(student, "student"), Layers(teacher, "teacher")
            self._layers = {term.name: chosen(term.loss, ours, theirs) for term in looking}
        for term in looking:
            first, second = (shapes(layers, str(term.loss.features)) for layers in self._layers[term.name])
            cast(OnFeatures, term.loss).build(first, second, corpus)
        self._taps = tuple(
            Tap(network.module, [layer for both in self._layers.values() for layer in both[side]])
            for side, network in enumerate((student, teacher))
        )

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Listens to both networks."""
        with self._taps[0].open(), self._taps[1].open():
            yield

    def of(self, term: Term) -> tuple[tuple[torch.Tensor, ...], ...]:
        """The student's and the teacher's features for one loss."""
        if term.name not in self._layers:
            return (), ()
        kind = str(term.loss.features)
        return tuple(
            tap.features(layers, kind) for tap, layers in zip(self._taps, self._layers[term.name], strict=True)
        )


def share_of(batch: Batch, term: Term) -> float:
    """By how much a batch's mean counts in the step's, for gradients that are averaged over the processes."""
    if batch.whole is None:
        return 1.0
    mine = batch.labelled if needs_labels(term) else len(batch.labels)
    return distributed.current().size * mine / max(1, batch.whole[1 if needs_labels(term) else 0])


def of_all_processes(student: Answer, teacher: Answer | None, given: Given) -> tuple[Answer, Answer | None, Given]:
    """What all processes' networks say to their images of a batch, for losses that compare them."""
    world = distributed.current()
    assert given.index is not None
    ours = world.gathered(student.logits, *student.features)
    targets, index = world.gathered(given.targets, given.index)
    world.of_whole_batch(index)  # a loss that draws (crd) draws the same everywhere
    theirs = world.gathered(teacher.logits, *teacher.features) if teacher is not None else []
    return Answer(ours[0], ours[1:]), Answer(theirs[0], theirs[1:]) if theirs else None, Given(targets, index)


def compares_images(term: Term) -> bool:
    """Whether a loss looks at the images of a batch together, not at one after the other."""
    return bool(getattr(term.loss, "compares_images", False))


def needs_labels(term: Term) -> bool:
    """Whether a loss is shown labelled images only."""
    return bool(getattr(term.loss, "needs_labels", True))


def looks_at_features(terms: Sequence[Term]) -> bool:
    """Whether a loss looks at more of the networks than their logits."""
    return any(getattr(term.loss, "features", None) is not None for term in terms)
