"""Keeps what is read of memory-mapped files from piling up in the memory of this process.

Pages of a mapped file count as memory of the process that touched them until the system wants them back. An epoch
touches all of them, so that a training on 100,000 images would seem to need, and to a container's limit does need, as
much memory as its prepared images take on the disk. They are given back every `LIMIT` bytes; what is needed again
comes from the system's own cache of the file, if there is room for one.
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

LIMIT = 32 * 2**20  # bytes that may be mapped before the pages are given back
AROUND = 64 * 2**10  # Linux maps what it has around a page that is touched, too (fault_around_bytes): for small images
#                      in random order that is most of what is mapped


class Resident:
    """Counts what is read of a mapped array and gives its pages back now and then."""

    def __init__(self, mapped: NDArray[np.uint8]) -> None:
        self._map, self._touched = (map_of(mapped) if hasattr(mmap, "MADV_DONTNEED") else None), 0

    def read(self, size: int) -> None:
        """So many bytes in a row were read; threads that count at once may at worst give back later, or twice."""
        self._touched += size + AROUND
        if self._touched >= LIMIT:
            self.give_back()

    def give_back(self) -> None:
        """What was read belongs to the system again."""
        self._touched = 0
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def map_of(array: NDArray[np.uint8]) -> mmap.mmap | None:
    """The map that an array is a part of; None for one in memory."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
