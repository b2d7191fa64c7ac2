"""The soft-label store: what the teacher said to each view, so that it looks at each only once.

With `--views K` every image has K views, which are drawn once (see `loader`) and come again every K epochs. The
teacher answers in the epoch in which a view is first seen, when the batch is at hand anyway; its logits are kept in the
cache as float16, one file a view, and read in all later epochs. Distillation then costs K passes of the teacher, not
one an epoch: of E epochs the time per image falls from t_T + t_S to t_S + K * t_T / E.

The key of the store is a digest of all that decides the answers: the teacher's weights and preprocessing, the contents
and the order of the images, the student's preprocessing and the options that draw views, the seed, and the versions of
the code and of the engine that runs the teacher. When any changes there is another store; nothing stale can be read.
Files are safetensors, written whole or not at all, and hold the rows that are known, so that an interrupted build goes
on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch

from edgetl import __version__, rundir
from edgetl.errors import EdgetlError
from edgetl.runtime import preprocess as pre
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.tuned import cache_root
from edgetl.train.loader import VIEWS_VERSION, Batch
from edgetl.train.store import ELSEWHERE
from edgetl.weights import parse_safetensors

VERSION = 1  # of the layout and of what the numbers mean
DRAWN_BY = (
    "crop_scale",
    "hflip",
    "vflip",
    "color_jitter",
    "mixup",
    "seed",
)  # options that decide what a view looks like
TOP = 64  # logits that are kept of an answer on many classes
MANY = 4 * TOP  # classes from which on the others share what is left of the probability

Ask = Callable[[torch.Tensor], torch.Tensor]  # pixels [N, 3, H, W] in 0..255 -> logits [N, K]


class Source(Protocol):
    """Where the teacher's answers come from."""

    ask: Ask  # the teacher itself

    def answers(self, batch: Batch) -> torch.Tensor:
        """Logits [N, K], float32, on the batch's device."""
        ...

    def flush(self) -> None:
        """Writes down what would be lost."""
        ...


class Live:
    """The teacher answers every batch anew."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask

    def answers(self, batch: Batch) -> torch.Tensor:
        """See `Source`."""
        return self.ask(batch.images)

    def flush(self) -> None:
        """Has nothing to write."""


class SoftLabels:
    """A store of the teacher's logits, filled as the views are first seen."""

    def __init__(self, folder: Path, images: int, classes: int, ask: Ask) -> None:
        self.folder, self._images, self._classes, self.ask = folder, images, classes, ask
        self._views: dict[int, View] = {}

    def answers(self, batch: Batch) -> torch.Tensor:
        """See `Source`; float16 also where the teacher has answered just now, so that a resume changes nothing."""
        view = self._view(batch.view)
        if not bool(view.known[batch.index].all()):
            # The whole batch, so that the numbers are those of an uninterrupted build.
            view.put(batch.index, self.ask(batch.images))
            if bool(view.known.all()):
                self._write(batch.view)
        return view.get(batch.index).to(batch.images.device)

    def flush(self) -> None:
        """Writes the views that have new answers.

        Raises:
            OutputError: the cache cannot be written, or is full.
        """
        for number in self._views:
            self._write(number)

    @property
    def size_bytes(self) -> int:
        """What the store takes on the disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def _view(self, number: int) -> View:
        if number not in self._views:
            found = _read(self._file(number), self._images, self._classes)
            self._views[number] = found or View.empty(self._images, self._classes)
        return self._views[number]

    def _file(self, number: int) -> Path:
        return self.folder / f"view-{number:04d}.safetensors"

    def _write(self, number: int) -> None:
        view = self._views[number]
        if not view.changed:
            return
        path = self._file(number)
        with rundir.explained(path, elsewhere=ELSEWHERE):
            path.parent.mkdir(parents=True, exist_ok=True)
            rundir.write_bytes(path, safetensors.torch.save(view.tensors()))
        view.changed = False


class View:
    """Answers to one view of every image: all logits, or of many classes the greatest and what the others share."""

    def __init__(self, known: torch.Tensor, values: torch.Tensor, places: torch.Tensor | None, classes: int) -> None:
        self.known, self.values, self.places, self._classes = known, values, places, classes
        self.changed = False

    @classmethod
    def empty(cls, images: int, classes: int) -> View:
        """A view of which nothing is known."""
        many = classes > MANY
        values = torch.zeros((images, TOP + 1 if many else classes), dtype=torch.float16)
        places = torch.zeros((images, TOP), dtype=torch.int32) if many else None
        return cls(torch.zeros(images, dtype=torch.bool), values, places, classes)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is written."""
        found = {"known": self.known, "values": self.values}
        return found if self.places is None else {**found, "places": self.places}

    def put(self, index: torch.Tensor, logits: torch.Tensor) -> None:
        """Keeps logits [N, K] of the images `index` [N].

        Raises:
            EdgetlError: some are not finite, or too large for float16.
        """
        logits = logits.detach().float().cpu()
        if self.places is None:
            kept = logits
        else:
            top, places = logits.topk(TOP, dim=1)
            self.places[index] = places.int()
            others = logits.scatter(1, places, -torch.inf).logsumexp(dim=1, keepdim=True)
            # One logit for each of the others, so that together they have the probability they had.
            kept = torch.cat([top, others - torch.log(torch.tensor(float(self._classes - TOP)))], dim=1)
        half = kept.half()
        if not bool(torch.isfinite(half).all()):
            raise EdgetlError(
                "The teacher answered with logits that are not finite, or too large to be stored.",
                hint="Check the teacher with `edgetl bench`, or give --softlabels off.",
            )
        self.values[index], self.known[index], self.changed = half, True, True

    def get(self, index: torch.Tensor) -> torch.Tensor:
        """float32 logits [N, K]."""
        values = self.values[index].float()
        if self.places is None:
            return values
        whole = values[:, -1:].expand(-1, self._classes).clone()
        return whole.scatter_(1, self.places[index].long(), values[:, :-1])


def _read(path: Path, images: int, classes: int) -> View | None:
    """The view in a file; None where there is none, or it is damaged or of another shape: then it is made again."""
    try:
        tensors = parse_safetensors(path.read_bytes(), where=str(path), hint="")
    except (OSError, EdgetlError):
        return None
    wanted = View.empty(images, classes)
    same = {name: (one.shape, one.dtype) for name, one in wanted.tensors().items()}
    if {name: (one.shape, one.dtype) for name, one in tensors.items()} != same:
        return None
    return View(tensors["known"], tensors["values"], tensors.get("places"), classes)


@dataclasses.dataclass(frozen=True)
class Identity:
    """All that decides the teacher's answers to the views."""

    teacher: str  # SHA-256 of its weights
    teacher_preprocess: Preprocess
    student_preprocess: Preprocess
    fingerprint: str  # of the data's contents
    keys: tuple[str, ...]  # of the images, in the order of the rows
    options: Mapping[str, Any]  # of the recipe
    engine: str  # name and version of what runs the teacher

    def key(self) -> str:
        """The digest that names the store."""
        said = [
            VERSION, VIEWS_VERSION, __version__, self.teacher, pre.to_dict(self.teacher_preprocess),
            pre.to_dict(self.student_preprocess), self.fingerprint, list(self.keys),
            {name: self.options[name] for name in DRAWN_BY}, self.engine,
        ]  # fmt: skip
        return rundir.sha256(json.dumps(said, sort_keys=True).encode(errors="surrogateescape"))[:24]


def folder_of(identity: Identity) -> Path:
    """Where the store of an identity lies, whether it is there or not."""
    return cache_root() / "softlabels" / identity.key()
