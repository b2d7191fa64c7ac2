"""Small edits of ONNX graphs that leave every answer as it is."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

SHAPES = frozenset({"Shape", "Size"})


def shape_arithmetic(model: Any) -> list[str]:
    """Names of the nodes that compute with sizes: numbers that must not be rounded. Nodes without a name get one."""
    constants = {tensor.name for tensor in model.graph.initializer} | {""}
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{place}"
    sizes: set[str] = set()
    found: dict[str, None] = {}
    before = -1
    while before < len(sizes) + len(constants):  # a graph that an engine wrote need not be in the order of computation
        before = len(sizes) + len(constants)
        for node in model.graph.node:
            inputs = set(node.input) - constants
            if node.op_type in SHAPES or (inputs and inputs <= sizes):
                sizes |= set(node.output)
                found[node.name] = None
            elif not inputs:
                constants |= set(node.output)
    return list(found)


def keep_outputs_float(model: Any) -> None:
    """Removes the rounding of the graph's outputs, in place.

    Rounding logits to 256 steps makes ties of the two best classes and saves nothing: the last integer kernel has the
    sum in 32 bits and can hand it out as float. An output that other nodes read too (features, which go into the last
    layer) stays what it is, float values of 256 steps: integer kernels computed them, and one reads them.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    for output in graph.output:
        dequantize = makers.get(output.name)
        rounded = makers.get(dequantize.input[0]) if dequantize is not None and dequantize.input else None
        if rounded is None or rounded.op_type != "QuantizeLinear" or readers[output.name]:
            continue
        maker = makers.get(rounded.input[0])
        if maker is None or readers[rounded.input[0]] != 1 or readers[rounded.output[0]] != 1:
            continue
        graph.node.remove(dequantize)
        graph.node.remove(rounded)
        maker.output[list(maker.output).index(rounded.input[0])] = output.name


def spell_einsums(model: Any) -> None:
    """Writes the equations of Einsum nodes in small letters without spaces, in place: TensorRT parses no others."""
    for node in model.graph.node:
        for one in node.attribute:
            if node.op_type == "Einsum" and one.name == "equation":
                one.s = _in_small_letters(one.s.decode()).encode()


def _in_small_letters(equation: str) -> str:
    """The same equation; itself where there are not enough letters, or where their order says what comes out."""
    letters = dict.fromkeys(one for one in equation if one.isalpha())
    if "->" not in equation or len(letters) > len(string.ascii_lowercase):
        return equation
    free = (one for one in string.ascii_lowercase if one not in letters)
    names = {one: one if one.islower() else next(free) for one in letters}
    return "".join(names.get(one, one) for one in equation if not one.isspace())


def cut(model: Any, names: Sequence[str]) -> Any:
    """A graph that computes these values and nothing that they do not need."""
    import onnx

    makers = {name: node for node in model.graph.node for name in node.output}
    wanted, todo = set(names), list(names)
    while todo:
        node = makers.get(todo.pop())
        new = set(node.input) - wanted if node is not None else set()
        wanted |= new
        todo += new
    found = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    found.graph.name = model.graph.name
    found.graph.node.extend(node for node in model.graph.node if wanted & set(node.output))
    found.graph.initializer.extend(one for one in model.graph.initializer if one.name in wanted)
    found.graph.input.extend(model.graph.input)
    found.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return found


def drop_unused(model: Any) -> None:
    """Removes constants that no node reads and operator sets that no node is of, in place."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    domains = {node.domain for node in graph.node} | {""}
    opsets = [opset for opset in model.opset_import if opset.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
