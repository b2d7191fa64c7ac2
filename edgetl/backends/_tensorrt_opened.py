"""A plan that TensorRT has opened: what goes in and out, which batches it takes, and its execution contexts."""

from __future__ import annotations

import math
import re
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import _cuda, _tensorrt_log
from edgetl.backends._cuda import Cuda
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.backends._tensorrt_log import Message
from edgetl.errors import BackendUnavailable, BundleError, InputError
from edgetl.runtime.session import GraphSpec, TensorSpec, check_graph

BATCH = "N"
# TensorRT's types that numpy has too.
DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
          "BOOL": "bool"}
OUT_OF_MEMORY = re.compile(r"out ?of ?memory|cudaErrorMemoryAllocation|FAILED_ALLOCATION", re.IGNORECASE)
WANTED = re.compile(r"\((\d+) bytes\)|of size (\d+)")
BUILD_AGAIN = "Build the engine again, on this machine and with this version of TensorRT."


@dataclass(frozen=True)
class Port:
    """An input or output of the engine, as the spec has it."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    @property
    def batched(self) -> bool:
        """Whether its first axis, and no other, is the batch."""
        return self.shape[:1] == (BATCH,) and BATCH not in self.shape[1:]

    def at(self, batch: int) -> tuple[int, ...]:
        """Its shape for a batch."""
        return tuple(size if isinstance(size, int) else batch for size in self.shape)

    def size_bytes(self, batch: int) -> int:
        """What it holds for a batch."""
        return math.prod(self.at(batch)) * self.dtype.itemsize


@dataclass(frozen=True)
class Profile:
    """An optimisation profile: the batches that it was built for."""

    index: int
    least: int
    best: int
    greatest: int


class Opened:
    """A deserialised engine.

    Args:
        plan: the bytes that TensorRT's builder made.
        flavor: which TensorRT opens it.
        cuda: the card, for what is told when there is no memory left.
        spec: what it must take and give.
        replay: whether TensorRT for RTX shall launch its work as CUDA graphs, which it records by itself.
        kernels: what `kernels` gave in an earlier process; where they do not fit, they are compiled again.
        host_code: whether code for the host in the plan may run. A version compatible one holds a runtime of its own,
            and is not opened without.

    Raises:
        BundleError: the plan is damaged, of another version of TensorRT or of another kind of card, or has other inputs
            or outputs than the spec.
        BackendUnavailable: there is no driver, or the card is out of memory.
    """

    def __init__(self, plan: bytes, flavor: Flavor, cuda: Cuda, spec: GraphSpec, *, replay: bool,
                 kernels: bytes | None = None, host_code: bool = False) -> None:
        self.flavor, self._cuda, self._replay, self._kernels = flavor, cuda, replay, kernels
        self._making = threading.Lock()
        self._cache: Any = None  # of the kernels that TensorRT for RTX compiles, for all contexts
        # For as long as it is open: beginning to listen in every call would cost more than the call's own work.
        self._ears = ExitStack()
        self._heard = self._ears.enter_context(_tensorrt_log.collected(flavor.module))
        try:
            with cuda.on_card():
                self._runtime, self.native = self._deserialised(plan, host_code)
            self.inputs, self.outputs = self._ports(spec)
            self.profiles = self._profiles()
            self._parts: dict[int, tuple[int, ...]] = {}  # of the batches that came
        except BaseException:
            self.close()
            raise

    def _deserialised(self, plan: bytes, host_code: bool) -> tuple[Any, Any]:
        module = self.flavor.module
        with _tensorrt_log.collected(module) as heard:
            runtime = module.Runtime(_tensorrt_log.logger(module))
            if host_code:
                runtime.engine_host_code_allowed = True
            native = runtime.deserialize_cuda_engine(plan) if plan else None
        if native is not None:
            return runtime, native
        self._expect_memory(heard, "the engine", len(plan))
        raise BundleError(f"{self.flavor.title} cannot open the engine: {reason(heard, 'it is no engine')}.",
                          hint=BUILD_AGAIN)

    def _expect_memory(self, heard: deque[Message], purpose: str, needed: int) -> None:
        """Raises what stands behind a refusal that is not the plan's fault."""
        if _tensorrt_log.lacks_driver(heard):
            raise _cuda.no_driver(f"{self.flavor.title} finds none that it can use")
        told = [one.text for one in heard if OUT_OF_MEMORY.search(one.text)]
        if told:
            sizes = [int(number) for text in told for found in WANTED.findall(text) for number in found if number]
            card = self._cuda.card()
            raise _cuda.out_of_memory(purpose, max([needed, *sizes]), card.free_bytes, card.total_bytes)

    def _ports(self, spec: GraphSpec) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        native, mode = self.native, self.flavor.module.TensorIOMode
        names = [native.get_tensor_name(index) for index in range(native.num_io_tensors)]
        inputs = [name for name in names if native.get_tensor_mode(name) == mode.INPUT]
        check_graph("tensorrt", inputs, [name for name in names if name not in inputs], spec)
        return (tuple(self._port(one, "Input") for one in spec.inputs),
                tuple(self._port(one, "Output") for one in spec.outputs))

    def _port(self, one: TensorSpec, what: str) -> Port:
        native, name = self.native, one.name
        told = native.get_tensor_dtype(name).name
        dtype, shape = DTYPES.get(told, told), tuple(native.get_tensor_shape(name))
        same = len(shape) == len(one.shape) and all(
            size == -1 or isinstance(want, str) or size == want for size, want in zip(shape, one.shape, strict=True))
        # The shape of an output is known when a batch is: what depends on the values would never be.
        if dtype != one.dtype or not same or (what == "Output" and -1 in shape and BATCH not in one.shape):
            raise BundleError(f"{what} '{name}' of the engine is {dtype} {_words(shape)}; expected {one.dtype} "
                              f"{_words(one.shape)}.", hint="The engine and the graph's manifest do not belong "
                                                            "together: build the engine again.")
        module = self.flavor.module
        if (native.get_tensor_location(name) != module.TensorLocation.DEVICE
                or native.get_tensor_format(name) != module.TensorFormat.LINEAR):
            raise BundleError(f"{what} '{name}' of the engine is not a plain array on the card.", hint=BUILD_AGAIN)
        return Port(name, np.dtype(one.dtype), one.shape)

    def _profiles(self) -> tuple[Profile, ...]:
        free = [(port, axis) for port in self.inputs for axis, size in enumerate(port.shape) if size == BATCH]
        if not free:
            return (Profile(0, 1, 1, 1),)
        port, axis = free[0]
        fixed = int(self.native.get_tensor_shape(port.name)[axis])
        if fixed != -1:
            return (Profile(0, fixed, fixed, fixed),)
        ranges = (self.native.get_tensor_profile_shape(port.name, index)
                  for index in range(self.native.num_optimization_profiles))
        return tuple(Profile(index, *(int(shape[axis]) for shape in told)) for index, told in enumerate(ranges))

    @property
    def workspace_bytes(self) -> int:
        """Memory that one execution context needs for what lies between the layers."""
        return int(self.native.device_memory_size_v2)

    @property
    def records_itself(self) -> bool:
        """Whether TensorRT for RTX makes CUDA graphs of the work by itself."""
        return self._replay and self.flavor.name == "rtx"

    def profile(self, batch: int) -> Profile | None:
        """The narrowest profile that takes the batch; None where none does."""
        fitting = [one for one in self.profiles if one.least <= batch <= one.greatest]
        return min(fitting, key=lambda one: one.greatest - one.least, default=None)

    def batch(self, feeds: Mapping[str, NDArray[Any]]) -> int:
        """The batch of checked feeds; 1 where the engine has no free one."""
        return next((feeds[port.name].shape[port.shape.index(BATCH)] for port in self.inputs if BATCH in port.shape), 1)

    def parts(self, batch: int) -> tuple[int, ...]:
        """How many images go through the engine together: a batch above the greatest runs in nearly equal parts.

        Raises:
            InputError: there is no profile for it.
        """
        known = self._parts.get(batch)
        if known is None:
            known = self._parts[batch] = self._divided(batch)
        return known

    def _divided(self, batch: int) -> tuple[int, ...]:
        if self.profile(batch) is not None:
            return (batch,)
        greatest = max(one.greatest for one in self.profiles)
        if batch > greatest and all(port.batched for port in (*self.inputs, *self.outputs)):
            count = -(-batch // greatest)
            sizes = [batch // count + (index < batch % count) for index in range(count)]
            if all(self.profile(size) is not None for size in sizes):
                return tuple(sizes)
        ranges = " or ".join(f"{one.least} to {one.greatest}" if one.least < one.greatest else str(one.least)
                             for one in self.profiles)
        raise InputError(f"The engine was built for batches of {ranges}; found {batch}.",
                         hint="Send another batch, or build the engine for other batches.")

    def context(self, workspace: _cuda.Memory | None) -> Any:
        """A new execution context, for one thread at a time.

        Args:
            workspace: the memory it shall use; TensorRT for RTX takes its own.

        Raises:
            BackendUnavailable: there is none to be had, for want of memory.
        """
        module = self.flavor.module
        with self._making, _tensorrt_log.collected(module) as heard:
            if self.flavor.name == "rtx":
                context = self.native.create_execution_context(self._runtime_config())
            else:
                strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
                context = self.native.create_execution_context(strategy)
        if context is None:
            self._expect_memory(heard, "an execution context", self.workspace_bytes)
            raise BackendUnavailable(f"{self.flavor.title} makes no execution context: {reason(heard, 'no reason')}.",
                                     hint="See whether nvidia-smi works and other processes leave memory.")
        if workspace is not None:
            context.set_device_memory(workspace.address, workspace.size_bytes)
        return context

    def _runtime_config(self) -> Any:
        module, config = self.flavor.module, self.native.create_runtime_config()
        # Eager: by itself it would go on compiling behind the first calls, and change kernels, speed and the last bits
        # of the results whenever it is done.
        config.dynamic_shapes_kernel_specialization_strategy = \
            module.DynamicShapesKernelSpecializationStrategy.EAGER
        strategies = module.CudaGraphStrategy
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if self._replay else strategies.DISABLED
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._kernels:
                self._cache.deserialize(self._kernels)  # False, and nothing done, where it is of another machine
            self._kernels = None
        config.set_runtime_cache(self._cache)
        return config

    def kernels(self) -> bytes | None:
        """The kernels that TensorRT for RTX has compiled so far; None of TensorRT, whose engines hold them."""
        with self._making, self._cuda.on_card():
            return None if self._cache is None else bytes(self._cache.serialize())

    def enqueue(self, context: Any, stream: int) -> None:
        """Queues the work of a context whose shapes and addresses are set.

        Raises:
            BackendUnavailable: TensorRT refuses; says why.
        """
        if not context.execute_async_v3(stream):
            self._expect_memory(self._heard, "the work of one call", self.workspace_bytes)
            raise BackendUnavailable(f"{self.flavor.title} failed while it ran the engine: {self._last()}.",
                                     hint=_cuda.RESTART)

    def bind(self, context: Any, batch: int, addresses: Mapping[str, int], stream: int) -> None:
        """Sets profile, shapes and addresses of a context for a batch.

        Raises:
            BackendUnavailable: TensorRT refuses one of them.
        """
        profile = self.profile(batch)
        assert profile is not None  # `parts` saw to it
        done = (context.active_optimization_profile == profile.index
                or context.set_optimization_profile_async(profile.index, stream))
        done = done and all(context.set_input_shape(port.name, port.at(batch)) for port in self.inputs)
        done = done and all(context.set_tensor_address(name, address) for name, address in addresses.items())
        wrong = [port.name for port in self.outputs
                 if done and tuple(context.get_tensor_shape(port.name)) != port.at(batch)]
        if not done or wrong:
            said = f"the outputs {wrong} would have another shape" if wrong else self._last()
            raise BackendUnavailable(f"{self.flavor.title} does not take a batch of {batch}: {said}.", hint=BUILD_AGAIN)

    def _last(self) -> str:
        return next(reversed(_tensorrt_log.errors(self._heard)), "it gives no reason")

    def close(self) -> None:
        """Gives the engine back; its contexts must be gone."""
        self._cache = self.native = self._runtime = None
        self._ears.close()


def reason(heard: deque[Message], otherwise: str) -> str:
    """The first error that TensorRT told, as a clause."""
    return next(iter(_tensorrt_log.errors(heard)), otherwise)


def view(memory: _cuda.Memory, port: Port, batch: int) -> NDArray[Any]:
    """The first bytes of the host's memory as the port's array for a batch."""
    assert memory.array is not None
    return memory.array[:port.size_bytes(batch)].view(port.dtype).reshape(port.at(batch))


def _words(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(BATCH if size == -1 else str(size) for size in shape)}]"
