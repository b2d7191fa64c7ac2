"""What a network's outputs are to say where an image has more, or something else, than one class.

A `Head` is a run of outputs next to each other. `classify` with several label columns has a head for each, of an output
a class; `multilabel` has one head, of an output a label; `regress` one, of an output a column. What an image is known
to be is a row of `truth`, as wide as there are outputs, with NaN for what nobody has said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import DataError, EdgetlError
from edgetl.runtime import heads as on_device

CLASSIFY, MULTILABEL, REGRESS = on_device.TASKS
SCORES = {CLASSIFY: "mean accuracy of the heads", MULTILABEL: "mAP", REGRESS: "R2"}  # what the best epoch is chosen by
BINS = 4  # of a column's values, for splits that hold as many small ones as large ones

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """One question about an image."""

    name: str  # of the column; of several columns that are one head, what they are together
    kind: str  # classify, multilabel or regress
    labels: tuple[str, ...]  # of the outputs: classes, labels, or columns of values


@dataclass(frozen=True)
class Asked:
    """What the recipe asks of a table: the task, and the columns that say it."""

    task: str = CLASSIFY
    columns: tuple[str, ...] = ()  # empty: those of the task's own, see docs/tasks.md

    @property
    def plain(self) -> bool:
        """Whether it is one class an image, which every data set knows."""
        return self == Asked()


ONE_CLASS = Asked()


def asked(options: object) -> Asked:
    """What options say they ask for; those of commands that are not told, as `edgetl distill`, ask for one class."""
    return Asked(getattr(options, "task", CLASSIFY), tuple(getattr(options, "label_columns", ())))


def asked_of(values: Mapping[str, Any] | None) -> Asked:
    """What `dataclasses.asdict` made plain; one class an image where nothing is said."""
    return Asked(values["task"], tuple(values["columns"])) if values else ONE_CLASS


def outputs(heads: Sequence[Head]) -> tuple[str, ...]:
    """The names of all outputs in their order; of several heads with the column before the class."""
    if len(heads) == 1:
        return heads[0].labels
    return tuple(f"{head.name}: {label}" for head in heads for label in head.labels)


def places(heads: Sequence[Head]) -> Iterator[tuple[Head, slice]]:
    """Each head with where its outputs are."""
    begin = 0
    for head in heads:
        yield head, slice(begin, begin + len(head.labels))
        begin += len(head.labels)


def truth(heads: Sequence[Head], answers: Sequence[Sequence[float]]) -> Floats:
    """What is known of images, [N, outputs]: one-hot classes, 0 or 1 a label, or values; NaN where nothing is.

    Args:
        heads: what is asked.
        answers: of each image as `Item.answers` has them: the class's number a head, or a number an output.
    """
    given = np.array(answers, np.float64).reshape(len(answers), -1)
    if heads[0].kind != CLASSIFY:
        return given
    parts = [_one_hot(given[:, place], len(head.labels)) for place, head in enumerate(heads)]
    return np.concatenate(parts, axis=1)


def _one_hot(classes: Floats, count: int) -> Floats:
    known = np.isfinite(classes)
    rows = np.full((len(classes), count), math.nan)
    rows[known] = np.eye(count)[classes[known].astype(np.int64)]
    return rows


def missing(heads: Sequence[Head], answers: Sequence[Sequence[float]]) -> dict[str, int]:
    """How many images say nothing, by head; by label or column where there is one head."""
    names = [head.name for head in heads] if heads[0].kind == CLASSIFY else list(heads[0].labels)
    unknown = np.isnan(np.array(answers, np.float64).reshape(len(answers), -1)).sum(axis=0)
    return {name: int(count) for name, count in zip(names, unknown, strict=True)}


def strata(heads: Sequence[Head], answers: Sequence[Sequence[float]]) -> list[tuple[int, ...]]:
    """What splits shall hold alike: the numbers of each image's classes, of its labels, or of the bins of its values.

    A label that an image does not have is no stratum of it, as K. Sechidis et al. count them. An image of which nothing
    is known has none.
    """
    given = np.array(answers, np.float64).reshape(len(answers), -1)
    kind = heads[0].kind
    if kind == MULTILABEL:
        return [tuple(np.flatnonzero(row == 1).tolist()) for row in given]
    binned = given if kind == CLASSIFY else np.stack([_bins(column) for column in given.T], axis=1)
    widths = [len(head.labels) for head in heads] if kind == CLASSIFY else [BINS] * given.shape[1]
    offsets = np.cumsum([0, *widths[:-1]])
    return [tuple((offsets + row)[np.isfinite(row)].astype(int).tolist()) for row in binned]


def _bins(column: Floats) -> Floats:
    """The quarter of the column's known values that each lies in; NaN where there is none."""
    known = np.isfinite(column)
    found = np.full(len(column), math.nan)
    if known.any():
        edges = np.quantile(column[known], np.arange(1, BINS) / BINS)
        found[known] = np.searchsorted(edges, column[known], side="right")
    return found


def to_json(heads: Sequence[Head]) -> list[dict[str, Any]]:
    """Plain values for a record."""
    return [{**asdict(head), "labels": list(head.labels)} for head in heads]


def from_json(values: Sequence[Mapping[str, Any]]) -> tuple[Head, ...]:
    """The heads of a record."""
    return tuple(Head(one["name"], one["kind"], tuple(one["labels"])) for one in values)


def of_record(record: Mapping[str, Any]) -> tuple[Head, ...]:
    """The heads of a RUN; none where an image has one class."""
    return from_json(record.get("heads", ()))


def asked_again(record: Mapping[str, Any]) -> Asked:
    """What the RUN of a record asks of a table; columns that nobody named are named as its heads are called.

    Labels that a table holds in a column `labels`, or in a column each, are the only ones that are not named so.
    """
    heads = of_record(record)
    if not heads:
        return ONE_CLASS
    kind = heads[0].kind
    named = tuple(record.get("label_columns", record.get("options", {}).get("label_columns", ())))
    if named or kind == MULTILABEL:
        return Asked(kind, named)
    return Asked(kind, tuple(head.name for head in heads) if kind == CLASSIFY else heads[0].labels)


def require_same(ours: Sequence[Head], theirs: Sequence[Head], who: str) -> None:
    """Returns when the data ask what a RUN answers: the same heads with the same labels, in whatever order.

    Args:
        ours: the heads of the data.
        theirs: those of the RUN.
        who: what the sentence calls the RUN.

    Raises:
        DataError: they do not; lists what only one of them has.
    """
    if {head.kind for head in ours} != {head.kind for head in theirs}:
        raise DataError(f"{who} was trained on {words(theirs)}, and the data have {words(ours)}.",
                        hint="Give the table that it was trained on, or another teacher.")
    mine, other = set(_named(ours)), set(_named(theirs))
    if mine != other:
        lacks = [f"the data have {sorted(mine - other)} that it lacks"] if mine - other else []
        lacks += [f"it has {sorted(other - mine)} that the data lack"] if other - mine else []
        raise DataError(f"{who} does not answer what the data ask: {', and '.join(lacks)}.",
                        hint="Give a table with the same columns, labels and classes, or another teacher.")


def _named(heads: Sequence[Head]) -> list[str]:
    """The outputs' names, of classes always with their column."""
    return [f"{head.name}: {label}" if head.kind == CLASSIFY else label for head in heads for label in head.labels]


def order(ours: Sequence[Head], theirs: Sequence[Head]) -> tuple[int, ...]:
    """The place among a RUN's outputs of each that the data ask for; both are the same by `require_same`."""
    found = {name: place for place, name in enumerate(_named(theirs))}
    return tuple(found[name] for name in _named(ours))


def words(heads: Sequence[Head]) -> str:
    """What is asked, for sentences."""
    return on_device.asked(heads)


def require_one_class(record: Mapping[str, Any], where: str) -> None:
    """Returns when a RUN says one class an image, which is all that its reader knows.

    Raises:
        EdgetlError: it says something else.
    """
    heads = of_record(record)
    if heads:
        raise EdgetlError(f"{where} was trained on {words(heads)}; what you ask for knows classification with one "
                          "class an image only.", hint="`edgetl finetune` can start from it, and its run.json and "
                          "answers.npz hold its figures and answers; see docs/tasks.md.")
