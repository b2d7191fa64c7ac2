"""Where a graph is rounded so that TensorRT computes with integers: the inputs of layers, and hardly anything else.

TensorRT fuses a layer with the DequantizeLinear before it and the QuantizeLinear after it, and moves both through nodes
that only move or pick values. Its rules ("Explicit Quantization", section "Q/DQ Layer-Placement Recommendations"):
round the inputs of layers with weights, not their outputs; round what a residual connection adds, for the type of that
input is the type that the convolution fused with the addition hands out; an average pooling between rounded layers is
rounded, too. Which layers have integer kernels that pay are the rules of NVIDIA's own quantizer (ModelOpt 0.47,
`onnx/quantization/graph_utils.py`: find_nodes_from_convs_to_exclude, find_nodes_from_matmul_to_exclude): no layer of
few channels, and none that multiplies one vector an image, such as a classifier's last layer or the gates of
squeeze-and-excitation: its time is that of reading the weights.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Reading = tuple[str, int]  # a node's name, and which of its inputs

NARROWEST = 16  # channels for which integer kernels are made
MULTIPLE = 8  # of channels, where there are fewer on one side
KERNEL = 3  # least side of a convolution of many groups
COMMUTING = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
SCALING = frozenset({"Mul", "Add", "Sub", "Div", "BatchNormalization"})  # fused with the layer before, with constants
ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu"})


@dataclass(frozen=True)
class Placement:
    """What is rounded, in the order of the graph."""

    layers: tuple[str, ...]  # names of nodes with int8 weights and inputs
    rounded: Mapping[str, tuple[Reading, ...]]  # by activation: who reads it rounded; others read it as it is
    scaled_as: Mapping[str, str]  # by activation: whose scale it has


class Graph:
    """An ONNX graph whose nodes have names, by those who make and read each value."""

    def __init__(self, model: Any) -> None:
        """Reads `model`, which stays as it is."""
        self.nodes = list(model.graph.node)
        self.inputs = [one.name for one in model.graph.input]
        self.weights = {one.name: tuple(one.dims) for one in model.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.results = Counter(one.name for one in model.graph.output)

    def activations_of(self, node: Any) -> list[str]:
        """Its inputs that are no constants."""
        return [name for name in node.input if name and name not in self.weights]

    def depth(self, name: str) -> int:
        """Number of nodes on the longest way to a value."""
        return self._depths.get(name, 0)

    @cached_property
    def _depths(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in self.nodes:  # in the order of computation
            depth = 1 + max((found.get(name, 0) for name in node.input), default=0)
            found |= dict.fromkeys(node.output, depth)
        return found


def place(model: Any, shapes: Mapping[str, tuple[int, ...]], images: int, floats: Sequence[str] = ()) -> Placement:
    """What to round.

    Args:
        model: a float32 graph, its nodes named and in the order of computation.
        shapes: of its activations in a call.
        images: of that call.
        floats: nodes that stay in float.
    """
    graph = Graph(model)
    layers = [node for node in graph.nodes if node.name not in set(floats)
              and pays(graph, node, shapes.get(node.input[0] if node.input else "", ()), images)]
    names = {node.name for node in layers}
    rounded: dict[str, list[Reading]] = defaultdict(list)
    for node in layers:
        rounded[node.input[0]].append((node.name, 0))
    for node in reversed(graph.nodes):  # of two poolings in a row, the second first
        if node.op_type == "AveragePool" and node.output[0] in rounded and node.name not in floats:
            rounded[node.input[0]].append((node.name, 0))
        added = residual(graph, node, names) if node.name not in floats else None
        if added is not None:
            rounded[node.input[added]].append((node.name, added))
    order = [*graph.inputs, *(name for node in graph.nodes for name in node.output)]
    return Placement(tuple(node.name for node in layers), {name: tuple(rounded[name]) for name in order
                                                           if name in rounded}, _scales(graph, rounded))


def pays(graph: Graph, node: Any, shape: tuple[int, ...], images: int) -> bool:
    """Whether a node is a layer that TensorRT computes faster with integers.

    Args:
        graph: the node's.
        node: any.
        shape: of what goes into it in a call.
        images: of that call.
    """
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[0] in graph.weights:
        return False
    weight = graph.weights.get(node.input[1], ())
    if node.op_type == "Conv":
        seen = len(shape) == 4 and len(weight) == 4 and shape[2] * shape[3] > 1
        return seen and _convolution_pays(weight, _attribute(node, "group", 1), node.input[0] in graph.inputs)
    if len(weight) != 2 or _attribute(node, "transA", 0) or min(weight) < NARROWEST:
        return False
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows > images


def _convolution_pays(weight: tuple[int, ...], groups: int, is_first: bool) -> bool:
    out, ins, height, width = weight  # ins: of one group
    if min(out, ins) >= NARROWEST:
        return True
    if groups > 1:
        return out % MULTIPLE == 0 and min(height, width) >= KERNEL
    even = out % MULTIPLE == 0 or ins % MULTIPLE == 0
    return even and (is_first or max(out, ins) >= NARROWEST) and height == width


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def residual(graph: Graph, node: Any, layers: set[str]) -> int | None:
    """Which input of an addition is rounded: the one that is not computed by the convolution it is fused with.

    Args:
        graph: the node's.
        node: any; None for all but additions of two activations, one of them from a convolution.
        layers: those that compute with integers.
    """
    if node.op_type != "Add" or len(graph.activations_of(node)) != 2 or node.input[0] == node.input[1]:
        return None
    fused = [place for place, name in enumerate(node.input) if _from_convolution(graph, name, layers)]
    if not fused:
        return None
    # Where both are, the last one that is computed is fused, since the other's result must be there by then.
    return 1 - max(fused, key=lambda place: graph.depth(node.input[place]))


def _from_convolution(graph: Graph, name: str, layers: set[str]) -> bool:
    """Whether a value that nothing else reads comes from an integer convolution, through what is fused with it."""
    while len(graph.readers[name]) == 1 and not graph.results[name]:
        node = graph.makers.get(name)
        if node is None:
            return False
        if node.op_type == "Conv":
            return node.name in layers
        if node.op_type not in SCALING | ACTIVATIONS or len(graph.activations_of(node)) != 1:
            return False
        name = graph.activations_of(node)[0]
    return False


def _scales(graph: Graph, rounded: Mapping[str, Any]) -> dict[str, str]:
    """Values that were only moved have the scale of what they were, so that both are rounded once."""
    found = {}
    for name in rounded:
        origin, last = name, name
        while (node := graph.makers.get(origin)) is not None and node.op_type in COMMUTING:
            origin = node.input[0]
            last = origin if origin in rounded else last
        found[name] = last
    return found
