"""Reads an image from wherever it comes: a file, bytes, a Pillow image or an array. Pillow is imported on use."""

from __future__ import annotations

import io
import itertools
import math
import os
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import EdgetlError, InputError, MissingDependency
from edgetl.runtime.flatten import flatten, orientation, turned
from edgetl.runtime.headers import check_file, check_opened, most_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_MEGAPIXELS = 50.0
# What cameras, browsers and data sets write. Pillow can do more, but some of its readers start other programs (EPS).
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
PIECE_BYTES = 1 << 20
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
ARRAY_FILE = b"\x93NUMPY"  # how NumPy's .npy begins

Found = TypeVar("Found")
_one_at_a_time = threading.Lock()


class Opened:
    """An image whose size is within the limit; of a file, no more than the header has been decoded."""

    def __init__(self, image: Image, where: str, encoded: bytes | None = None) -> None:
        self._image: Image | None = image
        self.where = where  # what error messages call it
        self.encoded = encoded  # the file; None for a picture or an array, which are the caller's

    @property
    def image(self) -> Image:
        """Pillow's image."""
        assert self._image is not None
        return self._image

    def take(self) -> Image:
        """Pillow's image, which is not held here any longer: a large one would be in memory twice or three times."""
        image, self._image = self.image, None
        return image


def name_of(source: Any) -> str:
    """What error messages call an image that was given no name."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "The image (bytes)"
    if isinstance(source, np.ndarray):
        return "The image (array)"
    return str(getattr(source, "filename", "") or "The image")


def guarded(read: Callable[[], Found], where: str) -> Found:
    """What `read` returns; whatever Pillow meets in a damaged file becomes an InputError.

    Pillow's warnings (a damaged EXIF block, a malformed MPO) stay warnings. Where the application has made warnings
    errors, they go to the log instead: a photo with a damaged comment is no other photo for that.

    Raises:
        InputError: as said; names the image.
    """
    try:
        return _named(read, where)
    except Warning:
        found, told = _despite_warnings(read, where)
    import logging

    for one in told:
        logging.getLogger(__name__).warning("%s: %s", where, one)
    return found


def _named(read: Callable[[], Found], where: str) -> Found:
    try:
        return read()
    except (EdgetlError, Warning):
        raise
    except MemoryError as problem:
        raise InputError(f"{where} needs more memory than there is to be decoded.",
                         hint="Shrink the image first.") from problem
    except Exception as problem:
        # On damaged files Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more.
        raise InputError(f"{where} cannot be read as an image: {problem or type(problem).__name__}.",
                         hint="It is damaged or incomplete; copy it again from its source or remove it.") from problem


def _despite_warnings(read: Callable[[], Found], where: str) -> tuple[Found, list[str]]:
    """The second attempt: `catch_warnings` changes the whole process, so it is for those who need it, one by one."""
    with _one_at_a_time, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = _named(read, where)
    return found, [str(one.message) for one in caught]


def read_image(opened: Opened, *, color: str, alpha_background: tuple[int, int, int], exif: bool) -> Image:
    """The image upright, as "L" for `color` "gray", else as "RGB"; see `preprocess.decode`."""
    image = opened.take()
    image.load()
    way = orientation(image) if exif else 1
    image = plain(image, color, alpha_background, opened.where)
    return turned(image, way)


def plain(image: Image, color: str, alpha_background: tuple[int, int, int], where: str) -> Image:
    """The loaded image as "L" for `color` "gray", else as "RGB"; not a copy where it is that already."""
    flat, mode = flatten(image, alpha_background, where), "L" if color == "gray" else "RGB"
    return flat if flat.mode == mode else flat.convert(mode)


def as_array(image: Image, color: str) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] in the order of `color`, or [H, W, 1] for "gray", of what `plain` returns."""
    pixels = np.asarray(image)
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


def open_image(source: Any, where: str, max_megapixels: float) -> Opened:
    """The image, not yet decoded; call it within `guarded`.

    Raises:
        InputError: no image, one of an unknown kind, or a larger one than `max_megapixels`.
        MissingDependency: Pillow is not installed.
    """
    data = read_bytes(source, max_megapixels)
    if isinstance(source, np.ndarray):
        opened = Opened(_from_array(source, where), where)
    elif data is not None and is_array_file(data):
        opened = Opened(_from_array(read_array(data, where), where), where, data)
    elif data is not None:
        opened = _from_bytes(data, where, max_megapixels)
    elif isinstance(source, pillow().Image):
        opened = Opened(source, where)
    else:
        raise InputError(f"{where} is a {type(source).__name__}; "
                         "expected a path, bytes, a Pillow image or a uint8 array.")
    check_opened(opened.image, where, max_megapixels)
    return opened


def read_bytes(source: Any, max_megapixels: float) -> bytes | None:
    """The file that a path or bytes are; None for a picture or an array.

    Raises:
        InputError: it cannot be read, or is longer than an image of so many megapixels.
    """
    if isinstance(source, str | os.PathLike):
        return _read(source, max_megapixels)
    return bytes(source) if isinstance(source, bytes | bytearray | memoryview) else None


def is_array_file(data: bytes) -> bool:
    """Whether a file is NumPy's .npy."""
    return data.startswith(ARRAY_FILE)


def read_array(data: bytes, where: str) -> NDArray[np.uint8]:
    """The array of a .npy file, a view of its bytes; nothing is unpickled.

    Raises:
        InputError: it does not hold uint8 pixels, or is damaged.
    """
    from numpy.lib import format as npy

    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        shape, by_columns, dtype = header(file) if header is not None else ((), False, np.dtype(object))
    except ValueError as problem:
        raise InputError(f"{where} is a damaged .npy file: {problem}.", hint="Write it again with numpy.save().") \
            from problem
    if dtype != np.uint8:
        raise InputError(f"{where} holds {dtype} of shape {list(shape)}; expected uint8 pixels [H, W, C] or [H, W].",
                         hint="Scale the values to 0..255 first, alike for all images, and save them as uint8.")
    wanted, found = math.prod(shape), len(data) - file.tell()
    if wanted != found:
        raise InputError(f"{where} holds {found} bytes of pixels; its shape {list(shape)} needs {wanted}.",
                         hint="It is damaged or incomplete; copy it again from its source or remove it.")
    return np.frombuffer(data, np.uint8, offset=file.tell()).reshape(shape, order="F" if by_columns else "C")


def _read(path: str | os.PathLike[str], max_megapixels: float) -> bytes:
    most = most_bytes(max_megapixels)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise _too_long(str(path), max_megapixels)
            if size:
                return file.read(size + 1)
            # A pipe or a device tells no size, and may give bytes for ever.
            parts = iter(lambda: file.read(PIECE_BYTES), b"")
            return b"".join(itertools.islice(parts, most // PIECE_BYTES + 1))
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise InputError(f"{path} cannot be read: {reason}.", hint="Expected the path of an image file.") from problem


def _too_long(where: str, max_megapixels: float) -> InputError:
    return InputError(f"{where} has more than {most_bytes(max_megapixels) / 1e6:.0f} MB; no image within the limit of "
                      f"{max_megapixels:g} megapixels has.", hint="Expected an image file.")


def _from_bytes(data: bytes, where: str, max_megapixels: float) -> Opened:
    if len(data) > most_bytes(max_megapixels):
        raise _too_long(where, max_megapixels)
    check_file(data, where, max_megapixels)
    module = pillow()
    module.init()
    known = [one for one in FORMATS if one in module.OPEN]
    try:
        image: Image = module.open(io.BytesIO(data), formats=known)
    except module.DecompressionBombError as problem:
        raise InputError(f"{where} is larger than the limit of {max_megapixels:g} megapixels: {problem}",
                         hint="Shrink the image first.") from problem
    except module.UnidentifiedImageError as problem:
        found = f"it begins with {data[:12]!r}" if data else "it is empty"
        raise InputError(f"{where} is not an image: {found}.",
                         hint=f"Formats that can be read: {', '.join(known)}.") from problem
    return Opened(image, where, data)


def _from_array(array: NDArray[Any], where: str) -> Image:
    if array.dtype != np.uint8:
        raise InputError(f"{where} has dtype {array.dtype}; expected uint8 pixels [H, W, C] or [H, W].",
                         hint="An array that is normalised already, float32 [N, C, H, W], goes to Classifier.logits().")
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in CHANNELS or 0 in array.shape:
        raise InputError(f"{where} has shape {list(array.shape)}; expected [H, W] or [H, W, C] with 1 to 4 channels "
                         "(gray, gray and alpha, RGB, RGBA) and at least one pixel.")
    return from_pixels(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def from_pixels(pixels: NDArray[np.uint8]) -> Image:
    """A Pillow image of pixels [H, W] or [H, W, C], C from 2 to 4."""
    image: Image = pillow().fromarray(np.ascontiguousarray(pixels))
    return image
