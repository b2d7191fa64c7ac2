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

POSITIONS = 64  # output pixels of an image that are looked at, for each layer: neighbours tell the same
WIDEST = 4096  # inputs of one output channel; H of wider layers takes too much memory, they keep the nearest step
BLOCK = 128  # weights of a channel after which the errors are passed on to all that follow
DAMPING = 0.01  # of H's mean diagonal, added to it: directions that the images do not show must not blow up
GREATEST = 127  # of a symmetric int8
KINDS = ("Conv", "Gemm", "MatMul")
INT8 = "_quantized"  # what ONNX Runtime's quantizer appends to the name of a weight
GREATEST_REDUCED = 64  # of the 7 bits that ONNX Runtime's `reduce_range` leaves


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a float graph."""

    source: str  # its input
    weight: str
    groups: int
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right
    dilations: tuple[int, int]


def compensate(fp32: Any, int8: Any, moments: Mapping[str, NDArray[np.float64]], *, greatest: int = GREATEST,
               done: dict[Any, NDArray[np.int8]] | None = None) -> dict[str, int]:
    """Rounds the int8 weights of a Q/DQ graph again, in place; tells how many layers were and were not.

    Args:
        fp32: the float graph that was quantized.
        int8: the Q/DQ graph made of it.
        moments: H of each layer's inputs by the name of its weights, see `moment_of`.
        greatest: step of either sign.
        done: what was rounded before; grows. The ranges of activations, which a ladder varies, change no weight.
    """
    from onnx import numpy_helper

    done = {} if done is None else done

    floats = {tensor.name: tensor for tensor in fp32.graph.initializer}
    ints = {tensor.name: tensor for tensor in int8.graph.initializer}
    scales = {node.input[0]: node.input[1] for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    weights = [node.input[1] for node in fp32.graph.node if node.op_type in KINDS and f"{node.input[1]}{INT8}" in ints]
    chosen = [name for name in weights if name in moments]
    for name in chosen:
        steps = f"{name}{INT8}"
        weight, scale = (numpy_helper.to_array(one).astype(np.float64) for one in (floats[name], ints[scales[steps]]))
        key = (name, greatest, scale.tobytes())
        if key not in done:
            done[key] = round_layer(weight, np.broadcast_to(scale.ravel(), weight.shape[:1]), moments[name], greatest)
        ints[steps].CopyFrom(numpy_helper.from_array(done[key], steps))
    return {"layers": len(chosen), "layers_left": len(weights) - len(chosen)}


def put(int8: Any, steps: Mapping[str, NDArray[np.int8]]) -> int:
    """Gives the layers of a Q/DQ graph other int8 weights, in place; tells how many. Those left in float have none."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in int8.graph.initializer}
    found = {f"{name}{INT8}": values for name, values in steps.items() if f"{name}{INT8}" in tensors}
    for name, values in found.items():
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    return len(found)


def round_layer(weight: NDArray[np.float64], scale: NDArray[np.float64], moment: NDArray[np.float64],
                greatest: int = GREATEST) -> NDArray[np.int8]:
    """int8 steps of `weight` [O, ...] with one `scale` [O] an output channel, given H = `moment` [G, D, D].

    A weight that is exactly zero stays so, and takes no part in making up for others: it was put there (2:4 sparsity).
    """
    groups, width, _ = moment.shape
    remaining = weight.reshape(groups, -1, width).copy()  # [G, O / G, D]
    there = remaining != 0
    step = scale.reshape(groups, -1)
    steps = np.zeros_like(remaining)
    upper = _inverse_factor(moment)
    for first in range(0, width, BLOCK):
        last = min(first + BLOCK, width)
        errors = np.zeros((*step.shape, last - first))
        for place in range(first, last):
            current = remaining[:, :, place]
            steps[:, :, place] = there[:, :, place] * np.clip(np.rint(current / step), -greatest, greatest)
            error = (current - steps[:, :, place] * step) / upper[:, None, place, place]
            remaining[:, :, place + 1:last] -= error[:, :, None] * upper[:, None, place, place + 1:last]
            errors[:, :, place - first] = error
        remaining[:, :, last:] -= np.matmul(errors, upper[:, first:last, last:])  # all at once: memory is the limit
    return steps.reshape(weight.shape).astype(np.int8)


def _inverse_factor(moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper U [G, D, D] with U^T U = H^-1: row j says how an error at j is made up for by what follows."""
    diagonal = np.einsum("gii->gi", moment)
    damping = DAMPING * diagonal.mean(axis=1) + 1e-9  # the second where a whole group of inputs is always zero
    damped = moment + damping[:, None, None] * np.eye(moment.shape[1])
    factor: NDArray[np.float64] = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    return factor


def find_layers(fp32: Any) -> list[Layer]:
    """The layers whose weights can be rounded so."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in fp32.graph.initializer}
    found = (_layer(node, weights[node.input[1]]) for node in fp32.graph.node
             if node.op_type in KINDS and node.input[1] in weights)
    return [layer for layer in found if layer is not None]


def _layer(node: Any, shape: tuple[int, ...]) -> Layer | None:
    from onnx import helper

    given: Mapping[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    linear = node.op_type == "Gemm" and given.get("transB") == 1 and not given.get("transA")
    convolution = node.op_type == "Conv" and len(shape) == 4 and given.get("auto_pad", b"NOTSET") == b"NOTSET"
    if not (linear or convolution) or int(np.prod(shape[1:])) > WIDEST:
        return None
    return Layer(node.input[0], node.input[1], given.get("group", 1), tuple(given.get("strides", (1, 1))),
                 tuple(given.get("pads", (0, 0, 0, 0))), tuple(given.get("dilations", (1, 1))))


def moment_of(inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """H = sum of x x^T [G, D, D] over what a layer saw [G, samples, D], see `sampled`."""
    products: NDArray[np.float32] = np.matmul(inputs.transpose(0, 2, 1), inputs)
    return products.astype(np.float64)


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
