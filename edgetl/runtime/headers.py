"""What a file costs to decode, told by its header: looked at before a decoder sees the file.

The number of pixels is not all of it. Some formats take far longer for a pixel than others, and in some a small picture
can ask for large buffers or for the same work again and again. Figures are seconds of one core of a Xeon of 2.x GHz.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from edgetl.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# How much longer than other formats: 49 megapixels take JPEG 2000 13 s (without loss), JPEG below 1 s and PNG 2 s. The
# other two are decoded in Python: one megapixel of text takes 1.6 s.
SLOW = {"jpeg2k": ("JPEG 2000", 5), "bmp_rle": ("BMP with run lengths", 20), "ppm_plain": ("PPM as text", 50)}
# Every scan of a progressive JPEG passes over the whole image, even one of ten bytes: 0.2 ms a megapixel. Encoders
# write 10 scans, so that a photo of 50 megapixels has 500.
SCANS_TIMES_MEGAPIXELS = 2500
# Comments, colour profiles and the like before the image. Pillow joins them one by one, each time copying what it has.
METADATA_BYTES = 16 << 20
SEGMENTS = 4096
BYTES_PER_PIXEL = 8  # of an uncompressed file: four channels of 16 bits

MAX_SIDE = 100_000  # Pillow holds 8 bytes for each row, so that an image of one column takes three times the memory

TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
SCAN = b"\xff\xda"
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that begin a frame
ALONE = frozenset((0x01, *range(0xD0, 0xDA)))  # markers without a segment


def most_bytes(max_megapixels: float) -> int:
    """Bytes that a file of so many megapixels has at most; a larger one is not read."""
    return int(max_megapixels * 1e6 * BYTES_PER_PIXEL) + METADATA_BYTES


def check_size(width: int, height: int, where: str, max_megapixels: float) -> None:
    """Refuses what has no pixels, or too many in all or in a row or column.

    Raises:
        InputError: says how many were found and allowed.
    """
    if width * height > max_megapixels * 1e6:
        raise InputError(f"{where} has {width} x {height} pixels, above the limit of {max_megapixels:g} megapixels.",
                         hint="Shrink the image first, or raise max_megapixels if you trust where it comes from.")
    if max(width, height) > MAX_SIDE:
        raise InputError(f"{where} has {width} x {height} pixels; expected sides of at most {MAX_SIDE:,} pixels.",
                         hint="Cut it into pieces.")
    if width < 1 or height < 1:
        raise InputError(f"{where} has {width} x {height} pixels; expected at least one.")


def check_file(data: bytes, where: str, max_megapixels: float) -> None:
    """Refuses what would already be expensive to open.

    Raises:
        InputError: says what was found and what is allowed.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data, where, max_megapixels)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        size = _webp_size(data)  # opening it allocates two canvases of that size
        if size is not None:
            check_size(*size, where, max_megapixels)


def check_opened(image: Image, where: str, max_megapixels: float) -> None:
    """Refuses what would take long or much memory to decode, of an image that Pillow has opened and not yet decoded.

    Raises:
        InputError: says what was found and what is allowed.
    """
    check_size(image.width, image.height, where, max_megapixels)
    tiles: Any = getattr(image, "tile", None)
    codec = tiles[0][0] if tiles else None
    if codec in SLOW:
        kind, times = SLOW[codec]
        if image.width * image.height > max_megapixels * 1e6 / times:
            raise InputError(f"{where} has {image.width} x {image.height} pixels as {kind}, which takes long to "
                             f"decode; the limit for it is {max_megapixels / times:g} megapixels.",
                             hint=f"Store it as JPEG or PNG, or raise max_megapixels, of which this is 1/{times}.")
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        sides = [tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1)]
        if all(isinstance(side, int) for side in sides) and sides[0] * sides[1] > max_megapixels * 1e6:
            raise InputError(f"{where} has tiles of {sides[0]} x {sides[1]} pixels, above the limit of "
                             f"{max_megapixels:g} megapixels.", hint="It is no sensible TIFF file; store it anew.")


class _Jpeg(NamedTuple):
    """What stands before the first scan of a JPEG file."""

    bytes: int
    segments: int
    megapixels: float = 0.0
    several_scans: bool = True  # at least two of them are needed; so it is taken to be where the header is damaged


def _check_jpeg(data: bytes, where: str, max_megapixels: float) -> None:
    header = _jpeg_header(data)
    if header.bytes > METADATA_BYTES or header.segments > SEGMENTS:
        raise InputError(f"{where} has {header.bytes / 1e6:.1f} MB of metadata in {header.segments} parts before its "
                         f"pixels; expected at most {METADATA_BYTES / 1e6:.1f} MB in {SEGMENTS}.",
                         hint="Store it anew without its metadata.")
    if not header.several_scans or header.megapixels > max_megapixels:
        return  # the decoder ends with the first one; and too large an image is refused for that
    # In the data of pixels the marker cannot occur; in a thumbnail or in a second picture of the file it counts too.
    scans, megapixels = data.count(SCAN), max(header.megapixels, 0.1)
    if scans * megapixels > SCANS_TIMES_MEGAPIXELS:
        raise InputError(f"{where} has {scans} scans over {megapixels:.1f} megapixels, which take long to decode; "
                         f"expected at most {int(SCANS_TIMES_MEGAPIXELS / megapixels)}.",
                         hint="Store it anew, as a JPEG file that is not progressive.")


def _jpeg_header(data: bytes) -> _Jpeg:
    """Walks from segment to segment as Pillow does, over junk between them too."""
    place, segments, megapixels, components, progressive = 2, 0, 0.0, 0, False
    while segments <= SEGMENTS and place <= METADATA_BYTES:
        place = data.find(b"\xff", place)
        if place < 0 or place > len(data) - 5:
            break
        marker = data[place + 1]
        if marker == 0xFF or marker == 0 or marker in ALONE:
            place += 1 if marker == 0xFF else 2
        elif marker == SCAN[1]:
            return _Jpeg(place, segments, megapixels, progressive or data[place + 4] < components)
        else:
            if marker in FRAMES and place + 10 <= len(data):
                height, width, components = struct.unpack(">HHB", data[place + 5:place + 10])
                megapixels, progressive = max(megapixels, width * height / 1e6), progressive or marker & 3 == 2
            place += 2 + max(2, int.from_bytes(data[place + 2:place + 4], "big"))
            segments += 1
    return _Jpeg(len(data) if place < 0 else min(place, len(data)), segments, megapixels)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of the canvas; None where the header is too short. RFC 9649, sections 2.5 to 2.7."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None
