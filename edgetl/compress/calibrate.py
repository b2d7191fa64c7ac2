"""Which images calibrate a quantization, and how they are read: training images only, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate
from edgetl.datasets import Item
from edgetl.errors import DataError
from edgetl.runtime.preprocess import Preprocess

BATCH = 8  # images whose activations, all layers of them, are in memory at once


def choose(items: Sequence[Item], count: int, seed: int) -> tuple[Item, ...]:
    """`count` of `items` (all where there are fewer), each class by its share, the same ones for the same seed.

    Raises:
        DataError: there is no item.
    """
    if not items:
        raise DataError("There is no training image to choose from.", hint="Give the data the model was trained on.")
    chance = np.random.default_rng(seed)
    ranked = [items[place] for place in chance.permutation(len(items))]
    sizes = np.bincount([item.label for item in items])
    seen = np.zeros_like(sizes)
    # The j-th item of a class of n stands at (j + 1/2) / n on the line 0..1: the classes interleave by their shares.
    places = []
    for item in ranked:
        places.append((seen[item.label] + 0.5) / sizes[item.label])
        seen[item.label] += 1
    first = np.argsort(places, kind="stable")[:count]
    return tuple(sorted((ranked[place] for place in first), key=lambda item: item.key))


class Reader:
    """The calibration images as ONNX Runtime's quantizer asks for them; its unit is a batch.

    Follows `onnxruntime.quantization.CalibrationDataReader`, which accepts whatever has `get_next`.
    """

    def __init__(self, items: Sequence[Item], read: Callable[[Item], bytes], preprocess: Preprocess, *,
                 name: str = "image", batch: int = BATCH) -> None:
        """Reads `items`, which must be training images; `name` is the graph's input."""
        self._items, self._read, self._preprocess, self._name, self._batch = items, read, preprocess, name, batch
        self._batches: Iterator[NDArray[np.float32]] = iter(())
        self.set_range(0, len(self))

    def __len__(self) -> int:
        """Number of batches; the last may be smaller."""
        return -(-len(self._items) // self._batch)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Goes back to batch `start_index` and ends before batch `end_index`."""
        part = self._items[start_index * self._batch:end_index * self._batch]
        self._batches = evaluate.images(part, self._read, self._preprocess, self._batch)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch by the graph's input name, or None at the end."""
        images = next(self._batches, None)
        return None if images is None else {self._name: images}
