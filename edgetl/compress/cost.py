"""What a channel costs: the parameters, and the multiplications of one image, that leave a network with it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetl.weights import parameter_count

Weighted = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Costs:
    """Weighs the layers of a network; the unit is one parameter, one multiplication, or the share of the whole."""

    pixels: Mapping[str, int]  # by layer, see `output_pixels`
    per_parameter: float
    per_mac: float

    @classmethod
    def of(cls, module: nn.Module, size_hw: tuple[int, int], kind: str) -> Costs:
        """The costs of a network whose images are `size_hw` pixels.

        Args:
            module: stays as it is.
            size_hw: height and width of its images.
            kind: "params", "macs", or "params+macs": the share of the parameters plus the share of the multiplications.
        """
        pixels = output_pixels(module, size_hw)
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


def output_pixels(module: nn.Module, size_hw: tuple[int, int]) -> dict[str, int]:
    """Places that each weight of a layer is applied at for one image, by name of the layer.

    For a convolution these are the pixels of its output, for a linear layer 1 (or the length of a sequence). A layer
    that runs twice counts twice, one that does not run is left out.
    """
    module = copy.deepcopy(module).eval()
    found: Counter[str] = Counter()

    def count(name: str, layer: Weighted, output: torch.Tensor) -> None:
        found[name] += output.numel() // layer.weight.shape[0]

    for name, layer in module.named_modules():
        if isinstance(layer, Weighted):
            layer.register_forward_hook(lambda layer, _, output, name=name: count(name, layer, output))
    with torch.no_grad():
        module(torch.zeros(1, 3, *size_hw))
    return dict(found)


def image_macs(module: nn.Module, size_hw: tuple[int, int]) -> int:
    """Multiply-accumulates of one image of `size_hw` pixels in convolutions and linear layers."""
    return _macs(module, output_pixels(module, size_hw))


def _macs(module: nn.Module, pixels: Mapping[str, int]) -> int:
    return sum(
        layer.weight.numel() * pixels.get(name, 0)
        for name, layer in module.named_modules()
        if isinstance(layer, Weighted)
    )
