"""Reads an image from wherever it comes: a file, bytes, a Pillow image or an array. Pillow is imported on use."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import InputError, MissingDependency

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_MEGAPIXELS = 50.0
# What cameras, browsers and data sets write. Pillow can do more, but some of its readers start other programs (EPS).
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Pillow before 11.3 opens 16-bit PNG files as "I"
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
ORIENTATION = 0x0112  # the EXIF tag


def read_pixels(source: Any, *, color: str, alpha_background: tuple[int, int, int], exif: bool,
                max_megapixels: float = MAX_MEGAPIXELS, name: str | None = None) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] in the order of `color`, or [H, W, 1] for "gray"; see `preprocess.decode`."""
    where = name or _name_of(source)
    try:
        image = _open(source, where, max_megapixels)
        image.load()
        image = _flatten(_upright(image) if exif else image, alpha_background, where)
        pixels = np.asarray(image.convert("L" if color == "gray" else "RGB"))
    except (InputError, MissingDependency):
        raise
    except Exception as problem:
        # On damaged files Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more.
        raise InputError(f"{where} cannot be read as an image: {problem or type(problem).__name__}.",
                         hint="It is damaged or incomplete; copy it again from its source or remove it.") from problem
    if color == "gray":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if color == "bgr" else pixels


def pillow() -> Any:
    """Pillow's Image module.

    Raises:
        MissingDependency: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as problem:
        raise MissingDependency("pillow", extra="cpu", purpose="Reading and resizing images") from problem
    return Image


def _name_of(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "The image (bytes)"
    if isinstance(source, np.ndarray):
        return "The image (array)"
    return str(getattr(source, "filename", "") or "The image")


def _open(source: Any, where: str, max_megapixels: float) -> Image:
    if isinstance(source, np.ndarray):
        image = _from_array(source, where)
    elif isinstance(source, str | os.PathLike):
        image = _from_bytes(_read(Path(source)), where, max_megapixels)
    elif isinstance(source, bytes | bytearray | memoryview):
        image = _from_bytes(bytes(source), where, max_megapixels)
    elif isinstance(source, pillow().Image):
        image = source
    else:
        raise InputError(f"{where} is a {type(source).__name__}; "
                         "expected a path, bytes, a Pillow image or a uint8 array.")
    _check_size(image.width, image.height, where, max_megapixels)
    return image


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise InputError(f"{path} cannot be read: {reason}.", hint="Expected the path of an image file.") from problem


def _from_bytes(data: bytes, where: str, max_megapixels: float) -> Image:
    module = pillow()
    module.init()
    known = [one for one in FORMATS if one in module.OPEN]
    try:
        image: Image = module.open(io.BytesIO(data), formats=known)
    except (module.DecompressionBombError, module.DecompressionBombWarning) as problem:
        raise InputError(f"{where} is larger than the limit of {max_megapixels:g} megapixels: {problem}") from problem
    except module.UnidentifiedImageError as problem:
        found = f"it begins with {data[:12]!r}" if data else "it is empty"
        raise InputError(f"{where} is not an image: {found}.",
                         hint=f"Formats that can be read: {', '.join(known)}.") from problem
    return image


def _from_array(array: NDArray[Any], where: str) -> Image:
    if array.dtype != np.uint8:
        raise InputError(f"{where} has dtype {array.dtype}; expected uint8 pixels [H, W, C] or [H, W].",
                         hint="An array that is normalised already, float32 [N, C, H, W], goes to Classifier.logits().")
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in CHANNELS or 0 in array.shape:
        raise InputError(f"{where} has shape {list(array.shape)}; expected [H, W] or [H, W, C] with 1 to 4 channels "
                         "(gray, gray and alpha, RGB, RGBA) and at least one pixel.")
    plain = array[:, :, 0] if array.ndim == 3 and channels == 1 else array
    image: Image = pillow().fromarray(np.ascontiguousarray(plain))
    return image


def _check_size(width: int, height: int, where: str, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise InputError(f"{where} has {width} x {height} pixels, above the limit of {max_megapixels:g} megapixels.",
                         hint="Shrink the image first, or raise max_megapixels if you trust where it comes from.")
    if width < 1 or height < 1:
        raise InputError(f"{where} has {width} x {height} pixels; expected at least one.")


def _upright(image: Image) -> Image:
    """The image turned as its EXIF orientation says; a damaged EXIF block states no orientation."""
    turn = pillow().Transpose
    methods = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
               6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90}
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, OSError, KeyError, IndexError, TypeError):
        return image
    method = methods.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _flatten(image: Image, background: tuple[int, int, int], where: str) -> Image:
    """8 bits a channel and no transparency: what shines through is `background`."""
    if image.mode in SIXTEEN_BITS:
        return _eight_bits(image, background, where)
    if image.mode == "F":
        raise InputError(f"{where} has floating-point pixels whose range is unknown; expected 8 or 16 bits.",
                         hint="Convert it to 8 bits first, with the scaling that your images need.")
    if not image.has_transparency_data:
        return image
    overlay = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")  # there is no road from La to RGBA
    below = pillow().new("RGBA", overlay.size, (*background, 255))
    below.alpha_composite(overlay)
    flat: Image = below.convert("RGB")
    return flat


def _eight_bits(image: Image, background: tuple[int, int, int], where: str) -> Image:
    """16 bits scaled to 8 with rounding: 65535 becomes 255. Pillow's own convert("L") would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{where} has pixel values from {values.min()} to {values.max()}; expected 8 or 16 bits.",
                         hint="Convert it to 8 or 16 bits first.")
    module = pillow()
    gray = module.fromarray(((values + 128) // 257).astype(np.uint8))
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        flat: Image = gray
        return flat
    mask = module.fromarray(((values != clear) * 255).astype(np.uint8))
    flat = module.new("RGB", image.size, background)
    flat.paste(gray.convert("RGB"), mask=mask)
    return flat
