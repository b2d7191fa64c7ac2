"""Several networks side by side with one head on all their features: `joined/FAMILY/VARIANT+FAMILY/VARIANT`.

The name says how to build it again: the members, and with `;hidden=256` a layer between their features and the head.
It is what `edgetl finetune --strategy feature-copy` makes. All members see the very same image, prepared for the first
of them; what the others want otherwise of the pixels' scale, mean and deviation is done inside, so that one
preprocessing serves the whole. Their own heads are gone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from edgetl import models, plugins
from edgetl.errors import EdgetlError
from edgetl.models import Network, WeightsReport
from edgetl.runtime.preprocess import Preprocess

FAMILY = "joined"
VARIANT = re.compile(r"([^+;]+(?:\+[^+;]+)*)(?:;hidden=([1-9][0-9]{0,5}))?")
HEAD = "classifier"
HIDDEN = "hidden"  # sub-module between the features and the head


class Rescale(nn.Module):
    """Pixels that are normalised in one way, normalised in another: a factor and an offset for each channel."""

    def __init__(self, given: Preprocess, wanted: Preprocess) -> None:
        """See the class.

        Args:
            given: how the pixels were normalised, (p * scale - mean) / std.
            wanted: how they shall be.
        """
        super().__init__()
        ratio = wanted.scale / given.scale
        factors = [ratio * std / own for std, own in zip(given.std, wanted.std, strict=True)]
        offsets = [(ratio * mean - own) / std
                   for mean, own, std in zip(given.mean, wanted.mean, wanted.std, strict=True)]  # fmt: skip
        self.register_buffer("factor", torch.tensor(factors).view(1, -1, 1, 1))
        self.register_buffer("offset", torch.tensor(offsets).view(1, -1, 1, 1))
        self.factor: torch.Tensor
        self.offset: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return images * self.factor + self.offset


class Joined(nn.Module):
    """Networks without their heads, whose features are concatenated, and one head."""

    def __init__(self, networks: Sequence[Network], widths: Sequence[int], classes: int, hidden: int) -> None:
        """Takes the networks' modules over.

        Args:
            networks: without heads.
            widths: how many features each gives.
            classes: of the head.
            hidden: width of a layer before the head; 0 is none.
        """
        super().__init__()
        first = networks[0].preprocess
        self.members = nn.ModuleList(one.module for one in networks)
        self.rescales = nn.ModuleList(Rescale(first, one.preprocess) for one in networks[1:])
        layer: nn.Module = nn.Sequential(nn.Linear(sum(widths), hidden), nn.ReLU()) if hidden else nn.Identity()
        self.hidden = layer
        self.classifier = nn.Linear(hidden or sum(widths), classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of images [N, C, H, W] that are normalised for the first member."""
        prepared = [images, *(rescale(images) for rescale in self.rescales)]
        features = [pooled(member(one)) for member, one in zip(self.members, prepared, strict=True)]
        logits: torch.Tensor = self.classifier(self.hidden(torch.cat(features, dim=1)))
        return logits


def pooled(features: torch.Tensor) -> torch.Tensor:
    """Features [N, F], averaged over height and width if they have them."""
    return features.mean((2, 3)) if features.ndim == 4 else features


def variants() -> tuple[str, ...]:
    """None can be listed: any networks can be joined."""
    return ()


def build(variant: str, *, classes: int, pretrained: bool, weights: Path | None, image_size: int | None) -> Network:
    """The networks that a variant names, joined, with a head of `classes` outputs.

    Raises:
        UnknownName: a member that does not exist.
        EdgetlError: no such form of name, a file of weights, or members that cannot be joined.
    """
    parsed = VARIANT.fullmatch(variant)
    if parsed is None:
        raise EdgetlError(
            f"{FAMILY}/{variant} does not say which networks are joined, expected {FAMILY}/MODEL+MODEL.",
            hint="`edgetl finetune --strategy feature-copy` makes such a RUN.",
        )
    if weights is not None:
        raise EdgetlError(
            f"A joined network has no single file of weights, found {weights}.",
            hint="Give the RUN folder itself, or --strategy feature-copy with --teacher and --features-from.",
        )
    names = parsed[1].split("+")
    # A name that was read from a RUN imports nobody's own module.
    first = models.create(names[0], classes=classes, pretrained=pretrained, image_size=image_size, foreign=False)
    side = first.preprocess.size_hw[0]
    others = [models.create(name, classes=classes, pretrained=pretrained, image_size=side, foreign=False)
              for name in names[1:]]  # fmt: skip
    return assembled([first, *others], classes=classes, hidden=int(parsed[2] or 0))


def assembled(networks: Sequence[Network], *, classes: int, hidden: int) -> Network:
    """Networks joined to one; their modules become part of it and lose their heads.

    Args:
        networks: the first decides on the preprocessing.
        classes: of the new head.
        hidden: width of a layer before the head; 0 is none.

    Raises:
        EdgetlError: a network that is joined itself, wants other colours or another image size, or gives no features.
    """
    for one in networks:
        _require_member(one, networks[0])
    widths = [_beheaded(one) for one in networks]
    name = "+".join(one.model for one in networks) + (f";{HIDDEN}={hidden}" if hidden else "")
    sources = WeightsReport(" + ".join(one.weights.source for one in networks))
    module = Joined(networks, widths, classes, hidden)
    return Network(f"{FAMILY}/{name}", module, HEAD, networks[0].preprocess, sources)


def _require_member(network: Network, first: Network) -> None:
    if network.model.startswith(f"{FAMILY}/") or not VARIANT.fullmatch(network.model):
        raise EdgetlError(
            f"{network.model} cannot be joined with others.", hint="Join the networks that it is made of."
        )
    wants, given = network.preprocess, first.preprocess
    if (wants.color, wants.channels, wants.size_hw) != (given.color, given.channels, given.size_hw):
        raise EdgetlError(
            f"{network.model} wants {wants.color} images of {wants.size_hw[0]} px and {first.model} {given.color} "
            f"images of {given.size_hw[0]} px; joined networks look at the same image."
        )


def _beheaded(network: Network) -> int:
    """Takes a network's head off, and returns how many features it gives."""
    module = network.module
    module.set_submodule(network.head, nn.Identity())
    training = [one for one in module.modules() if one.training]
    with torch.no_grad():
        module.eval()
        device = next(module.parameters()).device
        features = pooled(module(torch.zeros((2, *network.preprocess.input_shape), device=device)))
    for one in training:
        one.training = True
    if features.ndim != 2:
        raise EdgetlError(f"{network.model} gives features of shape {list(features.shape)}, expected [N, F] or maps.")
    return features.shape[1]


def rechannel(module: nn.Module, channels: int) -> None:
    """Gives what rescales the members' images so many channels, in place; its values are loaded afterwards."""
    for rescale in cast(Joined, module).rescales:
        for name, _ in list(rescale.named_buffers()):
            rescale.register_buffer(name, torch.ones(1, channels, 1, 1))


def resize(variant: str, module: nn.Module, size: int) -> None:
    """Makes the members take images of another size, in place.

    Raises:
        EdgetlError: one does not take it.
    """
    parsed = VARIANT.fullmatch(variant)
    assert parsed is not None  # it was built
    for name, member in zip(parsed[1].split("+"), cast(Joined, module).members, strict=True):
        family, _, rest = name.partition("/")
        change = getattr(plugins.load("models", family, foreign=False), "resize", None)
        if change is not None:
            change(rest, member, size)
