"""Bias correction: what rounding the weights adds to a channel on average is taken out of its bias.

Rounded weights W + dW answer W x + dW x, whose mean differs from the float layer's by dW E[x]. M. Nagel et al., ICCV
2019, arXiv:1906.04721, section 4.2; E[x] is not derived from batch normalisation but seen on the calibration images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress.rounding import INT8, KINDS


def correct(fp32: Any, int8: Any, means: Mapping[str, NDArray[np.float64]]) -> int:
    """Corrects the biases of a Q/DQ graph, in place; tells of how many layers.

    Args:
        fp32: the float graph that was quantized.
        int8: the Q/DQ graph made of it, its nodes with the same names.
        means: E[x] [G, D] of each layer's inputs by the name of its weights, D = inputs of one output channel.
    """
    from onnx import numpy_helper

    floats = {tensor.name: tensor for tensor in fp32.graph.initializer}
    constants = {tensor.name: tensor for tensor in int8.graph.initializer}
    restoring = {node.output[0]: node for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    uses = Counter(name for node in int8.graph.node for name in node.input)
    layers = {node.name: node for node in int8.graph.node if node.op_type in KINDS}
    done = 0
    for node in fp32.graph.node:
        weight = node.input[1] if node.op_type in KINDS else ""
        ours = layers.get(node.name)
        if ours is None or len(ours.input) < 3 or weight not in means or f"{weight}{INT8}" not in constants:
            continue
        scale = numpy_helper.to_array(constants[restoring[ours.input[1]].input[1]]).astype(np.float64)
        steps = numpy_helper.to_array(constants[f"{weight}{INT8}"]).astype(np.float64)
        values = numpy_helper.to_array(floats[weight]).astype(np.float64)
        added = shift(values, steps, np.broadcast_to(scale.ravel(), values.shape[:1]), means[weight])
        done += _take_out(constants, restoring.get(ours.input[2]), ours.input[2], added, uses)
    return done


def shift(weight: NDArray[np.float64], steps: NDArray[np.float64], scale: NDArray[np.float64],
          mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the rounding adds to each output channel on average [O].

    Args:
        weight: [O, ...].
        steps: what they were rounded to, in units of `scale` [O].
        scale: of each output channel.
        mean: of the inputs [G, D].
    """
    groups, width = mean.shape
    change = (steps * scale.reshape(-1, *[1] * (weight.ndim - 1)) - weight).reshape(groups, -1, width)
    found: NDArray[np.float64] = np.einsum("god,gd->go", change, mean).reshape(-1)
    return found


def _take_out(constants: Mapping[str, Any], restored: Any, name: str, added: NDArray[np.float64],
              uses: Mapping[str, int]) -> bool:
    """Takes the shift out of a bias, whether that is rounded or float; not where others read it too."""
    from onnx import numpy_helper

    name, scale = (restored.input[0], restored.input[1]) if restored is not None else (name, "")
    if name not in constants or uses[name] != 1:
        return False
    bias = numpy_helper.to_array(constants[name])
    if scale:
        step = numpy_helper.to_array(constants[scale]).astype(np.float64)
        ends = np.iinfo(bias.dtype)
        found = np.clip(np.rint(bias - added.reshape(bias.shape) / step), ends.min, ends.max)
    else:
        found = bias - added.reshape(bias.shape)
    constants[name].CopyFrom(numpy_helper.from_array(found.astype(bias.dtype), name))
    return True
