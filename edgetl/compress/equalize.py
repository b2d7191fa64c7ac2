"""Cross-layer equalization: the same float network with channels of like ranges, which 8 bits express better.

Where only convolutions and linear layers read what a layer L1 computes, and nothing lies between them but functions f
with f(s x) = s f(x) for s > 0, channel c of L1 may be divided by any s_c if the weights that read it are multiplied by
it: L2(f(L1(x))) stays what it is. With r1_c and r2_c the ranges of both sides, s_c = sqrt(r1_c / r2_c) makes them
equal, and layers behind one another (expand, depthwise, project) are taken in turn until nothing changes.
M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, arXiv:1906.04721,
section 4.1. r1 is the range of L1's weights there. Where weights have a scale for each channel anyway, what is left to
gain are the activations, which have one for all: then r1 is the range that channel c was seen to have (G. Xiao et al.,
SmoothQuant, ICML 2023, arXiv:2211.10438, equation 4 with alpha = 1/2, is the same formula).

A Clip from 0 to h (ReLU6) is no such function. It may stay where it does nothing: s_c is 1 for every channel that comes
near h on calibration images, and no other may come near it after it was divided.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ranges = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]  # value -> least and greatest of each channel

BY = ("weights", "activations")
RECTIFIERS = frozenset({"Relu", "Clip"})
# f(s x) = s f(x) for s > 0, channel by channel; ReduceMean where it is over pixels, see `_passes`.
HOMOGENEOUS = frozenset({"AveragePool", "Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity",
                         "LeakyRelu", "MaxPool", "ReduceMean", "Relu", "Reshape"})
ROUNDS = 20  # through all joints; what is left to change after that is less than a rounding
STILL = 1e-3  # relative change of a scale below which nothing changes any more
MARGIN = 1.25  # by which a channel must stay below the end of a Clip that it never reached: other images reach further
MOST = 1e4  # nothing is scaled further than this either way: what is almost zero need not be equal


@dataclass(frozen=True)
class Joint:
    """A layer and all those that read its channels."""

    first: str  # node
    value: str  # what it computes
    seconds: tuple[str, ...]  # nodes
    cap: float | None  # the least upper end of the Clips that read it; None where none does
    rectified: bool  # whether all that reads it cuts off what is below zero


@dataclass(frozen=True)
class Equalized:
    """What was done to a graph, in place."""

    joints: int
    channels: int  # that were multiplied by something
    clipped: int  # joints with a Clip between


class _Graph:
    """Who makes and reads what in a float graph."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.nodes = {node.name: node for node in model.graph.node}
        self.tensors = {one.name: one for one in model.graph.initializer}
        self.constants = {name: numpy_helper.to_array(one) for name, one in self.tensors.items()}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
        self.results = {one.name for one in model.graph.output}
        self.uses = Counter(name for node in model.graph.node for name in node.input)

    def is_layer(self, node: Any) -> bool:
        """Whether it has weights, and a bias if any, of its own."""
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2 or node.input[0] in self.constants:
            return False
        own = all(name in self.constants and self.uses[name] == 1 for name in node.input[1:] if name)
        if not own or _attribute(node, "transA", 0):
            return False
        sizes = self.constants[node.input[1]].ndim
        return sizes >= 3 if node.op_type == "Conv" else sizes == 2


def joints_of(model: Any) -> list[Joint]:
    """Where the graph may be scaled, in the order of computation; nodes must have names."""
    graph = _Graph(model)
    found = (_joint(graph, node) for node in model.graph.node if graph.is_layer(node))
    return [one for one in found if one is not None]


def _joint(graph: _Graph, first: Any) -> Joint | None:
    value, caps, width = first.output[0], [], _outputs(graph, first)
    bias = [*first.input, "", ""][2]
    if first.op_type == "MatMul" or (bias and graph.constants[bias].size != width):
        return None  # channels that are not the second axis, or one bias for all of them
    for node in graph.readers[value]:
        if node.op_type == "Clip":
            low, high = _ends(graph, node)
            if low != 0.0 or high is None:
                return None
            caps.append(high)
    seconds = list(_layers_behind(graph, value, width, flat=first.op_type == "Gemm"))
    if not seconds or None in seconds:
        return None
    rectified = all(node.op_type in RECTIFIERS for node in graph.readers[value])
    return Joint(first.name, value, tuple(dict.fromkeys(one for one in seconds if one)), min(caps, default=None),
                 rectified)


def _layers_behind(graph: _Graph, value: str, width: int, *, flat: bool, direct: bool = True) -> Iterator[str | None]:
    """Names of the layers that a value goes into; None among them where it goes into anything else.

    Args:
        graph: the value's.
        value: [n, width, ...].
        width: number of channels.
        flat: whether it is [n, width times something], so that linear layers read channels.
        direct: whether a layer has computed it, and no function.
    """
    if value in graph.results or not graph.readers[value]:
        yield None
    for node in graph.readers[value]:
        if graph.is_layer(node) and node.input[0] == value:
            fits = (node.op_type != "Conv") == flat and _inputs(graph, node) % width == 0
            yield node.name if fits else None
        elif (node.op_type == "Clip" and direct) or _passes(graph, node):
            flattens = node.op_type in ("Flatten", "Reshape") or (
                node.op_type == "ReduceMean" and not _attribute(node, "keepdims", 1))
            yield from _layers_behind(graph, node.output[0], width, flat=flat or flattens, direct=False)
        else:
            yield None


def _passes(graph: _Graph, node: Any) -> bool:
    """Whether f(s x) = s f(x) for it, and its channels are where they were, or a vector in their order."""
    if node.op_type not in HOMOGENEOUS:
        return False
    if node.op_type == "ReduceMean":
        axes = graph.constants.get(node.input[1]) if len(node.input) > 1 else _attribute(node, "axes", None)
        return axes is not None and sorted(np.ravel(axes).tolist()) in ([2, 3], [-2, -1])
    if node.op_type == "Flatten":
        return bool(_attribute(node, "axis", 1) == 1)
    if node.op_type == "Reshape":
        shape = graph.constants.get(node.input[1])
        return shape is not None and shape.shape == (2,) and (shape[0] == 0 or (shape[0] == -1 and shape[1] > 0))
    return True


def _ends(graph: _Graph, node: Any) -> tuple[float | None, float | None]:
    """Of a Clip; None where there is none or it is computed."""
    names = [*node.input[1:], "", ""][:2]
    low, high = (graph.constants.get(name) for name in names)
    own = (_attribute(node, "min", None), _attribute(node, "max", None))  # before operator set 11
    first, second = (float(one) if one is not None else other for one, other in zip((low, high), own, strict=True))
    return first, second


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def _outputs(graph: _Graph, node: Any) -> int:
    return int(_rows(graph.constants[node.input[1]], node).shape[0])


def _inputs(graph: _Graph, node: Any) -> int:
    return int(_columns(graph.constants[node.input[1]], node).shape[0])


def _rows(weight: NDArray[Any], node: Any) -> NDArray[Any]:
    """A layer's weights by what it computes [O, the rest]."""
    swapped = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0))
    return (weight.T if swapped else weight).reshape(weight.shape[1] if swapped else weight.shape[0], -1)


def _columns(weight: NDArray[Any], node: Any) -> NDArray[Any]:
    """A layer's weights by what it reads [I, the rest]."""
    if node.op_type != "Conv":
        return _rows(weight, node).T
    groups = _attribute(node, "group", 1)
    outs, ins = weight.shape[:2]
    split = weight.reshape(groups, outs // groups, ins, -1).transpose(0, 2, 1, 3)
    return split.reshape(groups * ins, -1)


def equalize(model: Any, joints: Sequence[Joint], seen: Ranges, *, by: str) -> Equalized:
    """Scales the channels of a float graph, in place; it answers what it did.

    Args:
        model: with named nodes.
        joints: see `joints_of`.
        seen: the ranges of each joint's `value` on calibration images.
        by: what r1 is the range of, "weights" or "activations".
    """
    graph = _Graph(model)
    weights = {name: graph.constants[node.input[1]].astype(np.float64) for name, node in graph.nodes.items()
               if graph.is_layer(node)}
    scales = {joint.first: np.ones(_outputs(graph, graph.nodes[joint.first])) for joint in joints}
    for _ in range(ROUNDS):
        moved = 0.0
        for joint in joints:
            step = _step(graph, joint, weights, scales[joint.first], seen[joint.value], by)
            _scale(graph, joint, weights, step)
            scales[joint.first] *= step
            moved = max(moved, float(np.abs(step - 1).max()))
        if moved < STILL:
            break
    _store(graph, joints, weights, scales)
    return Equalized(len(joints), int(sum((one != 1).sum() for one in scales.values())),
                     sum(joint.cap is not None for joint in joints))


def _step(graph: _Graph, joint: Joint, weights: Mapping[str, NDArray[np.float64]], done: NDArray[np.float64],
          seen: tuple[NDArray[np.float64], NDArray[np.float64]], by: str) -> NDArray[np.float64]:
    """By what the channels are divided now, after they were divided by `done`."""
    low, high = (one / done for one in seen)
    rows = np.abs(_rows(weights[joint.first], graph.nodes[joint.first])).max(axis=1)
    reach = np.maximum(high, 0.0) if joint.rectified else np.maximum(np.abs(low), np.abs(high))
    first = rows if by == "weights" else reach
    second = np.max([_read(weights[name], graph.nodes[name], len(rows)) for name in joint.seconds], axis=0)
    alive = (first > 0) & (second > 0) & (rows > 0)
    step = np.sqrt(np.divide(first, second, out=np.ones_like(first), where=alive))
    step = np.where(alive, step, 1.0)
    if joint.cap is None:
        return np.clip(step, 1 / (MOST * done), MOST / done)
    return _below(step, done, high, joint.cap)


def _read(weight: NDArray[np.float64], node: Any, width: int) -> NDArray[np.float64]:
    """The range of the weights that read each of `width` channels; a flattened one is read by many."""
    columns = _columns(weight, node)
    return np.asarray(np.abs(columns.reshape(width, -1)).max(axis=1))


def _below(step: NDArray[np.float64], done: NDArray[np.float64], high: NDArray[np.float64],
           cap: float) -> NDArray[np.float64]:
    """The step, for the channels below a Clip; those that come near its end fix the measure of the others."""
    fixed = high * done * MARGIN >= cap
    # A common factor of all channels changes nothing, so that of the fixed ones may be 1.
    level = float(np.exp(np.log(step[fixed] * done[fixed]).mean())) if fixed.any() else 1.0
    least = np.maximum(high, 0.0) * MARGIN / cap
    wanted = np.clip(np.maximum(step / level, least), 1 / (MOST * done), MOST / done)
    return np.where(fixed, 1.0, wanted)


def _scale(graph: _Graph, joint: Joint, weights: dict[str, NDArray[np.float64]], step: NDArray[np.float64]) -> None:
    weights[joint.first] = _times(weights[joint.first], graph.nodes[joint.first], 1 / step, outputs=True)
    for name in joint.seconds:
        weights[name] = _times(weights[name], graph.nodes[name], step, outputs=False)


def _times(weight: NDArray[np.float64], node: Any, scale: NDArray[np.float64], *,
           outputs: bool) -> NDArray[np.float64]:
    """Weights with each channel that is computed, or else read, multiplied by its number."""
    if node.op_type == "Conv":
        if outputs:
            return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        groups = _attribute(node, "group", 1)
        broad = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return np.asarray((split * broad).reshape(weight.shape))
    transposed = node.op_type == "Gemm" and bool(_attribute(node, "transB", 0))
    axis = 0 if transposed == outputs else 1
    repeated = np.repeat(scale, weight.shape[axis] // len(scale))
    return weight * (repeated[:, None] if axis == 0 else repeated[None, :])


def _store(graph: _Graph, joints: Sequence[Joint], weights: Mapping[str, NDArray[np.float64]],
           scales: Mapping[str, NDArray[np.float64]]) -> None:
    for name in {name for joint in joints for name in (joint.first, *joint.seconds)}:
        _put(graph, graph.nodes[name].input[1], weights[name])
    for name, scale in scales.items():
        bias = [*graph.nodes[name].input, "", ""][2]
        if bias:
            _put(graph, bias, graph.constants[bias].astype(np.float64).reshape(-1) / scale)


def _put(graph: _Graph, name: str, values: NDArray[np.float64]) -> None:
    from onnx import numpy_helper

    shaped = values.reshape(graph.constants[name].shape).astype(graph.constants[name].dtype)
    graph.tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(shaped), name))
