"""What a graph in half answers, found out on a processor that does not compute in half.

ONNX Runtime's CPU runs most fp16 nodes in float32 and leaves out the roundings between them, so a value that is
infinite on a GPU is a number there; it has no bf16 at all. So the answers are those of a twin: the same graph in
float32, in which every node's result is rounded to half and back. As on tensor cores, sums are in float32 and results
in half.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgetl.compress.surgery import drop_unused
from edgetl.export.half_rules import FLOAT
from edgetl.runtime.session import GraphSpec, Session, open_session

BACKEND = "cpu"
HALVES = frozenset({10, 16})  # onnx.TensorProto.FLOAT16 and BFLOAT16

# Their results are among their inputs, so there is nothing to round.
MOVING = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max", "MaxPool",
    "GlobalMaxPool", "Min", "Neg", "Abs", "Pad", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze", "Where",
})


def open_judge(graph: bytes, spec: GraphSpec, *, threads: int, backend: str = BACKEND) -> Session:
    """A session that answers as the graph does where it is made for: on the processor its twin's, if it has half.

    Raises:
        BundleError, BackendUnavailable: see `open_session`.
    """
    return open_session(backend, twin_of(graph) if backend == BACKEND else graph, spec, threads=threads)


def twin_of(graph: bytes) -> bytes:
    """The graph in float32 with every result rounded to the half precision that it is in; itself where it has none."""
    import onnx

    model = onnx.load_from_string(graph)
    halves = _halves(model)
    if not halves:
        return graph
    for tensor in model.graph.initializer:
        if tensor.name in halves:
            _widen(tensor)
    nodes = [made for node in model.graph.node for made in _twins(node, halves)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    drop_unused(model)
    onnx.checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString()
    return written


def _halves(model: Any) -> dict[str, int]:
    """The values in half, with the type of each."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*inferred.value_info, *inferred.output)}
    types.update((one.name, one.data_type) for one in model.graph.initializer)
    return {name: kind for name, kind in types.items() if kind in HALVES}


def _widen(tensor: Any) -> None:
    from onnx import numpy_helper

    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _twins(node: Any, halves: dict[str, int]) -> Iterator[Any]:
    """A node in float32, and the roundings of its results."""
    from onnx import helper

    made = [name for name in node.output if name in halves]
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and made:
            attribute.i = FLOAT
        if attribute.HasField("t") and attribute.t.data_type in HALVES:
            _widen(attribute.t)
    if node.op_type in MOVING:
        yield node
        return
    for place, name in enumerate(node.output):
        if name in halves:
            node.output[place] = f"{name}_unrounded"
    yield node
    for name in made:
        rounded = f"{name}_rounded"
        yield helper.make_node("Cast", [f"{name}_unrounded"], [rounded], name=f"round_{name}", to=halves[name])
        yield helper.make_node("Cast", [rounded], [name], name=f"widen_{name}", to=FLOAT)
