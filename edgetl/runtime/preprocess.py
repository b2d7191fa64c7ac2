"""From an encoded image to the array a graph takes: one definition for training's evaluation and for the device."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BundleError, InputError
from edgetl.runtime import fast_decode, planes
from edgetl.runtime.decode import (
    MAX_MEGAPIXELS,
    Opened,
    as_array,
    from_pixels,
    guarded,
    name_of,
    open_image,
    pillow,
    read_image,
)
from edgetl.runtime.fields import Table
from edgetl.runtime.geometry import Fit, fit, framed
from edgetl.runtime.limits import FACTOR, PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

EXACT = "exact"
RESIZE_MODES = ("shortest", "squash", "letterbox")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
COLORS = ("rgb", "bgr", "gray", *planes.COLORS)
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
    color: str = "rgb"  # "rgb" | "bgr" | "gray" | "rgba": alpha is a channel | "planes": arrays of any channels
    alpha_background: tuple[int, int, int] = (255, 255, 255)  # RGB of what shows through transparent pixels
    exif: bool = True  # rotate as the EXIF orientation says
    layout: str = "NCHW"  # of the graph's input

    @property
    def channels(self) -> int:
        """Channels of the array: 3 for rgb and bgr, 1 for gray, 4 for rgba, for planes as many as `mean` has."""
        return {"gray": 1, planes.RGBA: 4, planes.PLANES: len(self.mean)}.get(self.color, 3)

    @functools.cached_property
    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What a pixel is multiplied by, and what is then added, for each channel: [C, 1, 1], or [C] for "NHWC".

        That is (p * scale - mean) / std as one multiplication and one addition, rounded once, from float64.
        """
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        shape = (-1, 1, 1) if self.layout == "NCHW" else (-1,)
        factor, offset = (values.astype(np.float32).reshape(shape) for values in (self.scale / std, -mean / std))
        return factor, offset

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
            and alpha, RGB, RGBA), which may also be a .npy file. "rgba" takes what has an alpha channel, as data, and
            "planes" arrays.
        preprocess: `color`, `alpha_background` and `exif` are used.
        max_megapixels: larger images are refused before they are decoded. Above 178 Pillow itself refuses.
        name: what error messages call the image where it has no path.

    Raises:
        InputError: not an image, damaged, truncated, too large, or an array of another dtype or shape.
        MissingDependency: Pillow is not installed.
    """
    where = name or name_of(source)

    def read() -> NDArray[np.uint8]:
        if preprocess.color in planes.COLORS:
            return planes.stack_of(source, preprocess, where, max_megapixels)
        image = read_image(open_image(source, where, max_megapixels), color=preprocess.color,
                           alpha_background=preprocess.alpha_background, exif=preprocess.exif)
        return as_array(image, preprocess.color)

    return guarded(read, where)


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
    _check_filter(preprocess)
    height, width = pixels.shape[:2]
    into = fit(height, width, preprocess)
    if (height, width) == into.inner_hw:
        return framed(into.cut_of(pixels), into, preprocess)
    if pixels.shape[2] == 3:
        return framed(np.asarray(_scaled(from_pixels(pixels), into, preprocess)), into, preprocess)
    return framed(planes.by_plane(pixels, lambda one: _scaled(one, into, preprocess)), into, preprocess)


def _check_filter(preprocess: Preprocess) -> None:
    if not preprocess.antialias and preprocess.interpolation != "nearest":
        raise InputError(f"antialias=False is not possible with interpolation '{preprocess.interpolation}': "
                         "Pillow always filters when it shrinks.",
                         hint="Use antialias=True, or interpolation 'nearest'.")


def _scaled(image: Image, into: Fit, preprocess: Preprocess) -> Image:
    """What is seen of the image, by way of the whole of it: the filter's weights are those of the whole."""
    if image.size != into.inner_hw[::-1]:
        image = image.resize(into.inner_hw[::-1], pillow().Resampling[preprocess.interpolation.upper()])
    (top, left), (height, width) = into.cut_at, into.cut_hw
    return image if image.size == (width, height) else image.crop((left, top, left + width, top + height))


def normalize(pixels: NDArray[np.uint8], preprocess: Preprocess,
              out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """[N, C, H, W] (or [N, H, W, C], as `layout` says) from a stack [N, H, W, C] of pixels.

    Args:
        pixels: the stack, channels in the order of `preprocess.color`.
        preprocess: `scale`, `mean`, `std` and `layout` are used.
        out: an array of the result's shape to write into; saves an allocation.
    """
    arranged = pixels.transpose(0, 3, 1, 2) if preprocess.layout == "NCHW" else pixels
    factor, offset = preprocess.factors
    if out is None:
        out = np.empty(arranged.shape, np.float32)
    np.multiply(arranged, factor, out=out)
    np.add(out, offset, out=out)
    return out


def prepare_pixels(source: Any, preprocess: Preprocess, *, name: str | None = None, decode: str = EXACT,
                   max_megapixels: float = MAX_MEGAPIXELS) -> NDArray[np.uint8]:
    """Pixels [size_h, size_w, C] of an image, decoded and resized but not normalised; see `decode` and `resize`.

    Args:
        source: what `decode` takes.
        preprocess: all but the normalisation is used.
        name: what error messages call the image where it has no path.
        decode: "exact" gives, to the bit, what training's evaluation gave. "fast" reduces large images by whole
            numbers before the filter, "turbojpeg" and "opencv" have those libraries do so with JPEG files: less than a
            grey level from exact on average. Smaller images, "rgba" and "planes" are read exactly all the same.
        max_megapixels: larger images are refused before they are decoded.

    Raises:
        InputError: as `decode` and `resize`.
        UnknownName: no such way to decode.
        MissingDependency: Pillow, or the library that `decode` names, is not installed.
    """
    _check_filter(preprocess)
    where = name or name_of(source)

    def read() -> NDArray[np.uint8]:
        if preprocess.color in planes.COLORS:
            return resize(planes.stack_of(source, preprocess, where, max_megapixels), preprocess)
        opened = open_image(source, where, max_megapixels)
        if decode == EXACT:
            return _exact(opened, preprocess)

        def exactly() -> NDArray[np.uint8]:
            again = source if opened.encoded is None else opened.encoded
            return prepare_pixels(again, preprocess, name=where, max_megapixels=max_megapixels)

        reduced = fast_decode.pixels(opened, preprocess, decode, exactly)
        return _exact(opened, preprocess) if reduced is None else reduced

    if decode != EXACT:
        fast_decode.require(decode)
    return guarded(read, where)


def _exact(opened: Opened, preprocess: Preprocess) -> NDArray[np.uint8]:
    image = read_image(opened, color=preprocess.color, alpha_background=preprocess.alpha_background,
                       exif=preprocess.exif)
    into = fit(image.height, image.width, preprocess)
    return framed(as_array(_scaled(image, into, preprocess), preprocess.color), into, preprocess)


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
    if made.channels > planes.MOST_CHANNELS:
        raise table.wrong("mean", f"at most {planes.MOST_CHANNELS} numbers")
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
