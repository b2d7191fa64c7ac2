"""Which nodes of a graph may compute in half, which must, and what of their inputs and outputs that means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress.surgery import SHAPES, shape_arithmetic
from edgetl.errors import UnknownName

FLOAT = 1  # onnx.TensorProto.FLOAT

# What makes half worth having: tensor cores compute these, and their weights are what a graph weighs.
HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "DeformConv", "Attention"})

# They add up many values or their squares, exponentiate, or divide by something small: eleven bits and a greatest value
# of 65,504 are not enough on the way, even where they are for the result.
DELICATE = frozenset({
    "Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Softplus",
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceProd", "CumSum", "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
    "MeanVarianceNormalization", "LpNormalization", "LRN",
})

# Their results are positions, or counts: rounded values tie, and whole numbers above 2,048 are rounded.
DECIDING = frozenset({
    "ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "RoiAlign", "Range", "NonZero", "OneHot", "Unique",
    "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Upsample",
})

# Integers that half holds exactly.
SMALL_INTEGERS = frozenset({2, 3, 9})  # UINT8, INT8, BOOL


@dataclass(frozen=True)
class Kind:
    """A precision of two bytes."""

    name: str
    element: int  # of onnx.TensorProto
    type_name: str  # in ONNX's operator schemas
    dtype: Any  # of numpy
    greatest: float
    smallest: float  # above 0
    # A tensor whose values are all within the normal range loses at most half of this, relative to its length.
    step: float
    greatest_opset: int  # to which a graph is raised where its operators only then take this precision


@dataclass(frozen=True)
class Slot:
    """One input or output of a node that has a float32 value."""

    node: int
    place: int
    value: str
    follows: bool  # whether it takes the node's precision; otherwise it stays float32


class Anatomy:
    """A graph as the rules see it: its nodes, the types of its values, and what follows a node's precision.

    Args:
        model: with its constants as initialisers and no graphs inside nodes.
        kind: the precision that it is to get.
    """

    def __init__(self, model: Any, kind: Kind) -> None:
        import onnx

        self.kind, self.nodes = kind, list(model.graph.node)
        self.opset = opset_of(model)
        self.sizes = set(shape_arithmetic(model))
        self.constants = {one.name: one for one in model.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.types = {one.name: one.type.tensor_type.elem_type
                      for one in (*inferred.value_info, *inferred.input, *inferred.output)}
        self.types.update((name, one.data_type) for name, one in self.constants.items())
        self.results = {one.name for one in inferred.output if self.types[one.name] == FLOAT}
        self._arrays: dict[str, NDArray[Any]] = {}

    def array(self, name: str) -> NDArray[Any]:
        """The values of a constant."""
        from onnx import numpy_helper

        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self.constants[name])
        return self._arrays[name]

    @cached_property
    def inputs(self) -> tuple[tuple[Slot, ...], ...]:
        """Of every node, its float32 inputs."""
        return tuple(tuple(self._slots(index, node.input, "inputs")) for index, node in enumerate(self.nodes))

    @cached_property
    def outputs(self) -> tuple[tuple[Slot, ...], ...]:
        """Of every node, its float32 outputs."""
        return tuple(tuple(self._slots(index, node.output, "outputs")) for index, node in enumerate(self.nodes))

    def _slots(self, index: int, names: Sequence[str], side: str) -> Iterator[Slot]:
        node = self.nodes[index]
        allowed = formal_types(node, self.opset, side, len(names))
        for place, name in enumerate(names):
            if self.types.get(name) == FLOAT:
                yield Slot(index, place, name, self.kind.type_name in allowed[place])

    def is_clear(self, index: int) -> bool:
        """Whether the types of all that a node reads and makes are known."""
        node = self.nodes[index]
        return all(self.types.get(name) for name in (*node.input, *node.output) if name)


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators in a graph."""
    return max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1)


def formal_types(node: Any, opset: int, side: str, count: int) -> list[frozenset[str]]:
    """What types each input or output ("inputs", "outputs") of a node may have; nothing for an unknown operator."""
    import onnx

    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset):
        return [frozenset()] * count
    schema = onnx.defs.get_schema(node.op_type, opset)
    formal = list(getattr(schema, side))
    return [frozenset(formal[min(place, len(formal) - 1)].types) if formal else frozenset() for place in range(count)]


def least_opset(model: Any, kind: Kind) -> int:
    """The opset from which on every node that may be in half can be; that of the graph where it does already."""
    first = opset_of(model)
    wanted = [node for node in model.graph.node
              if node.domain in ("", "ai.onnx") and node.op_type not in DELICATE | DECIDING]

    def lacking(opset: int) -> int:
        return sum(_refuses(node, opset, kind) for node in wanted)

    options = range(first, max(first, kind.greatest_opset) + 1)
    return min(options, key=lambda opset: (lacking(opset), opset))


def _refuses(node: Any, opset: int, kind: Kind) -> bool:
    """Whether a node has an input for float32 that does not take the other precision at that opset."""
    for side, names in (("inputs", node.input), ("outputs", node.output)):
        types = formal_types(node, opset, side, len(names))
        if any("tensor(float)" in one and len(one) > 1 and kind.type_name not in one for one in types):
            return True
    return False


def must_stay(anatomy: Anatomy, keep: Sequence[str]) -> set[int]:
    """The nodes that stay in float32, whatever stands around them.

    Args:
        anatomy: of the graph.
        keep: names of nodes or of their outputs, or kinds of operators, that the user wants in float32.

    Raises:
        UnknownName: nothing in the graph has such a name.
    """
    found = _named(anatomy, keep)
    for index, node in enumerate(anatomy.nodes):
        if node.op_type in SHAPES:
            continue  # a size is the same of either precision
        if (node.op_type in DELICATE | DECIDING or node.name in anatomy.sizes or not anatomy.is_clear(index)
                or not _can_follow(anatomy, index) or _loses_constants(anatomy, index)):
            found.add(index)
    return found | _fed_by_kept_rounding(anatomy, found)


def _named(anatomy: Anatomy, keep: Sequence[str]) -> set[int]:
    names: dict[str, set[int]] = {}
    for index, node in enumerate(anatomy.nodes):
        for name in (node.name, node.op_type, *node.output):
            names.setdefault(name, set()).add(index)
    for one in keep:
        if one not in names:
            raise UnknownName("node", one, sorted(name for name in names if name))
    return set().union(*(names[one] for one in keep))


def _can_follow(anatomy: Anatomy, index: int) -> bool:
    """Whether a node has inputs or outputs that can be in half, and those that decide about its result are."""
    node = anatomy.nodes[index]
    if node.op_type == "Cast":
        return _is_harmless_cast(anatomy, node)
    first = next((slot for slot in anatomy.inputs[index] if slot.place == 0), None)
    if first is not None and not first.follows:
        return False
    return all(slot.follows for slot in anatomy.outputs[index])


def _is_harmless_cast(anatomy: Anatomy, node: Any) -> bool:
    """Whether a Cast makes float32 of integers that half holds too."""
    return anatomy.types.get(node.output[0]) == FLOAT and anatomy.types.get(node.input[0]) in SMALL_INTEGERS


def _loses_constants(anatomy: Anatomy, index: int) -> bool:
    node = anatomy.nodes[index]
    if node.op_type == "Clip":  # a bound beyond the greatest value of half bounds nothing there
        return False
    return any(slot.follows and slot.value in anatomy.constants and loses(anatomy.array(slot.value), anatomy.kind)
               for slot in anatomy.inputs[index])


def loses(values: NDArray[Any], kind: Kind) -> bool:
    """Whether constants are beyond what half can hold, or so small that they are rounded far more than others are."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return False
    if np.abs(finite).max() > kind.greatest:
        return True
    lost = finite.astype(np.float32).astype(kind.dtype).astype(np.float64) - finite
    return bool(np.linalg.norm(lost) > 2 * kind.step * np.linalg.norm(finite))


def _fed_by_kept_rounding(anatomy: Anatomy, kept: set[int]) -> set[int]:
    """Heavy nodes behind a DequantizeLinear that stays: with a Cast between them no engine computes in integers."""
    made = {name for index in kept if anatomy.nodes[index].op_type == "DequantizeLinear"
            for name in anatomy.nodes[index].output}
    return {index for index, node in enumerate(anatomy.nodes)
            if node.op_type in HEAVY and made.intersection(node.input)}


def must_be_half(anatomy: Anatomy, kept: set[int]) -> set[int]:
    """The heavy nodes that nothing keeps in float32."""
    return {index for index, node in enumerate(anatomy.nodes)
            if node.op_type in HEAVY and index not in kept and anatomy.outputs[index]}


def float_nodes(anatomy: Anatomy) -> Mapping[int, bool]:
    """The nodes that read or make float32 values; true where something of them follows their precision."""
    found = {}
    for index in range(len(anatomy.nodes)):
        slots = (*anatomy.inputs[index], *anatomy.outputs[index])
        if slots:
            found[index] = any(slot.follows for slot in slots)
    return found


__all__ = ["Anatomy", "Kind", "Slot", "float_nodes", "least_opset", "loses", "must_be_half", "must_stay", "opset_of"]
