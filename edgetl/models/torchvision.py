"""Every classifier of torchvision: `torchvision/resnet50`, or `torchvision/resnet50.IMAGENET1K_V1` for other weights.

What the published weights want of a network is taken over as it stands, with two exceptions, which change no answer:

- GoogLeNet and Inception v3 are built without their auxiliary heads. These only regularise a training from scratch and
  are thrown away after it (Szegedy et al. 2014, arXiv:1409.4842; the authors found no early gain from them in
  arXiv:1512.00567, section 4); Inception's fits no image below some 290 px, and GoogLeNet's published ones are noise.
  Files of weights may hold them; the report says that they were left out.
- The same two rescale ImageNet's normalisation to (p - 0.5) / 0.5 inside the network. Here their preprocessing says so.

Any image size is possible that the architecture allows: position embeddings of vision transformers are interpolated,
MaxViT needs multiples of its windows, and everything else has a least size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgetl.errors import EdgetlError, MissingDependency, UnknownName
from edgetl.models import Network, WeightsReport, _weights
from edgetl.runtime.preprocess import Preprocess

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
CENTRED = ("googlenet", "inception")  # families whose weights want (p - 0.5) / 0.5
POSITIONS = "encoder.pos_embedding"
LEAST_SWIN = 32  # patches of 4 px, merged three times; the windows pad what is left over
STEP_MAXVIT = 224  # 7 px windows after five halvings
# Keys of files older than the architectures' present names; torchvision renames them the same way.
OLD_KEYS = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)"), r"\1"),  # norm.1 -> norm1
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


def variants() -> tuple[str, ...]:
    """Names of torchvision's classification architectures."""
    zoo = _zoo()
    return tuple(zoo.list_models(module=zoo))


def family(variant: str) -> str:
    """The file of torchvision that an architecture comes from: "resnet" for wide_resnet50_2."""
    return str(_zoo().get_model_builder(variant).__module__.rpartition(".")[2])


def build(variant: str, *, classes: int, pretrained: bool, weights: Path | None, image_size: int | None) -> Network:
    """A torchvision model with a head of `classes` outputs, which is new unless the weights' own fits.

    Raises:
        UnknownName: torchvision has no such classifier, or no such weights of it.
        EdgetlError: the image size does not suit the architecture, or the weights cannot be had or do not fit.
    """
    name, published = named(variant)
    size = image_size or int(published.transforms().crop_size[0])
    require_size(name, size, published)
    module = bare(name, size)
    head = replace_head(module, classes)
    report = WeightsReport("scratch")
    if weights is not None:
        report = load(module, _weights.read_file(weights), source=str(weights))
    elif pretrained:
        with _weights.explained_download(f"torchvision/{variant}", hub=True):
            # Not get_model(weights=...): that would unpickle whatever the file holds.
            state = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
        report = load(module, state, source=f"torchvision: {published}")
    return Network(f"torchvision/{variant}", module, head, preprocess_of(published, size, family(name)), report)


def labels(variant: str) -> tuple[tuple[str, ...], ...]:
    """Names of the classes of the published weights, as these say."""
    _, published = named(variant)
    return tuple((name,) for name in published.meta["categories"])


def named(variant: str) -> tuple[str, Any]:
    """Architecture and published weights of `architecture` or `architecture.WEIGHTS`."""
    name, dot, tag = variant.partition(".")
    if name not in variants():
        raise UnknownName("model", variant, variants())
    choices = _zoo().get_model_weights(name)
    if dot and tag not in choices.__members__:
        raise UnknownName(f"set of weights for torchvision/{name}", tag, tuple(choices.__members__))
    return name, choices[tag] if dot else choices.DEFAULT


def require_size(name: str, size: int, published: Any) -> None:
    """Returns when an architecture takes square images of `size` pixels.

    Raises:
        EdgetlError: it does not; says which it takes.
    """
    kind = family(name)
    step = {"vision_transformer": int(name.rpartition("_")[2]) if name.startswith("vit_") else 1,
            "maxvit": STEP_MAXVIT}.get(kind)
    if step is not None and (size % step or size < step):
        raise EdgetlError(
            f"torchvision/{name} cuts its images into pieces of {step} px, found an image size of {size} px.",
            hint=f"Give a multiple of {step} as --image-size, e.g. {max(step, size // step * step)}.",
        )
    least = LEAST_SWIN if kind == "swin_transformer" else int(published.meta["min_size"][0])
    if step is None and size < least:
        raise EdgetlError(f"torchvision/{name} takes images of {least} px and more, found {size} px.",
                          hint=f"Give --image-size {least} or more.")


def bare(name: str, size: int) -> nn.Module:
    """The architecture with random weights, a head of 1000 classes, and without auxiliary heads."""
    zoo = _zoo()
    options: dict[str, dict[str, Any]] = {
        "vision_transformer": {"image_size": size},
        "maxvit": {"input_size": (size, size)},
        "googlenet": {"aux_logits": False, "init_weights": True},
        "inception": {"aux_logits": False, "init_weights": True},
    }
    module: nn.Module = zoo.get_model(name, weights=None, **options.get(family(name), {}))
    if isinstance(module, zoo.MNASNet):
        _accept_unversioned(module)
    return module


def resize(variant: str, module: nn.Module, size: int) -> None:
    """Makes a network that was built for one size of image take another, in place.

    Raises:
        EdgetlError: the architecture does not take that size.
    """
    name, published = named(variant)
    require_size(name, size, published)
    kind = family(name)
    if kind == "maxvit":
        raise EdgetlError(f"torchvision/{name} cannot be changed to {size} px once it is trained.",
                          hint="Leave --image-size out, or start from published weights or a file of weights.")
    if kind == "vision_transformer":
        vit: Any = module
        vit.image_size, vit.seq_length = size, (size // vit.patch_size) ** 2 + 1
        positions = vit.encoder.pos_embedding
        vit.encoder.pos_embedding = nn.Parameter(interpolated(positions.detach(), vit.seq_length))


def _accept_unversioned(module: nn.Module) -> None:
    """Lets MNASNet load tensors that come without torch's metadata, as safetensors do: it takes them for version 2."""
    original = type(module)

    class AnyMNASNet(original):  # type: ignore[valid-type, misc]
        def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
            super()._load_from_state_dict(state, prefix, {"version": original._version, **metadata}, *rest)

    module.__class__ = AnyMNASNet


def replace_head(module: nn.Module, classes: int) -> str:
    """Puts a new last layer of `classes` outputs in, and returns its name.

    The classifier of every torchvision family is its last linear layer, or (SqueezeNet) its last convolution. The new
    one always has a bias, which starts at zero where the old one (MaxViT's) had none: a linear probe needs it.

    Raises:
        EdgetlError: the module has neither.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        raise EdgetlError(f"{type(module).__name__} has no linear layer or convolution to be its head.")
    name, old = str(layers[-1][0]), layers[-1][1]
    fresh: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Linear):
        fresh = nn.Linear(old.in_features, classes)
    else:
        fresh = nn.Conv2d(old.in_channels, classes, kernel_size=1)
    if old.bias is None and fresh.bias is not None:
        nn.init.zeros_(fresh.bias)
    module.set_submodule(name, fresh)
    return name


def load(module: nn.Module, state: Mapping[str, torch.Tensor], *, source: str) -> WeightsReport:
    """Loads what fits of a state dict of any torchvision release, and says what did not, and why.

    Raises:
        EdgetlError: it is another model's, or its position embeddings are no square.
    """
    state = {_present_key(name): tensor for name, tensor in state.items()}
    notes = []
    own = module.state_dict().keys()
    auxiliary = [name for name in state if name.startswith(AUXILIARY) and name not in own]
    if auxiliary:
        notes.append(f"the {len(auxiliary)} tensors of the auxiliary heads were left out")
        state = {name: tensor for name, tensor in state.items() if name not in auxiliary}
    if POSITIONS in own and POSITIONS in state:
        there, here = state[POSITIONS], module.get_parameter(POSITIONS)
        if there.shape != here.shape and there.shape[::2] == here.shape[::2]:
            state[POSITIONS] = interpolated(there, here.shape[1])
            notes.append(f"{POSITIONS} was interpolated from {there.shape[1] - 1} to {here.shape[1] - 1} patches")
    return _weights.load_state(module, state, source=source, notes=notes)


def _present_key(name: str) -> str:
    for pattern, present in OLD_KEYS:
        name = pattern.sub(present, name)
    return name


def interpolated(positions: torch.Tensor, length: int) -> torch.Tensor:
    """Position embeddings [1, length, D] of a vision transformer for another number of patches.

    Bicubic, the class token left as it is (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929, section 3.2).

    Args:
        positions: [1, 1 + side * side, D].
        length: 1 + new side * new side.

    Raises:
        EdgetlError: the patches are not those of a square image.
    """
    side, new = round((positions.shape[1] - 1) ** 0.5), round((length - 1) ** 0.5)
    if side * side + 1 != positions.shape[1]:
        raise EdgetlError(f"{POSITIONS} has {positions.shape[1]} rows, expected a class token and a square of patches.")
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    resized = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False, antialias=True)
    patches = resized.permute(0, 2, 3, 1).reshape(1, new * new, -1).to(positions.dtype)
    return torch.cat([positions[:, :1], patches], dim=1)


def preprocess_of(published: Any, size: int, kind: str = "") -> Preprocess:
    """The evaluation preprocessing of the weights' own transforms, for images of `size` pixels."""
    transforms = published.transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    centred = (0.5,) * 3
    return Preprocess(
        size_hw=(size, size),
        crop_fraction=min(1.0, crop / resize),
        interpolation=str(transforms.interpolation.value),
        mean=centred if kind in CENTRED else tuple(transforms.mean),
        std=centred if kind in CENTRED else tuple(transforms.std),
    )


def _zoo() -> Any:
    try:
        import torchvision
    except ModuleNotFoundError as problem:
        raise MissingDependency(problem.name or "torchvision", extra="train",
                                purpose="A model of the family torchvision") from problem
    return torchvision.models
