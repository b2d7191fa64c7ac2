"""Whatever Pillow has decoded as upright pixels of 8 bits without transparency. Pillow is imported on use.

Work goes on in strips of rows, so that a large image is held once or twice and not in every form it passes through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Pillow before 11.3 opens 16-bit PNG files as "I"
ORIENTATION = 0x0112  # the EXIF tag
STRIP_PIXELS = 1 << 20


def orientation(image: Image) -> int:
    """The EXIF orientation, 1 to 8; a damaged EXIF block states none, which is 1."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, OSError, KeyError, IndexError, TypeError):
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def turned(image: Image, way: int) -> Image:
    """The image as it stands upright when `way` is its EXIF orientation."""
    from PIL.Image import Transpose as turn

    methods = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
               6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90}
    return image.transpose(methods[way]) if way in methods else image


def flatten(image: Image, background: tuple[int, int, int], where: str) -> Image:
    """8 bits a channel and no transparency: what shines through is `background`.

    Raises:
        InputError: floating-point pixels, or integers of more than 16 bits.
    """
    if image.mode in SIXTEEN_BITS:
        return _eight_bits(image, background, where)
    if image.mode == "F":
        raise InputError(f"{where} has floating-point pixels whose range is unknown; expected 8 or 16 bits.",
                         hint="Convert it to 8 bits first, with the scaling that your images need.")
    if not image.has_transparency_data:
        return image
    flat = _new("RGB", image, background)
    for box in _strips(image):
        part = image.crop(box)
        overlay = (part.convert("LA") if part.mode == "La" else part).convert("RGBA")  # there is no road from La
        # The rounding is that of alpha_composite() on an opaque background, for every colour and alpha, in less time.
        flat.paste(overlay.convert("RGB"), box, mask=overlay.getchannel("A"))
    return flat


def _eight_bits(image: Image, background: tuple[int, int, int], where: str) -> Image:
    """16 bits scaled to 8 with rounding: 65535 becomes 255. Pillow's own convert("L") would clip at 255."""
    from PIL.Image import fromarray

    extrema: Any = image.getextrema() if image.mode == "I" else (0, 65535)  # the other modes have 16 bits
    least, greatest = extrema
    if least < 0 or greatest > 65535:
        raise InputError(f"{where} has pixel values from {least} to {greatest}; expected 8 or 16 bits.",
                         hint="Convert it to 8 or 16 bits first.")
    clear = image.info.get("transparency")
    flat = _new("RGB", image, background) if isinstance(clear, int) else _new("L", image)
    for box in _strips(image):
        values = np.asarray(image.crop(box)).astype(np.int32)
        gray = fromarray(((values + 128) // 257).astype(np.uint8))
        if isinstance(clear, int):
            flat.paste(gray.convert("RGB"), box, mask=fromarray(((values != clear) * 255).astype(np.uint8)))
        else:
            flat.paste(gray, box)
    return flat


def _new(mode: str, like: Image, color: tuple[int, ...] | None = None) -> Image:
    from PIL.Image import new

    made: Image = new(mode, like.size, 0 if color is None else color)
    return made


def _strips(image: Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover the image from top to bottom."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(image.height, top + rows)
