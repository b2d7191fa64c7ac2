"""ONNX graphs run by torch, so that their constants can be trained: an interpreter, node by node.

What is trained must be the very graph that is shipped, Q/DQ where that has Q/DQ, whoever wrote it. The network that a
graph was exported from has other layers (batch normalisation is folded), and foreign graphs have no network. The one
library that turns graphs into modules, onnx2torch 1.5.15 of 2024, knows neither Q/DQ nor ReduceMean of operator set 18.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

import torch

from edgetl.compress.course import Untrainable
from edgetl.compress.onnx_ops import OPERATORS, Node

Made = Mapping[str, Callable[..., torch.Tensor]]  # by the first output of a node: what computes it from the inputs


class Program:
    """A graph that torch can run; its constants are float and int tensors.

    Args:
        model: ModelProto.

    Raises:
        Untrainable: it has operators that are not among `onnx_ops.OPERATORS`; names them.
    """

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.nodes = _ordered([_read(node) for node in model.graph.node])
        lacking = sorted({node.kind for node in self.nodes if node.kind not in OPERATORS})
        if lacking:
            raise Untrainable(f"The graph has operators that training cannot run: {', '.join(lacking)}.",
                              hint="Do without quantization-aware distillation: --qat-epochs 0.")
        self.constants = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy())
                          for one in model.graph.initializer}
        self.inputs = [one.name for one in model.graph.input if one.name not in self.constants]
        self.outputs = [one.name for one in model.graph.output]
        self.makers = {name: node for node in self.nodes for name in node.outputs}
        self._last = {name: place for place, node in enumerate(self.nodes) for name in node.inputs}

    def run(self, feeds: Mapping[str, torch.Tensor], made: Made | None = None) -> dict[str, torch.Tensor]:
        """The graph's outputs, by name.

        Args:
            feeds: its inputs.
            made: values that are computed in another way than their nodes say.
        """
        known: dict[str, Any] = {**self.constants, **feeds}
        made = made or {}
        for place, node in enumerate(self.nodes):
            inputs = [known[name] if name else None for name in node.inputs]
            own = made.get(node.outputs[0])
            found = own(*inputs) if own is not None else OPERATORS[node.kind](node, inputs)
            values = found if isinstance(found, list) else [found]
            known.update(zip(node.outputs, values, strict=False))  # of optional outputs only the first are there
            for name in node.inputs:
                if self._last[name] == place and name not in self.constants and name not in self.outputs:
                    known.pop(name, None)  # autograd keeps what it needs
        return {name: known[name] for name in self.outputs}


def _ordered(nodes: Sequence[Node]) -> list[Node]:
    """The nodes in the order of computation, in which a graph that an engine wrote need not be."""
    makers = {name: place for place, node in enumerate(nodes) for name in node.outputs if name}
    before = {place: {makers[name] for name in node.inputs if name in makers} for place, node in enumerate(nodes)}
    return [nodes[place] for place in TopologicalSorter(before).static_order()]


def _read(node: Any) -> Node:
    from onnx import helper

    kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    given = {one.name: _plain(helper.get_attribute_value(one)) for one in node.attribute}
    return Node(kind, node.name, tuple(node.input), tuple(node.output), given)


def _plain(value: Any) -> Any:
    """An attribute as torch takes it."""
    from onnx import TensorProto, numpy_helper

    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, TensorProto):
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    return value if isinstance(value, str | int | float) else list(value)
