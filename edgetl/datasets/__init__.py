"""Catalogue of data sets. A file here has `load(argument: str | None) -> DataSet`.

`argument` is what follows the colon in `--data name:argument` (for a folder the path).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """One labelled image."""

    key: str  # stable and unique within the data set, e.g. the path relative to its folder
    label: int  # index into DataSet.labels
    split: str | None = None  # one of SPLITS where the data set itself says so, else None
    weight: float = 1.0  # confidence in the label, where the data set states one


@dataclass(frozen=True)
class DataSet:
    """Labelled images that are read one at a time."""

    name: str
    labels: tuple[str, ...]
    items: tuple[Item, ...]  # sorted by key
    read: Callable[[Item], bytes]  # the encoded image file (PNG for sets that hold arrays)
    notes: tuple[str, ...] = ()  # licence, label mapping: shown wherever the data set is used
    source: str = ""  # what --data said
