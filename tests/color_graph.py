"""A classifier in ONNX of nobody's making that knows the photos of `conftest.write_photos` by their mean colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PLAIN = "mean=0,0,0;std=1,1,1"  # its preprocessing: pixels in 0..1


def color_graph(
    *,
    layout: str = "NCHW",
    batch: Any = "N",
    side: Any = 32,
    opset: int = 18,
    softmax: bool = False,
    order: Sequence[int] = (0, 1, 2),
    gain: float = 20.0,
    bias: float = 0.0,
    channels: int = 3,
    metadata: Mapping[str, str] | None = None,
    kind: int = TensorProto.FLOAT,
    half: bool = False,
    pooled: bool = False,
) -> onnx.ModelProto:
    """Class k's score is `gain` times the mean of channel `order[k]`, plus `bias`.

    The input is of `kind`; `half` gives float16, `pooled` gives [N, K, 1, 1].
    """
    weights = np.zeros((len(order), channels), np.float32)
    weights[np.arange(len(order)), [one % channels for one in order]] = gain
    shape = [batch, channels, side, side] if layout == "NCHW" else [batch, side, side, channels]
    turned = layout == "NHWC"
    nodes = [helper.make_node("Transpose", ["photo"], ["image"], perm=[0, 3, 1, 2])] if turned else []
    nodes += [
        helper.make_node("GlobalAveragePool", ["image" if turned else "photo"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["s" if softmax else "scores"], transB=1),
    ]
    nodes += [helper.make_node("Softmax", ["s"], ["scores"], axis=1)] if softmax else []
    if kind != TensorProto.FLOAT:  # as a framework leaves it that works in float16, or takes pixels
        nodes = [helper.make_node("Cast", ["given"], ["photo"], to=TensorProto.FLOAT), *nodes]
    if half:
        nodes += [helper.make_node("Cast", ["scores"], ["half"], to=TensorProto.FLOAT16)]
    if pooled:
        nodes += [helper.make_node("Reshape", ["scores", "as_map"], ["map"])]
    last, dims = ("map", [batch, len(order), 1, 1]) if pooled else ("half" if half else "scores", [batch, len(order)])
    made = helper.make_graph(
        nodes,
        "colors",
        [helper.make_tensor_value_info("photo" if kind == TensorProto.FLOAT else "given", kind, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT16 if half else TensorProto.FLOAT, dims)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.full(len(order), bias, np.float32), "b"),
         *((numpy_helper.from_array(np.array([0, 0, 1, 1], np.int64), "as_map"),) if pooled else ())],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=4 if opset < 9 else 8)
    helper.set_model_props(model, dict(metadata or {}))
    return model


def saved(path: Path, **changes: Any) -> str:
    """`onnx:FILE` of such a graph written to a path."""
    onnx.save(color_graph(**changes), path)
    return f"onnx:{path}"
