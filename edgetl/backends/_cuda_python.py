"""The CUDA runtime through cuda-python; see `edgetl.backends._cuda`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from edgetl.backends import _cuda
from edgetl.backends._cuda import CARD, Card, Mark, Memory, Replay

PACKAGES = ("cuda-bindings", "cuda-python")  # the first holds the code since 12.6, the second all of it before


def open() -> CudaPython | None:
    """The runtime on the first card; None where cuda-python is not installed.

    Raises:
        BackendUnavailable: no driver, one too old, no card, or a card that cannot be used.
    """
    runtime = _module()
    return None if runtime is None else CudaPython(runtime, _version())


def _module() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError:
        try:
            from cuda import cudart as runtime  # before 12.6
        except ImportError:
            return None
    return runtime


def _version() -> str:
    from importlib import metadata

    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return "unknown"


class CudaPython:
    """See `edgetl.backends._cuda.Cuda`.

    Args:
        runtime: the module `cuda.bindings.runtime`, whose functions give back (error, results...).
        version: of the package.

    Raises:
        BackendUnavailable: no driver, one too old, no card, or a card that cannot be used.
    """

    name = "cuda-python"

    def __init__(self, runtime: Any, version: str) -> None:
        self.runtime = runtime
        self.versions: Mapping[str, str] = {"cuda-python": version}
        self._expect_card()

    def call(self, doing: str, function: str, *arguments: Any) -> Any:
        """What a function of the runtime gives back besides its error.

        Raises:
            BackendUnavailable: the function failed; `doing` says at what.
        """
        error, *results = self._asked(doing, function, *arguments)
        if error:
            raise self.refusal(error, doing)
        return results[0] if len(results) == 1 else results

    def _asked(self, doing: str, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self.runtime, function)(*arguments)
        except RuntimeError as problem:  # versions before 13 raise where the driver lacks a function, or is not there
            raise _cuda.lacking(str(problem), doing) from problem

    def refusal(self, error: Any, doing: str) -> Exception:
        """The error as a sentence; the runtime forgets it, so that the next user of CUDA does not find it."""
        self.runtime.cudaGetLastError()
        return _cuda.refusal(self._name(error), self._text(error), doing)

    def _name(self, error: Any) -> str:
        return str(getattr(error, "name", f"error {int(error)}"))

    def _text(self, error: Any) -> str:
        _, text = self.runtime.cudaGetErrorString(error)
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else "unknown"

    def _expect_card(self) -> None:
        error, count = self._asked("looking for cards", "cudaGetDeviceCount")
        if error and self._name(error) == _cuda.TOO_OLD:
            driver = self.call("asking for the driver", "cudaDriverGetVersion")
            raise _cuda.driver_too_old(driver, self.call("asking for the runtime", "cudaRuntimeGetVersion"))
        if (error and self._name(error) == "cudaErrorNoDevice") or (not error and count == 0):
            raise _cuda.no_card()
        if error:
            raise self.refusal(error, "looking for cards")

    def card(self) -> Card:
        """See `edgetl.backends._cuda.Cuda`."""
        with self.on_card():
            ask, kinds = partial(self.call, "asking what card it is"), self.runtime.cudaDeviceAttr
            properties = ask("cudaGetDeviceProperties", CARD)
            major = ask("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMajor, CARD)
            minor = ask("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMinor, CARD)
            free, total = ask("cudaMemGetInfo")
            driver = ask("cudaDriverGetVersion")
        name = bytes(properties.name).rstrip(b"\0").decode("utf-8", "replace")
        return Card(name, f"{major}.{minor}", _cuda.driver_version(driver), int(total), int(free))

    @contextlib.contextmanager
    def on_card(self) -> Iterator[None]:
        """See `edgetl.backends._cuda.Cuda`."""
        before = self.call("asking which card is current", "cudaGetDevice")
        if before != CARD:
            self.call("choosing the card", "cudaSetDevice", CARD)
        try:
            yield
        finally:
            if before != CARD:
                self.call("choosing the card that was current before", "cudaSetDevice", before)

    def device_memory(self, size_bytes: int, purpose: str) -> Memory:
        """See `edgetl.backends._cuda.Cuda`."""
        doing = f"taking memory for {purpose}"
        error, address = self._asked(doing, "cudaMalloc", size_bytes)
        if error and self._name(error) == _cuda.MEMORY:
            self.runtime.cudaGetLastError()
            free, total = self.call("asking for the free memory", "cudaMemGetInfo")
            raise _cuda.out_of_memory(purpose, size_bytes, free, total)
        if error:
            raise self.refusal(error, doing)
        return Memory(int(address), size_bytes, partial(self.call, "giving memory back", "cudaFree", address))

    def host_memory(self, size_bytes: int, purpose: str) -> Memory:
        """See `edgetl.backends._cuda.Cuda`."""
        import ctypes

        doing = f"taking page-locked memory for {purpose}"
        error, address = self._asked(doing, "cudaHostAlloc", size_bytes, self.runtime.cudaHostAllocPortable)
        if error and self._name(error) == _cuda.MEMORY:
            self.runtime.cudaGetLastError()
            raise _cuda.out_of_host_memory(purpose, size_bytes)
        if error:
            raise self.refusal(error, doing)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(int(address)))
        release = partial(self.call, "giving page-locked memory back", "cudaFreeHost", address)
        return Memory(int(address), size_bytes, release, array=array)

    def stream(self) -> PythonStream:
        """See `edgetl.backends._cuda.Cuda`."""
        return PythonStream(self)


class PythonStream:
    """See `edgetl.backends._cuda.Stream`."""

    def __init__(self, cuda: CudaPython) -> None:
        self._cuda, self._runtime = cuda, cuda.runtime
        # Non-blocking: a stream that waited for the default stream would wait for every other library in the process.
        self._native = cuda.call("making a stream", "cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
        self.handle = int(self._native)
        self._to_card = cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost

    def upload(self, into: Memory, source: Memory, size_bytes: int) -> None:
        """See `edgetl.backends._cuda.Stream`."""
        self._cuda.call("copying to the card", "cudaMemcpyAsync", into.address, source.address, size_bytes,
                        self._to_card, self._native)

    def download(self, into: Memory, source: Memory, size_bytes: int) -> None:
        """See `edgetl.backends._cuda.Stream`."""
        self._cuda.call("copying from the card", "cudaMemcpyAsync", into.address, source.address, size_bytes,
                        self._to_host, self._native)

    def finish(self) -> None:
        """See `edgetl.backends._cuda.Stream`."""
        self._cuda.call("waiting for the card", "cudaStreamSynchronize", self._native)

    def mark(self) -> Mark:
        """See `edgetl.backends._cuda.Stream`."""
        mark = PythonMark(self._cuda)
        self._cuda.call("recording an event", "cudaEventRecord", mark.native, self._native)
        return mark

    def capture(self, work: Callable[[], None]) -> Replay:
        """See `edgetl.backends._cuda.Stream`."""
        # Thread-local: what other threads do meanwhile, such as taking memory, does not spoil the recording.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("beginning a CUDA graph", "cudaStreamBeginCapture", self._native, mode)
        try:
            work()
        except BaseException:
            _, graph = self._runtime.cudaStreamEndCapture(self._native)  # its error is that of the work once more
            if graph is not None and int(graph):
                self._runtime.cudaGraphDestroy(graph)
            self._runtime.cudaGetLastError()
            raise
        graph = self._cuda.call("ending a CUDA graph", "cudaStreamEndCapture", self._native)
        try:
            native = self._cuda.call("making a CUDA graph ready", "cudaGraphInstantiate", graph, 0)
        finally:
            self._cuda.call("giving a CUDA graph back", "cudaGraphDestroy", graph)
        return PythonReplay(self._cuda, native, self._native)

    def free(self) -> None:
        """See `edgetl.backends._cuda.Stream`."""
        native, self._native = self._native, None
        if native is not None:
            self._cuda.call("giving a stream back", "cudaStreamDestroy", native)


class PythonMark:
    """See `edgetl.backends._cuda.Mark`."""

    def __init__(self, cuda: CudaPython) -> None:
        self._cuda = cuda
        self.native = cuda.call("making an event", "cudaEventCreate")

    def seconds_since(self, earlier: Mark) -> float:
        """See `edgetl.backends._cuda.Mark`."""
        assert isinstance(earlier, PythonMark)
        milliseconds = self._cuda.call("reading the time between two events", "cudaEventElapsedTime",
                                       earlier.native, self.native)
        return float(milliseconds) / 1e3

    def free(self) -> None:
        """See `edgetl.backends._cuda.Mark`."""
        native, self.native = self.native, None
        if native is not None:
            self._cuda.call("giving an event back", "cudaEventDestroy", native)


class PythonReplay:
    """See `edgetl.backends._cuda.Replay`."""

    def __init__(self, cuda: CudaPython, native: Any, stream: Any) -> None:
        self._cuda, self._native, self._stream = cuda, native, stream

    def launch(self) -> None:
        """See `edgetl.backends._cuda.Replay`."""
        self._cuda.call("launching a CUDA graph", "cudaGraphLaunch", self._native, self._stream)

    def free(self) -> None:
        """See `edgetl.backends._cuda.Replay`."""
        native, self._native = self._native, None
        if native is not None:
            self._cuda.call("giving a CUDA graph back", "cudaGraphExecDestroy", native)
