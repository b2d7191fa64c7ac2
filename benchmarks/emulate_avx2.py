"""INT8 graphs computed as x86 processors without VNNI compute them: sums of two products saturate at 16 bits.

Their kernels multiply unsigned by signed bytes and add each two neighbours with one instruction, `vpmaddubsw`, whose
result is a saturated int16 (Intel Intrinsics Guide, _mm256_maddubs_epi16); only then sums are taken in 32 bits. ONNX
Runtime's kernel for AVX2 (MlasGemmU8S8KernelAvx2) takes neighbours in the order in which it lays the inputs of an
output out: channels first, then the places of the window. Windows of one channel each (depthwise) have a kernel of
their own that multiplies in 16 bits and adds in 32, so they are exact.

Everything else is computed by `onnx.reference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

DOMAIN = "avx2"
LEAST, GREATEST = -(2**15), 2**15 - 1


def product(inputs: NDArray[np.uint8], weights: NDArray[np.int8], *, saturate: bool) -> NDArray[np.int64]:
    """inputs [P, K] times weights [M, K], transposed: [P, M], neighbours of K added in 16 bits.

    Exact products first; then what saturation takes away, for the few pairs of weights that are great enough for it.
    """
    exact = np.rint(inputs.astype(np.float64) @ weights.T.astype(np.float64)).astype(np.int64)
    if not saturate:
        return exact
    odd = weights.shape[1] % 2
    wide = np.pad(weights.astype(np.int32), ((0, 0), (0, odd)))
    values = np.pad(inputs.astype(np.int32), ((0, 0), (0, odd)))
    first, second = wide[:, 0::2], wide[:, 1::2]
    most = 255 * (np.maximum(first, 0) + np.maximum(second, 0))
    least = 255 * (np.minimum(first, 0) + np.minimum(second, 0))
    great = (most > GREATEST) | (least < LEAST)
    for pair in np.flatnonzero(great.any(axis=0)):
        rows = np.flatnonzero(great[:, pair])
        sums = np.outer(values[:, 2 * pair], first[rows, pair]) + np.outer(values[:, 2 * pair + 1], second[rows, pair])
        exact[:, rows] -= sums - np.clip(sums, LEAST, GREATEST)
    return exact


def windows(image: NDArray[np.uint8], kernel: tuple[int, int], strides: tuple[int, int],
            dilations: tuple[int, int]) -> NDArray[np.uint8]:
    """What each output pixel sees of a padded image [N, C, H, W]: [N, height, width, places, C]."""
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    parts = []
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            top, left = y * dilations[0], x * dilations[1]
            part = image[:, :, top:image.shape[2] - reach[0] + top:strides[0],
                         left:image.shape[3] - reach[1] + left:strides[1]]
            parts.append(part.transpose(0, 2, 3, 1))
    return np.stack(parts, axis=3)


class Layer(OpRun):  # type: ignore[misc]
    """A convolution or linear layer of bytes, in float at its ends."""

    op_domain = DOMAIN
    saturate = True

    def _run(self, x: Any, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, bias: Any = None,
             **given: Any) -> tuple[Any]:
        settings = {name: given.get(name) if given.get(name) is not None else getattr(self, name, None)
                    for name in ("group", "strides", "pads", "dilations")}
        zero = int(np.asarray(x_zero).item())
        sums = (self._convolved(x, zero, w, settings) if w.ndim == 4
                else product(x, w, saturate=self.saturate) - zero * w.astype(np.int64).sum(axis=1))
        channels = [1, -1] + [1] * (w.ndim - 2)
        out = sums.astype(np.float32) * (np.float32(x_scale) * w_scale.reshape(-1).astype(np.float32)).reshape(channels)
        return ((out if bias is None else out + bias.reshape(channels)).astype(np.float32),)

    def _convolved(self, x: Any, zero: int, w: Any, settings: Mapping[str, Any]) -> NDArray[np.int64]:
        top, left, bottom, right = settings["pads"] or (0, 0, 0, 0)
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero)
        seen = windows(padded, w.shape[2:], tuple(settings["strides"] or (1, 1)),
                       tuple(settings["dilations"] or (1, 1)))
        groups = int(settings["group"] or 1)
        n, height, width, places, channels = seen.shape
        taps = w.transpose(0, 2, 3, 1).reshape(groups, -1, places * w.shape[1])  # [G, M / G, places * C / G]
        grouped = seen.reshape(n, height, width, places, groups, channels // groups)
        if w.shape[1] == 1:  # depthwise: exact
            sums = np.einsum("nhwpg,gmp->nhwgm", grouped[..., 0].astype(np.int32), taps.astype(np.int32))
            return np.ascontiguousarray((sums - zero * taps.sum(axis=2, dtype=np.int32)).reshape(n, height, width, -1)
                                        .transpose(0, 3, 1, 2))
        parts = []
        for number, weights in enumerate(taps):
            rows = grouped[:, :, :, :, number].reshape(-1, weights.shape[1])
            sums = product(rows, weights, saturate=self.saturate) - zero * weights.astype(np.int64).sum(axis=1)
            parts.append(sums.reshape(n, height, width, -1))
        return np.ascontiguousarray(np.concatenate(parts, axis=3).transpose(0, 3, 1, 2))


class Exact(Layer):
    """The same with sums in 32 bits, as VNNI has them."""

    saturate = False


def evaluator(graph: bytes, *, saturate: bool) -> tuple[ReferenceEvaluator, int]:
    """What runs a Q/DQ graph with u8 activations and s8 weights as described, and how many layers it emulates."""
    model = onnx.load_from_string(graph)
    kind = Layer if saturate else Exact
    kept, found = [], 0
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        made = _bytes_of(node, makers, constants)
        if made is not None:
            found += 1
            attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute
                          if one.name in ("group", "strides", "pads", "dilations")}
            node = onnx.helper.make_node(kind.__name__, made, node.output, domain=DOMAIN, **attributes)
        kept.append(node)
    read = {name for node in kept for name in node.input}
    del model.graph.node[:]
    model.graph.node.extend(node for node in kept if node.op_type != "DequantizeLinear" or node.output[0] in read)
    for opset in model.opset_import:
        opset.version = max(opset.version, 19)  # onnx.reference has no older DequantizeLinear; it does the same
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return ReferenceEvaluator(model, new_ops=[kind]), found


def _bytes_of(node: Any, makers: Mapping[str, Any], constants: Mapping[str, Any]) -> list[str] | None:
    """What an emulated layer takes in place of the node's inputs; None where it is no layer of bytes."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    value, weight = (makers.get(name) for name in node.input[:2])
    if any(one is None or one.op_type != "DequantizeLinear" for one in (value, weight)):
        return None
    steps, zero = constants.get(weight.input[0]), constants.get(value.input[2])
    if steps is None or zero is None or numpy_helper.to_array(zero).dtype != np.uint8:
        return None
    array = numpy_helper.to_array(steps)
    given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if array.dtype != np.int8 or given.get("transA") or {given.get("alpha", 1.0), given.get("beta", 1.0)} != {1.0}:
        return None
    if node.op_type != "Conv" and not given.get("transB"):  # [K, M]: the emulated layer takes [M, K]
        constants[weight.input[0]].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array.T), weight.input[0]))
    return [*value.input[:3], *weight.input[:2], *node.input[2:3]]
