"""The soft-label store: what the teacher said to each view, so that it looks at each only once.

With `--views K` every image has K views, which are drawn once (see `loader`) and come again every K epochs. The
teacher answers in the epoch in which a view is first seen, when the batch is at hand anyway; its logits are kept in the
cache (see `views` for how, and for how many bytes), one file a view, and read in all later epochs. Distillation then
costs K passes of the teacher, not one an epoch: of E epochs the time per image falls from t_T + t_S to
t_S + K * t_T / E. With `--refresh-views R` the views are drawn anew every R epochs: the store grows by K views, and the
memory holds K views all the same.

The key of the store is a digest of all that decides the answers: the teacher's weights and preprocessing, the contents
and the order of the images, the student's preprocessing and the options that draw views, the seed, and the versions of
the code and of the engine that runs the teacher. When any changes there is another store; nothing stale can be read.
Files are written whole or not at all and hold the rows that are known, so that an interrupted build goes on; a damaged
one is made again, with a note. Several processes may fill one store at once: who writes a file adds what it lacks to
what is there, and who lacks an answer looks whether another has written it meanwhile.

All stores together take `LIMIT_BYTES` at most: whoever writes removes the least recently used ones, but none that a
running process uses (see `shelf`), and of its own those views that are not shown any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from edgetl import __version__, rundir
from edgetl.errors import EdgetlError
from edgetl.runtime import preprocess as pre
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.tuned import cache_root
from edgetl.train import shelf, views
from edgetl.train.loader import VIEWS_VERSION, Batch
from edgetl.train.store import ELSEWHERE
from edgetl.train.views import View

VERSION = 2  # of the layout and of what the numbers mean
DRAWN_BY = (
    "crop_scale",
    "hflip",
    "vflip",
    "color_jitter",
    "auto_augment",
    "randaugment_ops",
    "randaugment_magnitude",
    "random_erasing",
    "mixup",
    "cutmix",
    "seed",
)  # options that decide what a view looks like
LIMIT_BYTES = shelf.SOFT_LABELS_BYTES
WRITING = ".writing"  # locked while a file is read, completed and written

Ask = Callable[[torch.Tensor], torch.Tensor]  # pixels [N, C, H, W] in 0..255 -> logits [N, K]
Stamp = tuple[int, int, int]  # of a file: another one has another


class Source(Protocol):
    """Where the teacher's answers come from."""

    ask: Ask  # the teacher itself

    def answers(self, batch: Batch) -> torch.Tensor:
        """Logits [N, K], float32, on the batch's device."""
        ...

    def flush(self) -> None:
        """Writes down what would be lost."""
        ...

    def state(self) -> Mapping[str, torch.Tensor]:
        """What it counts from step to step, for the checkpoint."""
        ...

    def told(self) -> Sequence[Mapping[str, int]]:
        """Figures of each store, see `SoftLabels.told`."""
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

    def state(self) -> Mapping[str, torch.Tensor]:
        """Counts nothing."""
        return {}

    def told(self) -> Sequence[Mapping[str, int]]:
        """Has no store."""
        return ()


class SoftLabels:
    """A store of the teacher's logits, filled as the views are first seen."""

    def __init__(
        self,
        folder: Path,
        images: int,
        classes: int,
        ask: Ask,
        *,
        kept: int = 0,
        limit_bytes: int = LIMIT_BYTES,
        note: Callable[[str], None] = lambda text: None,
        whole: bool = False,
    ) -> None:
        """A store in `folder`, which is made when the first view is kept.

        Args:
            folder: of this store alone, see `folder_of`; beside it lie others.
            images: how many there are.
            classes: of the teacher.
            ask: the teacher.
            kept: most views in memory; 0 is all.
            limit_bytes: of all stores.
            note: told of a damaged file.
            whole: keep all outputs, however many: together they are no probabilities of one class.
        """
        self.folder, self._images, self._classes, self.ask = folder, images, classes, ask
        self._kept, self._limit_bytes, self._note, self._whole = kept, limit_bytes, note, whole
        self._views: dict[int, View] = {}
        self._seen: dict[int, Stamp | None] = {}
        self._counts = torch.zeros(2, dtype=torch.int64)  # images that the teacher looked at; answers reused
        self._held = self._hold() if folder.is_dir() else None

    def answers(self, batch: Batch) -> torch.Tensor:
        """See `Source`; float16 also where the teacher has answered just now, so that a resume changes nothing."""
        view = self._view(batch.view)
        known = bool(view.known[batch.index].all()) or self._learned(batch.view, batch.index)
        self._counts[int(known)] += len(batch.index)
        if not known:
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

    def state(self) -> Mapping[str, torch.Tensor]:
        """See `Source`."""
        return {"counts": self._counts}

    def told(self) -> Sequence[Mapping[str, int]]:
        """What it takes and what it saved: sizes in bytes, images that the teacher looked at, answers reused."""
        asked, reused = self._counts.tolist()
        return (
            {
                "bytes": self.size_bytes,
                "bytes_an_image": views.bytes_an_image(self._classes, self._whole),
                "views": len(self._paths()),
                "images": self._images,
                "asked": asked,
                "reused": reused,
            },
        )

    @property
    def size_bytes(self) -> int:
        """What the store takes on the disk."""
        return sum(path.stat().st_size for path in self._paths())

    def _paths(self) -> list[Path]:
        return list(self.folder.glob("*.safetensors"))

    def _view(self, number: int) -> View:
        if number not in self._views:
            while self._kept and len(self._views) >= self._kept:  # drawn anew: the oldest do not come again
                oldest = next(iter(self._views))
                self._write(oldest)
                del self._views[oldest]
            self._views[number] = View.empty(self._images, self._classes, self._whole)
            self._take(number)
        return self._views[number]

    def _learned(self, number: int, index: torch.Tensor) -> bool:
        """Whether the answers `index` are known after a look at what another process may have written meanwhile."""
        if _stamp(self._file(number)) != self._seen.get(number):
            self._take(number)
        return bool(self._views[number].known[index].all())

    def _take(self, number: int) -> None:
        """Adds what the file knows."""
        path = self._file(number)
        stamp = _stamp(path)
        try:
            found = views.read(path, self._images, self._classes, self._whole)
        except EdgetlError as problem:
            self._note(f"{problem.message} The teacher is asked again.")
            found = None
        if found is not None:
            self._views[number].learn(found)
        self._seen[number] = stamp

    def _file(self, number: int) -> Path:
        return self.folder / f"view-{number:04d}.safetensors"

    def _hold(self) -> shelf.Held:
        with rundir.explained(self.folder, elsewhere=ELSEWHERE):
            return shelf.Held(self.folder)

    def _write(self, number: int) -> None:
        view = self._views[number]
        if not view.changed:
            return
        if self._held is None:
            self._held = self._hold()
        path = self._file(number)
        with rundir.explained(path, elsewhere=ELSEWHERE), self._writing():
            self._make_room()
            if _stamp(path) != self._seen.get(number):
                self._take(number)
            rundir.write_bytes(path, views.encoded(view))
            self._seen[number] = _stamp(path)
        view.changed = False

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Keeps other processes from writing; the lock ends with the process."""
        handle = os.open(self.folder / WRITING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for leftover in self.folder.glob(f".*{rundir.UNFINISHED}"):  # of a process that was killed
                leftover.unlink()
            yield
        finally:
            os.close(handle)

    def _make_room(self) -> None:
        """Keeps all stores within the limit, as far as they are not in use."""
        needed = self._images * views.bytes_an_image(self._classes, self._whole)
        left = shelf.make_room(self.folder.parent, self._limit_bytes - needed)
        shown = {self._file(number) for number in self._views}
        for path in sorted(set(self._paths()) - shown, key=lambda one: one.stat().st_mtime_ns):
            if left + needed <= self._limit_bytes:
                return
            left -= path.stat().st_size
            path.unlink()


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def summed(told: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The figures of several teachers' stores as one: views and images are the same, everything else adds up."""
    same = ("views", "images")
    return {name: told[0][name] if name in same else sum(one[name] for one in told) for name in told[0]}


def sentence(told: Mapping[str, int]) -> str:
    """The figures in words."""
    return (
        f"Soft labels: {told['views']} views of {told['images']:,} images take {_size(told['bytes'])} "
        f"({told['bytes_an_image']} bytes an image and view); the teacher looked at {told['asked']:,} images, "
        f"{told['reused']:,} answers were reused."
    )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


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
