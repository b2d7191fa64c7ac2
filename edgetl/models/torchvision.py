"""Classifiers of torchvision: `torchvision/<name>`, e.g. `torchvision/resnet50`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from edgetl.errors import EdgetlError, UnknownName
from edgetl.models import Network, WeightsReport, _weights
from edgetl.runtime.preprocess import Preprocess


def variants() -> tuple[str, ...]:
    """Names of torchvision's classification architectures."""
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def build(variant: str, *, classes: int, pretrained: bool, weights: Path | None, image_size: int | None) -> Network:
    """A torchvision model with a new head of `classes` outputs.

    Raises:
        UnknownName: torchvision has no such classifier.
        EdgetlError: the published weights cannot be had, or the architecture is not supported yet.
    """
    import torchvision

    if variant not in variants():
        raise UnknownName("model", variant, variants())
    published = torchvision.models.get_model_weights(variant).DEFAULT
    if "aux_logits" in published.meta or variant in ("googlenet", "inception_v3"):
        raise EdgetlError(
            f"torchvision/{variant} has auxiliary heads, which edgetl does not train.",
            hint="Choose another variant; `edgetl list models torchvision` shows them.",
        )
    hub = pretrained and weights is None
    options = {"image_size": image_size} if variant.startswith("vit_") and image_size else {}
    if hub and image_size not in (None, published.transforms().crop_size[0]) and options:
        raise EdgetlError(
            f"torchvision/{variant} has published weights for {published.transforms().crop_size[0]} px only, "
            f"found --image-size {image_size}.",
            hint="Leave --image-size out, or start from scratch with --no-pretrained.",
        )
    module = torchvision.models.get_model(variant, weights=None, **options)
    if hub:
        with _weights.explained_download(f"torchvision/{variant}", hub):
            # Not get_model(weights=...): that would unpickle whatever the file holds.
            module.load_state_dict(published.get_state_dict(progress=False, check_hash=True, weights_only=True))
    report = WeightsReport(f"torchvision: {published}" if hub else "scratch")
    if weights is not None:
        report = _weights.load_file(module, weights)
    head = replace_head(module, classes)
    return Network(f"torchvision/{variant}", module, head, preprocess_of(published, image_size), report)


def replace_head(module: nn.Module, classes: int) -> str:
    """Puts a new last layer of `classes` outputs in, and returns its name.

    The classifier of every torchvision family is its last linear layer, or (SqueezeNet) its last convolution.

    Raises:
        EdgetlError: the module has neither.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        raise EdgetlError(f"{type(module).__name__} has no linear layer or convolution to be its head.")
    name, old = str(layers[-1][0]), layers[-1][1]
    fresh: nn.Module
    if isinstance(old, nn.Linear):
        fresh = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    else:
        fresh = nn.Conv2d(old.in_channels, classes, kernel_size=1)
    module.set_submodule(name, fresh)
    return name


def preprocess_of(published: Any, image_size: int | None) -> Preprocess:
    """The evaluation preprocessing of the weights' own transforms."""
    transforms = published.transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    size = image_size or crop
    return Preprocess(
        size_hw=(size, size),
        crop_fraction=min(1.0, crop / resize),
        interpolation=str(transforms.interpolation.value),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
