"""ELPV: 2,624 grey electroluminescence photos (300 x 300) of solar cells, from the package elpv-dataset.

Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence images",
Solar Energy 185 (2019), doi:10.1016/j.solener.2019.02.067.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgetl.datasets import DataSet, Item, read_file
from edgetl.errors import DataError, MissingDependency

LABELS = ("functional", "defective")
DOUBT = "doubt-is-defective"
MAJORITY = "majority"
MAPPINGS = {
    DOUBT: "Labels: defect probability 0 (functional, sure) is 'functional'; 1/3 (functional, unsure), 2/3 (defective, "
           "unsure) and 1 are 'defective': the mapping of Deitsch et al. 2019, as later papers restate it.",
    MAJORITY: "Labels: defect probability 0 and 1/3 are 'functional'; 2/3 and 1 are 'defective'. Deitsch et al. 2019 "
              f"also count 1/3 as defective (elpv:{DOUBT}): their figures are not comparable with these.",
}
NOTES = (
    "Weight of an image: the probability that the experts gave to its label (1 where they were sure).",
    "The set has no official split and no module numbers: cells of one module can lie in train and in test.",
    "Images: CC BY-NC-SA 4.0, S. Deitsch et al., https://github.com/zae-bayern/elpv-dataset",
)


def load(argument: str | None) -> DataSet:
    """The solar cells in two classes.

    An expert said of each cell whether it is functional or defective and whether they were sure, which the set gives
    as a defect probability p of 0, 1/3, 2/3 or 1. The weight of an image is p where its label is 'defective' and
    1 - p where it is 'functional', hence 1 for the certain ones; with `doubt-is-defective` these are the published
    weights (1, 0.33, 0.67, 1).

    Args:
        argument: `doubt-is-defective` (p > 0 is defective; the default) or `majority` (p > 1/2 is defective).

    Raises:
        MissingDependency: elpv-dataset is not installed.
        DataError: unknown argument, or the package is incomplete.
    """
    mapping = argument or DOUBT
    if mapping not in MAPPINGS:
        raise DataError(f"The data set 'elpv' knows no mapping '{mapping}'.",
                        hint=f"Write {' or '.join(f'elpv:{one}' for one in MAPPINGS)}.")
    folder = _folder()
    items = tuple(sorted((_item(line, mapping) for line in _lines(folder)), key=lambda item: item.key))
    return DataSet(name="elpv", labels=LABELS, items=items, read=lambda item: read_file(folder / item.key),
                   notes=(MAPPINGS[mapping], *NOTES), source="elpv" if argument is None else f"elpv:{argument}")


def _folder() -> Path:
    """Where the package keeps its images; the package itself is not imported, for that needs Pillow."""
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or found.origin is None:
        raise MissingDependency("elpv-dataset", extra="demo", purpose="The data set 'elpv'")
    return Path(found.origin).parent / "data"


def _lines(folder: Path) -> list[str]:
    table = folder / "labels.csv"
    lines = [line for line in read_file(table).decode("ascii").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{table} is empty.", hint="Install elpv-dataset again.")
    return lines


def _item(line: str, mapping: str) -> Item:
    path, text, _cell_type = line.split()
    probability = float(text)
    defective = probability > (0 if mapping == DOUBT else 0.5)
    return Item(key=path, label=int(defective), weight=probability if defective else 1 - probability)
