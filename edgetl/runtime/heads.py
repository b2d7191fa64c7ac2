"""What a bundle says of an image where that is more, or something else, than one class, and when two answers agree.

A head is a run of outputs next to each other: the classes of one question (`classify`), labels of which an image may
have several or none (`multilabel`), or values in the unit of their columns (`regress`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BundleError
from edgetl.runtime import limits
from edgetl.runtime.fields import Table, has_control, words

CLASSIFY, MULTILABEL, REGRESS = TASKS = ("classify", "multilabel", "regress")
THRESHOLD = 0.5  # the probability from which a label is said, where no other was chosen
NEAR = 0.1  # of a value's spread: two answers that are no further apart agree


@dataclass(frozen=True)
class Head:
    """One question about an image."""

    name: str  # of the column; of several columns that are one head, what they are together
    kind: str  # classify, multilabel or regress
    labels: tuple[str, ...]  # of the outputs: classes, labels, or columns of values, whose unit is that of the table
    outputs: tuple[int, int]  # the first of its outputs, and the one after its last
    thresholds: tuple[float, ...] = ()  # of each label, the probability from which it is said; multilabel only
    spreads: tuple[float, ...] = ()  # of each value, its standard deviation in training, in its unit; regress only

    @property
    def part(self) -> slice:
        """Where its outputs are."""
        return slice(*self.outputs)

    @property
    def cuts(self) -> NDArray[np.float64]:
        """The logit of each label from which it is said: log(t / (1 - t))."""
        given = np.asarray(self.thresholds, np.float64)
        found: NDArray[np.float64] = np.log(given) - np.log1p(-given)
        return found


class Question(Protocol):
    """What a head is here and in training."""

    @property
    def name(self) -> str:
        """Of the column, or of several together."""
        ...

    @property
    def kind(self) -> str:
        """classify, multilabel or regress."""
        ...

    @property
    def labels(self) -> Sequence[str]:
        """Of the outputs."""
        ...


def asked(heads: Sequence[Question]) -> str:
    """What is said of an image, for sentences."""
    if not heads:
        return "one class an image"
    if heads[0].kind == MULTILABEL:
        return f"{len(heads[0].labels)} labels an image"
    if heads[0].kind == REGRESS:
        return f"{len(heads[0].labels)} value(s) an image"
    return f"{len(heads)} classes an image ({', '.join(head.name for head in heads)})"


def agreeing(heads: Sequence[Head], found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
    """Which answers are the same, [N, answers]: an answer a head of classes, a label, or a value.

    Labels agree where both are said or neither is, values where they are no further apart than `NEAR` of their spread.

    Args:
        heads: of the bundle.
        found: [N, outputs], logits or values.
        expected: [N, outputs].
    """
    return np.concatenate([_agreeing(head, found[:, head.part], expected[:, head.part]) for head in heads], axis=1)


def _agreeing(head: Head, found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_]
    if head.kind == CLASSIFY:
        same = found.argmax(axis=1, keepdims=True) == expected.argmax(axis=1, keepdims=True)
    elif head.kind == MULTILABEL:
        same = (found >= head.cuts) == (expected >= head.cuts)
    else:
        same = np.abs(found.astype(np.float64) - expected) <= NEAR * np.asarray(head.spreads)
    return same


def agreement_words(heads: Sequence[Head]) -> str:
    """What agrees, for sentences and headings."""
    if heads[0].kind == MULTILABEL:
        return "of the decisions about a label"
    if heads[0].kind == REGRESS:
        return f"of the values (within {NEAR:g} of their standard deviation in training)"
    return "of the heads' top-1 answers"


def to_json(heads: Sequence[Head]) -> list[dict[str, Any]]:
    """Plain values for a manifest, without what does not belong to the kind."""
    return [{name: value for name, value in asdict(head).items() if value != ()} for head in heads]


def from_json(values: Sequence[Mapping[str, Any]]) -> tuple[Head, ...]:
    """The heads that `to_json` made plain."""
    return tuple(Head(one["name"], one["kind"], tuple(one["labels"]), (one["outputs"][0], one["outputs"][1]),
                      tuple(one.get("thresholds", ())), tuple(one.get("spreads", ()))) for one in values)


# ------------------------------------------------------------------------------------------------ read from a manifest


def read(table: Table) -> tuple[Head, ...]:
    """The heads of a manifest; none where it says one class an image.

    Raises:
        BundleError: names the field, what was found and what was expected.
    """
    if not table.values.get("heads"):
        if table.text("task", choices=TASKS) != CLASSIFY:
            raise BundleError(f"{table.where}: the task is {table.text('task')}, but 'heads' is missing or empty; "
                              "expected a table for each head.")
        return ()
    given = table.tables("heads", least=1, most=limits.LABELS)
    found = tuple(_head(values, f"{table.where}: heads[{place}]") for place, values in enumerate(given))
    _check_together(found, table)
    return found


def _head(values: Any, where: str) -> Head:
    table = Table(values, where)
    kind = table.text("kind", choices=TASKS)
    labels = table.texts("labels", least=2 if kind == CLASSIFY else 1, most=limits.LABELS)
    name = table.text("name")
    for text in (name, *labels):
        if has_control(text):
            raise BundleError(f"{where}: the name {words(text)} holds a control character; expected text.")
    if len(set(labels)) < len(labels):
        raise BundleError(f"{where}: 'labels' names a label twice; expected different labels.")
    begin, end = table.wholes("outputs", count=2, low=0, high=limits.LABELS)
    if end - begin != len(labels):
        raise table.wrong("outputs", f"a range of {len(labels)} outputs, one a label")
    return Head(name, kind, labels, (begin, end), _numbers(table, "thresholds", kind == MULTILABEL, len(labels), 1.0),
                _numbers(table, "spreads", kind == REGRESS, len(labels), math.inf))


def _numbers(table: Table, name: str, belongs: bool, count: int, below: float) -> tuple[float, ...]:
    """`count` numbers above 0 and `below` a limit where they belong to the kind, and nothing where they do not."""
    if not belongs:
        if table.values.get(name):
            raise table.wrong(name, f"nothing for a head of the kind {table.text('kind')}")
        return ()
    found = table.numbers(name)
    if len(found) != count or not all(0 < one < below for one in found):
        limit = f" and below {below:g}" if below < math.inf else ""
        raise table.wrong(name, f"{count} numbers above 0{limit}")
    return found


def _check_together(found: Sequence[Head], table: Table) -> None:
    """One kind, which is the task; several heads of classes only; next to each other over all labels of the bundle."""
    task, count = table.text("task", choices=TASKS), len(table.texts("labels", least=1, most=limits.LABELS))
    other = next((place for place, head in enumerate(found) if head.kind != task), None)
    if other is not None:
        raise BundleError(f"{table.where}: heads[{other}] is of the kind {found[other].kind}; expected {task}, the "
                          "task.")
    if task != CLASSIFY and len(found) > 1:
        raise BundleError(f"{table.where}: there are {len(found)} heads of the kind {task}; expected one.")
    if len({head.name for head in found}) < len(found):
        raise BundleError(f"{table.where}: 'heads' names a head twice; expected different names.")
    begins, ends = zip(*(head.outputs for head in found), strict=True)
    if begins != (0, *ends[:-1]) or ends[-1] != count:
        ranges = [list(head.outputs) for head in found]
        raise BundleError(f"{table.where}: the heads have the outputs {words(ranges)}; expected ranges next to each "
                          f"other from 0 to {count}, the number of labels.")


def read_temperatures(table: Table, names: Sequence[str]) -> Mapping[str, float]:
    """What the logits of each head are divided by, by its name; heads that are left as they are are not in it.

    Raises:
        BundleError: it names a head that there is not, or something that is no temperature.
    """
    if table.values.get("temperatures") is None:
        return {}
    given = Table(table.table("temperatures"), f"{table.where}: temperatures")
    unknown = [name for name in given.values if name not in names]
    if unknown:
        known = f"some of {words(list(names))}" if names else "none, since there are no heads of classes"
        raise BundleError(f"{given.where}: there is no head {words(unknown[0])}; expected {known}.")
    return {name: given.number(name, low=1 / limits.TEMPERATURE, high=limits.TEMPERATURE) for name in given.values}
