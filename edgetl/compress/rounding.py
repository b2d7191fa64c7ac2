"""Weights rounded so that the errors of one layer cancel, instead of each weight to its nearest step.

Rounding to the nearest step is best for a weight alone. What counts is the layer's output: its squared error is
dW H dW^T with H = E[x x^T] over the layer's inputs x, which are positive and correlated (neighbouring pixels, channels
after a ReLU). So the weights of one output channel are rounded one after the other, and each error is passed on to the
weights that are still to come, as far as their inputs can make up for it.
E. Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, ICLR 2023,
algorithm 1; the idea is optimal brain surgery, B. Hassibi and D. Stork, NIPS 1992.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress.calibrate import Reader
from edgetl.runtime import telemetry

POSITIONS = 64  # output pixels of an image that are looked at, for each layer: neighbours tell the same
WIDEST = 4096  # inputs of one output channel; H of wider layers takes too much memory, they keep the nearest step
DAMPING = 0.01  # of H's mean diagonal, added to it: directions that the images do not show must not blow up
GREATEST = 127  # of a symmetric int8


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer in the float graph, with the names of its weights in both graphs."""

    source: str  # the layer's input
    weight: str
    int8: str  # initializers of the INT8 graph
    scale: str
    groups: int
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right
    dilations: tuple[int, int]


def compensate(fp32: Any, int8: Any, reader: Reader) -> dict[str, int]:
    """Rounds the int8 weights of a Q/DQ graph again, in place; tells how many layers were and were not.

    Args:
        fp32: the float graph that was quantized; its layers' inputs are observed.
        int8: the Q/DQ graph made of it.
        reader: training images.
    """
    from onnx import numpy_helper

    layers, left = find_layers(fp32, int8)
    moments = observe(fp32, layers, reader)
    floats = {tensor.name: tensor for tensor in fp32.graph.initializer}
    ints = {tensor.name: tensor for tensor in int8.graph.initializer}
    for layer in layers:
        weight, scale = (numpy_helper.to_array(tensors[name]).astype(np.float64) for tensors, name
                         in ((floats, layer.weight), (ints, layer.scale)))
        rounded = round_layer(weight, np.broadcast_to(scale.ravel(), weight.shape[:1]), moments[layer.weight])
        ints[layer.int8].CopyFrom(numpy_helper.from_array(rounded, layer.int8))
    return {"layers": len(layers), "layers_left": left}


def round_layer(weight: NDArray[np.float64], scale: NDArray[np.float64],
                moment: NDArray[np.float64]) -> NDArray[np.int8]:
    """int8 steps of `weight` [O, ...] with one `scale` [O] an output channel, given H = `moment` [G, D, D]."""
    groups, width, _ = moment.shape
    remaining = weight.reshape(groups, -1, width).copy()  # [G, O / G, D]
    step = scale.reshape(groups, -1)
    steps = np.zeros_like(remaining)
    upper = _inverse_factor(moment)
    for place in range(width):
        current = remaining[:, :, place]
        steps[:, :, place] = np.clip(np.rint(current / step), -GREATEST, GREATEST)
        error = (current - steps[:, :, place] * step) / upper[:, None, place, place]
        remaining[:, :, place + 1:] -= error[:, :, None] * upper[:, None, place, place + 1:]
    return steps.reshape(weight.shape).astype(np.int8)


def _inverse_factor(moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper U [G, D, D] with U^T U = H^-1: row j says how an error at j is made up for by what follows."""
    diagonal = np.einsum("gii->gi", moment)
    damping = DAMPING * diagonal.mean(axis=1) + 1e-9  # the second where a whole group of inputs is always zero
    damped = moment + damping[:, None, None] * np.eye(moment.shape[1])
    factor: NDArray[np.float64] = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    return factor


def find_layers(fp32: Any, int8: Any) -> tuple[list[Layer], int]:
    """The layers whose weights can be rounded again, and how many others have int8 weights."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in fp32.graph.initializer}
    ints = {tensor.name for tensor in int8.graph.initializer}
    scales = {node.input[0]: node.input[1] for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    found, left = [], 0
    for node in fp32.graph.node:
        name = node.input[1] if node.op_type in ("Conv", "Gemm", "MatMul") else ""
        quantized = f"{name}_quantized"
        if name not in weights or quantized not in ints:
            continue
        layer = _layer(node, weights[name], quantized, scales[quantized])
        left += layer is None
        found += [] if layer is None else [layer]
    return found, left


def _layer(node: Any, shape: tuple[int, ...], int8: str, scale: str) -> Layer | None:
    from onnx import helper

    given: Mapping[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    linear = node.op_type == "Gemm" and given.get("transB") == 1 and not given.get("transA")
    convolution = node.op_type == "Conv" and len(shape) == 4 and given.get("auto_pad", b"NOTSET") == b"NOTSET"
    if not (linear or convolution) or int(np.prod(shape[1:])) > WIDEST:
        return None
    return Layer(node.input[0], node.input[1], int8, scale, given.get("group", 1),
                 tuple(given.get("strides", (1, 1))), tuple(given.get("pads", (0, 0, 0, 0))),
                 tuple(given.get("dilations", (1, 1))))


def observe(fp32: Any, layers: list[Layer], reader: Reader) -> dict[str, NDArray[np.float64]]:
    """H = sum of x x^T [G, D, D] by the name of the weights, over sampled positions of all images."""
    telemetry.off()
    import onnx
    import onnxruntime

    sizes = {tensor.name: tuple(tensor.dims) for tensor in fp32.graph.initializer}
    watched = onnx.ModelProto()
    watched.CopyFrom(fp32)
    images = fp32.graph.input[0].name
    names = sorted({layer.source for layer in layers} - {images})
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    chance = np.random.default_rng(0)
    sums: dict[str, NDArray[np.float64]] = {}
    reader.set_range(0, len(reader))
    while (batch := reader.get_next()) is not None:
        values = {**batch, **dict(zip(names, session.run(names, batch), strict=True))}
        for layer in layers:
            inputs = sampled(values[layer.source], sizes[layer.weight], layer, chance)
            products = np.matmul(inputs.transpose(0, 2, 1), inputs).astype(np.float64)
            sums[layer.weight] = products + sums.get(layer.weight, 0.0)
    return sums


def sampled(values: NDArray[np.float32], shape: tuple[int, ...], layer: Layer,
            chance: np.random.Generator) -> NDArray[np.float32]:
    """What output pixels of a layer see [G, samples, D], D = inputs of one output channel, at random positions."""
    if values.ndim == 2:
        return values[None]
    top, left, bottom, right = layer.pads
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right))) if any(layer.pads) else values
    height, width = shape[2:]
    reach_y, reach_x = (layer.dilations[0] * (height - 1), layer.dilations[1] * (width - 1))
    rows = np.arange(0, padded.shape[2] - reach_y, layer.strides[0])
    columns = np.arange(0, padded.shape[3] - reach_x, layer.strides[1])
    places = chance.permutation(len(rows) * len(columns))[:POSITIONS]
    y, x = rows[places // len(columns)], columns[places % len(columns)]
    taps = [padded[:, :, y + dy * layer.dilations[0], x + dx * layer.dilations[1]]
            for dy in range(height) for dx in range(width)]
    seen = np.stack(taps, axis=2)  # [n, C, taps, positions]
    n, channels, count, positions = seen.shape
    grouped = seen.reshape(n, layer.groups, channels // layer.groups * count, positions)
    return grouped.transpose(1, 0, 3, 2).reshape(layer.groups, n * positions, -1)
