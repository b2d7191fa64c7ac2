"""Operators of ONNX in torch, with gradients: those of which image classifiers are made.

ONNX, "Operators", operator sets 13 to 22 of the default domain. An operator takes its node and its inputs (None where
one is left out) and gives its first output, or a list of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

Inputs = Sequence[Any]  # torch.Tensor, or None for an input that is left out
Operator = Callable[["Node", Inputs], Any]
OPERATORS: dict[str, Operator] = {}
# By onnx.TensorProto's numbers.
TYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
         9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
CONVOLUTIONS = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
MAX_POOLS = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}
AVERAGE_POOLS: dict[int, Callable[..., torch.Tensor]] = {
    3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}


@dataclass(frozen=True)
class Node:
    """A node of a graph."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    given: Mapping[str, Any]  # its attributes

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; `default` where the node does not say."""
        return self.given.get(name, default)


def operator(*kinds: str) -> Callable[[Operator], Operator]:
    """Registers a function for these operators."""
    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(kinds, function))
        return function
    return register


def _at(inputs: Inputs, place: int) -> Any:
    return inputs[place] if place < len(inputs) else None


def _numbers(tensor: Any) -> list[int]:
    return [int(one) for one in tensor.reshape(-1).tolist()]


# ------------------------------------------------------------------------------------------------ value by value


def _simple(kind: str, function: Callable[..., Any]) -> None:
    OPERATORS[kind] = lambda node, inputs: function(*inputs)


_SIMPLE: dict[str, Callable[..., Any]] = {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": functional.hardswish,
    "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Neg": torch.neg, "Abs": torch.abs,
    "Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
    "Softplus": functional.softplus, "Mish": functional.mish, "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul,
    "Pow": torch.pow, "Equal": torch.eq, "Less": torch.lt, "Greater": torch.gt, "And": torch.logical_and,
    "Or": torch.logical_or, "Not": torch.logical_not, "Where": torch.where, "MatMul": torch.matmul,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "Expand": lambda x, shape: x.expand(np.broadcast_shapes(tuple(x.shape), tuple(_numbers(shape)))),
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Identity": lambda x: x, "Dropout": lambda x, *_: x,
    "Range": lambda start, limit, delta: torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype),
    "Tile": lambda x, repeats: x.repeat(_numbers(repeats)),
}
for _kind, _function in _SIMPLE.items():
    _simple(_kind, _function)


@operator("Div")
def _div(node: Node, inputs: Inputs) -> Any:
    whole = not inputs[0].is_floating_point()
    return torch.div(inputs[0], inputs[1], rounding_mode="trunc" if whole else None)


@operator("Min", "Max")
def _extremum(node: Node, inputs: Inputs) -> Any:
    pick = torch.minimum if node.kind == "Min" else torch.maximum
    found = inputs[0]
    for one in inputs[1:]:
        found = pick(found, one)
    return found


@operator("Clip")
def _clip(node: Node, inputs: Inputs) -> Any:
    low, high = _at(inputs, 1), _at(inputs, 2)
    if low is None and high is None:
        return inputs[0]
    return torch.clamp(inputs[0], None if low is None else low.item(), None if high is None else high.item())


@operator("LeakyRelu")
def _leaky_relu(node: Node, inputs: Inputs) -> Any:
    return functional.leaky_relu(inputs[0], node.get("alpha", 0.01))


@operator("Elu")
def _elu(node: Node, inputs: Inputs) -> Any:
    return functional.elu(inputs[0], node.get("alpha", 1.0))


@operator("HardSigmoid")
def _hard_sigmoid(node: Node, inputs: Inputs) -> Any:
    return torch.clamp(node.get("alpha", 0.2) * inputs[0] + node.get("beta", 0.5), 0, 1)


@operator("Gelu")
def _gelu(node: Node, inputs: Inputs) -> Any:
    return functional.gelu(inputs[0], approximate=node.get("approximate", "none"))


@operator("Cast")
def _cast(node: Node, inputs: Inputs) -> Any:
    return inputs[0].to(TYPES[node.get("to")])


@operator("Softmax", "LogSoftmax")
def _softmax(node: Node, inputs: Inputs) -> Any:
    function = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    return function(inputs[0], node.get("axis", -1))


@operator("QuantizeLinear")
def _quantize(node: Node, inputs: Inputs) -> Any:
    values, step, zero = inputs[0], _spread(node, inputs[0], inputs[1]), _at(inputs, 2)
    kind = torch.uint8 if zero is None else zero.dtype
    ends = torch.iinfo(kind)
    zero = 0 if zero is None else _spread(node, values, zero).to(torch.float32)
    return ((values / step).round() + zero).clamp(ends.min, ends.max).to(kind)


@operator("DequantizeLinear")
def _dequantize(node: Node, inputs: Inputs) -> Any:
    step, zero = _spread(node, inputs[0], inputs[1]), _at(inputs, 2)
    values = inputs[0].to(step.dtype)
    return (values if zero is None else values - _spread(node, inputs[0], zero).to(step.dtype)) * step


def _spread(node: Node, values: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """A step a channel as something that broadcasts against the values."""
    if step.numel() == 1:
        return step.reshape(())
    shape = [1] * values.ndim
    shape[node.get("axis", 1)] = -1
    return step.reshape(shape)


# ----------------------------------------------------------------------------------------------- layers and pools


@operator("Conv")
def _convolution(node: Node, inputs: Inputs) -> Any:
    image, weight, bias = inputs[0], inputs[1], _at(inputs, 2)
    sides = weight.ndim - 2
    strides, dilations = (node.get(name, [1] * sides) for name in ("strides", "dilations"))
    begin, end = _padding(node, image, list(weight.shape[2:]), strides, dilations)
    if begin != end:
        image, begin = _padded(image, begin, end, 0.0), [0] * sides
    return CONVOLUTIONS[weight.ndim](image, weight, bias, strides, begin, dilations, node.get("group", 1))


def _padding(node: Node, image: torch.Tensor, kernel: Sequence[int], strides: Sequence[int],
             dilations: Sequence[int]) -> tuple[list[int], list[int]]:
    """What is added before and after each side of the image."""
    kind, sides = node.get("auto_pad", "NOTSET"), len(kernel)
    if kind == "NOTSET":
        pads = list(node.get("pads", [0] * 2 * sides))
        return pads[:sides], pads[sides:]
    if kind == "VALID":
        return [0] * sides, [0] * sides
    totals = [max((math.ceil(size / stride) - 1) * stride + (reach - 1) * dilation + 1 - size, 0)
              for size, reach, stride, dilation in zip(image.shape[2:], kernel, strides, dilations, strict=True)]
    less, more = [one // 2 for one in totals], [one - one // 2 for one in totals]
    return (less, more) if kind == "SAME_UPPER" else (more, less)


def _padded(image: torch.Tensor, begin: Sequence[int], end: Sequence[int], value: float) -> torch.Tensor:
    sides = [one for pair in zip(reversed(begin), reversed(end), strict=True) for one in pair]
    return functional.pad(image, sides, value=value) if any(sides) else image


@operator("Gemm")
def _gemm(node: Node, inputs: Inputs) -> Any:
    left = inputs[0].T if node.get("transA", 0) else inputs[0]
    right = inputs[1].T if node.get("transB", 0) else inputs[1]
    found = node.get("alpha", 1.0) * (left @ right)
    return found if _at(inputs, 2) is None else found + node.get("beta", 1.0) * inputs[2]


@operator("MaxPool")
def _max_pool(node: Node, inputs: Inputs) -> Any:
    image, kernel = inputs[0], node.get("kernel_shape")
    strides, dilations = (node.get(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    begin, end = _padding(node, image, kernel, strides, dilations)
    image = _padded(image, begin, end, -math.inf)
    return MAX_POOLS[image.ndim](image, kernel, strides, 0, dilations, ceil_mode=bool(node.get("ceil_mode", 0)))


@operator("AveragePool")
def _average_pool(node: Node, inputs: Inputs) -> Any:
    image, kernel = inputs[0], node.get("kernel_shape")
    strides, upward = node.get("strides", [1] * len(kernel)), bool(node.get("ceil_mode", 0))
    begin, end = _padding(node, image, kernel, strides, [1] * len(kernel))
    pool = AVERAGE_POOLS[image.ndim]
    found = pool(_padded(image, begin, end, 0.0), kernel, strides, 0, upward)
    if node.get("count_include_pad", 0) or not any((*begin, *end)):
        return found
    # The mean over what is no padding.
    return found / pool(_padded(torch.ones_like(image[:1, :1]), begin, end, 0.0), kernel, strides, 0, upward)


@operator("BatchNormalization")
def _batch_normalization(node: Node, inputs: Inputs) -> Any:
    image, weight, bias, mean, variance = inputs
    return functional.batch_norm(image, mean, variance, weight, bias, eps=node.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def _instance_normalization(node: Node, inputs: Inputs) -> Any:
    return functional.instance_norm(inputs[0], weight=inputs[1], bias=inputs[2], eps=node.get("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_normalization(node: Node, inputs: Inputs) -> Any:
    axis = node.get("axis", -1) % inputs[0].ndim
    shape = inputs[0].shape[axis:]
    return functional.layer_norm(inputs[0], shape, inputs[1], _at(inputs, 2), node.get("epsilon", 1e-5))


@operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
def _reduce(node: Node, inputs: Inputs) -> Any:
    axes = node.get("axes") if _at(inputs, 1) is None else _numbers(inputs[1])
    if not axes and node.get("noop_with_empty_axes", 0):
        return inputs[0]
    over = tuple(axes or range(inputs[0].ndim))
    functions: Mapping[str, Callable[..., Any]] = {
        "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
        "ReduceL2": lambda x, dim, keepdim: torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)}
    return functions[node.kind](inputs[0], dim=over, keepdim=bool(node.get("keepdims", 1)))


@operator("Einsum")
def _einsum(node: Node, inputs: Inputs) -> Any:
    return torch.einsum(node.get("equation"), *inputs)


# ------------------------------------------------------------------------------------------------ shapes and moves


@operator("Reshape")
def _reshape(node: Node, inputs: Inputs) -> Any:
    asked = _numbers(inputs[1])
    if not node.get("allowzero", 0):
        asked = [inputs[0].shape[place] if size == 0 else size for place, size in enumerate(asked)]
    return inputs[0].reshape(asked)


@operator("Flatten")
def _flatten(node: Node, inputs: Inputs) -> Any:
    axis = node.get("axis", 1)
    return inputs[0].reshape(math.prod(inputs[0].shape[:axis]), -1)


@operator("Transpose")
def _transpose(node: Node, inputs: Inputs) -> Any:
    return inputs[0].permute(node.get("perm", list(reversed(range(inputs[0].ndim)))))


@operator("Squeeze")
def _squeeze(node: Node, inputs: Inputs) -> Any:
    axes = _at(inputs, 1)
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(_numbers(axes)))


@operator("Unsqueeze")
def _unsqueeze(node: Node, inputs: Inputs) -> Any:
    axes = _numbers(inputs[1])
    found = inputs[0]
    for axis in sorted(one % (found.ndim + len(axes)) for one in axes):
        found = found.unsqueeze(axis)
    return found


@operator("Concat")
def _concat(node: Node, inputs: Inputs) -> Any:
    return torch.cat(list(inputs), dim=node.get("axis"))


@operator("Split")
def _split(node: Node, inputs: Inputs) -> Any:
    axis = node.get("axis", 0)
    if _at(inputs, 1) is not None:
        return list(torch.split(inputs[0], _numbers(inputs[1]), axis))
    return list(torch.split(inputs[0], math.ceil(inputs[0].shape[axis] / len(node.outputs)), axis))


@operator("Slice")
def _slice(node: Node, inputs: Inputs) -> Any:
    found = inputs[0]
    begins, ends = _numbers(inputs[1]), _numbers(inputs[2])
    axes = list(range(len(begins))) if _at(inputs, 3) is None else _numbers(inputs[3])
    strides = [1] * len(begins) if _at(inputs, 4) is None else _numbers(inputs[4])
    for begin, end, axis, stride in zip(begins, ends, axes, strides, strict=True):
        places = list(range(found.shape[axis]))[begin:end:stride]
        found = found.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return found


@operator("Gather")
def _gather(node: Node, inputs: Inputs) -> Any:
    axis = node.get("axis", 0) % inputs[0].ndim
    places = inputs[1].to(torch.int64)
    chosen = inputs[0].index_select(axis, places.reshape(-1) % inputs[0].shape[axis])
    return chosen.reshape(*inputs[0].shape[:axis], *places.shape, *inputs[0].shape[axis + 1:])


@operator("Pad")
def _pad(node: Node, inputs: Inputs) -> Any:
    image, numbers = inputs[0], _numbers(inputs[1])
    axes = list(range(image.ndim)) if _at(inputs, 3) is None else [one % image.ndim for one in _numbers(inputs[3])]
    begin, end = [0] * image.ndim, [0] * image.ndim
    for place, axis in enumerate(axes):
        begin[axis], end[axis] = numbers[place], numbers[place + len(axes)]
    if node.get("mode", "constant") == "constant":
        return _padded(image, begin, end, 0.0 if _at(inputs, 2) is None else inputs[2].item())
    sides = [one for pair in zip(reversed(begin[2:]), reversed(end[2:]), strict=True) for one in pair]
    return functional.pad(image, sides, mode={"edge": "replicate", "reflect": "reflect"}[node.get("mode")])


@operator("Shape")
def _shape(node: Node, inputs: Inputs) -> Any:
    return torch.tensor(list(inputs[0].shape)[node.get("start", 0):node.get("end")], dtype=torch.int64)


@operator("Constant")
def _constant(node: Node, inputs: Inputs) -> Any:
    return next(one if isinstance(one, torch.Tensor) else torch.tensor(one) for one in node.given.values())


@operator("ConstantOfShape")
def _constant_of_shape(node: Node, inputs: Inputs) -> Any:
    value = node.get("value", torch.zeros(1))
    return value.reshape(()).expand(_numbers(inputs[0])).clone()
