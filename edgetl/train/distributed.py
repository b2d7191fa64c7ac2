"""Training by several processes that torchrun started: who they are, what they agree on, and how batches are shared.

Every process holds the whole network and sees its cells of each batch; `DistributedDataParallel` brings the gradients
together. What a step computes is what one process would compute on the whole batch: losses are weighted by the images
they were taken over, batch norms and losses that compare images look at the whole batch (see `shared_norm` and
`ClassifierTask`). Only the first process writes the RUN; each of the others works in a folder of its own, which is
thrown away, so that no other code has to know that there are several.

What is decided by a trial or found on a disk comes from the first process through the store that torchrun opened; in
it a process that fails leaves word for those that wait.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import shutil
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from edgetl import launch, rundir, timing
from edgetl.errors import BackendUnavailable, EdgetlError, OutputError, TrainingError
from edgetl.events import Listener, ignore
from edgetl.train import seed

TIMEOUT = timedelta(minutes=10)  # of one exchange; then a process that does not answer counts as lost
LOOK_S = 0.05  # between two looks for what another process shall leave in the store
LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
BEAT_S = 5.0  # between two signs of life of the first process
T = TypeVar("T")


@dataclass
class World:
    """The processes of a training; alone by default."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    store: Store | None = None
    ending: bool = False  # this process is ending because another one did
    _turns: Iterator[int] = field(default_factory=itertools.count)

    @property
    def first(self) -> bool:
        """Whether this process writes the RUN and speaks."""
        return self.rank == 0

    def share_of_threads(self, usable: int) -> int:
        """Threads of this process, where the processes of a node share what the machine allows."""
        return max(1, usable // self.local_size)

    # ------------------------------------------------------------------------------------------ through the store

    def decided(self, work: Callable[[], T]) -> T:
        """What `work`, as plain JSON, gives in the first process; the others wait and do nothing."""
        if self.store is None:
            return work()
        key = f"turn {next(self._turns)}"
        if self.first:
            value = work()
            self.store.set(key, json.dumps(value))
            return value
        found: T = json.loads(self._waited(key))
        return found

    @contextlib.contextmanager
    def agreeing(self, choices: dict[str, Any]) -> Iterator[None]:
        """Lets the first process go through the block alone; the others follow with the choices that it made."""
        if self.store is None:
            yield
            return
        key = f"turn {next(self._turns)}"
        if not self.first:
            choices.update(json.loads(self._waited(key)))
        yield
        if self.first:
            self.store.set(key, json.dumps(choices))

    @contextlib.contextmanager
    def by_node(self) -> Iterator[None]:
        """Lets one process of each node go through the block first; the others find in the cache what it made."""
        if self.store is None:
            yield
            return
        key = f"turn {next(self._turns)} of node {self.node}"
        if self.local_rank > 0:
            self._waited(key)
        yield
        if self.local_rank == 0:
            self.store.set(key, "done")

    def _waited(self, key: str) -> str:
        """The text that another process leaves; its work may take as long as the first process gives signs of life.

        Raises:
            TrainingError: a process failed or cannot be reached any more.
        """
        assert self.store is not None
        beats, heard_s = -1, timing.now_s()
        try:
            while not self.store.check([key]):
                now = self.store.add("beats", 0)
                if now != beats:
                    beats, heard_s = now, timing.now_s()
                if self.store.check(["failed"]) or timing.now_s() - heard_s > TIMEOUT.total_seconds():
                    raise self.lost_another()
                time.sleep(LOOK_S)
            return str(self.store.get(key).decode())
        except RuntimeError as problem:
            raise self.lost_another() from problem

    def lost_another(self, where: str = "") -> TrainingError:
        """The error of a training of which another process has ended."""
        self.ending = True
        return TrainingError(
            f"Another of the {self.size} processes of this training ended, or cannot be reached any more{where}.",
            hint="Give the same torchrun line with --resume. What ended it is said by that process, or by torchrun "
            "below; a process that is killed without a word often had no memory left.",
        )

    def lost(self, problem: RuntimeError) -> bool:
        """Whether an exchange failed because another process is not there any more."""
        return self.size > 1 and (isinstance(problem, dist.DistError) or any(one in str(problem) for one in LOST))

    def speaks(self) -> bool:
        """Whether this process is the first that has to tell of a failure."""
        if self.store is None:
            return True
        try:
            return bool(self.store.add("failed", 1) == 1)
        except RuntimeError:  # the store went with its process
            return True

    # -------------------------------------------------------------------------------------------------- exchanges

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, the same in all of them."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor([*values, 0.0], dtype=torch.float64)  # of nothing, too, all wait for all
        dist.all_reduce(summed)
        return [float(one) for one in summed[:-1]]

    def any(self, *flags: bool) -> list[bool]:
        """Which flags are raised in at least one process."""
        return [one > 0 for one in self.total([float(flag) for flag in flags])]

    def shared(self, read: Callable[[], bytes | None]) -> bytes | None:
        """The bytes that the first process reads; None where it finds none."""
        if self.size == 1:
            return read()
        data = read() if self.first else None
        length = int(self.total([(-1 if data is None else len(data)) if self.first else 0])[0])
        if length < 0:
            return None
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(length, dtype=torch.uint8)
        dist.broadcast(sent, src=0)
        return bytes(sent.numpy())

    def gathered(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """The rows [N, ...] of tensors from all processes, in the order of the processes.

        Gradients flow back to where a row came from, summed over the processes that looked at it.
        """
        mine = [len(tensors[0]) if rank == self.rank else 0 for rank in range(self.size)]
        counts = [round(one) for one in self.total(mine)]
        before, after = sum(counts[: self.rank]), sum(counts[self.rank + 1 :])
        found = []
        for tensor in tensors:
            around = [tensor.new_zeros((rows, *tensor.shape[1:])) for rows in (before, after)]
            found.append(summed_over(torch.cat([around[0], tensor, around[1]])))
        return found

    def of_whole_batch(self, index: torch.Tensor) -> None:
        """Has all processes draw the same numbers next, which depend on the rows of a batch."""
        seed.seed_everything(zlib.crc32(index.cpu().numpy().tobytes()))

    def parallel(self, task: nn.Module) -> Callable[[Any], dict[str, torch.Tensor]]:
        """The task's forward pass; with several processes its gradients are averaged over them."""
        if self.size == 1:
            forward: Callable[[Any], dict[str, torch.Tensor]] = task.forward
            return forward
        # Buffers are the same everywhere, because batch norms share their statistics; they need not be sent around.
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.15
        not_sent: dict[str, Any] = {name: False}
        return nn.parallel.DistributedDataParallel(_Moving(task), **not_sent)

    def listening(self, listener: Listener) -> Listener:
        """The listener in the first process; the others are not heard."""
        return listener if self.first else ignore

    @contextlib.contextmanager
    def building(self, out: Path, *, resume: bool, overwrite: bool) -> Iterator[Path]:
        """As `rundir.building` in the first process; the others get a copy to work in, and wait until it is whole.

        Raises:
            OutputError: see there; also when a process does not see the disk on which the first one builds.
        """
        if self.size == 1:
            with rundir.building(out, resume=resume, overwrite=overwrite) as folder:
                yield folder
            return
        if self.first:
            with rundir.building(out, resume=resume, overwrite=overwrite) as folder:
                self.decided(lambda: True)
                self.total([])  # nothing is written before all have their copy
                yield folder
            self.decided(lambda: True)
            return
        self.decided(lambda: True)
        with tempfile.TemporaryDirectory(prefix="edgetl-rank-") as copy:
            kept = Path(copy) / "run"
            if not rundir.partial(out).is_dir():
                raise OutputError(
                    f"{rundir.partial(out)}, where process 0 builds, cannot be seen by process {self.rank}.",
                    hint="Give an --out on a disk that all nodes share.",
                )
            shutil.copytree(rundir.partial(out), kept, ignore=shutil.ignore_patterns("checkpoint*", "best*", ".*"))
            self.total([])
            yield kept
        self.decided(lambda: True)


class _Moving(nn.Module):
    """What moves in a training: the network and what its losses learn, without a teacher."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.network, self.losses = task.network, getattr(task, "losses", None)
        self._answer: Callable[[Any], dict[str, torch.Tensor]] = task.forward

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        """See `ClassifierTask.forward`."""
        return self._answer(batch)


ALONE = World()
_current = [ALONE]
_sessions = itertools.count()


def current() -> World:
    """The processes of the training that is under way; `ALONE` where there is one."""
    return _current[-1]


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, joined for the time of a training; `ALONE` where it started none.

    Of several processes that fail, one keeps its error; the others carry `told`, or exit, so that it is said once.

    Raises:
        EdgetlError: the environment that torchrun made is not whole.
        BackendUnavailable: there are more processes than GPUs on this node, or one GPU was named for all.
        TrainingError: the processes cannot reach one another.
    """
    place = launch.place()
    if place is None:
        yield ALONE
        return
    world = _opened(place, device)
    _current.append(world)
    try:
        with _terminable(world), _beating(world):
            yield world
        world.total([])  # the first process may be the one that keeps the store
        dist.destroy_process_group()
    except EdgetlError as problem:
        problem.told = not world.speaks()
        raise
    except KeyboardInterrupt as problem:
        if world.speaks():
            raise
        raise SystemExit(130) from problem
    except BaseException:
        world.speaks()  # leaves word for those that wait
        raise
    finally:
        _current.pop()


def _opened(place: launch.Place, device: torch.device) -> World:
    backend = "gloo"
    if device.type == "cuda":
        _take_gpu(place, device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        # A second training in these processes shall not find the addresses of the first.
        own = PrefixStore(f"edgetl {next(_sessions)}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=TIMEOUT)
    except RuntimeError as problem:
        raise TrainingError(
            f"The {place.size} processes of this training cannot reach one another: {str(problem).splitlines()[0]}",
            hint="Check --rdzv-endpoint of torchrun and the firewall; with several network cards name the one to use "
            "in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME.",
        ) from problem
    return World(rank, size, place.local_rank, place.local_size, place.node, own)


def _take_gpu(place: launch.Place, device: torch.device) -> None:
    """Gives each process of a node its own GPU."""
    count = torch.cuda.device_count()
    if str(device) != "cuda":
        raise BackendUnavailable(
            f"--device {device} names one GPU, and torchrun started {place.size} processes.", hint="Give --device cuda."
        )
    if place.local_size > count:
        raise BackendUnavailable(
            f"torchrun started {place.local_size} processes on a node with {count} GPUs.",
            hint=f"Give --nproc-per-node {count}.",
        )
    torch.cuda.set_device(place.local_rank)


@contextlib.contextmanager
def _terminable(world: World) -> Iterator[None]:
    """Takes SIGTERM, by which torchrun and Slurm end a process, for Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not world.ending:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _beating(world: World) -> Iterator[None]:
    """Has the first process give signs of life, which tell those that wait for it on other nodes that it is there."""
    if world.store is None or not world.first:
        yield
        return
    ended, store = threading.Event(), world.store

    def beat() -> None:
        with contextlib.suppress(RuntimeError):  # the store went with its process; whoever needs it says so
            while not ended.wait(BEAT_S):
                store.add("beats", 1)

    thread = threading.Thread(target=beat, name="edgetl-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _SumOver(torch.autograd.Function):
    """Sums over the processes, forward and back."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
        """The sum; every process gets all of it."""
        summed = values.contiguous().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """The sum of what the processes make of it."""
        return _SumOver.forward(context, gradients[0])


def summed_over(values: torch.Tensor) -> torch.Tensor:
    """The sum of the tensors of all processes; gradients are summed too."""
    found: torch.Tensor = _SumOver.apply(values)
    return found
