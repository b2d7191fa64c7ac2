"""Layers from OpenVINO's performance counters, which an infer request tells after each call.

docs.openvino.ai: "Performance Hints and Properties", ov::enable_profiling and ov::InferRequest::get_profiling_info.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edgetl.runtime import layers
from edgetl.runtime.layers import CONVERTING, FLOAT, INTEGER, MOVING, UNKNOWN, Layer, Node
from edgetl.runtime.session import Session

EXECUTED = "EXECUTED"
CONVERTERS = frozenset({"FakeQuantize", "Convert", "Quantize", "Dequantize"})
MOVERS = frozenset({"Reorder", "Reshape", "Transpose", "Concatenation", "Concat", "Split", "Gather", "StridedSlice",
                    "Pad", "Squeeze", "Unsqueeze", "ShuffleChannels", "DepthToSpace", "SpaceToDepth", "Tile",
                    "Broadcast", "Input", "Output", "Parameter", "Result"})
FUSED = "Subgraph"  # several element-wise operations in one kernel, among them conversions: its type says little
INTEGERS = ("i8", "u8")  # the ending of a kernel's name is the type that it computes with


class Profiled:
    """See `edgetl.runtime.layers.ProfiledSession`.

    Args:
        session: what runs the calls.
        calls: the nodes of each call, filled by it.
    """

    def __init__(self, session: Session, calls: Sequence[Iterable[Node]]) -> None:
        self._calls = calls
        self.run, self.info, self.close = session.run, session.info, session.close

    def layers(self, dropped: int) -> tuple[Layer, ...]:
        """See `edgetl.runtime.layers.ProfiledSession`."""
        return layers.gather(self._calls, dropped)


def nodes(counters: Iterable[Any]) -> list[Node]:
    """The nodes that ran in one call; what was fused away or folded is told as not run."""
    return [Node(f"{one.node_name} {one.node_type}", one.node_name, one.node_type, one.exec_type,
                 kind(one.node_type, one.exec_type), one.real_time.total_seconds())
            for one in counters if one.status.name == EXECUTED]


def kind(op: str, kernel: str) -> str:
    """The arithmetic of a kernel, e.g. of a Convolution that runs as `brgconv_avx512_I8`."""
    if op in CONVERTERS:
        return CONVERTING
    if op in MOVERS:
        return MOVING
    if op == FUSED:
        return UNKNOWN
    return INTEGER if kernel.lower().rpartition("_")[2] in INTEGERS else FLOAT


__all__ = ["Profiled", "kind", "nodes"]
