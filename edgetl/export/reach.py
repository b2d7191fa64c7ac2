"""How far from 0 the values inside a graph come on some images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.runtime import telemetry

BATCH = 8
ENDING = "_reach"


def greatest(graph: bytes, image: str, images: NDArray[Any]) -> dict[str, float]:
    """The greatest absolute value of each float32 result inside a graph.

    Args:
        graph: float32 ONNX file.
        image: its input.
        images: what is fed to it, the first axis is the number of images.
    """
    telemetry.off()
    import onnxruntime

    measuring, names = _measuring(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(measuring, options, providers=["CPUExecutionProvider"])
    found = np.zeros(len(names))
    for begin in range(0, len(images), BATCH):
        results = session.run([f"{name}{ENDING}" for name in names], {image: images[begin:begin + BATCH]})
        found = np.maximum(found, [float(one) for one in results])
    return dict(zip(names, found.tolist(), strict=True))


def touched(graph: bytes, image: str, images: NDArray[Any], limit: float) -> tuple[str, ...]:
    """The results of all nodes that make or read a value which comes farther from 0 than the limit.

    Args:
        graph, image, images: see `greatest`.
        limit: as an absolute value.
    """
    import onnx

    beyond = {name for name, value in greatest(graph, image, images).items() if value > limit}
    nodes = onnx.load_from_string(graph).graph.node if beyond else ()
    return tuple(node.output[0] for node in nodes if beyond.intersection((*node.input, *node.output)))


def _measuring(graph: bytes) -> tuple[bytes, list[str]]:
    """The graph with the greatest absolute value of each float32 result as its outputs, and the results' names."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_from_string(graph)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*inferred.value_info, *inferred.output)}
    names = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output
             if types.get(name) == TensorProto.FLOAT]
    for name in names:
        model.graph.node.append(helper.make_node("Abs", [name], [f"{name}_absolute"]))
        model.graph.node.append(helper.make_node("ReduceMax", [f"{name}_absolute"], [f"{name}{ENDING}"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}{ENDING}", TensorProto.FLOAT, []))
    return model.SerializeToString(), names
