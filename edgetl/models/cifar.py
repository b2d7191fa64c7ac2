"""The small residual networks for 32 px images: `cifar/resnet20`, 32, 44, 56 and 110, made for CIFAR-10.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2. Three stages of
16, 32 and 64 channels; where a stage begins, the shortcut takes every other pixel and fills up with channels of zeros
("option A"), so that it has nothing to learn. Names of tensors, initialisation and normalisation are those of Y.
Idelbayev's `pytorch_resnet_cifar10`, whose published files (`resnet20-12fca82f.th`: 91.73 %, `resnet56-4bfd9763.th`:
93.39 %) fit with `--weights FILE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from edgetl.errors import EdgetlError, UnknownName
from edgetl.models import Network, WeightsReport, _weights
from edgetl.runtime.preprocess import Preprocess

BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}  # blocks in each stage
CHANNELS = (16, 32, 64)
SIZE = 32


class Shortcut(nn.Conv2d):
    """Option A: every other pixel, with as many channels of zeros before as after.

    It is written as a fixed convolution with one 1 in each column. That gives the same numbers as slicing and padding,
    and lets pruning see which channel goes where. Its weight is a buffer, so that no training moves it, and stays one
    when pruning puts a smaller parameter in its place.
    """

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__(channels, wanted, kernel_size=1, stride=2, bias=False)
        places = F.pad(torch.eye(channels), (0, 0, (wanted - channels) // 2, (wanted - channels) // 2))
        del self.weight
        self.register_buffer("weight", places[:, :, None, None])

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.detach() if isinstance(value, nn.Parameter) else value)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        narrower = channels != wanted
        self.conv1 = nn.Conv2d(channels, wanted, 3, stride=2 if narrower else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wanted)
        self.conv2 = nn.Conv2d(wanted, wanted, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wanted)
        self.shortcut = Shortcut(channels, wanted) if narrower else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W], or [N, 2 C, H / 2, W / 2] where a stage begins."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        return F.relu(inner + self.shortcut(images))


class ResNet(nn.Module):
    """A stem, three stages of blocks, the mean over all pixels, and one linear layer."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, CHANNELS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        before = (CHANNELS[0], *CHANNELS)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(first, wanted), *(Block(wanted, wanted) for _ in range(blocks - 1)))
            for first, wanted in zip(before, CHANNELS, strict=False)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(CHANNELS[-1], classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer, Shortcut):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of normalised images [N, 3, H, W]."""
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: torch.Tensor = self.linear(self.pool(maps).flatten(1))
        return logits


def variants() -> tuple[str, ...]:
    """resnet20 to resnet110."""
    return tuple(BLOCKS)


def build(variant: str, *, classes: int, pretrained: bool, weights: Path | None, image_size: int | None) -> Network:
    """A residual network with a head of `classes` outputs, which is new unless the weights' own fits.

    Raises:
        UnknownName: no such variant.
        EdgetlError: published weights are wanted and no file is named, or it does not fit.
    """
    if variant not in BLOCKS:
        raise UnknownName("model", variant, variants())
    if pretrained and weights is None:
        raise EdgetlError(
            f"cifar/{variant} comes with no weights of its own.",
            hint="Bring a file with --weights FILE, or start from scratch with --no-pretrained.",
        )
    module = ResNet(BLOCKS[variant], classes)
    size = image_size or SIZE
    wants = Preprocess(size_hw=(size, size), crop_fraction=1.0)
    report = WeightsReport("scratch")
    if weights is not None:
        state = completed(_weights.read_file(weights), module)
        report = _weights.load_state(module, state, source=str(weights))
    return Network(f"cifar/{variant}", module, "linear", wants, report)


def completed(state: Mapping[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict with what published files do not hold and nobody learned: fixed shortcuts, counts of batches."""
    unlearned = ("shortcut.weight", "num_batches_tracked")
    return {**{name: tensor for name, tensor in module.named_buffers() if name.endswith(unlearned)}, **state}
