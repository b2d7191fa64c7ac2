"""Every classifier of timm: `timm/<name>`, e.g. `timm/mobilenetv4_conv_small`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetl.errors import EdgetlError, MissingDependency, UnknownName
from edgetl.models import Network, WeightsReport, _weights
from edgetl.runtime.preprocess import Preprocess


def variants() -> tuple[str, ...]:
    """Names of timm's architectures."""
    return tuple(_timm().list_models())


def build(variant: str, *, classes: int, pretrained: bool, weights: Path | None, image_size: int | None) -> Network:
    """A timm model with a new head of `classes` outputs.

    Raises:
        UnknownName: timm has no such model.
        EdgetlError: the published weights cannot be had; says how to bring a file.
    """
    timm = _timm()
    architecture = variant.split(".")[0]
    if architecture not in timm.list_models():
        raise UnknownName("model", variant, variants())
    options = {"img_size": image_size} if image_size and takes_image_size(timm, architecture) else {}
    hub = pretrained and weights is None
    with _weights.explained_download(f"timm/{variant}", hub):
        module = timm.create_model(variant, pretrained=hub, num_classes=classes, **options)
    if image_size:
        require_whole_patches(variant, module, image_size)
    report = WeightsReport(f"timm hub: {variant}" if hub else "scratch")
    if weights is not None:
        report = _weights.load_file(module, weights)
    return Network(f"timm/{variant}", module, head_name(module), preprocess_of(timm, module, image_size), report)


def labels(variant: str) -> tuple[tuple[str, ...], ...]:
    """Names of the classes of the published weights, where they are ImageNet's or of one of its subsets."""
    timm = _timm()
    if variant.split(".")[0] not in timm.list_models():
        raise UnknownName("model", variant, variants())
    config = timm.models.get_pretrained_cfg(variant)
    from edgetl.models import _imagenet

    return _imagenet.names(config.num_classes) if config is not None else ()


def takes_image_size(timm: Any, architecture: str) -> bool:
    """Whether the architecture is built for one input size (vision transformers and their kin)."""
    return bool(timm.models.get_pretrained_cfg_value(architecture, "fixed_input_size"))


def resize(variant: str, module: Any, size: int) -> None:
    """Makes a network that was built for one size of image take another, in place.

    Raises:
        EdgetlError: timm cannot change this architecture.
    """
    if not takes_image_size(_timm(), variant.split(".")[0]):
        return
    if not hasattr(module, "set_input_size"):
        raise EdgetlError(f"timm/{variant} is built for one size of image, and timm cannot change it to {size} px.",
                          hint="Leave --image-size out.")
    require_whole_patches(variant, module, size)
    module.set_input_size(img_size=(size, size))


def require_whole_patches(variant: str, module: Any, size: int) -> None:
    """Raises EdgetlError where a network wants a whole number of patches, and `size` pixels are none."""
    embedding = getattr(module, "patch_embed", None)
    # One that is strict about its size leaves the rest of the image out; one that pads has no rest.
    if getattr(embedding, "strict_img_size", True) or getattr(embedding, "dynamic_img_pad", False):
        return
    step = int(module.patch_embed.patch_size[0])
    if size % step:
        raise EdgetlError(f"timm/{variant} cuts its images into pieces of {step} px, found an image size of {size} px.",
                          hint=f"Give a multiple of {step} as --image-size.")


def head_name(module: Any) -> str:
    """Name of the classifier layer, as the model's own metadata says."""
    name = module.pretrained_cfg["classifier"]
    return str(name if isinstance(name, str) else name[0])


def preprocess_of(timm: Any, module: Any, image_size: int | None) -> Preprocess:
    """The evaluation preprocessing of the weights' own metadata."""
    config = timm.data.resolve_data_config({}, model=module)
    size = (image_size, image_size) if image_size else tuple(config["input_size"][1:])
    mode = {"center": "shortest", "squash": "squash", "border": "letterbox"}[config["crop_mode"]]
    return Preprocess(
        size_hw=(int(size[0]), int(size[1])),
        resize_mode=mode,
        crop_fraction=float(config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as problem:
        missing = (problem.name or "timm").partition(".")[0]  # timm itself, or what it imports
        raise MissingDependency(missing, extra="train", purpose="A model of the family timm") from problem
    return timm
