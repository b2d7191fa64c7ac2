"""Layers from ONNX Runtime's own profiler: a session with `enable_profiling`, and the trace it writes.

Events of the trace are those of the optimised graph: a node that was fused into another has none.
onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgetl.runtime import layers
from edgetl.runtime.layers import Layer, Node
from edgetl.runtime.session import Session

END_OF_CALL = "model_run"
ENDING = "_kernel_time"
INTEGERS = ("int8", "uint8")


class Profiled:
    """See `edgetl.runtime.layers.ProfiledSession`.

    Args:
        folder: where the trace is being written; removed when the session is closed.
        session: what runs the calls.
        native: onnxruntime's own session inside it.
    """

    def __init__(self, folder: tempfile.TemporaryDirectory[str], session: Session, native: Any) -> None:
        self._folder, self._native = folder, native
        self.run, self.info, self._close = session.run, session.info, session.close

    def layers(self, dropped: int) -> tuple[Layer, ...]:
        """See `edgetl.runtime.layers.ProfiledSession`."""
        trace = json.loads(Path(self._native.end_profiling()).read_text())
        return layers.gather(list(calls(trace)), dropped)

    def close(self) -> None:
        """Releases the session and removes the trace; a second call does nothing."""
        self._close()
        self._native = None  # its end writes the trace, where nobody asked for it
        self._folder.cleanup()


def calls(trace: list[Mapping[str, Any]]) -> Iterator[list[Node]]:
    """The nodes of each call: events are written when they end, and the call's own after those of its nodes."""
    nodes: list[Node] = []
    for event in trace:
        if event.get("cat") == "Node" and event["name"].endswith(ENDING):
            nodes.append(_node(event))
        elif event.get("name") == END_OF_CALL:
            yield nodes
            nodes = []


def _node(event: Mapping[str, Any]) -> Node:
    about = event["args"]
    name, op = event["name"].removesuffix(ENDING), about["op_name"]
    dtype = layers.first_input(about.get("input_type_shape") or ())
    kind = layers.onnxruntime_kind(op, from_integers=dtype in INTEGERS)
    # Convolutions whose weights were reordered into blocks of channels keep their op and get a name of that ending.
    blocked = "nchwc" if name.endswith("_nchwc") else ""
    kernel = " ".join(filter(None, (op, blocked, dtype)))
    return Node(f"{about.get('node_index')} {name}", name, op, kernel, kind, event["dur"] / 1e6)


def folder() -> tempfile.TemporaryDirectory[str]:
    """Where a trace may be written."""
    return tempfile.TemporaryDirectory(prefix="edgetl-profile-")


__all__ = ["Profiled", "calls", "folder"]
