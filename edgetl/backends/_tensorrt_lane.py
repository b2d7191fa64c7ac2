"""One way through an engine: a stream, buffers and execution contexts that no other call uses meanwhile.

A CUDA graph is recorded for each batch that comes a second time, up to `GRAPHS` of them, and launched from then on. A
recording belongs to the state of its execution context and to the addresses of its buffers, so each has a context of
its own (TensorRT's developer guide asks for one context a recording), and all are made again when the buffers grow. The
contexts of a lane share one workspace, because they run one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetl.backends._cuda import Cuda, Mark, Memory, Replay
from edgetl.backends._tensorrt_opened import Opened, Port, view
from edgetl.errors import BackendUnavailable

GRAPHS = 8  # of different batches; each costs an execution context
SECOND = 2  # the call of a batch from which on it is replayed: the first showed that it runs


@dataclass
class Recorded:
    """A CUDA graph and the execution context that it belongs to."""

    replay: Replay
    context: Any

    def free(self) -> None:
        """Gives both back."""
        self.replay.free()
        self.context = None


class Buffers:
    """For one port the memory on the card and the page-locked memory of the host."""

    def __init__(self, cuda: Cuda, port: Port, batch: int) -> None:
        size, purpose = port.size_bytes(batch), f"'{port.name}' of a batch of {batch}"
        self.device = cuda.device_memory(size, purpose)
        try:
            self.host = cuda.host_memory(size, purpose)
        except BaseException:
            self.device.free()
            raise

    def free(self) -> None:
        """Gives both back."""
        with ExitStack() as stack:
            stack.callback(self.device.free)
            stack.callback(self.host.free)


class End(NamedTuple):
    """Where the values of a port lie for one batch."""

    name: str
    buffers: Buffers
    host: NDArray[Any]  # the bytes in page-locked memory, as the port's array
    batched: bool


class Lane:
    """What one call at a time uses.

    Args:
        opened: the engine.
        cuda: the card.
        replay: whether to record CUDA graphs.

    Raises:
        BackendUnavailable: the card is out of memory.
    """

    def __init__(self, opened: Opened, cuda: Cuda, *, replay: bool) -> None:
        self._opened, self._cuda, self._replay = opened, cuda, replay
        self._buffers: dict[str, Buffers] = {}
        self._room = 0  # greatest batch that the buffers hold
        self._bound = 0  # batch that the context is set for
        self._prepared: dict[int, tuple[list[End], list[End]]] = {}
        self._recorded: dict[int, Recorded] = {}
        self._calls: Counter[int] = Counter()
        self._workspace: Memory | None = None
        self.context: Any = None
        with cuda.on_card():
            self._stream = cuda.stream()
            try:
                if opened.workspace_bytes and opened.flavor.name != "rtx":
                    self._workspace = cuda.device_memory(opened.workspace_bytes, "the workspace of one call")
                self.context = opened.context(self._workspace)
            except BaseException:
                self.free()
                raise

    def run(self, feeds: Mapping[str, NDArray[Any]], parts: Sequence[int], *,
            timed: bool) -> tuple[dict[str, NDArray[Any]], float]:
        """Outputs by name, in memory of their own, and seconds that the engine took on the card (0 if not `timed`).

        Args:
            feeds: arrays by name, checked.
            parts: how many images go through the engine together; `Opened.parts` of the whole batch.
            timed: whether the card shall take the time.
        """
        outputs = {port.name: np.empty(port.at(sum(parts)), port.dtype) for port in self._opened.outputs}
        seconds, start = 0.0, 0
        with self._cuda.on_card():
            for size in parts:
                seconds += self._part(feeds, outputs, slice(start, start + size), size, timed=timed)
                start += size
        return outputs, seconds

    def _part(self, feeds: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]], rows: slice, size: int, *,
              timed: bool) -> float:
        stream, inward, outward = self._stream, *self._ends(size)
        for name, buffers, host, batched in inward:
            np.copyto(host, feeds[name][rows] if batched else feeds[name])
            stream.upload(buffers.device, buffers.host, host.nbytes)
        recorded = self._ready(size)  # before the marks: what is done once is no part of the time
        with ExitStack() as stack:
            marks = [self._mark(stack)] if timed else []
            if recorded is not None:
                recorded.replay.launch()
            else:
                self._opened.enqueue(self.context, stream.handle)
            marks += [self._mark(stack)] if timed else []
            for _, buffers, host, _ in outward:
                stream.download(buffers.host, buffers.device, host.nbytes)
            stream.finish()
            for name, _, host, batched in outward:
                np.copyto(outputs[name][rows] if batched else outputs[name], host)
            return marks[1].seconds_since(marks[0]) if timed else 0.0

    def _mark(self, stack: ExitStack) -> Mark:
        mark = self._stream.mark()
        stack.callback(mark.free)
        return mark

    def _ends(self, batch: int) -> tuple[list[End], list[End]]:
        """What a batch is copied from and to, of inputs and outputs; made once a batch."""
        self._reserve(batch)
        if batch not in self._prepared:
            inward, outward = ([self._end(port, batch) for port in ports]
                               for ports in (self._opened.inputs, self._opened.outputs))
            self._prepared[batch] = inward, outward
        return self._prepared[batch]

    def _end(self, port: Port, batch: int) -> End:
        buffers = self._buffers[port.name]
        return End(port.name, buffers, view(buffers.host, port, batch), port.batched)

    def _ready(self, batch: int) -> Recorded | None:
        """The recording of a batch; None where the context, which is set for it then, is to be run."""
        self._calls[batch] += 1
        recorded = self._recorded.get(batch)
        if recorded is None and self._replay and self._calls[batch] >= SECOND and len(self._recorded) < GRAPHS:
            recorded = self._recorded[batch] = self._record(batch)
        if recorded is None and self._bound != batch:
            self._bind(self.context, batch)
            self._bound = batch
        return recorded

    def _bind(self, context: Any, batch: int) -> None:
        addresses = {name: buffers.device.address for name, buffers in self._buffers.items()}
        self._opened.bind(context, batch, addresses, self._stream.handle)

    def _record(self, batch: int) -> Recorded:
        opened, stream = self._opened, self._stream
        try:
            context = opened.context(self._workspace)
            self._bind(context, batch)
            # Once before: TensorRT puts work off to the first call after shapes were set, which is no part of a graph.
            opened.enqueue(context, stream.handle)
            stream.finish()
            return Recorded(stream.capture(lambda: opened.enqueue(context, stream.handle)), context)
        except BackendUnavailable as problem:
            raise BackendUnavailable(f"No CUDA graph could be recorded of a batch of {batch}: {problem.message}",
                                     hint="Open the session with the option cuda_graph=off.") from problem

    def _reserve(self, batch: int) -> None:
        """Makes the buffers large enough, to the next power of two, at most to what the engine takes."""
        if batch <= self._room:
            return
        greatest = max(one.greatest for one in self._opened.profiles)
        room = min(1 << (batch - 1).bit_length(), max(greatest, batch))
        self._free_buffers()
        for port in (*self._opened.inputs, *self._opened.outputs):
            self._buffers[port.name] = Buffers(self._cuda, port, room)
        self._room = room

    def _free_buffers(self) -> None:
        with ExitStack() as stack:
            for buffers in self._buffers.values():
                stack.callback(buffers.free)
            for recorded in self._recorded.values():
                stack.callback(recorded.free)
        self._buffers, self._prepared, self._recorded, self._room, self._bound = {}, {}, {}, 0, 0

    def free(self) -> None:
        """Gives everything back, after what is still under way."""
        with self._cuda.on_card(), ExitStack() as stack:
            stack.callback(self._stream.free)
            if self._workspace is not None:
                stack.callback(self._workspace.free)
            stack.callback(self._drop_context)
            stack.callback(self._free_buffers)
            stack.callback(self._stream.finish)

    def _drop_context(self) -> None:
        self.context = None
