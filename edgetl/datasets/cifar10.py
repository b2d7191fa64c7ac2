"""CIFAR-10: 50,000 + 10,000 colour 32 x 32 photos in ten classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl import plugins
from edgetl.datasets import DataSet
from edgetl.datasets._arrays import Part, from_arrays
from edgetl.datasets._download import cache_folder, data_folder, fetch
from edgetl.errors import DataError

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The binary version: the other one is pickled, and no pickle is ever loaded.
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ROW = 1 + 3 * 32 * 32  # label, then the red, green and blue planes
FILES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
NOTES = ("Images: CIFAR-10, A. Krizhevsky, V. Nair, G. Hinton; no licence stated.",)
HINT = ("Put PNG files as train/CLASS/*.png and test/CLASS/*.png into $EDGETL_DATA/cifar10, or name that folder: "
        "cifar10:PATH.")


def load(argument: str | None) -> DataSet:
    """The ten classes with the set's own train and test split.

    A folder of PNG files (train/CLASS, test/CLASS) given as the argument or in `$EDGETL_DATA/cifar10` is used;
    otherwise the binary archive is downloaded once. JPEG copies of CIFAR-10 are lossy and cost points of accuracy.

    Args:
        argument: folder with train/CLASS and test/CLASS.

    Raises:
        DataError: nothing is there and the archive cannot be downloaded, or it is damaged, or other classes were found.
    """
    own = data_folder()
    folder = Path(argument) if argument else own / "cifar10" if own else None
    if folder is not None and (argument or folder.is_dir()):
        return _from_folder(folder)
    archive = fetch(URL, cache_folder("cifar10"), md5=MD5, what="cifar10", offline_hint=HINT)
    return _from_archive(archive)


def _from_folder(folder: Path) -> DataSet:
    found: DataSet = plugins.load("datasets", "folder").load(str(folder))
    if found.labels != LABELS:
        raise DataError(f"{folder} is not CIFAR-10: found the classes {', '.join(found.labels[:10])}.", hint=HINT)
    return replace(found, name="cifar10", notes=(*NOTES, *found.notes))


def _from_archive(archive: Path) -> DataSet:
    try:
        with tarfile.open(archive) as opened:
            members = {Path(member.name).name: member for member in opened.getmembers()}
            parts: dict[str | None, Part] = {}
            for split, names in FILES.items():
                rows = np.concatenate([_rows(opened, members, name) for name in names])
                parts[split] = (rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0])
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError, zlib.error) as problem:
        raise DataError(f"{archive} is damaged: {problem}.",
                        hint="Delete it, so that it is fetched again.") from problem
    return from_arrays("cifar10", LABELS, parts, NOTES)


def _rows(opened: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str) -> NDArray[np.uint8]:
    """Labels and pixels uint8 [N, 3073] of one file of the archive."""
    member = opened.extractfile(members[name])
    if member is None:
        raise ValueError(f"{name} is not a file")
    return np.frombuffer(member.read(), np.uint8).reshape(-1, ROW)
