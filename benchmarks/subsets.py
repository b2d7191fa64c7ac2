"""Parts of a folder of photos, as csv files beside which nothing is copied: few images, or one rare class.

Used by domains.py and imbalance.py. Which images stay depends on their keys and the seed alone.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from edgetl import datasets, splits
from edgetl.recipe_fields import DataFields


def few(source: Path, out: Path, *, per_class: int, val_fraction: float, test_fraction: float, seed: int) -> str:
    """What --data says of at most so many training images a class; validation and test stay whole.

    Args:
        source: a folder of class folders, or of train, val and test.
        out: the csv file to write.
        per_class: training images of each class that stay.
        val_fraction: of the automatic split, where the folder has none.
        test_fraction: the same.
        seed: of the split and of what stays.
    """
    return _written(source, out, defaultdict(lambda: per_class), val_fraction, test_fraction, seed)


def one_rare(source: Path, out: Path, *, rare: str, share: float, per_class: int | None, seed: int) -> str:
    """What --data says with one class thinned to a share of its training images; validation and test stay whole.

    Args:
        source: a folder of class folders, or of train, val and test.
        out: the csv file to write.
        rare: name of the class.
        share: of its training images that stay; two at least.
        per_class: training images that stay of each of the others, and that the share is of; None is all.
        seed: of the split and of what stays.

    Raises:
        SystemExit: there is no such class.
    """
    data = datasets.open_data(str(source))
    if rare not in data.labels:
        raise SystemExit(f"There is no class '{rare}' in the data; it has {', '.join(data.labels)}.")
    parts = splits.resolve(data, DataFields(data=str(source), split_seed=seed))
    most = per_class or len(parts.train)
    count = min(most, sum(data.labels[item.label] == rare for item in parts.train))
    kept = {**dict.fromkeys(data.labels, most), rare: max(2, round(share * count))}
    return _written(source, out, kept, 0.1, 0.2, seed)


def _written(source: Path, out: Path, kept: Mapping[str, int], val_fraction: float, test_fraction: float,
             seed: int) -> str:
    data = datasets.open_data(str(source))
    fields = DataFields(data=str(source), val_fraction=val_fraction, test_fraction=test_fraction, split_seed=seed)
    parts = splits.resolve(data, fields)
    left: dict[str, int] = {name: kept[name] for name in data.labels}
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for item in sorted(parts.train, key=lambda one: _rank(seed, one.key)):
            name = data.labels[item.label]
            left[name] -= 1
            if left[name] >= 0:
                writer.writerow(((source / item.key).absolute(), name, "train"))
        for split in ("val", "test"):
            for item in parts.of(split):
                writer.writerow(((source / item.key).absolute(), data.labels[item.label], split))
    return f"csv:{out}"


def _rank(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogateescape")).hexdigest()


def counts(spec: str) -> dict[str, dict[str, int]]:
    """How many images of each class are in each split of what --data says."""
    data = datasets.open_data(spec)
    found: dict[str, dict[str, int]] = {split: dict.fromkeys(data.labels, 0) for split in datasets.SPLITS}
    for item in data.items:
        if item.split is not None:
            found[item.split][data.labels[item.label]] += 1
    return found
