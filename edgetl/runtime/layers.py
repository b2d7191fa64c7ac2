"""Where the time of a call goes, layer by layer, and with what kind of arithmetic each is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from edgetl import plugins
from edgetl.errors import BackendUnavailable, EdgetlError
from edgetl.runtime.session import GraphSpec, Session, usable_threads

INTEGER, FLOAT, MOVING, CONVERTING, UNKNOWN = "integer", "float", "moving", "converting", "unknown"
KINDS = (INTEGER, FLOAT, CONVERTING, MOVING, UNKNOWN)

# Kernels of ONNX Runtime that compute with integers, besides those whose name begins with QLinear.
ONNXRUNTIME_INTEGER = frozenset({"QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat",
                                 "DynamicQuantizeMatMul", "QAttention"})
# Its kernels that only move or pick values: integer where their input is.
ONNXRUNTIME_MOVING = frozenset({
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Slice", "Gather", "Pad", "Split", "MaxPool",
    "Identity", "Resize", "DepthToSpace", "SpaceToDepth", "ReorderInput", "ReorderOutput"})


class Layer(NamedTuple):
    """A node of the graph as the engine rewrote it."""

    name: str
    op: str  # what it computes, in the engine's words: Conv, FullyConnected
    executed_as: str  # the kernel that computes it, as far as the engine tells
    kind: str  # one of `KINDS`; "moving" computes nothing, "converting" goes from floats to integers or back
    seconds: tuple[float, ...]  # one number a call


class ProfiledSession(Session, Protocol):
    """A session with the engine's own profiler on: slower than without, so its times are no latencies."""

    def layers(self, dropped: int) -> tuple[Layer, ...]:
        """The nodes that ran, in the order of their first run, less the first `dropped` calls; asked once, at the end.

        A node that did not run in a call took 0 seconds in it.
        """
        ...


def onnxruntime_kind(op: str, *, from_integers: bool) -> str:
    """The arithmetic of a kernel of ONNX Runtime.

    Args:
        op: its name in the optimised graph.
        from_integers: whether its first input holds quantized values.
    """
    if op in ("QuantizeLinear", "DequantizeLinear"):
        return CONVERTING
    if op.startswith("QLinear") or op in ONNXRUNTIME_INTEGER:
        return INTEGER
    return MOVING if op in ONNXRUNTIME_MOVING or from_integers else FLOAT


def open_profiled(backend: str, graph: bytes, spec: GraphSpec, *, threads: int = 0,
                  options: Mapping[str, str] | None = None) -> ProfiledSession:
    """A session of the named backend with the engine's own profiler on; arguments as `open_session`.

    Raises:
        EdgetlError: the backend has no profiler; else see `open_session`.
    """
    module = plugins.load("backends", backend)
    if not hasattr(module, "open_profiled"):
        raise EdgetlError(f"The backend '{backend}' has no profiler.", hint="Leave it out where layers are profiled.")
    available = module.probe()
    if not available.usable:
        raise BackendUnavailable(f"The backend '{backend}' cannot run here: {available.reason}", hint=available.fix)
    session: ProfiledSession = module.open_profiled(graph, spec, threads=threads or usable_threads(),
                                                    options=dict(options or {}))
    return session


class Node(NamedTuple):
    """One run of a node in one call."""

    key: str  # tells it from every other node of the graph
    name: str
    op: str
    executed_as: str
    kind: str
    seconds: float


def gather(calls: Sequence[Iterable[Node]], dropped: int) -> tuple[Layer, ...]:
    """Layers from what ran in each call, in the order of their first run; several runs in one call add up."""
    found: dict[str, Node] = {}
    kept = calls[dropped:]
    seconds: dict[str, list[float]] = {}
    for place, call in enumerate(kept):
        for node in call:
            found.setdefault(node.key, node)
            seconds.setdefault(node.key, [0.0] * len(kept))[place] += node.seconds
    return tuple(Layer(node.name, node.op, node.executed_as, node.kind, tuple(seconds[key]))
                 for key, node in found.items())


def first_input(shapes: Sequence[Mapping[str, object]]) -> str | None:
    """The dtype of the first input as ONNX Runtime's profile writes it: [{"uint8": [1, 3]}, ...]."""
    return next(iter(shapes[0]), None) if shapes else None
