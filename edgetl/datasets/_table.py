"""Tables of images as CSV: reading the cells, and what all of them have: a path, a split, a weight."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

from edgetl.datasets import SPLIT_ALIASES
from edgetl.errors import DataError

PATH, SPLIT, WEIGHT = "path", "split", "weight"


class Line(Protocol):
    """What a row is read into."""

    @property
    def path(self) -> str:
        """Of the image, from the folder of the table."""
        ...


Row = TypeVar("Row", bound=Line)


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file."""

    file: Path
    columns: tuple[str, ...]
    lines: tuple[tuple[int, Mapping[str, str]], ...]  # the number of each, and its cells by column
    header: str  # what the first line should be, for hints

    @cached_property
    def any_split(self) -> bool:
        """Whether any line says in which split it is."""
        return any(cells.get(SPLIT) for _, cells in self.lines)


def read(file: Path, needed: Sequence[str], header: str, named: Callable[[str], str] = str.lower) -> Table:
    """The table in a file (UTF-8).

    Args:
        file: where.
        needed: columns that must be there.
        header: what the first line should be, for hints.
        named: what is made of the name of a column.

    Raises:
        DataError: names the file and the line.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened, strict=True)
            columns = [named(name.strip()) for name in next(reader, [])]
            _check_columns(file, columns, needed, header)
            lines = [(reader.line_num, _cells(file, reader.line_num, columns, row)) for row in reader if any(row)]
    except OSError as problem:
        raise DataError(f"The table {file} cannot be read: {problem.strerror}.",
                        hint="Check the path after csv:.") from problem
    except UnicodeDecodeError as problem:
        raise DataError(f"{file} is not UTF-8 text.", hint="Save the table as CSV in UTF-8.") from problem
    except csv.Error as problem:
        raise DataError(f"{file}: line {reader.line_num} is not CSV: {problem}.", hint=header) from problem
    if not lines:
        raise DataError(f"{file} lists no images.", hint=header)
    return Table(file, tuple(columns), tuple(lines), header)


def _check_columns(file: Path, columns: list[str], needed: Sequence[str], header: str) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        found = ", ".join(columns) or "nothing"
        raise DataError(f"{file}: line 1 has no column '{missing[0]}'; found: {found}.", hint=header)
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: line 1 names the column '{twice}' twice.", hint=header)


def _cells(file: Path, line: int, columns: list[str], row: list[str]) -> dict[str, str]:
    if len(row) != len(columns):
        raise DataError(f"{file}: line {line} has {len(row)} cells, expected {len(columns)} ({','.join(columns)}).",
                        hint="Put cells that contain commas into double quotes.")
    return {name: cell.strip() for name, cell in zip(columns, row, strict=True)}


def rows(table: Table, read_row: Callable[[int, Mapping[str, str]], Row]) -> list[Row]:
    """Checked rows; every line is looked at before anything is raised.

    Args:
        table: the cells.
        read_row: gets the number of a line and its cells; raises ValueError with what is wrong with them.

    Raises:
        DataError: names the first line that is wrong, and says how many more there are.
    """
    found: list[Row] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    for line, cells in table.lines:
        try:
            row = read_row(line, cells)
            if row.path in first_line:
                raise ValueError(f"'{row.path}' is listed in line {first_line[row.path]} already")
            first_line[row.path] = line
            found.append(row)
        except ValueError as problem:
            problems.append(f"line {line}: {problem}")
    if problems:
        more = f" ({len(problems) - 1} more line(s) have problems)" if len(problems) > 1 else ""
        raise DataError(f"{table.file}: {problems[0]}{more}.",
                        hint=f"Paths count from {table.file.parent}. {table.header}")
    return found


def require_cells(table: Table, cells: Mapping[str, str], needed: Collection[str]) -> None:
    """Returns when a line has these cells, and its image is there; raises ValueError where not."""
    for name in needed:
        if not cells[name]:
            raise ValueError(f"'{name}' is empty")
    if not (table.file.parent / cells[PATH]).is_file():
        raise ValueError(f"the image '{cells[PATH]}' does not exist")


def split_of(table: Table, cells: Mapping[str, str]) -> str | None:
    """The split that a line says; raises ValueError where it says none and others do."""
    if not table.any_split:
        return None
    text = cells.get(SPLIT, "")
    if text.lower() not in SPLIT_ALIASES:
        raise ValueError(f"'split' is '{text}', expected train, val or test on every line")
    return SPLIT_ALIASES[text.lower()]


def weight_of(cells: Mapping[str, str]) -> float:
    """The weight that a line says; raises ValueError where that is no number above 0."""
    text = cells.get(WEIGHT, "")
    if not text:
        return 1.0
    value = number(text)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"'weight' is '{text}', expected a number above 0")
    return value


def number(text: str) -> float:
    """The number that a cell says; NaN where it says none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
