"""Tables with more than one class an image: several columns of classes, labels that an image may have, or values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.datasets import DataSet, Item, _table, read_file, require_classes
from edgetl.datasets._table import Table
from edgetl.errors import DataError
from edgetl.heads import CLASSIFY, MULTILABEL, ONE_CLASS, REGRESS, Asked, Head, missing, outputs

OWN = (_table.PATH, _table.SPLIT, _table.WEIGHT)  # columns that are never learned
TEXTS = ("labels", "label")  # columns that hold all labels of an image
BETWEEN = re.compile("[|;]")
TRUTHS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0}
HEADERS = {
    CLASSIFY: "With --label-columns A,B the first line names path, A and B, and optionally split and weight.",
    MULTILABEL: "For --task multilabel the first line names path and either labels (cells like cat|dog) or a column "
                "for each label (cells 0, 1, or empty where nobody knows), and optionally split and weight.",
    REGRESS: "For --task regress the first line names path and a column for each value, and optionally split and "
             "weight.",
}


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    answers: tuple[float, ...]
    split: str | None
    weight: float


def load(file: Path, argument: str, asked: Asked) -> DataSet:
    """What a table says of images besides one class.

    Args:
        file: the table.
        argument: what --data calls it.
        asked: the task, and the columns where they are named.

    Raises:
        DataError: names the file and the line or the column.
    """
    table = _table.read(file, (_table.PATH,), HEADERS[asked.task], _named)
    columns = _columns(table, asked)
    heads, answers_of = _heads(table, asked.task, columns)

    def row(line: int, cells: Mapping[str, str]) -> _Row:
        _table.require_cells(table, cells, (_table.PATH,))
        answers = answers_of(cells)
        if all(math.isnan(one) for one in answers):
            raise ValueError(f"{_listed(columns)} is empty, so that nothing is known of the image")
        return _Row(cells[_table.PATH], answers, _table.split_of(table, cells), _table.weight_of(cells))

    items = [Item(one.path, 0, one.split, one.weight, one.answers) for one in _table.rows(table, row)]
    _require_trained(file, heads, [one for one in items if one.split in (None, "train")])
    ordered = tuple(sorted(items, key=lambda item: item.key))
    return DataSet(name=file.stem, labels=outputs(heads), items=ordered, source=f"csv:{argument}", heads=heads,
                   read=lambda item: read_file(file.parent / item.key),
                   notes=_notes(table, columns, heads, ordered))


def guess(file: Path) -> Asked:
    """What a table seems to ask: one class where it has the column `label`, else what all of its cells can be.

    Columns of 0 and 1, or of yes and no, are labels, columns of other numbers are values, and columns of texts classes.

    Raises:
        DataError: as `load`; or some columns hold numbers and others texts, so that nobody can say.
    """
    table = _table.read(file, (_table.PATH,), HEADERS[CLASSIFY], _named)
    if "label" in table.columns:
        return ONE_CLASS
    if "labels" in table.columns:
        return Asked(MULTILABEL)
    columns = _columns(table, Asked(CLASSIFY))
    said = {name: {cells[name].lower() for _, cells in table.lines} - {""} for name in columns}
    if all(cells <= TRUTHS.keys() for cells in said.values()):
        return Asked(MULTILABEL, columns)
    values = [name for name in columns if all(math.isfinite(_table.number(cell)) for cell in said[name])]
    if values and len(values) < len(columns):
        texts = [name for name in columns if name not in values]
        raise DataError(f"{file} has columns of numbers ({_listed(values)}) and of texts ({_listed(texts)}); one "
                        "recipe learns the one or the other.", hint="Give a table with only the columns to be learned.")
    return Asked(REGRESS if values else CLASSIFY, columns)


def _named(name: str) -> str:
    """Columns of every table in small letters; those that are learned as they are written."""
    return name.lower() if name.lower() in (*OWN, *TEXTS) else name


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _columns(table: Table, asked: Asked) -> tuple[str, ...]:
    """The columns that are learned."""
    wrong = next((name for name in asked.columns if name not in table.columns or name in OWN), None)
    if wrong is not None:
        raise DataError(f"{table.file} has no column '{wrong}' to learn; found: {', '.join(table.columns)}.",
                        hint="What --label-columns names, or the teacher answers, stands in its first line as written.")
    if asked.columns:
        return tuple(dict.fromkeys(asked.columns))
    texts = [name for name in TEXTS if name in table.columns]
    if asked.task == MULTILABEL and texts:
        return (texts[0],)
    others = tuple(name for name in table.columns if name not in OWN)
    if not others:
        raise DataError(f"{table.file}: line 1 has no column to learn; found: {', '.join(table.columns)}.",
                        hint=table.header)
    return others


def _heads(table: Table, task: str, columns: Sequence[str]
           ) -> tuple[tuple[Head, ...], Callable[[Mapping[str, str]], tuple[float, ...]]]:
    """The heads, and what gives an image's answers; that raises ValueError where a cell is wrong."""
    if task == REGRESS:
        return (Head("values", REGRESS, tuple(columns)),), lambda cells: tuple(_value(one, cells) for one in columns)
    if task == CLASSIFY:
        heads = tuple(Head(one, CLASSIFY, _classes(table, one)) for one in columns)
        return heads, lambda cells: tuple(_place(head, cells[head.name]) for head in heads)
    if len(columns) == 1 and any(cells[columns[0]].lower() not in (*TRUTHS, "") for _, cells in table.lines):
        labels = tuple(sorted({one for _, cells in table.lines for one in _labels(cells[columns[0]])}))
        return ((Head(columns[0], MULTILABEL, labels),),
                lambda cells: _marked(labels, _labels(cells[columns[0]])))
    return ((Head("labels", MULTILABEL, tuple(columns)),), lambda cells: tuple(_truth(one, cells) for one in columns))


def _classes(table: Table, column: str) -> tuple[str, ...]:
    """The classes of a column; where all are whole numbers they are sorted as numbers."""
    names = {cells[column] for _, cells in table.lines} - {""}
    whole = all(name.isdecimal() and name.isascii() for name in names)
    found = tuple(sorted(names, key=int if whole else str))
    require_classes(found, f"The column '{column}' of {table.file}")
    return found


def _place(head: Head, text: str) -> float:
    return float(head.labels.index(text)) if text else math.nan


def _labels(text: str) -> set[str]:
    return {one.strip() for one in BETWEEN.split(text)} - {""}


def _marked(labels: Sequence[str], found: set[str]) -> tuple[float, ...]:
    return tuple(float(label in found) for label in labels)


def _value(column: str, cells: Mapping[str, str]) -> float:
    value = _table.number(cells[column]) if cells[column] else math.nan
    if cells[column] and not math.isfinite(value):
        raise ValueError(f"'{column}' is '{cells[column]}', expected a number, or nothing where it is not known")
    return value


def _truth(column: str, cells: Mapping[str, str]) -> float:
    text = cells[column].lower()
    if text and text not in TRUTHS:
        raise ValueError(f"'{column}' is '{cells[column]}', expected 0, 1, or nothing where it is not known")
    return TRUTHS[text] if text else math.nan


def _require_trained(file: Path, heads: Sequence[Head], trained: Sequence[Item]) -> None:
    """Every output must be seen in training."""
    for place, head in enumerate(heads):
        columns = [place] * len(head.labels) if head.kind == CLASSIFY else range(len(head.labels))
        for output, (label, column) in enumerate(zip(head.labels, columns, strict=True)):
            known = {item.answers[column] for item in trained if not math.isnan(item.answers[column])}
            wanted = {CLASSIFY: {float(output)}, MULTILABEL: {0.0, 1.0}}.get(head.kind, set())
            if not known or wanted - known:
                raise DataError(f"{file}: {_lacking(head, label, wanted - known)}.",
                                hint="Leave that column or label out, or add images.")


def _lacking(head: Head, label: str, lacking: set[float]) -> str:
    if head.kind == CLASSIFY:
        return f"no training image has the class '{label}' in the column '{head.name}'"
    if head.kind == MULTILABEL:
        return f"no training image is known to {'have' if 1.0 in lacking else 'be without'} the label '{label}'"
    return f"the column '{label}' has no value for any training image"


def _notes(table: Table, columns: Sequence[str], heads: Sequence[Head], items: Sequence[Item]) -> tuple[str, ...]:
    unused = [name for name in table.columns if name not in (*OWN, *columns)]
    empty = {name: n for name, n in missing(heads, [item.answers for item in items]).items() if n}
    told = [f"Columns of {table.file} that are not used: {', '.join(unused)}."] if unused else []
    if empty:
        counted = ", ".join(f"{name} for {n}" for name, n in empty.items())
        told.append(f"Of {len(items)} images nothing is said about {counted}.")
    return tuple(told)
