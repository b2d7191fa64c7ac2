"""Streaming histograms of activations: any number of images in the same memory, in any order, to the same result."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import EdgetlError

BINS = 4096  # at most; steps of 8 bits are then some 16 bins wide where all values count
DIGITS = 24  # of a float32: narrower bins than its last digit at the greatest value tell nothing
SMALLEST = -149  # exponent of the smallest float32


class Histogram:
    """Counts of the values of one activation.

    A bin holds the values v with floor(v / width) = its number, and the width is a power of two, so that two bins
    become one of twice the width without loss. The counts therefore depend on the values alone, and not on the order
    or the batches in which they came. The greatest and the least value and exact zeros (which any 8 bits can express)
    are kept besides.

    Args:
        bins: how many there may be.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.low, self.high = math.inf, -math.inf
        self.zeros = 0
        self.exponent = SMALLEST  # the width is 2 ** exponent
        self.first = 0  # number of the first bin
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def width(self) -> float:
        """Of a bin, in the unit of the values."""
        return 2.0**self.exponent

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin [bins]."""
        return (self.first + np.arange(len(self.counts), dtype=np.float64) + 0.5) * self.width

    def sizes(self) -> Histogram:
        """The histogram of the values without their signs, its bins as wide."""
        folded = Histogram(self.bins)
        numbers = self.first + np.arange(len(self.counts), dtype=np.int64)
        numbers = np.where(numbers < 0, -1 - numbers, numbers)  # -k .. -k + 1 is as far from zero as k - 1 .. k
        folded.first = int(numbers.min(initial=0))
        folded.counts = np.bincount(numbers - folded.first, weights=self.counts).astype(np.int64)
        folded.low, folded.high = max(0.0, self.low, -self.high), max(-self.low, self.high)
        folded.zeros, folded.exponent = self.zeros, self.exponent
        return folded

    def add(self, values: NDArray[Any]) -> None:
        """Counts the values of an array of any shape.

        Raises:
            EdgetlError: one of them is infinite or no number.
        """
        flat = np.asarray(values, dtype=np.float32).ravel()
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise EdgetlError("An activation of the float graph is infinite or no number, so it has no range.",
                              hint="Look at the model: it would answer with such values, too.")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.zeros += int(flat.size - np.count_nonzero(flat))
        exponent = self._exponent()
        self._coarsen(exponent - self.exponent)
        self.exponent = exponent
        # In float64, where multiplying by a power of two is exact for every float32.
        numbers = np.floor(np.ldexp(flat.astype(np.float64), -exponent)).astype(np.int64)
        self._count(numbers, math.floor(math.ldexp(low, -exponent)), math.floor(math.ldexp(high, -exponent)))

    def _exponent(self) -> int:
        """The least that suits the values seen so far, and so the same in whatever order they came."""
        greatest = max(abs(self.low), abs(self.high))
        exponent = max(SMALLEST, math.frexp(greatest)[1] - DIGITS) if greatest else SMALLEST
        while math.floor(math.ldexp(self.high, -exponent)) - math.floor(math.ldexp(self.low, -exponent)) >= self.bins:
            exponent += 1
        return exponent

    def _coarsen(self, times: int) -> None:
        """Makes bins 2**times as wide."""
        if not times or not len(self.counts):
            return
        numbers = (self.first + np.arange(len(self.counts), dtype=np.int64)) >> min(times, 62)
        self.first = int(numbers[0])
        self.counts = np.bincount(numbers - self.first, weights=self.counts).astype(np.int64)

    def _count(self, numbers: NDArray[np.int64], least: int, most: int) -> None:
        if not len(self.counts):
            self.first, self.counts = least, np.zeros(most - least + 1, np.int64)
        first = min(self.first, least)
        last = max(self.first + len(self.counts) - 1, most)
        counts = np.zeros(last - first + 1, np.int64)
        counts[self.first - first:self.first - first + len(self.counts)] = self.counts
        counts += np.bincount(numbers - first, minlength=len(counts))
        self.first, self.counts = first, counts
