"""Images that are more than a colour or a grey picture: RGBA with a fourth channel of its own, and any planes.

Every channel counts for itself. Alpha is no transparency here, it may be an infrared plane: nothing is laid on a
background, and each channel is resized alone, as a grey image is (Pillow weighs the colours of "RGBA" by their alpha).
Files of arrays are NumPy's `.npy`, uint8 [H, W] or [H, W, C]; nothing in them is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import InputError
from edgetl.runtime.decode import Opened, from_pixels, is_array_file, open_image, read_array, read_bytes
from edgetl.runtime.flatten import orientation, turned
from edgetl.runtime.headers import check_size

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgetl.runtime.preprocess import Preprocess

RGBA, PLANES = "rgba", "planes"
COLORS = (RGBA, PLANES)  # of `Preprocess`, that this module reads
MOST_CHANNELS = 64
COLORED = 3  # channels of an image that is looked at


def stack_of(source: Any, preprocess: Preprocess, where: str, max_megapixels: float) -> NDArray[np.uint8]:
    """uint8 [H, W, C], the channels as they are stored; EXIF applied to image files. Call it within `guarded`.

    Args:
        source: what `preprocess.decode` takes; for "planes" an array or a `.npy` file.
        preprocess: `color`, its channels and `exif` are used.
        where: what error messages call the image.
        max_megapixels: larger images are refused.

    Raises:
        InputError: no image, too large, or of another number of channels; says how many were found and expected.
    """
    if isinstance(source, np.ndarray):
        return _checked(source, preprocess, where, max_megapixels)
    data = read_bytes(source, max_megapixels)
    if data is not None and is_array_file(data):
        return _checked(read_array(data, where), preprocess, where, max_megapixels)
    opened = open_image(source if data is None else data, where, max_megapixels)
    if preprocess.color == PLANES:
        raise InputError(f"{where} is an image file ({opened.image.mode}); this model takes arrays of "
                         f"{preprocess.channels} channels.",
                         hint=f"Give uint8 pixels [H, W, {preprocess.channels}], as an array or a .npy file.")
    return np.asarray(_with_alpha(opened, preprocess))


def _checked(array: NDArray[Any], preprocess: Preprocess, where: str, max_megapixels: float) -> NDArray[np.uint8]:
    wanted = preprocess.channels
    if array.dtype != np.uint8:
        raise InputError(f"{where} has dtype {array.dtype}; expected uint8 pixels [H, W, {wanted}].")
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != wanted:
        raise InputError(f"{where} has shape {list(array.shape)}; this model takes {wanted} channels, "
                         f"[H, W, {wanted}].")
    check_size(array.shape[1], array.shape[0], where, max_megapixels)
    return array


def _with_alpha(opened: Opened, preprocess: Preprocess) -> Image:
    """The image upright, as "RGBA"; its alpha is data.

    Raises:
        InputError: it has no alpha.
    """
    image = opened.take()
    image.load()
    if not image.has_transparency_data:
        raise InputError(f"{opened.where} has no fourth channel ({image.mode}); this model takes RGBA images.",
                         hint="Store the fourth channel as alpha (PNG, TIFF), or the pixels as .npy, uint8 [H, W, 4].")
    way = orientation(image) if preprocess.exif else 1
    image = image.convert("LA") if image.mode == "La" else image  # there is no road from La
    return turned(image if image.mode == "RGBA" else image.convert("RGBA"), way)


def by_plane(pixels: NDArray[np.uint8], scaled: Callable[[Image], Image]) -> NDArray[np.uint8]:
    """uint8 [h, w, C] of pixels [H, W, C], each channel changed alone as a grey image.

    Args:
        pixels: of any number of channels.
        scaled: the change; the same size for all.
    """
    return np.stack([np.asarray(scaled(from_pixels(pixels[:, :, one]))) for one in range(pixels.shape[2])], axis=2)


def colors_of(source: bytes, preprocess: Preprocess) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] to be looked at: an image file in RGB, of an array the first three channels or the only one.

    Args:
        source: the bytes of a file.
        preprocess: `alpha_background` and `exif` are used.

    Raises:
        InputError: as `preprocess.decode`.
    """
    from edgetl.runtime.preprocess import decode  # here: it needs this module

    where = "The image (bytes)"
    found = read_array(source, where) if is_array_file(source) else None
    if found is None or found.ndim != 3 or found.shape[2] == COLORED:
        return decode(source, dataclasses.replace(preprocess, color="rgb"))
    return np.repeat(found[:, :, :1], COLORED, axis=2) if found.shape[2] < COLORED else found[:, :, :COLORED].copy()


def to_file(pixels: NDArray[np.uint8]) -> bytes:
    """The bytes of a `.npy` file of an array."""
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    return buffer.getvalue()
