"""What a channel costs: the parameters, and the multiplications of one image, that leave a network with it."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.weights import parameter_count

Weighted = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Costs:
    """Weighs the layers of a network; the unit is one parameter, one multiplication, or the share of the whole."""

    pixels: Mapping[str, int]  # by layer, see `output_pixels`
    per_parameter: float
    per_mac: float

    @classmethod
    def of(cls, module: nn.Module, size_hw: tuple[int, int], kind: str, channels: int = 3) -> Costs:
        """The costs of a network whose images are `size_hw` pixels.

        Args:
            module: stays as it is.
            size_hw: height and width of its images.
            kind: "params", "macs", or "params+macs": the share of the parameters plus the share of the multiplications.
            channels: of its images.
        """
        pixels = output_pixels(module, size_hw, channels)
        if kind == "params":
            return cls(pixels, 1.0, 0.0)
        if kind == "macs":
            return cls(pixels, 0.0, 1.0)
        if kind == "params+macs":
            return cls(pixels, 1 / parameter_count(module), 1 / _macs(module, pixels))
        raise ValueError(f"unknown cost '{kind}'")

    def of_layers(self, module: nn.Module) -> dict[nn.Module, float]:
        """Price of one weight in each convolution and linear layer of a copy of the network."""
        return {
            layer: self.per_parameter + self.per_mac * self.pixels.get(name, 0)
            for name, layer in module.named_modules()
            if isinstance(layer, Weighted)
        }

    def of_channel(self, step: Any, prices: Mapping[nn.Module, float]) -> float:
        """What one layer loses with one channel of a torch-pruning group.

        Args:
            step: the dependency that says which layer, and which side of it.
            prices: `of_layers` of the module that is pruned.
        """
        layer = step.target.module
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            return 2.0 * self.per_parameter  # it is folded into the convolution before it, and multiplies nothing
        if not isinstance(layer, Weighted):
            return 0.0
        outgoing = "out_channels" in step.handler.__name__ or (isinstance(layer, nn.Conv2d) and layer.groups > 1)
        weights = layer.weight.numel() / layer.weight.shape[0 if outgoing else 1]
        return weights * prices[layer]


def output_pixels(module: nn.Module, size_hw: tuple[int, int], channels: int = 3) -> dict[str, int]:
    """Places that each weight of a layer is applied at for one image, by name of the layer.

    For a convolution these are the pixels of its output, for a linear layer 1 (or the length of a sequence). A layer
    that runs twice counts twice, one that does not run is left out.
    """
    module = copy.deepcopy(module).cpu().eval()
    found: Counter[str] = Counter()

    def count(name: str, layer: Weighted, output: torch.Tensor) -> None:
        found[name] += output.numel() // layer.weight.shape[0]

    for name, layer in module.named_modules():
        if isinstance(layer, Weighted):
            layer.register_forward_hook(lambda layer, _, output, name=name: count(name, layer, output))
    with torch.no_grad():
        module(torch.zeros(1, channels, *size_hw))
    return dict(found)


def image_macs(module: nn.Module, size_hw: tuple[int, int], channels: int = 3) -> int:
    """Multiply-accumulates of one image of `size_hw` pixels and so many channels in convolutions and linear layers."""
    return _macs(module, output_pixels(module, size_hw, channels))


def _macs(module: nn.Module, pixels: Mapping[str, int]) -> int:
    return sum(
        layer.weight.numel() * pixels.get(name, 0)
        for name, layer in module.named_modules()
        if isinstance(layer, Weighted)
    )


FACTORS = {  # which inputs of a node are multiplied with one another
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger", "Einsum"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (0, 3)),
}
CONVERTING = ("QuantizeLinear", "DequantizeLinear")  # known in the domain of ONNX Runtime, too


def graph_macs(graph: bytes, image: Sequence[int | str] = ()) -> int:
    """Multiply-accumulates of one image in an ONNX graph: its convolutions, and the products of matrices.

    What is counted is what runs: layers that the export folded are gone, and products of two activations (attention),
    which have no weights, are there. Additions, activations, norms and pooling are not counted, as is usual.

    Args:
        graph: with one image input whose first dimension may be dynamic.
        image: shape of that input, "N" first; the other sizes need it where the graph leaves them free.

    Raises:
        EdgetlError: the shape of some product cannot be inferred, or the graph has parts whose work nobody knows.
    """
    import onnx

    model = onnx.load_from_string(graph)
    _require_counted(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    for value in inputs:
        sizes = value.type.tensor_type.shape.dim
        for place, one in enumerate(sizes):
            if not one.HasField("dim_value") and (place == 0 or place < len(image)):
                one.dim_value = 1 if place == 0 else int(image[place])
    del model.graph.value_info[:]  # the exporter's speak of any number of images
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        shapes[value.name] = tuple(one.dim_value for one in value.type.tensor_type.shape.dim)
    images = max(1, int(inputs[0].type.tensor_type.shape.dim[0].dim_value))  # of a graph whose batch is fixed
    return sum(_node_macs(node, shapes) for node in inferred.graph.node) // images


def _require_counted(model: Any) -> None:
    """Raises EdgetlError where a graph has operators of another domain, functions or branches."""
    for node in model.graph.node:
        foreign = node.domain not in ("", "ai.onnx") and node.op_type not in CONVERTING
        if foreign or any(one.HasField("g") for one in node.attribute):
            raise EdgetlError(
                f"The multiplications of the graph cannot be counted: what '{node.name}' ({node.domain or 'ai.onnx'} "
                f"{node.op_type}) multiplies is not known.", hint="Count parameters in place of multiplications.",
            )  # fmt: skip


def _node_macs(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of one node; 0 for what multiplies no matrices."""
    if node.op_type not in FACTORS:
        return 0
    factors = [node.input[place] for place in FACTORS[node.op_type]]
    taken = [shapes.get(name, (0,)) for name in (*factors, node.output[0])]
    if not all(math.prod(shape) for shape in taken):
        raise EdgetlError(
            f"The multiplications of the graph cannot be counted: the shapes around '{node.name}' ({node.op_type}) are "
            "not known.", hint="Count parameters in place of multiplications.",
        )  # fmt: skip
    first, second, output = taken
    if node.op_type == "Einsum":
        equation = next(one.s.decode() for one in node.attribute if one.name == "equation").replace(" ", "")
        letters = equation.partition("->")[0].split(",")
        return math.prod(dict(zip("".join(letters), (*first, *second), strict=True)).values())
    if "Conv" in node.op_type:
        places = first if node.op_type == "ConvTranspose" else output
        return math.prod(places) * math.prod(second[1:])
    transposed = any(one.name == "transA" and one.i for one in node.attribute)
    return math.prod(output) * first[-2 if transposed else -1]
