"""Calls of ONNX Runtime with inputs and outputs at fixed places on a device, which a CUDA graph needs.

onnxruntime.ai/docs/performance/device-tensor.html and execution-providers/CUDA-ExecutionProvider.html, "Using CUDA
Graphs": what was recorded reads and writes the memory of the call that was recorded, so each batch size has its own
binding, and only one call at a time may use it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends._onnxruntime import OnnxruntimeSession
from edgetl.errors import BundleError
from edgetl.runtime import telemetry
from edgetl.runtime.session import GraphSpec, TensorSpec

GRAPH_ID = "gpu_graph_id"  # of a run; -1 records and replays nothing
MOST_BINDINGS = 32  # of batch sizes; the rest is run without


@dataclass(frozen=True)
class Place:
    """Where tensors are bound."""

    device: str  # "cuda", "cpu"
    number: int = 0
    graphs: int = 0  # how many batch sizes are recorded; 0 records none


class BoundSession(OnnxruntimeSession):
    """A session whose calls copy into fixed memory on the device and out of it; calls take turns.

    Args:
        native: ONNX Runtime's own session.
        spec: inputs and outputs of the graph.
        about: what `info` tells.
        place: where to bind, and how much to record.

    Raises:
        BundleError: an output whose shape is not known before a call.
    """

    def __init__(self, native: Any, spec: GraphSpec, about: Mapping[str, Any], place: Place) -> None:
        super().__init__(native, spec, about)
        self._spec, self._place = spec, place
        self._bindings: dict[int, _Binding] = {}
        self._turn = threading.Lock()
        for one in spec.outputs:
            if any(isinstance(size, str) for size in one.shape[1:]):
                raise BundleError(f"The output '{one.name}' has a free dimension besides the batch, so it can have no "
                                  "fixed memory.", hint="Leave out the options cuda_graph and io.")

    def _call(self, session: Any, ready: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        batch = len(next(iter(ready.values())))
        with self._turn:
            binding = self._bindings.get(batch)
            if binding is None:
                if len(self._bindings) >= (self._place.graphs or MOST_BINDINGS):
                    return self._unbound(session, ready)
                binding = self._bindings[batch] = _Binding(session, self._spec, self._place, batch)
            return binding.run(session, ready)

    def _unbound(self, session: Any, ready: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """A call of a batch size too many: as without binding, and without a recording."""
        found: list[NDArray[Any]] = session.run(self._outputs, ready, _run_options(-1) if self._place.graphs else None)
        return found

    def close(self) -> None:
        """Releases the session and what it has on the device; a second call does nothing."""
        with self._turn:
            self._bindings.clear()
        super().close()


class _Binding:
    """Fixed memory on the device for one batch size."""

    def __init__(self, session: Any, spec: GraphSpec, place: Place, batch: int) -> None:
        self._binding = session.io_binding()
        self._inputs = {one.name: _memory(one, place, batch) for one in spec.inputs}
        self._outputs = [_memory(one, place, batch) for one in spec.outputs]
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for one, value in zip(spec.outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(one.name, value)
        # The number tells one recording from another; 0 is what a run without a number has.
        self._options = _run_options(batch) if place.graphs else None

    def run(self, session: Any, ready: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        for name, value in ready.items():
            self._inputs[name].update_inplace(value)
        session.run_with_iobinding(self._binding, self._options)  # waits for the device, unless it is told not to
        # A copy: on the processor `numpy` shows the very memory that the next call writes to.
        return [np.array(one.numpy()) for one in self._outputs]


def _memory(one: TensorSpec, place: Place, batch: int) -> Any:
    telemetry.off()
    import onnxruntime

    shape = [batch if size == "N" else int(size) for size in one.shape]
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(one.dtype).type, place.device,
                                                             place.number)


def _run_options(graph: int) -> Any:
    telemetry.off()
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry(GRAPH_ID, str(graph))
    return options


__all__ = ["BoundSession", "Place"]
