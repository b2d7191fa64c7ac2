"""Inputs and outputs of a graph in ONNX as float32, whatever it was made with: for graphs that are only to answer."""

from __future__ import annotations

from typing import Any

import numpy as np

SUFFIX = "_float32"
PIXELS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "scale": 1.0}  # of a graph that takes uint8


def takes_pixels(model: Any) -> bool:
    """Whether the graph's only input is uint8: pixels, which it normalises itself."""
    from onnx import TensorProto

    inputs = model.graph.input
    return len(inputs) == 1 and inputs[0].type.tensor_type.elem_type == TensorProto.UINT8


def as_float32(model: Any) -> None:
    """Puts a conversion to uint8, float16 or float64 behind the only input, and one to float32 behind each output.

    Outputs [N, K, 1, 1], which older converters leave of a pooling, become [N, K]. Float pixels are brought to 0..255
    and rounded to the nearest, halves up. Graphs that are float32 already stay as they are.
    """
    from onnx import TensorProto

    kinds = (TensorProto.UINT8, TensorProto.FLOAT16, TensorProto.DOUBLE)
    if len(model.graph.input) == 1 and model.graph.input[0].type.tensor_type.elem_type in kinds:
        _widen_input(model)
    for output in list(model.graph.output):
        _widen_output(model, output)


def _widen_input(model: Any) -> None:
    from onnx import TensorProto, helper, numpy_helper

    image = model.graph.input[0]
    name, kind = image.name, image.type.tensor_type.elem_type
    nodes, last = [], name + SUFFIX
    if kind == TensorProto.UINT8:
        values = {"half": 0.5, "least": 0.0, "most": 255.0}
        model.graph.initializer.extend(
            numpy_helper.from_array(np.array(value, np.float32), f"{name}_{key}") for key, value in values.items())
        for step, (operator, operand) in enumerate((("Add", "half"), ("Max", "least"), ("Min", "most"))):
            nodes.append(helper.make_node(operator, [last, f"{name}_{operand}"], [f"{name}_pixels{step}"]))
            last = f"{name}_pixels{step}"
    nodes.append(helper.make_node("Cast", [last], [name], to=kind))  # cuts what is behind the point
    image.name, image.type.tensor_type.elem_type = name + SUFFIX, TensorProto.FLOAT
    _put_first(model, nodes)


def _put_first(model: Any, nodes: list[Any]) -> None:
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def _widen_output(model: Any, output: Any) -> None:
    from onnx import TensorProto, helper

    tensor = output.type.tensor_type
    if tensor.elem_type in (TensorProto.FLOAT16, TensorProto.DOUBLE):
        model.graph.node.append(helper.make_node("Cast", [output.name], [output.name + SUFFIX], to=TensorProto.FLOAT))
        output.name += SUFFIX
        tensor.elem_type = TensorProto.FLOAT
    if len(tensor.shape.dim) == 4 and all(one.dim_value == 1 for one in tensor.shape.dim[2:]):
        model.graph.node.append(helper.make_node("Flatten", [output.name], [output.name + "_flat"], axis=1))
        output.name += "_flat"
        del tensor.shape.dim[2:]
