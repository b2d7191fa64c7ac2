"""Layers from TensorRT's IProfiler, for the session of an engine: CUDA events around every layer of each call.

What a layer is comes from the engine's inspector, which tells names alone unless the engine was built with
`profiling_verbosity = DETAILED`. docs.nvidia.com/deeplearning/tensorrt: IProfiler, EngineInspector.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edgetl.runtime import layers
from edgetl.runtime.layers import CONVERTING, FLOAT, INTEGER, MOVING, UNKNOWN, Layer, Node
from edgetl.runtime.session import Session

REFORMAT = "Reformat"
MOVERS = frozenset({REFORMAT, "NoOp", "Shuffle", "Constant", "Identity", "Slice", "Concatenation"})
# How the inspector of version 8 to 10 calls the type and layout of a tensor, and how that of 11 does.
TYPES = ("Format/Datatype", "DataType", "Format")
FLOATS = ("fp32", "float", "fp16", "half", "bf16", "fp8")
# How the inspector calls layers that multiply: CaskConvolution, gemm, MatrixMultiply, mha.
COMPUTE = re.compile(r"conv|gemm|matmul|matrix|fully|einsum|mha|attention", re.IGNORECASE)
# What stands in the name of a type -> precision; the first that is found counts, and "bf16" is no "fp16".
PRECISIONS = (("int8", "int8"), ("fp8", "fp8"), ("bf16", "bf16"), ("bfloat", "bf16"), ("fp16", "fp16"),
              ("half", "fp16"), ("fp32", "fp32"), ("float", "fp32"))


class Profiled:
    """See `edgetl.runtime.layers.ProfiledSession`.

    Args:
        session: what runs the calls.
        context: the execution context that it runs them in; `enqueue_emits_profile` is True unless somebody changed it.
        engine: whose context it is.
        tensorrt: the module, of TensorRT or of TensorRT for RTX.
    """

    def __init__(self, session: Session, context: Any, engine: Any, tensorrt: Any) -> None:
        self._session, self._context = session, context
        self._one_by_one = threading.Lock()  # what is reported belongs to the call that was begun last
        self._about = about(engine, tensorrt)
        self._calls: list[list[Node]] = []
        # The context holds no reference to it.
        self._recorder = _recorder(tensorrt, self._record)
        context.profiler = self._recorder
        self.info = session.info

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """See `edgetl.runtime.session.Session.run`."""
        with self._one_by_one:
            self._calls.append([])
            return self._session.run(feeds)

    def _record(self, name: str, milliseconds: float) -> None:
        op, kernel, kind = self._about.get(name, ("layer", "not told", UNKNOWN))
        self._calls[-1].append(Node(name, name, op, kernel, kind, milliseconds / 1e3))

    def layers(self, dropped: int) -> tuple[Layer, ...]:
        """See `edgetl.runtime.layers.ProfiledSession`."""
        return layers.gather(self._calls, dropped)

    def close(self) -> None:
        """Releases the session; a second call does nothing."""
        self._context = None
        self._session.close()


def _recorder(tensorrt: Any, record: Any) -> Any:
    class Recorder(tensorrt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.IProfiler.__init__(self)  # pybind11 asks for it by name

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            record(layer_name, ms)

    return Recorder()


def about(engine: Any, tensorrt: Any) -> dict[str, tuple[str, str, str]]:
    """Operation, kernel and arithmetic of each layer, by name; empty where the engine tells names alone."""
    return {one["Name"]: (one["LayerType"], " ".join(filter(None, (one.get("TacticName"), _type(one, "Inputs")))),
                          kind(one))
            for one in _told(engine, tensorrt)}


def precisions(engine: Any, tensorrt: Any) -> dict[str, float]:
    """Shares of the engine's layers that multiply, by the precision they compute in, the greatest first.

    Where none has a name that says that it multiplies, all count that do more than move; where the engine tells names
    alone, there are no shares.
    """
    working = [one for one in _told(engine, tensorrt) if one["LayerType"] not in MOVERS]
    counted = [one for one in working if COMPUTE.search(one["LayerType"])] or working
    found = Counter(name for one in counted if (name := _precision(_type(one, "Inputs"))) is not None)
    return {name: count / found.total() for name, count in found.most_common()}


def sparse(engine: Any, tensorrt: Any) -> tuple[str, ...]:
    """Names of the engine's layers that run a kernel for 2:4 sparse weights, by what the inspector calls kernels."""
    return tuple(str(one["Name"]) for one in _told(engine, tensorrt) if "sparse" in str(one.get("TacticName")).lower())


def _precision(told: str) -> str | None:
    return next((name for part, name in PRECISIONS if part in told.lower()), None)


def _told(engine: Any, tensorrt: Any) -> list[Mapping[str, Any]]:
    inspector = engine.create_engine_inspector()
    told = json.loads(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))
    return [one for one in told["Layers"] if isinstance(one, Mapping)]


def kind(layer: Mapping[str, Any]) -> str:
    """The arithmetic of a layer, from the types of what goes in and comes out."""
    into, out = _type(layer, "Inputs").lower(), _type(layer, "Outputs").lower()
    if layer["LayerType"] == REFORMAT and ("int8" in into) != ("int8" in out):
        return CONVERTING
    if layer["LayerType"] in MOVERS:
        return MOVING
    if "int8" in into:
        return INTEGER
    return FLOAT if any(name in into for name in FLOATS) else UNKNOWN


def _type(layer: Mapping[str, Any], side: str) -> str:
    tensors = layer.get(side) or [{}]
    return " ".join(str(tensors[0][key]) for key in TYPES if key in tensors[0])


__all__ = ["Profiled", "about", "kind", "precisions", "sparse"]
