"""The learning-rate range test: a short trial that finds a peak rate (Smith, WACV 2017, arXiv:1506.01186).

The network is trained on the first batches of the training images while the rate grows geometrically, until the loss
leaves its lowest value far behind. Where the smoothed loss rises for good is the edge: the greatest rate at which it is
still within 2 % of its lowest. A tenth of that is taken, as fastai's `lr_find` takes a tenth of the rate of the lowest
loss; the edge is less a matter of chance, and it is there, too, where the loss can hardly fall because a head was
fitted before. Several processes take the test together, each with its cells of every batch, as they train: gradients
are averaged, the loss is that of the whole step, so all see the same curve. Afterwards weights, statistics, what the
losses remember and all random states are what they were. The same seed finds the same rate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as Parallel

from edgetl.errors import TrainingError
from edgetl.recipe_fields import TrainFields
from edgetl.train import distributed, seed, shared_norm
from edgetl.train.course import Course
from edgetl.train.loader import Batch, TrainLoader
from edgetl.train.loop import Precision
from edgetl.train.schedules import FIND
from edgetl.train.task import ClassifierTask

if TYPE_CHECKING:
    from edgetl.train.setting import Setting

LOW, HIGH = 1e-6, 1.0  # AdamW's steps are as long as the rate, whatever the gradients' size: nothing lies outside
LEAST_STEPS, STEPS = 20, 100
SHARE = 5  # the trial has at most one in so many of the steps of the training, but `LEAST_STEPS`
SMOOTHING = 0.9  # of the moving mean of the loss
FAR = 3.0  # the trial ends where the smoothed loss is so many times its lowest
NEAR = 1.02  # times the lowest smoothed loss
SKIPPED = 10  # one in so many steps, the first ones: their mean is over few batches
SAFE = 0.1  # of the edge


@dataclass(frozen=True)
class Found:
    """What a range test found."""

    rate: float
    curve: tuple[tuple[float, float], ...]  # (rate, smoothed loss), one a step

    def to_json(self) -> dict[str, Any]:
        """Plain values for the record; the curve with as many digits as a plot can show."""
        curve = [[float(f"{rate:.4g}"), float(f"{loss:.4g}")] for rate, loss in self.curve]
        rule = f"{SAFE:g} of the greatest rate whose loss is at most {NEAR:g} of the lowest"
        return {"rate": self.rate, "rule": rule, "curve": curve}


def rate_of(step: int, steps: int) -> float:
    """The rate of a step of the trial, counted from 0: geometric from `LOW` to `HIGH`."""
    return float(LOW * (HIGH / LOW) ** (step / max(1, steps - 1)))


def chosen(curve: tuple[tuple[float, float], ...]) -> float:
    """The peak rate that a curve of (rate, smoothed loss) suggests.

    Raises:
        TrainingError: the loss only rises, or was never finite.
    """
    looked_at = curve[len(curve) // SKIPPED :]
    lowest = min((loss for _, loss in looked_at), default=math.inf)
    edge = max((place for place, (_, loss) in enumerate(looked_at) if loss <= NEAR * lowest), default=0)
    if edge == 0:
        raise TrainingError(
            f"--lr find: the loss rises at every rate from {LOW:g} on.",
            hint="Give a number as --lr. A head that fits already, or batches of few images, may be why.",
        )
    return SAFE * looked_at[edge][0]


def find(
    task: ClassifierTask, loader: TrainLoader, options: TrainFields, precision: Precision, course: Course
) -> Found:
    """What the range test finds, the same in all processes; everything is left as it was.

    Raises:
        TrainingError: the loss rises at every rate, or another process of the training has ended.
    """
    steps = min(STEPS, max(LEAST_STEPS, options.epochs * loader.steps // SHARE))
    world = distributed.current()
    try:
        with left_as_it_was(task), shared_norm.shared(task.network, world):
            curve = tuple(_curve(task, loader, options, precision, course, steps))
    except RuntimeError as problem:
        if not world.lost(problem):
            raise
        raise world.lost_another(" in the trial of --lr find") from problem
    return Found(chosen(curve), curve)


def settled(
    setting: Setting, task: ClassifierTask, loader: TrainLoader, course: Course, stage: str
) -> TrainFields:
    """The options with a number as learning rate: that of the recipe, or what the range test of this stage found.

    It is kept among the choices, so that a resumed training goes on with it.

    Raises:
        TrainingError: see `find`.
    """
    if setting.options.lr != FIND:
        return setting.options
    known = setting.choices.setdefault("lr", {})
    if stage not in known:
        known[stage] = find(task, loader, setting.options, setting.precision, course).to_json()
        tried = len(known[stage]["curve"])
        setting.note(f"--lr find: {known[stage]['rate']:.3g}, of {tried} rates tried")
    return dataclasses.replace(setting.options, lr=known[stage]["rate"])


def _curve(
    task: ClassifierTask,
    loader: TrainLoader,
    options: TrainFields,
    precision: Precision,
    course: Course,
    steps: int,
) -> Iterator[tuple[float, float]]:
    """(rate, smoothed loss before the step), while the loss is not far above its lowest."""
    optimizer = course.optimizer(task.trained(), options)
    scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype == torch.float16)
    moving = [one for group in optimizer.param_groups for one in group["params"]]
    task.train_mode()
    pass_back = _Passes(task, options, precision, scaler)
    mean, lowest = 0.0, math.inf
    with contextlib.closing(_steps(loader, options.accumulate)) as batches:
        for step, batch in enumerate(itertools.islice(batches, steps)):
            course.begin_step(optimizer, rate_of(step, steps))
            loss = pass_back(step, batch)
            if not math.isfinite(loss):
                return
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            smoothed = mean / (1 - SMOOTHING ** (step + 1))
            yield rate_of(step, steps), smoothed
            lowest = min(lowest, smoothed)
            if smoothed > FAR * lowest:
                return
            if options.clip_norm > 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(moving, options.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)


def _steps(loader: TrainLoader, micro: int) -> Generator[tuple[Batch, ...]]:
    """The micro-batches of each step, epoch after epoch."""
    for epoch in itertools.count():
        with contextlib.closing(loader.epoch(epoch)) as batches:
            yield from zip(*[batches] * micro, strict=True)


class _Passes:
    """The passes of a step, forward and back, by all processes together."""

    def __init__(
        self, task: ClassifierTask, options: TrainFields, precision: Precision, scaler: torch.amp.GradScaler
    ) -> None:
        self.options, self.precision, self.scaler = options, precision, scaler
        self.world = distributed.current()
        self.answer: Callable[[Batch], dict[str, torch.Tensor]] = self.world.parallel(task)

    def __call__(self, step: int, batch: tuple[Batch, ...]) -> float:
        """The loss of the whole step; the gradients are there afterwards."""
        mine = [self._backward(step, place, part, place == len(batch) - 1) for place, part in enumerate(batch)]
        return self.world.total([sum(mine)])[0] / self.world.size

    def _backward(self, step: int, place: int, batch: Batch, last: bool) -> float:
        """The micro-batch's part of the step's loss; its gradients are added."""
        if self.world.size > 1:
            seed.seed_stream(self.options.seed, 0, step, place, self.world.rank)
        waiting = self.answer.no_sync() if isinstance(self.answer, Parallel) and not last else contextlib.nullcontext()
        with waiting:
            with self.precision.autocast():
                loss = self.answer(batch)["loss"]
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())


@contextlib.contextmanager
def left_as_it_was(task: ClassifierTask) -> Iterator[None]:
    """Gives a task its weights, memory and random states back after the block."""
    kept = [(one, one.detach().clone()) for one in _tensors(task)]
    random = {name: value.clone() for name, value in seed.random_states().items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for one, value in kept:
                one.copy_(value)
        task.zero_grad(set_to_none=True)
        seed.restore(random)


def _tensors(task: ClassifierTask) -> list[torch.Tensor]:
    """All that a step changes: of the network, of the losses, and what they remember."""
    return [*task.network.state_dict().values(), *task.losses.state_dict().values(), *task.state().values()]
