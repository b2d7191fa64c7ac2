"""A session of a TensorRT engine, host to host: pinned buffers, a stream and an execution context for each call.

Calls that overlap each use a lane of their own (`_tensorrt_lane.py`), which is made when there is none idle and kept
until the session is closed. A batch above the greatest that the engine was built for runs in nearly equal parts.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import _tensorrt_precision, _tensorrt_profile
from edgetl.backends._cuda import CARD, Cuda
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.backends._tensorrt_lane import SECOND, Lane
from edgetl.backends._tensorrt_opened import Opened
from edgetl.errors import BackendUnavailable
from edgetl.runtime.handle import Handle
from edgetl.runtime.layers import ProfiledSession
from edgetl.runtime.session import FeedCheck, GraphSpec


class TensorrtSession:
    """An opened engine. `run` may be called from several threads.

    Args:
        plan: the bytes that TensorRT's builder made.
        flavor: which TensorRT opens it.
        cuda: the card.
        spec: what it must take and give, and in which precision.
        threads: what `info` tells; the host's threads do not compute.
        cuda_graph: whether to launch a call's work as one CUDA graph, where that can be recorded.
        facts: what else `info` shall tell.
        kernels: see `kernels`.
        host_code: whether code for the host in the plan may run, as version compatible plans have it.

    Raises:
        BundleError: the plan is damaged, of another version of TensorRT or of another kind of card, or has other inputs
            or outputs than the spec.
        BackendUnavailable: there is no driver, or the card is out of memory.
        GateFailed: the engine computes in another precision than the spec's.
    """

    def __init__(self, plan: bytes, flavor: Flavor, cuda: Cuda, spec: GraphSpec, *, threads: int, cuda_graph: bool,
                 facts: Mapping[str, Any], kernels: bytes | None = None, host_code: bool = False) -> None:
        opened = Opened(plan, flavor, cuda, spec, replay=cuda_graph, kernels=kernels, host_code=host_code)
        pool = Pool(opened, cuda, replay=cuda_graph and not opened.records_itself)
        with ExitStack() as undo:
            undo.callback(pool.close)
            precisions = _tensorrt_profile.precisions(opened.native, flavor.module)
            if precisions:  # else it was built to tell names alone, and what was parsed stands beside the plan
                _tensorrt_precision.insist(spec.precision, precisions, f"the engine of {flavor.title}")
            replayed = _replayed(opened, pool, asked=cuda_graph)
            undo.pop_all()
        self._handle = Handle("tensorrt", pool)
        self._check = FeedCheck(spec)
        self._flavor = flavor
        sparse = _tensorrt_profile.sparse(opened.native, flavor.module)
        self._info = {**_told(opened, cuda, spec), "precisions": dict(precisions), "threads": threads,
                      **({"sparse_layers": list(sparse)} if sparse else {}),
                      "cuda_graph": replayed, "versions": {flavor.package: flavor.version}, **facts}
        weakref.finalize(self, _give_up, pool, os.getpid())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Outputs by name; see `edgetl.runtime.session.Session.run`."""
        return self._call(feeds, timed=False)[0]

    def device_s(self, feeds: Mapping[str, NDArray[Any]]) -> float:
        """Seconds that the engine took on the card in one call, between two events: without the copies.

        Raises:
            InputError, BackendUnavailable: see `edgetl.runtime.session.Session.run`.
        """
        return self._call(feeds, timed=True)[1]

    def _call(self, feeds: Mapping[str, NDArray[Any]], *, timed: bool) -> tuple[dict[str, NDArray[Any]], float]:
        pool: Pool | None = self._handle.native
        if pool is None:
            raise self._handle.error()
        ready = self._check(feeds)
        parts = pool.opened.parts(pool.opened.batch(ready))
        try:
            lane = pool.take()
        except Closed:
            raise self._handle.error() from None
        try:
            found = lane.run(ready, parts, timed=timed)
        except BaseException:
            pool.give_back(lane, broken=True)
            raise
        pool.give_back(lane)
        return found

    def profiled(self) -> ProfiledSession:
        """This session with TensorRT's profiler on; it must have been opened without CUDA graphs, and run nothing yet.

        Raises:
            BackendUnavailable: the session is closed, or the card is out of memory.
        """
        pool = self._handle.native
        if pool is None:
            raise self._handle.error()
        with pool.lane() as lane:
            return _tensorrt_profile.Profiled(self, lane.context, pool.opened.native, self._flavor.module)

    def kernels(self) -> bytes | None:
        """What TensorRT for RTX has compiled for this card so far, for the next session; None where there is nothing.

        Raises:
            BackendUnavailable: the card failed.
        """
        pool = self._handle.native
        return None if pool is None else pool.opened.kernels()

    def close(self) -> None:
        """Releases the card's memory, or has the last call that is under way do it; a second call does nothing."""
        pool = self._handle.native
        self._handle.close()
        if pool is not None:
            pool.close()

    def info(self) -> Mapping[str, Any]:
        """Provider, card, precision and its shares, batches, whether CUDA graphs are used, version, and the facts."""
        return self._info


class Closed(Exception):
    """The session was closed by another thread since the call began."""


class Pool:
    """The lanes of an engine: as many as there were calls at once.

    Args:
        opened: the engine, which is closed with the pool.
        cuda: the card.
        replay: whether the lanes record CUDA graphs.
    """

    def __init__(self, opened: Opened, cuda: Cuda, *, replay: bool) -> None:
        self.opened, self.replay = opened, replay
        self._cuda = cuda
        self._lock = threading.Lock()
        self._idle: list[Lane] = []
        self._busy = 0
        self._closed = False

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """`take` and `give_back`."""
        lane = self.take()
        try:
            yield lane
        except BaseException:
            self.give_back(lane, broken=True)
            raise
        self.give_back(lane)

    def take(self) -> Lane:
        """A lane that nobody else uses until it is given back, the last one used first.

        Raises:
            Closed: the pool is.
            BackendUnavailable: the card has no memory for one more.
        """
        with self._lock:
            if self._closed:
                raise Closed
            self._busy += 1
            if self._idle:
                return self._idle.pop()
        try:
            return Lane(self.opened, self._cuda, replay=self.replay)
        except BaseException:
            self._done([])
            raise

    def give_back(self, lane: Lane, *, broken: bool = False) -> None:
        """Keeps the lane for the next call; a broken one, in which there may still be work queued, is freed."""
        if broken:
            with suppress(BackendUnavailable):  # a card that failed may fail again; the first failure is told
                self._done([lane])
            return
        with self._lock:
            if not self._closed:
                self._busy -= 1
                self._idle.append(lane)
                return
        self._done([lane])

    def _done(self, lanes: list[Lane]) -> None:
        """One call less is under way; frees the lanes that it leaves, and the engine where it was the last."""
        with self._lock:
            self._busy -= 1
            last = self._closed and not self._busy
        self._free(lanes, last=last)

    def close(self) -> None:
        """Frees the idle lanes, and the engine with the last of those that are busy; a second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed, idle, self._idle = True, self._idle, []
            last = not self._busy
        self._free(idle, last=last)

    def _free(self, lanes: list[Lane], *, last: bool) -> None:
        with ExitStack() as stack:
            if last:
                stack.callback(self.opened.close)
            for lane in lanes:
                stack.callback(lane.free)


def _replayed(opened: Opened, pool: Pool, *, asked: bool) -> str:
    """Whether calls are replayed from CUDA graphs, in words; where they are not, the reason, found out by trying.

    Raises:
        BackendUnavailable: the engine does not run at all.
    """
    if not asked:
        return "off"
    if opened.records_itself:
        return "on: recorded by TensorRT for RTX"
    batch = opened.profiles[0].best
    feeds = {port.name: np.zeros(port.at(batch), port.dtype) for port in opened.inputs}
    with pool.lane() as lane:
        for _ in range(SECOND - 1):
            lane.run(feeds, (batch,), timed=False)
    try:
        with pool.lane() as lane:
            lane.run(feeds, (batch,), timed=False)
    except BackendUnavailable as problem:
        pool.replay = False
        return f"off: {problem.message}"
    return "on"


def _told(opened: Opened, cuda: Cuda, spec: GraphSpec) -> dict[str, Any]:
    card = cuda.card()
    best = opened.profiles[0]
    library = ", ".join(f"{name} {version}" for name, version in cuda.versions.items())
    return {"backend": "tensorrt", "provider": opened.flavor.title, "device": f"cuda:{CARD}",
            "precision": spec.precision, "card": card.name, "compute_capability": card.compute_capability,
            "driver": card.driver_version, "cuda_through": library,
            "batches": [best.least, best.best, best.greatest], "workspace_bytes": opened.workspace_bytes}


def _give_up(pool: Pool, opened_in: int) -> None:
    """Closes what a session that nobody closed leaves behind; not in a forked child, where there is no card."""
    if os.getpid() == opened_in:
        pool.close()
