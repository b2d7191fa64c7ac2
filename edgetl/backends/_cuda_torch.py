"""The CUDA runtime through PyTorch, for where cuda-python is not installed; see `edgetl.backends._cuda`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgetl.backends import _cuda
from edgetl.backends._cuda import CARD, Card, Mark, Memory, Replay


def open() -> CudaTorch | None:
    """The runtime on the first card; None where no PyTorch with CUDA is installed.

    Raises:
        BackendUnavailable: the driver is too old, or there is no card that can be used.
    """
    try:
        import torch
    except ImportError:
        return None
    return None if torch.version.cuda is None else CudaTorch(torch)


@contextlib.contextmanager
def told(doing: str) -> Iterator[None]:
    """Turns an error of PyTorch into one sentence that says what was being done."""
    try:
        yield
    except RuntimeError as problem:  # the base of all that PyTorch raises of CUDA
        says = str(problem).strip().splitlines()[0]
        error, _, text = says.rpartition("CUDA error: ")
        raise _cuda.refusal("PyTorch's CUDA error" if error or text != says else type(problem).__name__,
                            text[:300].rstrip("."), doing) from problem


class CudaTorch:
    """See `edgetl.backends._cuda.Cuda`.

    Args:
        torch: the module.

    Raises:
        BackendUnavailable: the driver is too old, or there is no card that can be used.
    """

    name = "torch"

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.versions: Mapping[str, str] = {"torch": str(torch.__version__)}
        self.device = torch.device("cuda", CARD)
        self._expect_card()

    def _expect_card(self) -> None:
        driver, runtime = _cuda.driver_cuda(), _number(self.torch.version.cuda)
        if driver // 1000 < runtime // 1000:  # within one major version an older driver will do
            raise _cuda.driver_too_old(driver, runtime)
        if self.torch.cuda.device_count() == 0:
            raise _cuda.no_card()
        with told("looking for cards"):
            self.torch.cuda.init()

    def card(self) -> Card:
        """See `edgetl.backends._cuda.Cuda`."""
        with told("asking what card it is"):
            cuda = self.torch.cuda
            major, minor = cuda.get_device_capability(self.device)
            free, total = cuda.mem_get_info(self.device)
            name = cuda.get_device_name(self.device)
        return Card(name, f"{major}.{minor}", _cuda.driver_version(_cuda.driver_cuda()), int(total), int(free))

    @contextlib.contextmanager
    def on_card(self) -> Iterator[None]:
        """See `edgetl.backends._cuda.Cuda`."""
        with self.torch.cuda.device(self.device):
            yield

    def device_memory(self, size_bytes: int, purpose: str) -> Memory:
        """See `edgetl.backends._cuda.Cuda`."""
        torch = self.torch
        try:
            tensor = torch.empty(size_bytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError as problem:
            free, total = torch.cuda.mem_get_info(self.device)
            raise _cuda.out_of_memory(purpose, size_bytes, free, total) from problem
        return Memory(tensor.data_ptr(), size_bytes, lambda: None, native=tensor)

    def host_memory(self, size_bytes: int, purpose: str) -> Memory:
        """See `edgetl.backends._cuda.Cuda`."""
        try:
            tensor = self.torch.empty(size_bytes, dtype=self.torch.uint8, pin_memory=True)
        except RuntimeError as problem:
            raise _cuda.out_of_host_memory(purpose, size_bytes) from problem
        return Memory(tensor.data_ptr(), size_bytes, lambda: None, array=tensor.numpy(), native=tensor)

    def stream(self) -> TorchStream:
        """See `edgetl.backends._cuda.Cuda`."""
        with told("making a stream"):
            return TorchStream(self)


class TorchStream:
    """See `edgetl.backends._cuda.Stream`."""

    def __init__(self, cuda: CudaTorch) -> None:
        self._torch = cuda.torch
        # PyTorch lends its streams from a pool of 32 a card, whose owners then wait for one another; nothing breaks.
        self._native = cuda.torch.cuda.Stream(device=cuda.device)
        self.handle = int(self._native.cuda_stream)

    def upload(self, into: Memory, source: Memory, size_bytes: int) -> None:
        """See `edgetl.backends._cuda.Stream`."""
        self._copy("copying to the card", into, source, size_bytes)

    def download(self, into: Memory, source: Memory, size_bytes: int) -> None:
        """See `edgetl.backends._cuda.Stream`."""
        self._copy("copying from the card", into, source, size_bytes)

    def _copy(self, doing: str, into: Memory, source: Memory, size_bytes: int) -> None:
        with told(doing), self._torch.cuda.stream(self._native):
            into.native[:size_bytes].copy_(source.native[:size_bytes], non_blocking=True)

    def finish(self) -> None:
        """See `edgetl.backends._cuda.Stream`."""
        with told("waiting for the card"):
            self._native.synchronize()

    def mark(self) -> Mark:
        """See `edgetl.backends._cuda.Stream`."""
        with told("recording an event"):
            event = self._torch.cuda.Event(enable_timing=True)
            event.record(self._native)
        return TorchMark(event)

    def capture(self, work: Callable[[], None]) -> Replay:
        """See `edgetl.backends._cuda.Stream`."""
        graph = self._torch.cuda.CUDAGraph()
        with told("recording a CUDA graph"), self._torch.cuda.stream(self._native):
            # Not torch.cuda.graph, which waits for the whole card. Thread-local: what other threads do meanwhile,
            # such as taking memory, does not spoil the recording.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # which is that of the work once more
                    graph.capture_end()
                raise
            graph.capture_end()
        return TorchReplay(self._torch, graph, self._native)

    def free(self) -> None:
        """See `edgetl.backends._cuda.Stream`."""
        self._native = None  # it goes back to the pool by itself


class TorchMark:
    """See `edgetl.backends._cuda.Mark`."""

    def __init__(self, event: Any) -> None:
        self.native = event

    def seconds_since(self, earlier: Mark) -> float:
        """See `edgetl.backends._cuda.Mark`."""
        assert isinstance(earlier, TorchMark)
        with told("reading the time between two events"):
            return float(earlier.native.elapsed_time(self.native)) / 1e3

    def free(self) -> None:
        """See `edgetl.backends._cuda.Mark`."""
        self.native = None


class TorchReplay:
    """See `edgetl.backends._cuda.Replay`."""

    def __init__(self, torch: Any, graph: Any, stream: Any) -> None:
        self._torch, self._graph, self._stream = torch, graph, stream

    def launch(self) -> None:
        """See `edgetl.backends._cuda.Replay`."""
        with told("launching a CUDA graph"), self._torch.cuda.stream(self._stream):
            self._graph.replay()

    def free(self) -> None:
        """See `edgetl.backends._cuda.Replay`."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.reset()


def _number(version: str) -> int:
    """12040 for "12.4"."""
    major, minor = version.split(".")[:2]
    return int(major) * 1000 + int(minor) * 10
