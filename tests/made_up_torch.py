"""PyTorch with CUDA, as far as `edgetl.backends._cuda_torch` uses it, over a made-up card; see `made_up_cuda`."""

from __future__ import annotations

import contextlib
import threading
import types
import weakref

from made_up_cuda import COPY_S, OK, Error, Graph, Mode, Op, Runtime


class OutOfMemoryError(RuntimeError):
    """As PyTorch's, a RuntimeError."""


def made_up(runtime: Runtime, cuda: str | None = "13.2"):
    """The module, on the card of a runtime; its memory goes back when the last tensor of it does."""
    local = threading.local()

    def expect(error):
        if error is not OK:
            raise RuntimeError(f"CUDA error: {Error(error).name.removeprefix('cudaError')}\nCUDA kernel errors might "
                               "be asynchronously reported at some other API call")

    def empty(size, *, dtype, device=None, pin_memory=False):
        error, address = runtime.cudaHostAlloc(size, 1) if pin_memory else runtime.cudaMalloc(size)
        if error is Error.cudaErrorMemoryAllocation and not pin_memory:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ...")
        expect(error)
        tensor = Tensor(address, (runtime.card.host if pin_memory else runtime.card.device)[address].array)
        weakref.finalize(tensor, runtime.cudaFreeHost if pin_memory else runtime.cudaFree, address)
        return tensor

    class Tensor:
        def __init__(self, address, array):
            self.address, self.array = address, array

        def data_ptr(self):
            return self.address

        def numpy(self):
            return self.array

        def __getitem__(self, part):
            return Part(self, self.array[part])

    class Part:
        def __init__(self, whole, array):
            self.whole, self.array = whole, array

        def copy_(self, source, *, non_blocking):
            assert non_blocking and len(self.array) == len(source.array)

            def copy():
                self.array[:] = source.array
            expect(runtime.card.push(local.stream.cuda_stream,
                                     Op(copy, COPY_S, (self.whole.address, source.whole.address))))

    class Stream:
        def __init__(self, device):
            self.native = runtime.cudaStreamCreateWithFlags(0)[1]
            self.cuda_stream = self.native.number
            weakref.finalize(self, runtime.cudaStreamDestroy, self.native)

        def synchronize(self):
            expect(runtime.cudaStreamSynchronize(self.native)[0])

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing
            self.native = runtime.cudaEventCreate()[1]
            weakref.finalize(self, runtime.cudaEventDestroy, self.native)

        def record(self, stream):
            expect(runtime.cudaEventRecord(self.native, stream.native)[0])

        def elapsed_time(self, end):
            error, milliseconds = runtime.cudaEventElapsedTime(self.native, end.native)
            expect(error)
            return milliseconds

    class CUDAGraph:
        graph: Graph | None = None

        def capture_begin(self, *, capture_error_mode):
            assert capture_error_mode == "thread_local"
            expect(runtime.cudaStreamBeginCapture(local.stream.native, Mode.cudaStreamCaptureModeThreadLocal)[0])

        def capture_end(self):
            error, graph = runtime.cudaStreamEndCapture(local.stream.native)
            expect(error)
            self.graph = runtime.cudaGraphInstantiate(graph, 0)[1]
            runtime.cudaGraphDestroy(graph)

        def replay(self):
            expect(runtime.cudaGraphLaunch(self.graph, local.stream.native)[0])

        def reset(self):
            runtime.cudaGraphExecDestroy(self.graph)

    @contextlib.contextmanager
    def stream(wanted):
        before, local.stream = getattr(local, "stream", None), wanted
        yield
        local.stream = before

    @contextlib.contextmanager
    def on_device(wanted):
        before = runtime.cudaGetDevice()[1]
        runtime.cudaSetDevice(wanted[1])
        yield
        runtime.cudaSetDevice(before)

    namespace = types.SimpleNamespace(
        Stream=Stream, Event=Event, CUDAGraph=CUDAGraph, stream=stream, device=on_device, init=lambda: None,
        device_count=lambda: runtime.card.cards, get_device_name=lambda device: "Made-up 4090",
        get_device_capability=lambda device: (8, 9), mem_get_info=lambda device: runtime.cudaMemGetInfo()[1:])
    return types.SimpleNamespace(
        cuda=namespace, empty=empty, uint8="uint8", device=lambda kind, index: (kind, index),
        OutOfMemoryError=OutOfMemoryError, __version__="2.15.0+cu132", version=types.SimpleNamespace(cuda=cuda))
