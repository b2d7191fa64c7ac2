"""A float32 graph in half precision, fp16 or bf16: weights and activations of two bytes, inputs and outputs of four.

TensorRT 11 has no switch for a precision: it builds what the graph says, and so does ONNX Runtime's CUDA provider. So
the precision is written into the graph. What is numerically delicate stays in float32, see `half_rules`, and as few
values as can be are converted, see `casts`. INT8 graphs (Q/DQ) keep their integers; what they dequantize to is half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetl.compress.surgery import drop_unused
from edgetl.errors import BundleError, EdgetlError, MissingDependency, UnknownName
from edgetl.export import casts, half_rules
from edgetl.export.half_rules import FLOAT, Anatomy, Kind
from edgetl.runtime.external import refuse_external_data

PRECISIONS = ("fp16", "bf16")
SCALES = {"QuantizeLinear": 1, "DequantizeLinear": 1}  # the place of the scale, which must be greater than 0


@dataclass(frozen=True)
class Half:
    """A graph in half precision."""

    graph: bytes
    kept: tuple[str, ...]  # names of the nodes that compute in float32
    opset: int
    casts: int  # how many nodes convert, those at the graph's inputs and outputs included


def to_half(graph: bytes, precision: str = "fp16", *, keep: Sequence[str] = ()) -> Half:
    """The graph with its compute in half; its inputs and outputs stay as they are.

    Args:
        graph: float32 ONNX file, or an INT8 one whose floating-point part is float32.
        precision: "fp16" or "bf16".
        keep: names of nodes or of their outputs, or kinds of operators, that stay in float32 too.

    Raises:
        BundleError: the bytes are no ONNX graph, or its weights lie in other files.
        EdgetlError: a node has a graph inside (If, Loop, Scan), or the graph cannot be raised to the opset it needs.
        UnknownName: no such precision, or nothing in the graph has a name of `keep`.
    """
    kind = kind_of(precision)
    model = raised(readied(graph), kind)
    anatomy = Anatomy(model, kind)
    kept = half_rules.must_stay(anatomy, keep)
    stay = kept | _drawn_in(anatomy, kept)
    added = _Writer(model, anatomy, stay).written()
    fold_pairs(model)
    floats = half_rules.float_nodes(anatomy)
    names = tuple(anatomy.nodes[index].name or anatomy.nodes[index].output[0]
                  for index in sorted(stay) if index in floats and anatomy.nodes[index].name not in anatomy.sizes)
    return Half(_finished(model), names, half_rules.opset_of(model), added)


def kind_of(precision: str) -> Kind:
    """What is to be known of a precision of two bytes.

    Raises:
        UnknownName: it is none.
        MissingDependency: onnx is absent.
    """
    try:
        from ml_dtypes import bfloat16
        from onnx import TensorProto
    except ModuleNotFoundError as problem:
        raise MissingDependency(problem.name or "onnx", extra="train", purpose="Writing graphs in half") from problem
    if precision == "fp16":
        return Kind("fp16", TensorProto.FLOAT16, "tensor(float16)", np.dtype(np.float16), greatest=65504.0,
                    smallest=2.0 ** -24, step=2.0 ** -11, greatest_opset=20)
    if precision == "bf16":
        return Kind("bf16", TensorProto.BFLOAT16, "tensor(bfloat16)", np.dtype(bfloat16), greatest=3.3895e38,
                    smallest=2.0 ** -126, step=2.0 ** -8, greatest_opset=22)
    raise UnknownName("precision", precision, list(PRECISIONS))


# ------------------------------------------------------------------------------------------------------ before the cast


def readied(graph: bytes) -> Any:
    """The model with its constants as initialisers, and without functions and casts that change nothing.

    Raises:
        BundleError, EdgetlError: see `to_half`.
    """
    import onnx
    import onnx.inliner
    from google.protobuf.message import DecodeError

    refuse_external_data(graph)
    try:
        model = onnx.load_from_string(graph)
    except DecodeError as problem:
        raise BundleError(f"The bytes are no ONNX graph: {problem}.") from problem
    _refuse_inner_graphs(model)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _lift_constants(model)
    _dequantize_biases(model)
    _drop_casts_to_themselves(model)
    return model


def _refuse_inner_graphs(model: Any) -> None:
    from onnx import AttributeProto

    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        if any(one.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for one in node.attribute):
            raise EdgetlError(f"The node {node.name or node.output[0]} ({node.op_type}) has a graph inside, which "
                              "cannot be written in half.", hint="Export without control flow, or use fp32.")


def _lift_constants(model: Any) -> None:
    """Turns Constant nodes into initialisers, and initialisers that are inputs too into mere initialisers."""
    from onnx import helper, numpy_helper

    nodes = []
    for node in model.graph.node:
        value = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        tensor = value.get("value")
        for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64),
                            ("value_ints", np.int64)):
            if name in value:
                tensor = numpy_helper.from_array(np.array(value[name], dtype))
        if node.op_type != "Constant" or tensor is None:
            nodes.append(node)
            continue
        added = model.graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = node.output[0]
    _replace(model.graph.node, nodes)
    constants = {one.name for one in model.graph.initializer}
    _replace(model.graph.input, [one for one in model.graph.input if one.name not in constants])


def _dequantize_biases(model: Any) -> None:
    """Turns integer biases of 32 bits into float ones: half has no room for them, nor for their tiny scales."""
    from onnx import numpy_helper

    constants = {one.name: one for one in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or not set(node.input) <= {*constants, ""}:
            nodes.append(node)
            continue
        stored, scale, *zero = (numpy_helper.to_array(constants[name]) for name in node.input if name)
        if stored.dtype != np.int32 or stored.ndim > 1 or scale.dtype != np.float32:
            nodes.append(node)
            continue
        value = (stored.astype(np.float64) - (zero[0] if zero else 0)) * scale.astype(np.float64)
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
    _replace(model.graph.node, nodes)


def _drop_casts_to_themselves(model: Any) -> None:
    import onnx

    types = {one.name: one.type.tensor_type.elem_type
             for one in (*onnx.shape_inference.infer_shapes(model).graph.value_info, *model.graph.input)}
    outputs = {one.name for one in model.graph.output}
    same = {node.output[0]: node.input[0] for node in model.graph.node
            if node.op_type == "Cast" and types.get(node.input[0]) == _aim(node) and node.output[0] not in outputs}
    _bypass(model, same)


def raised(model: Any, kind: Kind) -> Any:
    """The model at the least opset at which its operators take that precision.

    Raises:
        EdgetlError: it cannot be raised.
    """
    import onnx

    wanted = half_rules.least_opset(model, kind)
    if wanted == half_rules.opset_of(model):
        return model
    try:
        higher = onnx.version_converter.convert_version(model, wanted)
    except (RuntimeError, onnx.version_converter.ConvertError) as problem:
        said = (str(problem).strip().splitlines() or ["no reason given"])[-1][:300]
        raise EdgetlError(f"The graph has opset {half_rules.opset_of(model)} and cannot be raised to {wanted}, which "
                          f"{kind.name} needs: {said}", hint="Export it with a newer opset.") from problem
    del higher.metadata_props[:]
    higher.metadata_props.extend(model.metadata_props)
    higher.producer_name, higher.producer_version = model.producer_name, model.producer_version
    least = onnx.helper.find_min_ir_version_for(list(higher.opset_import))
    higher.ir_version = max(model.ir_version, least)
    return higher


# ------------------------------------------------------------------------------------------------------------- the cast


def _drawn_in(anatomy: Anatomy, kept: set[int]) -> set[int]:
    """The nodes that stay in float32 because fewer values are converted so."""
    nodes = half_rules.float_nodes(anatomy)
    free = {index for index, follows in nodes.items() if follows}
    values: dict[str, tuple[int, list[int]]] = {}
    for index in nodes:
        for slot in anatomy.outputs[index]:
            values[slot.value] = (index if slot.follows else casts.FLOAT, [])
    for index in nodes:
        for slot in anatomy.inputs[index]:
            if slot.value not in anatomy.constants:
                maker = values.setdefault(slot.value, (casts.FLOAT, []))
                maker[1].append(index if slot.follows else casts.FLOAT)
    for name in anatomy.results:
        if name in values:
            values[name][1].append(casts.FLOAT)
    return casts.fewest(free, half_rules.must_be_half(anatomy, kept), kept & free,
                        [casts.Value(maker, tuple(readers)) for maker, readers in values.values()])


class _Writer:
    """Rewrites a model: constants in the precisions they are read in, and a Cast where two precisions meet."""

    def __init__(self, model: Any, anatomy: Anatomy, stay: set[int]) -> None:
        self._model, self._anatomy, self._stay = model, anatomy, stay
        self._kind = anatomy.kind
        self._taken = {*anatomy.types, *(name for node in anatomy.nodes for name in (*node.input, *node.output))}
        self._names: dict[tuple[str, bool], str] = {}  # a value in float32 (false) or in half (true)
        self._made_half = {slot.value for index, slots in enumerate(anatomy.outputs) if index not in stay
                           for slot in slots if slot.follows}

    def written(self) -> int:
        """Rewrites the model; the number of conversions."""
        wanted = self._wanted()
        self._write_constants(wanted)
        nodes = [self._cast(one.name, True) for one in self._model.graph.input if (one.name, True) in wanted]
        added = len(nodes)
        for index, node in enumerate(self._anatomy.nodes):
            self._rewire(index, node)
            nodes.append(node)
            for slot in self._anatomy.outputs[index]:
                other = (slot.value, slot.value not in self._made_half)
                if other in wanted:
                    nodes.append(self._cast(*other))
                    added += 1
        _replace(self._model.graph.node, nodes)
        del self._model.graph.value_info[:]  # the engines infer them again; those of what is half now would be wrong
        return added

    def _in_half(self, slot: half_rules.Slot) -> bool:
        return slot.follows and slot.node not in self._stay

    def _wanted(self) -> dict[tuple[str, bool], None]:
        """Every value with each precision that something reads it in, in the graph's order."""
        read = ((slot.value, self._in_half(slot)) for slots in self._anatomy.inputs for slot in slots)
        promised = ((value, False) for value in sorted(self._made_half & self._anatomy.results))
        return dict.fromkeys((*read, *promised))

    def _name(self, value: str, half: bool) -> str:
        """The name of a value in a precision; its own where it is made so, unless a float32 output has that."""
        if (value, half) not in self._names:
            own = not half if value in self._anatomy.results else half == (value in self._made_half)
            self._names[value, half] = value if own else self._fresh(f"{value}_{self._kind.name if half else 'fp32'}")
        return self._names[value, half]

    def _fresh(self, name: str) -> str:
        found, count = name, 1
        while found in self._taken:
            found, count = f"{name}_{count}", count + 1
        self._taken.add(found)
        return found

    def _cast(self, value: str, to_half: bool) -> Any:
        from onnx import helper

        result = self._name(value, to_half)
        return helper.make_node("Cast", [self._name(value, not to_half)], [result], name=self._fresh(f"cast_{result}"),
                                to=self._kind.element if to_half else FLOAT)

    def _rewire(self, index: int, node: Any) -> None:
        half = index not in self._stay and bool(self._anatomy.inputs[index] or self._anatomy.outputs[index])
        for slot in self._anatomy.inputs[index]:
            node.input[slot.place] = self._name(slot.value, self._in_half(slot))
        for slot in self._anatomy.outputs[index]:
            node.output[slot.place] = self._name(slot.value, self._in_half(slot))
        if half and node.op_type == "Cast":
            next(one for one in node.attribute if one.name == "to").i = self._kind.element
        if half and node.op_type == "ConstantOfShape":
            self._write_fill(node)

    def _write_fill(self, node: Any) -> None:
        """ConstantOfShape makes what its attribute is of; without one, float32 zeros."""
        from onnx import helper, numpy_helper

        given = [numpy_helper.to_array(one.t) for one in node.attribute if one.name == "value"]
        filling = (given[0] if given else np.zeros(1, np.float32)).astype(self._kind.dtype)
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(filling)))

    def _write_constants(self, wanted: Mapping[tuple[str, bool], None]) -> None:
        from onnx import numpy_helper

        scales = {node.input[SCALES[node.op_type]] for node in self._anatomy.nodes if node.op_type in SCALES}
        for value, half in wanted:
            if half and value in self._anatomy.constants:
                # The name of the float32 one, where nobody reads that any more.
                if (value, False) not in wanted and value not in self._anatomy.results:
                    self._names[value, True] = value
                array = self._halved(self._anatomy.array(value), scale=value in scales)
                stored = numpy_helper.from_array(array, self._name(value, True))
                if stored.name == value:
                    self._anatomy.constants[value].CopyFrom(stored)
                else:
                    self._model.graph.initializer.append(stored)
            elif value in self._anatomy.constants:
                self._names[value, False] = value

    def _halved(self, values: Any, *, scale: bool) -> Any:
        """Constants in half, those beyond its greatest value at it: only the bounds of a Clip are."""
        bounded = np.where(np.isfinite(values), np.clip(values, -self._kind.greatest, self._kind.greatest), values)
        # A scale is divided by; where it is far below all others of its tensor, the values are next to nothing anyway.
        return (np.maximum(bounded, self._kind.smallest) if scale else bounded).astype(self._kind.dtype)


# ------------------------------------------------------------------------------------------------------- after the cast


def fold_pairs(model: Any) -> None:
    """Takes out pairs of casts that lead back to a value's own precision through a wider one, in place."""
    makers = {name: node for node in model.graph.node for name in node.output}
    outputs = {one.name for one in model.graph.output}
    narrow = {10, 16}
    back: dict[str, str] = {}
    for node in model.graph.node:
        before = makers.get(node.input[0]) if node.op_type == "Cast" else None
        if before is None or before.op_type != "Cast" or _aim(before) != FLOAT or node.output[0] in outputs:
            continue
        if _aim(node) in narrow and _type_of(makers, before.input[0]) == _aim(node):
            back[node.output[0]] = before.input[0]
    _bypass(model, back)


def _type_of(makers: dict[str, Any], value: str) -> int | None:
    """The type of a value where a Cast made it; None elsewhere."""
    node = makers.get(value)
    return _aim(node) if node is not None and node.op_type == "Cast" else None


def _aim(cast: Any) -> int:
    """The type that a Cast makes."""
    return int(next(one.i for one in cast.attribute if one.name == "to"))


def _bypass(model: Any, same: dict[str, str]) -> None:
    """Lets the readers of each key read its value, and drops the nodes that made the keys."""
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            while name in same:
                name = same[name]
            node.input[place] = name
    _replace(model.graph.node, [node for node in model.graph.node if not set(node.output) & set(same)])


def _replace(field: Any, values: Sequence[Any]) -> None:
    kept = list(values)
    del field[:]
    field.extend(kept)


def _finished(model: Any) -> bytes:
    import onnx

    drop_unused(model)
    onnx.checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString(deterministic=True)
    return written
