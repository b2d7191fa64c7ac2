"""A Q/DQ graph whose weights, biases and steps can be trained: what it rounds stays where its writer put it.

Everything is counted in what it was at the start: weights in their channel's step, steps in their first size, biases
in what one step of every weight changes. Batch normalisation is folded into the weights, so that a channel may have
weights a hundred times those of its neighbour; one learning rate fits both only in such units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgetl.compress.course import Untrainable
from edgetl.compress.fakequant import gain_of, rounded
from edgetl.compress.onnx_ops import Node
from edgetl.compress.onnx_torch import Program
from edgetl.compress.rounding import INT8, KINDS

# What passes values on as they are: rounding before and after it must be the same for an engine to take both away.
COMMUTING = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
WITHIN = 0.499  # of a step around a rounded weight that its float weight starts in
# A sum of D products with random signs is about sqrt(D) of them, and a usual input a quarter of the greatest.
USUAL_INPUT = 0.25
GREATEST_BIAS = 2**31 - 1


class Steps:
    """The step of an activation, or of each output channel of a weight, that is learned.

    Args:
        first: what it is before; a number or [O].
        kind: the type that must be able to express it.
        moves: False leaves it as it is.
    """

    def __init__(self, first: torch.Tensor, kind: torch.dtype, *, moves: bool = True) -> None:
        self.first, self.kind = first, kind
        self.log = torch.zeros_like(first, requires_grad=moves)  # of its ratio to `first`, so that it stays positive

    def value(self) -> torch.Tensor:
        """What it is now."""
        exact = self.first * self.log.exp()
        return exact + (exact.detach().to(self.kind).to(exact.dtype) - exact.detach())


@dataclass
class Weight:
    """The int8 weight of a layer, as the float weight it is rounded from."""

    ints: str  # the constant that holds it
    scale: str  # the constant that holds its steps
    steps: Steps
    axis: int  # that counts output channels
    greatest: int  # step of either sign
    units: torch.Tensor  # in first steps

    def _spread(self, steps: torch.Tensor) -> torch.Tensor:
        shape = [1] * self.units.ndim
        shape[self.axis] = -1
        return steps.reshape(shape) if steps.ndim else steps

    def value(self, *_: torch.Tensor) -> torch.Tensor:
        """The rounded weight."""
        steps = self.steps.value()
        gain = gain_of(self.units.numel() // max(steps.numel(), 1), -self.greatest, self.greatest)
        values = self.units * self._spread(self.steps.first)
        return rounded(values, self._spread(steps), -self.greatest, self.greatest, gain=gain)

    def integers(self) -> torch.Tensor:
        """The rounded weight in steps, int8."""
        found = self.value() / self._spread(self.steps.value())
        return found.round().to(torch.int8)


@dataclass
class Bias:
    """The bias of a layer, in float."""

    name: str  # the constant that holds it
    first: torch.Tensor
    unit: torch.Tensor
    moved: torch.Tensor  # in units
    scale: str | None  # the constant that holds its steps where it is int32
    steps: Callable[[], torch.Tensor]  # of the products that it is added to

    def value(self, *_: torch.Tensor) -> torch.Tensor:
        """The bias."""
        return self.first + self.unit * self.moved


class Trainable:
    """An INT8 graph that can be trained.

    Args:
        int8: ModelProto with Q/DQ, float32 where it is not rounded.
        floats: the float weights by the name of their constant; int8 weights start from them, as near as their rounding
            allows, and from the rounded ones where there is none.
        greatest: step of a weight, of either sign.
        fixed: activations whose step does not move.
        kind: the type that must be able to express steps, "float32" or "float16".

    Raises:
        Untrainable: an operator that training cannot run, nothing that is rounded, or Q/DQ of another kind.
    """

    def __init__(self, int8: Any, floats: Mapping[str, torch.Tensor], *, greatest: int,
                 fixed: frozenset[str] = frozenset(), kind: str = "float32") -> None:
        self.model, self.program = int8, Program(int8)
        self.greatest, self.kind = greatest, getattr(torch, kind)
        self.activations = self._activations(fixed)
        self.weights = {name: self._weight(node, floats) for name, node in self._restored() if self._is_weight(name)}
        self.biases = dict(self._biases())
        if not self.weights:
            raise Untrainable("The graph has no layer with int8 weights, so there is nothing to train.")

    def run(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The graph's outputs by name for images [N, C, H, W], with gradients."""
        constants = {one.name: one.value() for name, one in self.biases.items() if name not in self.program.makers}
        return self.program.run({self.program.inputs[0]: images} | constants, self._made())

    def parameters(self) -> list[torch.Tensor]:
        """What moves, each in its own unit: weights and biases."""
        return [*(one.units for one in self.weights.values()), *(one.moved for one in self.biases.values())]

    def step_parameters(self) -> list[torch.Tensor]:
        """What moves as the logarithm of its size: steps."""
        every = [*self.activations.values(), *(one.steps for one in self.weights.values())]
        return list({id(one.log): one.log for one in every if one.log.requires_grad}.values())

    # ------------------------------------------------------------------------------------------------ what is there

    def _activations(self, fixed: frozenset[str]) -> dict[str, Steps]:
        """The steps of activations by the name of their constant; one for what is only moved in between."""
        found: dict[str, Steps] = {}
        tied: dict[tuple[str, float], Steps] = {}
        for node in self.program.nodes:
            if node.kind != "QuantizeLinear":
                continue
            scale = self._constant(node, 1)
            if scale.numel() != 1:
                raise Untrainable(f"'{node.inputs[0]}' is rounded by channel, which no engine here computes with.")
            key = (self._origin(node.inputs[0]), float(scale))
            own = tied.get(key) or Steps(scale, self.kind, moves=node.inputs[0] not in fixed)
            tied[key] = found[node.inputs[1]] = found.get(node.inputs[1], own)
        return found

    def _origin(self, name: str) -> str:
        """Where a value was computed that has only been moved and rounded since."""
        passing = COMMUTING | {"QuantizeLinear", "DequantizeLinear"}
        while (node := self.program.makers.get(name)) is not None and node.kind in passing:
            name = node.inputs[0]
        return name

    def _constant(self, node: Node, place: int) -> torch.Tensor:
        name = node.inputs[place] if place < len(node.inputs) else ""
        if name not in self.program.constants:
            raise Untrainable(f"'{node.name}' rounds with a step or zero point that is no constant.")
        return self.program.constants[name]

    def _restored(self) -> Iterator[tuple[str, Node]]:
        """Restored constants, by name."""
        for node in self.program.nodes:
            if node.kind == "DequantizeLinear" and node.inputs[0] in self.program.constants:
                yield node.outputs[0], node

    def _layers(self) -> Iterator[Node]:
        return (node for node in self.program.nodes if node.kind in KINDS)

    def _is_weight(self, name: str) -> bool:
        maker = self.program.makers[name]
        kind = self.program.constants[maker.inputs[0]].dtype
        return kind == torch.int8 and any(layer.inputs[1] == name for layer in self._layers())

    def _weight(self, node: Node, floats: Mapping[str, torch.Tensor]) -> Weight:
        ints, first = self._constant(node, 0).to(torch.float32), self._constant(node, 1)
        if len(node.inputs) > 2 and bool(self._constant(node, 2).any()):
            raise Untrainable(f"'{node.inputs[0]}' has a zero point other than 0.")
        found = Weight(node.inputs[0], node.inputs[1], Steps(first, self.kind), node.get("axis", 1), self.greatest,
                       ints)
        exact = floats.get(node.inputs[0].removesuffix(INT8))
        if exact is not None and exact.shape == ints.shape:
            # Not nearer to another step than to that which compensation chose: training starts from the graph as it is.
            found.units = (exact / found._spread(first)).clamp(ints - WITHIN, ints + WITHIN)
        found.units = found.units.clone().requires_grad_()
        return found

    def _biases(self) -> Iterator[tuple[str, Bias]]:
        """Biases of layers with int8 weights, by the name of the value that the layer reads."""
        for layer in self._layers():
            weight = self.weights.get(layer.inputs[1])
            if weight is not None and len(layer.inputs) > 2 and layer.inputs[2]:
                yield layer.inputs[2], self._bias(layer, weight)

    def _bias(self, layer: Node, weight: Weight) -> Bias:
        name = layer.inputs[2]
        restored = self.program.makers.get(name)
        scale = None
        if restored is not None:
            ints, scale, name = self._constant(restored, 0), restored.inputs[1], restored.inputs[0]
            first = (ints.to(torch.float64) * self._constant(restored, 1).to(torch.float64)).to(torch.float32)
        else:
            first = self.program.constants[name]
        source, steps = self._source(layer), weight.steps
        usual = USUAL_INPUT * 255 * float(source.first) * math.sqrt(weight.units.numel() / len(first))
        unit = (steps.first * usual).broadcast_to(first.shape).clone()
        return Bias(name, first, unit, torch.zeros_like(first, requires_grad=True), scale,
                    lambda: source.value() * steps.value())

    def _source(self, layer: Node) -> Steps:
        """The step of a layer's input."""
        restored = self.program.makers.get(layer.inputs[0])
        if restored is None or restored.kind != "DequantizeLinear" or restored.inputs[1] not in self.activations:
            raise Untrainable(f"The layer '{layer.name}' has int8 weights and an input that is not rounded.")
        return self.activations[restored.inputs[1]]

    # ------------------------------------------------------------------------------------------- forward and back

    def _made(self) -> dict[str, Callable[..., torch.Tensor]]:
        """How rounded values are computed, with gradients."""
        made: dict[str, Callable[..., torch.Tensor]] = {}
        for node in self.program.nodes:
            if node.kind == "QuantizeLinear":
                made[node.outputs[0]] = self._rounding(node)
            elif node.kind == "DequantizeLinear" and node.inputs[0] not in self.program.constants:
                if node.inputs[1] not in self.activations:
                    raise Untrainable(f"'{node.name}' restores values with another step than they were rounded with.")
                made[node.outputs[0]] = lambda values, *_: values  # they were restored when they were rounded
        made |= {name: one.value for name, one in self.weights.items()}
        made |= {name: one.value for name, one in self.biases.items() if name in self.program.makers}
        return made

    def _rounding(self, node: Node) -> Callable[..., torch.Tensor]:
        zero = self._constant(node, 2)
        ends, steps = torch.iinfo(zero.dtype), self.activations[node.inputs[1]]
        low, high = ends.min - int(zero), ends.max - int(zero)

        def apply(values: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return rounded(values, steps.value(), low, high, gain=gain_of(values[0].numel(), low, high))

        return apply

    def graph(self) -> Any:
        """The Q/DQ graph as it is now: a copy of the first, with other constants."""
        import onnx
        from onnx import numpy_helper

        with torch.no_grad():
            values = dict(self._written())
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for one in model.graph.initializer:
            if one.name in values:
                one.CopyFrom(numpy_helper.from_array(values[one.name], one.name))
        return model

    def _written(self) -> Iterator[tuple[str, Any]]:
        """Constants by name, as arrays."""
        for name, steps in self.activations.items():
            yield name, steps.value().numpy()
        for weight in self.weights.values():
            yield weight.scale, weight.steps.value().numpy()
            yield weight.ints, weight.integers().numpy()
        for bias in self.biases.values():
            if bias.scale is None:
                yield bias.name, bias.value().numpy()
                continue
            products = bias.steps().broadcast_to(bias.first.shape).numpy()
            # In float64: int32 has more digits than float32.
            ints = np.rint(bias.value().numpy().astype(np.float64) / products.astype(np.float64))
            yield bias.scale, products.reshape(self.program.constants[bias.scale].shape)
            yield bias.name, np.clip(ints, -GREATEST_BIAS, GREATEST_BIAS).astype(np.int32)
