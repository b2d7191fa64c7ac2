"""Data sets that come as arrays: their items, and PNG bytes on reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.datasets import DataSet, Item
from edgetl.datasets._png import encode

Part = tuple[NDArray[np.uint8], NDArray[Any]]  # images [N, H, W] or [N, H, W, 3], labels [N]


def from_arrays(name: str, labels: Sequence[str], parts: Mapping[str | None, Part], notes: Sequence[str]) -> DataSet:
    """A data set over arrays.

    Args:
        name: public name.
        labels: class names in the order of the label numbers.
        parts: images and labels by split; the split is None where the set has none.
        notes: licence and the like.
    """
    pixels: dict[str, NDArray[np.uint8]] = {}
    items = []
    for split, (images, numbers) in parts.items():
        for index, number in enumerate(numbers.tolist()):
            key = f"{split or 'all'}/{index:05d}.png"
            pixels[key] = images[index]
            items.append(Item(key=key, label=number, split=split))
    return DataSet(name=name, labels=tuple(labels), items=tuple(sorted(items, key=lambda item: item.key)),
                   read=lambda item: encode(pixels[item.key]), notes=tuple(notes), source=name)
