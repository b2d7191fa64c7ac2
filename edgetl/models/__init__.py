"""Catalogue of model families. A file here has

- `variants() -> tuple[str, ...]`: names that follow the slash in `family/variant`, without building anything;
- `build(variant, *, classes, pretrained, weights, image_size) -> Network`: `pretrained` loads the family's own
  published weights, `weights` is a file (safetensors or a state dict) that takes their place; the head
  is new unless it fits;
- `labels(variant)`, only where the published weights have a head of their own: for each of its classes, in its order,
  a tuple of the names that it goes by;
- `resize(variant, module, size)`, only where an architecture is built for one size of image: changes it in place;
- `rechannel(module, channels)`, only where more of an architecture than convolutions is made for three channels:
  changes that in place.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl import plugins
from edgetl.errors import EdgetlError
from edgetl.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightsReport:
    """What became of a file of weights."""

    source: str  # "scratch", a file name, or the hub's name
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # in the model, not in the file
    unexpected: tuple[str, ...] = ()  # in the file, not in the model
    mismatched: tuple[str, ...] = ()  # in both, with other shapes
    reasons: tuple[str, ...] = ()  # what was adapted or left out, and why, one clause each


@dataclass(frozen=True)
class Network:
    """A classifier in torch with what is needed to feed it."""

    model: str  # "family/variant"
    module: torch.nn.Module  # normalised float [N, C, H, W] -> logits [N, classes]
    head: str  # name of the sub-module that holds the last linear layer, e.g. "classifier" or "fc"
    preprocess: Preprocess
    weights: WeightsReport = field(default_factory=lambda: WeightsReport("scratch"))


def create(
    model: str,
    *,
    classes: int,
    pretrained: bool = True,
    weights: Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    foreign: bool = True,
) -> Network:
    """A network by its public name, `family/variant`; `channels` as in `rechanneled`, `foreign` as in `plugins.load`.

    Raises:
        UnknownName: no such family or variant; the nearest is suggested.
        EdgetlError: no such form of name, a dotted family that only a file names, or channels it cannot be adapted to.
    """
    family, slash, variant = model.partition("/")
    if not slash or not variant:
        raise EdgetlError(
            f"'{model}' is not a model: expected FAMILY/VARIANT or a RUN folder.",
            hint=f"Families: {', '.join(plugins.names('models'))}; `edgetl list models` shows the variants.",
        )
    module = plugins.load("models", family, foreign=foreign)
    network: Network = module.build(
        variant, classes=classes, pretrained=pretrained, weights=weights, image_size=image_size
    )
    return rechanneled(network, channels, foreign=foreign)


def rechanneled(network: Network, channels: int | None, *, foreign: bool = False) -> Network:
    """The network for images of so many channels, its first layer adapted in place; None leaves it as it is.

    Raises:
        EdgetlError: it cannot be adapted.
    """
    if channels is None or network.preprocess.channels == channels:
        return network
    from edgetl.models import _channels  # here: it brings torch

    family = plugins.load("models", network.model.partition("/")[0], foreign=foreign)
    return _channels.adapted(network, channels, getattr(family, "rechannel", None))


def class_names(model: str) -> tuple[tuple[str, ...], ...]:
    """For each class of the published weights of `family/variant`, in their order, the names that it goes by.

    Raises:
        UnknownName: no such family or variant.
        EdgetlError: the family does not say.
    """
    family, _, variant = model.partition("/")
    told = getattr(plugins.load("models", family), "labels", None)
    names: tuple[tuple[str, ...], ...] = told(variant) if told is not None else ()
    if not names:
        raise EdgetlError(
            f"{model} does not say which classes its published weights tell apart, so it cannot teach as it is.",
            hint="Fine-tune it on this data first (`edgetl finetune`), or give --teacher-options "
            '"weights=FILE;labels=FILE".',
        )
    return names


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a file of weights: safetensors, or a state dict of plain tensors.

    Raises:
        EdgetlError: no such file, or it holds more than tensors.
    """
    from edgetl.models import _weights  # here: it brings torch

    return _weights.read_file(path)


def resized(network: Network, size: int) -> Network:
    """The network for square images of `size` pixels; its weights stay, position embeddings are interpolated.

    Raises:
        EdgetlError: the architecture does not take that size.
    """
    if network.preprocess.size_hw == (size, size):
        return network
    family, _, variant = network.model.partition("/")
    resize = getattr(plugins.load("models", family, foreign=False), "resize", None)
    if resize is not None:
        resize(variant, network.module, size)
    return dataclasses.replace(network, preprocess=dataclasses.replace(network.preprocess, size_hw=(size, size)))
