"""PNG files out of arrays, byte for byte the same on every machine.

A data set's fingerprint is made of the bytes of its images, so those bytes must not depend on the version of an image
library or of zlib: the pixels are stored, not compressed. Format: RFC 2083 (PNG), RFC 1950/1951 (stored blocks).
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2}  # channels -> PNG colour type: grey, RGB
_BLOCK = 65535  # greatest length of a stored block


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of uint8 pixels [H, W] (grey) or [H, W, 3] (RGB)."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with filter type 0
    rows[:, 1:] = pixels.reshape(height, width * channels)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", _stored(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _stored(rows: NDArray[Any]) -> bytes:
    data = rows.tobytes()
    starts = range(0, len(data), _BLOCK)
    blocks = b"".join(_block(data[start:start + _BLOCK], last=start + _BLOCK >= len(data)) for start in starts)
    return b"\x78\x01" + blocks + struct.pack(">I", zlib.adler32(data))


def _block(data: bytes, *, last: bool) -> bytes:
    return struct.pack("<BHH", int(last), len(data), len(data) ^ 0xFFFF) + data
