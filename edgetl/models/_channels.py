"""A network for images of another number of channels: its first convolutions adapted, and its normalisation with them.

- One channel: the weights of the three colours are summed, which is what a grey image in all three would meet. Each
  colour's weights are rescaled by its own std before, and what the differing means add goes into the bias, or into the
  running mean of the batch norm that follows; so the answer to a grey image is the one that the network gave before,
  except where the images' border is padded. mean and std are those of the colours on average.
- More channels: the weights are repeated, R, G, B, R, ..., and multiplied by 3 / channels, so that the sum stays about
  as large. mean and std are repeated alike.

That is the rule of timm (`timm.models.adapt_input_conv`), with the normalisation taken in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.runtime.preprocess import Preprocess

COLORS = 3
GRAY = 1


@dataclasses.dataclass
class Reader:
    """A convolution that reads the image itself."""

    name: str
    layer: nn.Conv2d
    output: torch.Tensor | None = None
    norm: Any = None  # the batch norm behind it


def adapted(network: Network, channels: int, within: Callable[[nn.Module, int], None] | None = None) -> Network:
    """The network for images of `channels` channels; its module is changed in place.

    Args:
        network: for three channels, or as many as are asked for.
        channels: of the images.
        within: changes what else in the module is made for a number of channels.

    Raises:
        EdgetlError: it takes another number already, or reads its images with something else than convolutions.
    """
    before = network.preprocess
    if before.channels == channels:
        return network
    if before.channels != COLORS:
        raise EdgetlError(
            f"{network.model} takes images of {before.channels} channels here, found --in-channels {channels}; only "
            "networks of 3 channels can be adapted.",
            hint="Leave --in-channels out, or start from published weights.",
        )
    wants = preprocess_for(before, channels)
    readers = _readers(network)
    if not readers:
        raise EdgetlError(
            f"{network.model} does not read its images with a convolution over 3 channels, so that it cannot be "
            f"adapted to {channels}.", hint="Choose another network, or leave --in-channels out.",
        )  # fmt: skip
    if within is not None:
        within(network.module, channels)
    with torch.no_grad():
        for reader in readers:
            _adapt(reader, before, wants)
    told = tuple(f"{one.name} was adapted from {COLORS} channels to {channels}" for one in readers)
    report = dataclasses.replace(network.weights, reasons=(*network.weights.reasons, *told))
    return dataclasses.replace(network, preprocess=wants, weights=report)


def preprocess_for(before: Preprocess, channels: int) -> Preprocess:
    """The preprocessing of a network for colours, for another number of channels."""
    mean, std = (tuple(reversed(one)) if before.color == "bgr" else one for one in (before.mean, before.std))
    if channels == GRAY:
        return dataclasses.replace(before, color="gray", mean=(sum(mean) / COLORS,), std=(sum(std) / COLORS,))
    places = [channel % COLORS for channel in range(channels)]
    return dataclasses.replace(
        before, color="rgba" if channels == 4 else "planes", mean=tuple(mean[place] for place in places),
        std=tuple(std[place] for place in places),
    )  # fmt: skip


def _readers(network: Network) -> list[Reader]:
    """What a forward pass shows: convolutions that are fed with an image of three channels, and their batch norms."""
    module, size = network.module, network.preprocess.size_hw
    modes = {one: one.training for one in module.modules()}
    found: list[Reader] = []

    def before(name: str, layer: nn.Module, image: Any) -> None:
        if isinstance(layer, nn.Conv2d):
            if layer.groups == 1 and tuple(image.shape[1:]) == (COLORS, *size):
                found.append(Reader(name, layer))
        else:
            for reader in found:
                reader.norm = layer if image is reader.output else reader.norm

    def after(layer: nn.Module, output: Any) -> None:
        for reader in found:
            reader.output = output if reader.layer is layer else reader.output

    kinds = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, kinds):
                hooks.callback(layer.register_forward_pre_hook(
                    lambda layer, inputs, name=name: before(name, layer, inputs[0])).remove)  # fmt: skip
                hooks.callback(layer.register_forward_hook(lambda layer, _, output: after(layer, output)).remove)
        module.eval()
        module(torch.zeros((2, COLORS, *size), device=next(module.parameters()).device))
    for one, training in modes.items():
        one.training = training
    return list({reader.layer: reader for reader in found}.values())


def _adapt(reader: Reader, before: Preprocess, wants: Preprocess) -> None:
    layer, count = reader.layer, wants.channels
    weight = layer.weight.detach().flip(1) if before.color == "bgr" else layer.weight.detach()
    mean, std = (torch.tensor(tuple(reversed(one)) if before.color == "bgr" else one, dtype=torch.float64)
                 for one in (before.mean, before.std))  # fmt: skip
    if count == GRAY:
        shares = (weight.double() / std.view(1, -1, 1, 1).to(weight.device)).sum((2, 3))
        _shift(reader, (shares * (wants.mean[0] - mean).to(weight.device)).sum(1).to(weight.dtype))
        fresh = (weight.double() * (wants.std[0] / std).view(1, -1, 1, 1).to(weight.device)).sum(1, keepdim=True)
    else:
        fresh = weight.repeat(1, math.ceil(count / COLORS), 1, 1)[:, :count] * (COLORS / count)
    layer.weight = nn.Parameter(fresh.to(weight.dtype).contiguous(), requires_grad=layer.weight.requires_grad)
    layer.in_channels = count


def _shift(reader: Reader, offset: torch.Tensor) -> None:
    """Adds to each output [O] of a convolution what the colours' means made of it."""
    if reader.layer.bias is not None:
        reader.layer.bias += offset
    elif reader.norm is not None and reader.norm.running_mean is not None:
        reader.norm.running_mean -= offset
