"""Writes Q/DQ graphs for engines that take symmetric int8 only: each zero point 0, each layer's bias in float.

ONNX Runtime's quantizer rounds a value for all its readers or for none, and rounds biases to int32; here every reading
is decided by itself, see `compress.placement`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress.placement import Placement
from edgetl.compress.ranges import SYMMETRIC_STEPS, Range
from edgetl.compress.rounding import INT8

SCALE, ZERO, ROUNDED, RESTORED = "_scale", "_zero_point", INT8, "_dequantized"


def insert(model: Any, placement: Placement, ranges: Mapping[str, Range], scales: str) -> None:
    """Rounds a float graph, in place.

    Args:
        model: a float32 graph.
        placement: what to round.
        ranges: symmetric, by activation.
        scales: the type that must be able to express them, "float32" or "float16"; they are stored as float32.
    """
    graph = model.graph
    pairs = {}
    for name in placement.rounded:
        step = step_of(np.float64(ranges[placement.scaled_as[name]][1]), scales)
        pairs[name] = list(_pair(graph, name, step))
    weights = list(_weights(graph, set(placement.layers), scales))
    readings = {reading: f"{name}{RESTORED}" for name, them in placement.rounded.items() for reading in them}
    for node in graph.node:
        for place in range(len(node.input)):
            node.input[place] = readings.get((node.name, place), node.input[place])
        if node.name in placement.layers:
            node.input[1] = f"{node.input[1]}{RESTORED}"
    ordered = [*weights, *(node for one in graph.input for node in pairs.get(one.name, ()))]
    for node in graph.node:
        ordered += [node, *(each for name in node.output for each in pairs.get(name, ()))]
    del graph.node[:]
    graph.node.extend(ordered)


def _pair(graph: Any, name: str, step: NDArray[np.float32]) -> Iterator[Any]:
    """The two nodes that round an activation."""
    from onnx import helper

    _add(graph, f"{name}{SCALE}", step)
    _add(graph, f"{name}{ZERO}", np.zeros((), np.int8))
    yield helper.make_node("QuantizeLinear", [name, f"{name}{SCALE}", f"{name}{ZERO}"], [f"{name}{ROUNDED}"],
                           f"{name}_quantize")
    yield helper.make_node("DequantizeLinear", [f"{name}{ROUNDED}", f"{name}{SCALE}", f"{name}{ZERO}"],
                           [f"{name}{RESTORED}"], f"{name}_dequantize")


def _weights(graph: Any, layers: set[str], scales: str) -> Iterator[Any]:
    """Rounds the weights of layers, a channel of outputs each, and gives the nodes that restore them."""
    from onnx import helper, numpy_helper

    axes = {node.input[1]: _axis(node) for node in graph.node if node.name in layers}
    constants = {one.name: one for one in graph.initializer}
    for name, axis in axes.items():
        values = numpy_helper.to_array(constants[name]).astype(np.float64)
        others = tuple(place for place in range(values.ndim) if place != axis)
        steps = step_of(np.abs(values).max(axis=others), scales)
        broad = np.expand_dims(steps.astype(np.float64), others)
        rounded = np.clip(np.rint(values / broad), -SYMMETRIC_STEPS, SYMMETRIC_STEPS)
        _add(graph, f"{name}{ROUNDED}", rounded.astype(np.int8))
        _add(graph, f"{name}{SCALE}", steps)
        _add(graph, f"{name}{ZERO}", np.zeros(steps.shape, np.int8))
        yield helper.make_node("DequantizeLinear", [f"{name}{ROUNDED}", f"{name}{SCALE}", f"{name}{ZERO}"],
                               [f"{name}{RESTORED}"], f"{name}_dequantize", axis=axis)


def _axis(node: Any) -> int:
    """Which axis of a layer's weights counts its outputs."""
    if node.op_type == "MatMul":
        return 1
    transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def step_of(greatest: NDArray[np.float64] | np.float64, scales: str) -> NDArray[np.float32]:
    """The step with which values up to `greatest`, of any shape, are rounded; 1 where there is only zero.

    It is a number that the type can express, and no less than asked for: a layer whose step is rounded afterwards
    would multiply all its values by the difference.
    """
    wanted = np.asarray(greatest, np.float64) / SYMMETRIC_STEPS
    kind = np.dtype(scales).type
    smallest, largest = np.finfo(kind).smallest_subnormal, np.finfo(kind).max
    steps = np.clip(wanted, float(smallest), float(largest)).astype(kind)
    steps = np.where(steps.astype(np.float64) < wanted, np.nextafter(steps, largest), steps)
    return np.where(wanted > 0, steps, kind(1)).astype(np.float32)


def _add(graph: Any, name: str, values: NDArray[Any]) -> None:
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
