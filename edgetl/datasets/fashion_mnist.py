"""Fashion-MNIST: 60,000 + 10,000 grey 28 x 28 photos of clothes (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.datasets import DataSet
from edgetl.datasets._arrays import Part, from_arrays
from edgetl.datasets._download import cache_folder, data_folder, fetch
from edgetl.errors import DataError

LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PARTS: dict[str | None, str] = {"train": "train", "test": "t10k"}  # split -> beginning of the file names
SYSTEM = Path("/usr/share/datasets/fashion-mnist")
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
AGAIN = "Copy the files again."
OFFLINE = f"Install Debian's dataset-fashion-mnist, or put {', '.join(MD5)} into $EDGETL_DATA/fashion-mnist."
NOTES = ("Images: Fashion-MNIST, Zalando SE, MIT licence.",)


def load(argument: str | None) -> DataSet:
    """The clothes with the set's own train and test split.

    The four idx .gz files are looked for in the folder given, else in `$EDGETL_DATA/fashion-mnist`, else where Debian's
    package dataset-fashion-mnist puts them, else they are downloaded once.

    Args:
        argument: folder with the files.

    Raises:
        DataError: the files are absent and cannot be downloaded, or are damaged.
    """
    folder = _folder(argument)
    parts = {split: _part(folder, begin) for split, begin in PARTS.items()}
    for split, (images, numbers) in parts.items():
        if len(images) != len(numbers) or numbers.max(initial=0) >= len(LABELS):
            raise DataError(f"The {split} images and labels in {folder} do not belong together.", hint=AGAIN)
    return from_arrays("fashion-mnist", LABELS, parts, NOTES)


def _part(folder: Path, begin: str) -> Part:
    return _idx(folder / f"{begin}-images-idx3-ubyte.gz", 3), _idx(folder / f"{begin}-labels-idx1-ubyte.gz", 1)


def _folder(argument: str | None) -> Path:
    if argument:
        if not _complete(Path(argument)):
            raise DataError(f"{argument} lacks the files of Fashion-MNIST.", hint=f"Expected: {', '.join(MD5)}.")
        return Path(argument)
    own = data_folder()
    for place in ([own / "fashion-mnist"] if own else []) + [SYSTEM]:
        if _complete(place):
            return place
    cache = cache_folder("fashion-mnist")
    for name, md5 in MD5.items():
        fetch(MIRROR + name, cache, md5=md5, what="fashion-mnist", offline_hint=OFFLINE)
    return cache


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in MD5)


def _idx(path: Path, dimensions: int) -> NDArray[Any]:
    """The uint8 array in an idx file: two zero bytes, type 8, number of dimensions, big-endian sizes, values."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"{path} cannot be read: {problem}.", hint=AGAIN) from problem
    begin = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(data[start:start + 4], "big") for start in range(4, begin, 4))
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) - begin != math.prod(shape):
        raise DataError(f"{path} is not an idx file of {dimensions} dimension(s) of bytes.", hint=AGAIN)
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)
