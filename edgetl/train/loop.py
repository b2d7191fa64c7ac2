"""The training loop: epochs of steps over any `Task`, resumable bit for bit. It does not know the method."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as Parallel

from edgetl import rundir, timing
from edgetl.errors import TrainingError
from edgetl.events import Event, Listener
from edgetl.recipe_fields import TrainFields
from edgetl.train import checkpoint, distributed, optim, schedules, seed
from edgetl.train.course import Course
from edgetl.train.loader import Batch, TrainLoader
from edgetl.train.progress import Progress
from edgetl.train.progress import Score as Score
from edgetl.train.sameness import require_same
from edgetl.train.stopping import Stop

BEST = "best.safetensors"
ACCURACY = "train_accuracy"


class Task(Protocol):
    """What is trained, and on which loss."""

    network: nn.Module  # what is evaluated and kept
    settled: int  # epoch, from 0, from which on all moves that ever does

    @property
    def of_labelled(self) -> Collection[str]:
        """Names of the parts that are means over the labelled images of a batch alone."""
        ...

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """At least "loss" (scalar) and "logits" [N, K]; further scalars are named parts that are logged."""
        ...

    def right(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The score of the labelled images, whose logits are given, added up: where it is accuracy, the right ones."""
        ...

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that move, by name; a method's own projections among them."""
        ...

    def train_mode(self, epoch: int | None = None) -> None:
        """Puts what moves in an epoch (None: in any) in training mode, and frozen parts in evaluation mode."""
        ...

    def drop_gradients(self) -> None:
        """Forgets the gradients of what does not move in this epoch; called before the optimizer moves."""
        ...

    def state(self) -> Mapping[str, torch.Tensor]:
        """Tensors that a method remembers from step to step, besides what `trained` gives."""
        ...

    def flush(self) -> None:
        """Writes down what lies outside the checkpoint; called before one is written."""
        ...


@dataclass(frozen=True)
class Precision:
    """What autocast uses; None where it is off."""

    device: torch.device
    dtype: torch.dtype | None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context for a forward pass."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype is not None else contextlib.nullcontext()


class Fit:
    """One training: `run()` brings the network to its best validated weights."""

    def __init__(
        self,
        task: Task, loader: TrainLoader, validate: Callable[[nn.Module], Score], options: TrainFields,
        folder: Path, precision: Precision, listener: Listener, stage: str, identity: Mapping[str, Any],
        course: Course | None = None,
    ) -> None:
        self.task, self.loader, self.validate, self.options = task, loader, validate, options
        self.folder, self.precision, self.listener, self.stage = folder, precision, listener, stage
        self.identity, self.course = dict(identity), course or Course()
        self.progress = Progress()
        self.optimizer = self.course.optimizer(task.trained(), options)
        self.names: dict[torch.Tensor, str] = {parameter: name for name, parameter in task.trained()}
        self.average = optim.AveragedWeights(task.network, options.ema) if options.ema > 0 else None
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype == torch.float16)
        self.saved_s = timing.now_s()
        self.stop = Stop()
        self.world = distributed.current()
        self.answer: Callable[[Batch], dict[str, torch.Tensor]] = task.forward
        self.micro = 0  # micro-batches of the running step that are behind

    def run(self) -> Score:
        """Trains to the end and leaves the best weights in the network.

        Raises:
            TrainingError: the loss is not finite, the checkpoint belongs to other options, or another process of the
                training has ended.
            KeyboardInterrupt: Ctrl-C; a checkpoint was written first.
        """
        with self._together():
            return self._run()

    def _run(self) -> Score:
        newest = self.world.shared(lambda: checkpoint.newest(self.folder, self._warn))
        if newest is not None:
            self._restore(checkpoint.parse(newest, str(self.folder / rundir.CHECKPOINT)))
        self._cut_metrics()
        self.answer = self.world.parallel(cast(nn.Module, self.task))
        total = self.options.epochs * self.loader.steps
        self.listener(Event(self.stage, "begin", {"what": "train", "total": total, "unit": "steps"}))
        with self.stop.deferred(several=self.world.size > 1):
            try:
                while self.progress.epoch < self.options.epochs and not self.progress.done:
                    self._epoch()
            except torch.cuda.OutOfMemoryError as problem:
                raise TrainingError(
                    f"The GPU ran out of memory in epoch {self.progress.epoch + 1}: {problem}",
                    hint="Start again with --overwrite and a smaller --batch-size or --image-size.",
                ) from problem
            if self.world.any(self.stop.asked)[0]:  # while the last epoch ended; its checkpoint is written
                raise KeyboardInterrupt
        self.listener(Event(self.stage, "end", {"what": "train"}))
        kept = self.world.shared((self.folder / BEST).read_bytes)
        assert kept is not None
        best = checkpoint.parse(kept, str(self.folder / BEST))
        self.task.network.load_state_dict(best.part("model"))
        self.task.network.eval()
        return Score(**best.scalars["score"])

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Turns the loss of another process into a sentence."""
        try:
            yield
        except RuntimeError as problem:
            if not self.world.lost(problem):
                raise
            where = f" in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}; {self._kept()}"
            raise self.world.lost_another(where) from problem

    def _warn(self, text: str) -> None:
        self.listener(Event(self.stage, "warning", {"text": text}))

    def _epoch(self) -> None:
        progress = self.progress
        self.task.train_mode(progress.epoch)
        begin_s = timing.now_s()
        for batch in self.loader.epoch(progress.epoch, progress.step):
            if not self._step(batch):
                continue
            progress.step += 1
            progress.seconds += timing.now_s() - begin_s  # waiting for the batch included
            begin_s = timing.now_s()
            self._report_step()
            self._pause_point()
        self._end_epoch()

    def _step(self, batch: Batch) -> bool:
        """One micro-batch of a step; after the last of them the optimizer moves. Whether it was the last."""
        progress, last = self.progress, self.micro == self.options.accumulate - 1
        if self.world.size > 1:
            seed.seed_stream(self.options.seed, progress.epoch, progress.step, self.micro, self.world.rank)
        waiting = self.answer.no_sync() if isinstance(self.answer, Parallel) and not last else contextlib.nullcontext()
        with waiting:
            with self.precision.autocast():
                result = self.answer(batch)
            self._count(batch, result)
            self.scaler.scale(result["loss"]).backward()  # type: ignore[no-untyped-call]
        self.micro = 0 if last else self.micro + 1
        if last:
            self._move()
        return last

    def _move(self) -> None:
        """One step of the optimizer."""
        self.course.begin_step(self.optimizer, self._rate(self.progress.step))
        self.task.drop_gradients()
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()

    def _rate(self, step: int) -> float:
        return schedules.rate_of(step, self.loader.steps, self.progress, self.options)

    def _clip(self) -> None:
        if self.options.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(list(self.names), self.options.clip_norm)

    def _count(self, batch: Batch, result: Mapping[str, torch.Tensor]) -> None:
        """Adds up what all processes found; of "loss", which is this batch's part of the step's, all its images."""
        images, known = len(batch.labels), batch.labelled
        right = self.task.right(result["logits"].detach()[:known], batch)
        found = {
            name: float(value.detach()) * self._counted(name, images, known)
            for name, value in result.items()
            if name not in ("logits", "loss")
        }
        loss = float(result["loss"].detach())
        found = {"loss": loss * batch.step_images / self.world.size, **found, ACCURACY: float(right)}
        *sums, all_images, all_known, broken = self.world.total(
            [*found.values(), images, known, not math.isfinite(loss)]
        )
        self._check_finite(loss, broken > 0)
        for name, value in zip(found, sums, strict=True):
            self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
        self.progress.images += round(all_images)
        self.progress.labelled += round(all_known)

    def _counted(self, name: str, images: int, labelled: int) -> int:
        """How many images a part is the mean over."""
        return labelled if name == ACCURACY or name in self.task.of_labelled else images

    def _check_finite(self, loss: float, broken: bool) -> None:
        if broken:
            found = "not finite in another process" if math.isfinite(loss) else str(loss)
            where = f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}"
            raise self._diverged(f"The loss is {found} in {where}")

    def _diverged(self, found: str) -> TrainingError:
        return TrainingError(
            f"{found}; {self._kept()}.",
            hint="Start again with --overwrite (or another --out) and a lower --lr or a --clip-norm; --amp off if it "
            "was on. --resume would only repeat the same steps.",
        )

    def _kept(self) -> str:
        saved = (self.folder / rundir.CHECKPOINT).is_file() or not self.world.first  # the first process has it
        return f"the last good checkpoint is kept in {self.folder}" if saved else "no checkpoint was written yet"

    def _report_step(self) -> None:
        progress = self.progress
        rate = progress.images / progress.seconds if progress.seconds else None
        self.listener(
            Event(
                self.stage,
                "advance",
                {
                    "done": progress.epoch * self.loader.steps + progress.step,
                    "epoch": progress.epoch + 1,
                    "epochs": self.options.epochs,
                    "loss": progress.sums["loss"] / progress.images,
                    "images_per_s": rate,
                    "val_accuracy": progress.best.accuracy if progress.best else None,
                },
            )
        )

    def _pause_point(self) -> None:
        """Between steps, where the state is whole: checkpoint when it is time, stop when asked to."""
        due = timing.now_s() - self.saved_s > self.options.checkpoint_minutes * 60
        stop, save = self.world.any(self.stop.asked, due and self.world.first)
        if stop or save:
            self._save()
        if stop:
            raise KeyboardInterrupt

    def _end_epoch(self) -> None:
        progress = self.progress
        with torch.no_grad():
            score = self._validated()
        row = {name: total / max(1, self._counted(name, progress.images, progress.labelled))
               for name, total in progress.sums.items()}
        row |= {
            "epoch": progress.epoch + 1,
            "val_accuracy": score.accuracy,
            "val_loss": score.loss,
            "images_per_s": progress.images / progress.seconds,
            "lr": self._rate(progress.step - 1),
            **self.course.row(self.optimizer),
        }
        if self.world.first:
            rundir.append_line(self.folder / rundir.METRICS, json.dumps(row))
        self.listener(Event(self.stage, "epoch", {"epochs": self.options.epochs, **row}))
        stale = progress.epoch - max(progress.best_epoch, self.task.settled) >= self.options.patience
        drops, dropped_epoch = schedules.after_epoch(progress, self.options)
        self.progress = Progress(
            epoch=progress.epoch + 1,
            best=progress.best,
            best_epoch=progress.best_epoch,
            drops=drops,
            dropped_epoch=dropped_epoch,
            done=self.options.patience > 0 and stale,
        )
        self._save()

    def _validated(self) -> Score:
        """Score of the weights that would be kept; the best so far are written down."""
        network = self.task.network
        weights = self.average.values if self.average is not None else dict(network.state_dict())
        with contextlib.contextmanager(optim.swapped)(network, weights):
            network.eval()
            score = self.validate(network)
            if not math.isfinite(score.loss):
                raise self._diverged(f"The validation loss is {score.loss} after epoch {self.progress.epoch + 1}")
            if score.better_than(self.progress.best):
                self.progress.best, self.progress.best_epoch = score, self.progress.epoch
                best = checkpoint.State(scalars={"score": dataclasses.asdict(score), "epoch": self.progress.epoch + 1})
                best.put("model", network.state_dict())
                if self.world.first:
                    checkpoint.write(self.folder / BEST, best)
        return score

    def _require_finite_weights(self) -> None:
        """Nothing that is broken may take the place of the last good checkpoint."""
        for name, value in self.task.network.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                where = f"epoch {self.progress.epoch + 1}, step {self.progress.step}"
                raise self._diverged(f"'{name}' is not finite any more in {where}")

    def _save(self) -> None:
        self._require_finite_weights()
        self.task.flush()
        self.world.total([])  # what the teacher said to the others is found from here on
        self.saved_s = timing.now_s()
        if not self.world.first:
            return
        state = checkpoint.State(
            scalars={
                "progress": dataclasses.asdict(self.progress),
                "identity": self.identity,
                "scaler": self.scaler.state_dict(),
                "average_steps": self.average.steps if self.average else 0,
                "anchor": self.course.digest,
            }
        )
        state.put("model", self.task.network.state_dict())
        state.put("own", {name: value for value, name in self.names.items() if not name.startswith("network.")})
        state.put("state", self.task.state())
        if self.average is not None:
            state.put("ema", self.average.values)
        checkpoint.put_optimizer(state, self.optimizer, self.names)
        state.put("random", seed.random_states())
        checkpoint.write_newest(self.folder, state)
        self.saved_s = timing.now_s()

    def _restore(self, state: checkpoint.State) -> None:
        what = f"The interrupted run in {self.folder}"
        require_same(state.scalars["identity"], self.identity, what, type(self.options))
        self.course.require(state.scalars.get("anchor"))
        self.task.network.load_state_dict(state.part("model"))
        for parameter, name in self.names.items():
            if name in state.part("own"):
                parameter.data.copy_(state.part("own")[name])
        for name, value in self.task.state().items():
            value.copy_(state.part("state")[name])
        if self.average is not None:
            for name, value in state.part("ema").items():
                self.average.values[name].copy_(value)
            self.average.steps = state.scalars["average_steps"]
        checkpoint.load_optimizer(state, self.optimizer, self.names)
        self.scaler.load_state_dict(state.scalars["scaler"])
        values = dict(state.scalars["progress"])
        best = values.pop("best")
        self.progress = Progress(**values, best=Score(**best) if best else None)
        seed.restore(state.part("random"))
        optim.set_rate(self.optimizer, self._rate(self.progress.step - 1))  # for a record without another step

    def _cut_metrics(self) -> None:
        """Drops the rows that a killed run wrote after its last checkpoint."""
        path = self.folder / rundir.METRICS
        lines = path.read_text().splitlines() if path.is_file() else []
        rundir.write_text(path, "".join(f"{line}\n" for line in lines[: self.progress.epoch]))
