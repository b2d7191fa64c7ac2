"""What a RUN said to each image of validation and test, kept beside its weights: `predictions.npz`, never pickled.

Gains are paired with it image by image, and the worst mistakes are found in it, without asking the model again.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import metrics, rundir
from edgetl.errors import EdgetlError

FILE = "predictions.npz"
AGAIN = "Make the RUN again with this version of edgetl; --overwrite replaces it."


@dataclass(frozen=True)
class Predictions:
    """The answers on one split, image by image; all arrays are [N]."""

    keys: NDArray[np.str_]
    labels: NDArray[np.int64]  # the true class
    predicted: NDArray[np.int64]
    score: NDArray[np.float32]  # probability of the predicted class
    label_score: NDArray[np.float32]  # probability of the true class

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which answers are right, [N]."""
        found: NDArray[np.bool_] = self.predicted == self.labels
        return found

    def hardest(self, most: int) -> NDArray[np.int64]:
        """Places of the wrong answers with the highest scores, the surest mistake first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.score[wrong], kind="stable")][:most]


def of(logits: NDArray[np.float32], labels: NDArray[np.int64], keys: tuple[str, ...]) -> Predictions:
    """The predictions in logits [N, K] on images with labels [N] and one key an image."""
    probabilities = metrics.softmax(logits)
    rows, predicted = np.arange(len(labels)), logits.argmax(axis=1)
    return Predictions(np.array(keys, dtype=np.str_), np.asarray(labels, np.int64), predicted.astype(np.int64),
                       probabilities[rows, predicted].astype(np.float32),
                       probabilities[rows, labels].astype(np.float32))


def write(folder: Path, found: Mapping[str, Predictions]) -> None:
    """Writes the predictions of each split, by its name, into a RUN folder."""
    arrays: dict[str, Any] = {f"{split}.{name}": array for split, one in found.items()
                              for name, array in vars(one).items()}
    target = io.BytesIO()
    np.savez_compressed(target, **arrays)
    rundir.write_bytes(folder / FILE, target.getvalue())


def read(folder: Path) -> dict[str, Predictions]:
    """The predictions of a RUN by split; empty where the RUN has none, as those of earlier versions.

    Raises:
        EdgetlError: the file is damaged, or is none of edgetl's.
    """
    path = folder / FILE
    names = tuple(Predictions.__dataclass_fields__)
    found = {split: Predictions(*arrays) for split, arrays in by_split(path, names, "predictions").items()}
    if any(len({len(array) for array in vars(one).values()}) != 1 for one in found.values()):
        raise EdgetlError(f"{path} holds arrays of different lengths; expected one value an image.", hint=AGAIN)
    return found


def by_split(path: Path, names: Sequence[str], what: str) -> dict[str, list[NDArray[Any]]]:
    """The arrays of these names in a file of a RUN, by split; empty where there is no file.

    Args:
        path: the file.
        names: which arrays of each split, in this order.
        what: the file holds, for the error.

    Raises:
        EdgetlError: the file is damaged, or is none of edgetl's.
    """
    if not path.is_file():
        return {}
    try:
        # From memory: numpy leaves a damaged file open.
        file = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        arrays = {name: file[name] for name in file.files}
        splits = dict.fromkeys(name.partition(".")[0] for name in arrays)
        return {split: [arrays[f"{split}.{name}"] for name in names] for split in splits}
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as problem:
        raise EdgetlError(f"{path} cannot be read as {what}: {problem}", hint=AGAIN) from problem
