"""The student before it is taught: another model, or one that is cut out of its teacher, at once or in steps."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgetl import models, rundir, weights
from edgetl.compress import cost, prune
from edgetl.errors import EdgetlError
from edgetl.events import Event
from edgetl.models import Network
from edgetl.recipe import Distill
from edgetl.runtime.preprocess import normalize
from edgetl.train import checkpoint, distributed, inherit, seed, store, task_losses
from edgetl.train.aim import total
from edgetl.train.engines import GraphOf
from edgetl.train.setting import CUT, Setting, adjusted
from edgetl.train.starting import network_of_run

TAYLOR_IMAGES = 512
CORRECTIONS = 3  # of the share asked for, where a graph counts otherwise than torch
CLOSE, LOOSE, TRIALS = 0.05, 0.2, 7  # of a search by latency, which is known to some percent, for some seconds

# A cut network's latency as a share of the first one's, measured in turn with it: called with the cut one, the first
# one, the backend's name and the labels.
LatencyShare = Callable[[Network, Network, str, tuple[str, ...]], float]


def starting_student(options: Distill, teacher: Network | None, place: Setting, cutter: Cutter | None) -> Network:
    """The student before training, the same for the same options; in steps, what the first cut leaves.

    Args:
        options: the recipe.
        teacher: the first one; None where it is a black box.
        place: where the run is made.
        cutter: what cuts slim:R out of the teacher; None for other students.

    Raises:
        UnknownName: no such model.
        EdgetlError: slim:R is malformed or cannot be reached.
    """
    seed.seed_everything(options.seed)
    if cutter is not None:
        channels_of(options, teacher)
        return cutter.kept_cut(cutter.teacher, 1, place.folder)
    if weights.is_run(Path(options.student)):
        run = network_of_run(Path(options.student), place.data.labels, options.image_size, place.data.heads,
                             channels=options.in_channels)
        if place.aim is not None and f"{run.head}.weight" in run.weights.matched:
            place.aim.begin(run)
        return adjusted(run, options)
    network = models.create(
        options.student,
        classes=len(place.data.labels),
        pretrained=options.pretrained and options.inherit is None,
        weights=Path(options.weights) if options.weights else None,
        image_size=options.image_size,
        channels=channels_of(options, teacher),
    )
    if options.inherit is not None:
        state, with_head = inherit.source_state(options.inherit, teacher, place.data.labels, place.aim)
        source = teacher.model if teacher is not None and options.inherit == inherit.TEACHER else options.inherit
        report = inherit.inherit(network, state, Path(source).name, with_head=with_head)
        place.choices["inherited"] = report.to_json()
        place.note(report.told())
    return adjusted(network, options)


def channels_of(options: Distill, teacher: Network | None) -> int | None:
    """Channels of a new student's images: as asked for, else as the first teacher's; None where that is a black box.

    Raises:
        EdgetlError: a student that is cut out of its teacher shall have others.
    """
    theirs = None if teacher is None else teacher.preprocess.channels
    if options.student.startswith("slim:") and options.in_channels not in (None, theirs):
        raise EdgetlError(
            f"--in-channels {options.in_channels}: {options.student} is cut out of a teacher of {theirs} channels and "
            "sees the same images.",
            hint="Leave --in-channels out, or fine-tune the teacher with it.",
        )
    return options.in_channels if options.in_channels is not None else theirs


@dataclass(frozen=True)
class Cutter:
    """Cuts students out of a teacher, as `slim:R` and what belongs to it say."""

    options: Distill
    teacher: Network
    place: Setting
    graph_of: GraphOf | None = None  # makes the graph on which multiplications are counted
    latency_share: LatencyShare | None = None

    @classmethod
    def of(
        cls,
        options: Distill,
        teacher: Network | None,
        place: Setting,
        graph_of: GraphOf | None,
        latency_share: LatencyShare | None,
    ) -> Cutter | None:
        """What cuts the student; None where it is not cut out of its teacher. The teacher is copied as it lies."""
        if not options.student.startswith("slim:"):
            return None
        if teacher is None:
            raise ValueError("a black box cannot be cut")
        copied = dataclasses.replace(teacher, module=copy.deepcopy(teacher.module).cpu())
        return cls(options, copied, place, graph_of, latency_share)

    def shares(self) -> tuple[float, ...]:
        """The share of the teacher that each cut keeps, ending with R: R^(1/N), R^(2/N), ..., R.

        Raises:
            EdgetlError: slim:R is malformed.
        """
        try:
            last = float(self.options.student.removeprefix("slim:"))
        except ValueError as problem:
            raise EdgetlError(
                f"--student is '{self.options.student}', expected slim:R with a number R between 0 and 1."
            ) from problem
        if not 0 < last < 1:
            return (last,)  # which the first cut refuses
        steps = self.options.slim_steps
        return (*(last ** (step / steps) for step in range(1, steps)), last)

    def kept_cut(self, network: Network, step: int, folder: Path) -> Network:
        """What the cut of a step, from 1, leaves of a network; read from the folder where it was made before.

        So a resumed run has the same student even where its latency was measured.
        """

        def made() -> str:
            path = (folder / CUT).absolute()
            if not path.is_file():
                found = self.cut(network, step)
                state = checkpoint.State(scalars={"step": step, "reached": found.kept})
                state.put("model", found.network.module.state_dict())
                checkpoint.write(path, state)
            return str(path)

        # Of several processes the first one cuts, and the others read what it left on the disk that all see.
        path = Path(distributed.current().decided(made))
        tensors = checkpoint.read(path).part("model")
        module = copy.deepcopy(network.module)
        weights.shrink_to(module, tensors, where=str(path))
        module.load_state_dict(tensors)
        return self._fed(dataclasses.replace(network, module=module))

    def _fed(self, network: Network) -> Network:
        """The network with the preprocessing that the options ask of the student."""
        if self.options.image_size:
            size = (self.options.image_size, self.options.image_size)
            wants = dataclasses.replace(network.preprocess, size_hw=size)
            network = dataclasses.replace(network, preprocess=wants)
        return adjusted(network, self.options)

    def cut(self, network: Network, step: int) -> prune.Slimmed:
        """A network without its least important channels, ranked as they are now; the teacher's share is kept.

        Raises:
            EdgetlError: it cannot be cut, or not so far.
        """
        share = self.shares()[step - 1]
        options, place = self.options, self.place
        gradients = taylor_gradients(network, place) if options.importance == prune.TAYLOR else None
        place.listener(Event(place.stage, "begin", {"what": "cut the teacher", "total": None, "unit": "trials"}))
        found = self._searched(network, share, gradients)
        place.listener(Event(place.stage, "end", {"what": "cut the teacher"}))
        ours, theirs = weights.parameter_count(found.network.module), weights.parameter_count(self.teacher.module)
        size = self.teacher.preprocess.size_hw, self.teacher.preprocess.channels
        work = cost.image_macs(found.network.module, *size) / cost.image_macs(self.teacher.module, *size)
        latency = f", {found.kept:.1%} of the latency on {options.slim_backend}" if options.slim_by == "latency" else ""
        place.note(
            f"slim: {ours:,} of {theirs:,} parameters kept ({ours / theirs:.1%}) and {work:.1%} of the "
            f"multiplications{latency}, channels ranked by {options.importance}"
            + (f" over {options.prune_cost}" if options.importance == prune.TAYLOR else "")
        )
        return found

    def row(self, network: Network, step: int, folder: Path) -> dict[str, Any]:
        """What the record says of a cut: the share asked for and reached, and what is left of the teacher.

        Args:
            network: what the cut left.
            step: from 1.
            folder: where the cut lies; the first process, which writes the record, finds it there.
        """
        path = folder / CUT
        reached = checkpoint.read(path).scalars["reached"] if path.is_file() else None
        size = self.teacher.preprocess.size_hw, self.teacher.preprocess.channels
        ours, theirs = weights.parameter_count(network.module), weights.parameter_count(self.teacher.module)
        macs, all_macs = (cost.image_macs(one.module, *size) for one in (network, self.teacher))
        return {
            "step": step, "share": self.shares()[step - 1], "of": self.options.slim_by, "reached": reached,
            "parameters": ours, "kept": ours / theirs, "macs": macs, "macs_kept": macs / all_macs,
        }  # fmt: skip

    def _searched(self, network: Network, share: float, gradients: prune.Gradients | None) -> prune.Slimmed:
        """The cut network that keeps the share, of what `slim_by` says."""
        size = self.size()
        asked = share
        for _ in range(CORRECTIONS):
            found = prune.slim(
                network,
                asked,
                importance=self.options.importance,
                round_to=self.options.round_to,
                gradients=gradients,
                cost=self.options.prune_cost,
                size=size,
                tried=lambda trials: self.place.listener(Event(self.place.stage, "advance", {"done": trials})),
            )
            counted = self.graph_share(found.network) if self.options.slim_by == "macs" else found.kept
            if counted <= share * (1 + 1e-6) or self.options.slim_by != "macs":
                break
            # The graph has products that torch's layers do not show; as if the rest of both shrank together.
            asked = max(1e-3, 1 - (1 - share) * (1 - found.kept) / (1 - counted))
        else:
            self.place.note(f"slim: {share:.1%} of the graph's multiplications were asked for, {counted:.1%} are kept.")
        return dataclasses.replace(found, kept=counted)

    def size(self) -> prune.Size:
        """What shrinks, as a share of the teacher's.

        Raises:
            ValueError: a latency is asked for, and nothing can measure it; or multiplications, and there is no graph.
        """
        if self.options.slim_by == "params":
            return prune.parameters_of(self.teacher)
        if self.options.slim_by == "macs" and self.graph_of is not None:
            return prune.macs_of(self.teacher)
        if self.options.slim_by != "latency" or self.latency_share is None:
            raise ValueError(f"slim_by '{self.options.slim_by}' needs something that tells it")
        measured, backend, labels = self.latency_share, self.options.slim_backend, self.place.data.labels
        return prune.Size(
            f"latency on {backend}",
            lambda found: measured(self._fed(found), self._fed(self.teacher), backend, labels),
            tolerance=CLOSE,
            loose=LOOSE,
            trials=TRIALS,
            finer=False,
        )

    def graph_share(self, network: Network) -> float:
        """Multiplications of a cut network's ONNX graph, as a share of the teacher's."""
        assert self.graph_of is not None  # `size` has asked
        ours, theirs = (
            cost.graph_macs(self.graph_of(one, self.place.data.labels)[0]) for one in (network, self.teacher)
        )
        return ours / theirs


def taylor_gradients(teacher: Network, place: Setting) -> Callable[[nn.Module], None]:
    """Leaves the gradients of the mean loss on labels over some training images in a module's parameters.

    That is cross-entropy, or the loss `labels` of another task, for whose images the teacher speaks standardised.
    """
    items = sorted(place.parts.train, key=lambda item: rundir.sha256(item.key.encode(errors="surrogateescape")))[
        :TAYLOR_IMAGES
    ]
    pixels = store.evaluation_pixels(place.data, items, place.parts.fingerprint, teacher.preprocess)
    labels = torch.tensor([item.label for item in items])
    terms = task_losses.of_task((task_losses.LABELS,), place.aim.heads) if place.aim is not None else ()
    targets = place.aim.targets(items) if place.aim is not None else None

    def loss_of(logits: torch.Tensor, part: slice) -> torch.Tensor:
        if targets is None:
            return F.cross_entropy(logits, labels[part], reduction="sum").div(len(items))
        return total(terms, logits, targets[part]) * (len(logits) / len(items))

    def accumulate(module: nn.Module) -> None:
        for start in range(0, len(items), 64):
            part = slice(start, start + 64)
            images = torch.from_numpy(normalize(pixels[part], teacher.preprocess))
            loss_of(module(images), part).backward()  # type: ignore[no-untyped-call]

    return accumulate
