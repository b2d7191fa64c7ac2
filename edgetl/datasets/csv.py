"""A table of images: `path,label` and optionally `split` and `weight`, one image a line."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetl.datasets import SPLIT_ALIASES, DataSet, Item, read_file, require_classes
from edgetl.errors import DataError

NEEDED = ("path", "label")
OPTIONAL = ("split", "weight")
HEADER = "The first line names the columns: path,label and optionally split,weight."


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    path: str
    label: str
    split: str | None
    weight: float


def load(argument: str | None) -> DataSet:
    """The images that a CSV file lists.

    Paths count from the folder of the file. Labels are texts; where all are whole numbers they are sorted as numbers.
    `split` is train, val or test for every line or for none. `weight` is the confidence in the label.

    Args:
        argument: path of the CSV file (UTF-8).

    Raises:
        DataError: names the file and the line.
    """
    if not argument:
        raise DataError("The data set 'csv' needs a file.", hint="Write --data csv:FILE.")
    file = Path(argument).expanduser()
    columns, lines = _read_table(file)
    rows = _rows(file, lines)
    names = {row.label for row in rows}
    labels = tuple(sorted(names, key=int if all(_is_whole(name) for name in names) else str))
    require_classes(labels, str(file))
    items = [Item(row.path, labels.index(row.label), row.split, row.weight) for row in rows]
    _require_trained(file, labels, items)
    extra = [name for name in columns if name not in NEEDED + OPTIONAL]
    notes = (f"Columns of {file} that are not used: {', '.join(extra)}.",) if extra else ()
    return DataSet(name=file.stem, labels=labels, items=tuple(sorted(items, key=lambda item: item.key)),
                   read=lambda item: read_file(file.parent / item.key), notes=notes, source=f"csv:{argument}")


def _is_whole(text: str) -> bool:
    return text.isdecimal() and text.isascii()


def _read_table(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names, and for each line its number and its cells by column."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened, strict=True)
            columns = [name.strip().lower() for name in next(reader, [])]
            _check_columns(file, columns)
            lines = [(reader.line_num, _cells(file, reader.line_num, columns, row)) for row in reader if any(row)]
    except OSError as problem:
        raise DataError(f"The table {file} cannot be read: {problem.strerror}.",
                        hint="Check the path after csv:.") from problem
    except UnicodeDecodeError as problem:
        raise DataError(f"{file} is not UTF-8 text.", hint="Save the table as CSV in UTF-8.") from problem
    except csv.Error as problem:
        raise DataError(f"{file}: line {reader.line_num} is not CSV: {problem}.", hint=HEADER) from problem
    if not lines:
        raise DataError(f"{file} lists no images.", hint=HEADER)
    return columns, lines


def _check_columns(file: Path, columns: list[str]) -> None:
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        found = ", ".join(columns) or "nothing"
        raise DataError(f"{file}: line 1 has no column '{missing[0]}'; found: {found}.", hint=HEADER)
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: line 1 names the column '{twice}' twice.", hint=HEADER)


def _cells(file: Path, line: int, columns: list[str], row: list[str]) -> dict[str, str]:
    if len(row) != len(columns):
        raise DataError(f"{file}: line {line} has {len(row)} cells, expected {len(columns)} ({','.join(columns)}).",
                        hint="Put cells that contain commas into double quotes.")
    return {name: cell.strip() for name, cell in zip(columns, row, strict=True)}


def _rows(file: Path, lines: list[tuple[int, dict[str, str]]]) -> list[_Row]:
    """Checked rows; every line is looked at before anything is raised."""
    rows: list[_Row] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    any_split = any(cells.get("split") for _, cells in lines)
    for line, cells in lines:
        try:
            row = _row(file, line, cells, any_split)
            if row.path in first_line:
                raise ValueError(f"'{row.path}' is listed in line {first_line[row.path]} already")
            first_line[row.path] = line
            rows.append(row)
        except ValueError as problem:
            problems.append(f"line {line}: {problem}")
    if problems:
        more = f" ({len(problems) - 1} more line(s) have problems)" if len(problems) > 1 else ""
        raise DataError(f"{file}: {problems[0]}{more}.", hint=f"Paths count from {file.parent}. {HEADER}")
    return rows


def _row(file: Path, line: int, cells: Mapping[str, str], any_split: bool) -> _Row:
    for name in NEEDED:
        if not cells[name]:
            raise ValueError(f"'{name}' is empty")
    if not (file.parent / cells["path"]).is_file():
        raise ValueError(f"the image '{cells['path']}' does not exist")
    split = _split(cells.get("split", ""), any_split)
    return _Row(line, cells["path"], cells["label"], split, _weight(cells.get("weight", "")))


def _split(text: str, any_split: bool) -> str | None:
    if not any_split:
        return None
    if text.lower() not in SPLIT_ALIASES:
        raise ValueError(f"'split' is '{text}', expected train, val or test on every line")
    return SPLIT_ALIASES[text.lower()]


def _weight(text: str) -> float:
    if not text:
        return 1.0
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"'weight' is '{text}', expected a number above 0")
    return value


def _require_trained(file: Path, labels: tuple[str, ...], items: list[Item]) -> None:
    """Own splits must have training images of every class."""
    if items[0].split is None:
        return
    trained = {item.label for item in items if item.split == "train"}
    absent = [name for index, name in enumerate(labels) if index not in trained]
    if absent:
        raise DataError(f"{file} has no training image of the class '{absent[0]}'.",
                        hint="Every class must occur with split train.")
