"""Whether prepared images will fit on the disk, said before hours of decoding rather than after."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.datasets import Item
from edgetl.errors import DiskFull

LOOKED_AT = 32  # images whose size is taken for that of the others
SMALLER = ("Make room; or EDGETL_CACHE=FOLDER names another disk; or a smaller --image-size makes them smaller, for "
           "they are kept at up to twice its side.")


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Returns when so many bytes are free where a folder is, or shall be.

    Raises:
        DiskFull: they are not; says how many are.
    """
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free
    if needed_bytes > free:
        raise DiskFull(f"The {what} need about {_legible(needed_bytes)} in {folder}, where {_legible(free)} are free.",
                       hint=SMALLER)


def _legible(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.1f} MB"


def estimated_bytes(items: Sequence[Item], decoded: Callable[[Item], NDArray[np.uint8] | str]) -> int:
    """How many bytes the pixels of all images will take, from the mean of a few spread over them.

    Args:
        items: the images.
        decoded: gives the pixels of one, or a sentence where it cannot be decoded.
    """
    places = np.linspace(0, len(items) - 1, min(LOOKED_AT, len(items))).astype(int)
    pixels = (decoded(items[place]) for place in places.tolist())
    sizes = [one.nbytes for one in pixels if not isinstance(one, str)]
    return round(sum(sizes) / len(sizes) * len(items)) if sizes else 0
