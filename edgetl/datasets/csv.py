"""A table of images: `path,label` and optionally `split` and `weight`, one image a line; for tasks that ask for more
than a class, with a column for each thing that is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetl.datasets import DataSet, Item, _columns, _table, read_file, require_classes
from edgetl.errors import DataError
from edgetl.heads import ONE_CLASS, Asked

NEEDED = ("path", "label")
OPTIONAL = ("split", "weight")
HEADER = ("The first line names the columns: path,label and optionally split,weight; `edgetl finetune` learns other "
          "columns with --label-columns or --task.")


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    label: str
    split: str | None
    weight: float


def load(argument: str | None, asked: Asked = ONE_CLASS) -> DataSet:
    """The images that a CSV file lists.

    Paths count from the folder of the file. Labels are texts; where all are whole numbers they are sorted as numbers.
    `split` is train, val or test for every line or for none. `weight` is the confidence in the label.

    Args:
        argument: path of the CSV file (UTF-8).
        asked: more than a class, see docs/tasks.md.

    Raises:
        DataError: names the file and the line.
    """
    if not argument:
        raise DataError("The data set 'csv' needs a file.", hint="Write --data csv:FILE.")
    file = Path(argument).expanduser()
    if not asked.plain:
        return _columns.load(file, argument, asked)
    table = _table.read(file, NEEDED, HEADER)
    rows = _table.rows(table, lambda line, cells: _row(table, cells))
    names = {row.label for row in rows}
    labels = tuple(sorted(names, key=int if all(_is_whole(name) for name in names) else str))
    require_classes(labels, str(file))
    items = [Item(row.path, labels.index(row.label), row.split, row.weight) for row in rows]
    _require_trained(file, labels, items)
    extra = [name for name in table.columns if name not in NEEDED + OPTIONAL]
    notes = (f"Columns of {file} that are not used: {', '.join(extra)}.",) if extra else ()
    return DataSet(name=file.stem, labels=labels, items=tuple(sorted(items, key=lambda item: item.key)),
                   read=lambda item: read_file(file.parent / item.key), notes=notes, source=f"csv:{argument}")


def guess(argument: str) -> Asked:
    """What the table seems to ask, see `_columns.guess`."""
    return _columns.guess(Path(argument).expanduser())


def _is_whole(text: str) -> bool:
    return text.isdecimal() and text.isascii()


def _row(table: _table.Table, cells: Mapping[str, str]) -> _Row:
    _table.require_cells(table, cells, NEEDED)
    return _Row(cells["path"], cells["label"], _table.split_of(table, cells), _table.weight_of(cells))


def _require_trained(file: Path, labels: tuple[str, ...], items: list[Item]) -> None:
    """Own splits must have training images of every class."""
    if items[0].split is None:
        return
    trained = {item.label for item in items if item.split == "train"}
    absent = [name for index, name in enumerate(labels) if index not in trained]
    if absent:
        raise DataError(f"{file} has no training image of the class '{absent[0]}'.",
                        hint="Every class must occur with split train.")
