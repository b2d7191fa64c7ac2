"""From an encoded image to the array a graph takes: one definition for training's evaluation and for the device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BundleError, InputError
from edgetl.runtime.decode import MAX_MEGAPIXELS, pillow, read_pixels
from edgetl.runtime.fields import Table
from edgetl.runtime.limits import FACTOR, PIXELS

RESIZE_MODES = ("shortest", "squash", "letterbox")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
COLORS = ("rgb", "bgr", "gray")
LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its image: declared by the model family, stored in the manifest.

    The value of a pixel p in 0..255 becomes (p * scale - mean[c]) / std[c]; c counts in the order of `color`.
    """

    size_hw: tuple[int, int]
    kind: str = "image"
    resize_mode: str = "shortest"  # "shortest": short side, then centre crop | "squash" | "letterbox"
    crop_fraction: float = 0.875  # centre crop's share of the resized short side ("shortest" only)
    interpolation: str = "bicubic"  # "nearest" | "bilinear" | "bicubic" | "lanczos"
    antialias: bool = True  # Pillow always filters when it shrinks; False is only possible with "nearest"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    color: str = "rgb"  # "rgb" | "bgr" | "gray"
    alpha_background: tuple[int, int, int] = (255, 255, 255)  # RGB of what shows through transparent pixels
    exif: bool = True  # rotate as the EXIF orientation says
    layout: str = "NCHW"  # of the graph's input

    @property
    def channels(self) -> int:
        """Channels of the array: 1 for gray, else 3."""
        return 1 if self.color == "gray" else 3

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one prepared image: [C, H, W], or [H, W, C] where `layout` says so."""
        height, width = self.size_hw
        return (self.channels, height, width) if self.layout == "NCHW" else (height, width, self.channels)


def decode(source: Any, preprocess: Preprocess, *, max_megapixels: float = MAX_MEGAPIXELS,
           name: str | None = None) -> NDArray[np.uint8]:
    """Pixels [H, W, C] of an image: EXIF applied, alpha laid on the background, in `preprocess.color` order.

    CMYK, palettes, 1-bit and 16-bit images (scaled, not clipped) become 8 bits a channel; of an animation the first
    frame is taken. A damaged EXIF block counts as no rotation.

    Args:
        source: a path, the bytes of an image file, a Pillow image, or an array [H, W] (gray) or [H, W, C] (gray, gray
            and alpha, RGB, RGBA).
        preprocess: `color`, `alpha_background` and `exif` are used.
        max_megapixels: larger images are refused before they are decoded. Above 178 Pillow itself refuses.
        name: what error messages call the image where it has no path.

    Raises:
        InputError: not an image, damaged, truncated, too large, or an array of another dtype or shape.
        MissingDependency: Pillow is not installed.
    """
    return read_pixels(source, color=preprocess.color, alpha_background=preprocess.alpha_background,
                       exif=preprocess.exif, max_megapixels=max_megapixels, name=name)


def resize(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Pixels [size_h, size_w, C]: resized by Pillow and cropped or padded as `preprocess` says.

    - "shortest": the image covers round(size / crop_fraction), then the centre is cut out. For square sizes this is the
      arithmetic of torchvision's Resize(round(size / crop_fraction)) and CenterCrop(size), to the pixel.
    - "squash": straight to the size; the aspect ratio is lost.
    - "letterbox": the whole image, centred; the rest is padded with the colour that normalises nearest to zero, which
      is what the zero padding of convolutions continues.

    Raises:
        InputError: `antialias=False` with a filter that needs it, or an image so narrow that its resized long side
            would exceed the limit of megapixels.
    """
    if not preprocess.antialias and preprocess.interpolation != "nearest":
        raise InputError(f"antialias=False is not possible with interpolation '{preprocess.interpolation}': "
                         "Pillow always filters when it shrinks.",
                         hint="Use antialias=True, or interpolation 'nearest'.")
    if preprocess.resize_mode == "squash":
        return _scaled(pixels, preprocess.size_hw, preprocess)
    return (_shortest if preprocess.resize_mode == "shortest" else _letterbox)(pixels, preprocess)


def _shortest(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    (height, width), (crop_h, crop_w) = pixels.shape[:2], preprocess.size_hw
    cover_h, cover_w = round(crop_h / preprocess.crop_fraction), round(crop_w / preprocess.crop_fraction)
    # The side that needs the larger factor meets its size exactly; the other is cut as torchvision cuts, by int().
    if cover_h * width >= cover_w * height:
        cover_w = max(cover_w, int(cover_h * width / height))
    else:
        cover_h = max(cover_h, int(cover_w * height / width))
    if cover_h * cover_w > MAX_MEGAPIXELS * 1e6:
        raise InputError(f"The image of {width} x {height} pixels is too narrow for resize_mode 'shortest': "
                         f"it would become {cover_w} x {cover_h}.",
                         hint="Crop the image, or use a model with 'letterbox'.")
    whole = _scaled(pixels, (cover_h, cover_w), preprocess)
    top, left = round((cover_h - crop_h) / 2), round((cover_w - crop_w) / 2)
    return whole[top:top + crop_h, left:left + crop_w]


def _letterbox(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    (height, width), (box_h, box_w) = pixels.shape[:2], preprocess.size_hw
    factor = min(box_h / height, box_w / width)
    inner_h, inner_w = (min(box, max(1, round(side * factor))) for box, side in ((box_h, height), (box_w, width)))
    padding = np.clip(np.rint(np.asarray(preprocess.mean) / preprocess.scale), 0, 255).astype(np.uint8)
    boxed = np.empty((box_h, box_w, pixels.shape[2]), np.uint8)
    boxed[:] = padding
    top, left = (box_h - inner_h) // 2, (box_w - inner_w) // 2
    boxed[top:top + inner_h, left:left + inner_w] = _scaled(pixels, (inner_h, inner_w), preprocess)
    return boxed


def _scaled(pixels: NDArray[np.uint8], size_hw: tuple[int, int], preprocess: Preprocess) -> NDArray[np.uint8]:
    if pixels.shape[:2] == size_hw:
        return pixels
    module = pillow()
    plain = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    image = module.fromarray(np.ascontiguousarray(plain))
    filtered = image.resize((size_hw[1], size_hw[0]), module.Resampling[preprocess.interpolation.upper()])
    return np.asarray(filtered).reshape(*size_hw, pixels.shape[2])


def normalize(pixels: NDArray[np.uint8], preprocess: Preprocess,
              out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """[N, C, H, W] (or [N, H, W, C], as `layout` says) from a stack [N, H, W, C] of pixels.

    Args:
        pixels: the stack, channels in the order of `preprocess.color`.
        preprocess: `scale`, `mean`, `std` and `layout` are used.
        out: an array of the result's shape to write into; saves an allocation.
    """
    arranged = pixels.transpose(0, 3, 1, 2) if preprocess.layout == "NCHW" else pixels
    # (p * scale - mean) / std as one multiplication and one addition; the factors are rounded once, from float64.
    mean, std = np.asarray(preprocess.mean, np.float64), np.asarray(preprocess.std, np.float64)
    shape = (-1, 1, 1) if preprocess.layout == "NCHW" else (-1,)
    factor, offset = (values.astype(np.float32).reshape(shape) for values in (preprocess.scale / std, -mean / std))
    if out is None:
        out = np.empty(arranged.shape, np.float32)
    np.multiply(arranged, factor, out=out)
    np.add(out, offset, out=out)
    return out


def prepare_pixels(source: Any, preprocess: Preprocess, *, name: str | None = None) -> NDArray[np.uint8]:
    """Pixels [size_h, size_w, C] of an image, decoded and resized but not normalised; raises what those raise."""
    return resize(decode(source, preprocess, name=name), preprocess)


def prepare(source: Any, preprocess: Preprocess, *, name: str | None = None) -> NDArray[np.float32]:
    """[C, H, W] (or [H, W, C]) of an image: decoded, resized and normalised; raises what those raise."""
    stack = prepare_pixels(source, preprocess, name=name)[None]
    return normalize(stack, preprocess).reshape(preprocess.input_shape)


def to_dict(preprocess: Preprocess) -> dict[str, Any]:
    """Plain JSON values."""
    values = dataclasses.asdict(preprocess)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def from_dict(values: Any, *, where: str) -> Preprocess:
    """The Preprocess that `to_dict` wrote; unknown fields are ignored.

    Raises:
        BundleError: a field is missing, of the wrong kind or outside its limits; names it, found and expected.
    """
    table = Table(values, where)
    made = Preprocess(
        size_hw=_pair(table.wholes("size_hw", count=2, low=1, high=8192)),
        kind=table.text("kind", choices=("image",)),
        resize_mode=table.text("resize_mode", choices=RESIZE_MODES),
        crop_fraction=table.number("crop_fraction", low=0.05, high=1),
        interpolation=table.text("interpolation", choices=INTERPOLATIONS),
        antialias=table.truth("antialias"),
        scale=table.number("scale", above=0, low=1 / FACTOR, high=FACTOR),
        mean=table.numbers("mean"),
        std=table.numbers("std"),
        color=table.text("color", choices=COLORS),
        alpha_background=_triple(table.wholes("alpha_background", count=3, low=0, high=255)),
        exif=table.truth("exif"),
        layout=table.text("layout", choices=LAYOUTS),
    )
    _check(made, table)
    return made


def _check(made: Preprocess, table: Table) -> None:
    """What no single field can tell."""
    for name, found in (("mean", made.mean), ("std", made.std)):
        if len(found) != made.channels:
            raise table.wrong(name, f"{made.channels} numbers, one a channel of color '{made.color}'")
    if min(made.std) < 1 / FACTOR or max(made.std) > FACTOR:
        raise table.wrong("std", f"numbers above 0, from {1 / FACTOR:g} to {FACTOR:g}")
    if max(map(abs, made.mean)) > FACTOR:
        raise table.wrong("mean", f"numbers from {-FACTOR:g} to {FACTOR:g}")
    if made.size_hw[0] * made.size_hw[1] > PIXELS:
        raise table.wrong("size_hw", f"a height and a width of at most {PIXELS} pixels together")
    if not made.antialias and made.interpolation != "nearest":
        raise BundleError(f"{table.where}: 'antialias' is false, which is only possible with interpolation 'nearest'.")


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _triple(values: tuple[int, ...]) -> tuple[int, int, int]:
    return values[0], values[1], values[2]
