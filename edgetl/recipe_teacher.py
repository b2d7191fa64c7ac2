"""The teachers of `edgetl distill` as a person names them: MODEL[,MODEL...], and what must be said of each besides."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl import rundir
from edgetl.errors import EdgetlError
from edgetl.recipe import build
from edgetl.recipe_fields import opt
from edgetl.recipe_graph import GraphFields

BLACK_BOX = "onnx:"


@dataclass(frozen=True, kw_only=True)
class GraphTeacher(GraphFields):
    """What may be said of a teacher `onnx:FILE`."""

    output: str | None = opt(
        None, "What the graph gives: logits or probabilities (default: what it is seen to give).",
        choices=("logits", "probabilities"))


@dataclass(frozen=True, kw_only=True)
class NetworkTeacher:
    """What may be said of a teacher FAMILY/VARIANT."""

    weights: str | None = opt(None, "File of its weights (default: the published ones).")
    labels: str | None = opt(
        None, "File of its class names, a line each, in its order (default: those of the published weights).")
    image_size: int | None = opt(
        None, "Side of the square input in pixels (default: the model's own).", low=8, high=4096)


@dataclass(frozen=True, kw_only=True)
class RunTeacher:
    """What may be said of a RUN: nothing, it says all itself."""


Said = GraphTeacher | NetworkTeacher | RunTeacher


@dataclass(frozen=True)
class Named:
    """One teacher as it was named."""

    name: str  # MODEL
    said: Said

    @property
    def files(self) -> Mapping[str, Path]:
        """The files that it is made of, and those that describe it, by what they are."""
        own = {"teacher": Path(self.name) / rundir.MODEL} if isinstance(self.said, RunTeacher) else {}
        if isinstance(self.said, GraphTeacher):
            own = {"teacher": graph_file(self.name)}
        named = {kind: getattr(self.said, kind, None) for kind in ("weights", "labels")}
        return {**own, **{kind: Path(file) for kind, file in named.items() if file is not None}}


def graph_file(name: str) -> Path:
    """The file of `onnx:FILE`."""
    return Path(name.removeprefix(BLACK_BOX))


def spelled(name: str, value: str) -> str:
    """`--teacher-options name=value`, the form that messages ask for."""
    return f"--teacher-options {name.replace('_', '-')}={value}"


def split(teacher: str) -> tuple[str, ...]:
    """The names in MODEL[,MODEL...]; a folder or file with a comma in its name is one.

    Raises:
        EdgetlError: there is none, or one is empty.
    """
    if Path(teacher).exists() or (teacher.startswith(BLACK_BOX) and graph_file(teacher).exists()):
        return (teacher,)
    names = tuple(name.strip() for name in teacher.split(","))
    if not all(names):
        raise EdgetlError(f"--teacher is '{teacher}', expected MODEL or MODEL,MODEL,...",
                          hint="A RUN folder, FAMILY/VARIANT or onnx:FILE.")
    return names


def named(teacher: str, options: Sequence[str]) -> tuple[Named, ...]:
    """The teachers with what is said of each.

    Args:
        teacher: MODEL[,MODEL...].
        options: `[N:]key=value[;key=value...]`, N counts the teachers from 1.

    Raises:
        RecipeError: a key that such a teacher does not have, or a value outside its limits.
        EdgetlError: an option of a teacher that is not there, or two for one.
    """
    names = split(teacher)
    values: dict[int, dict[str, str]] = {}
    for text in options:
        number, pairs = _pairs(text)
        if not 1 <= number <= len(names):
            raise EdgetlError(f"--teacher-options {text}: there is no teacher {number}, but {len(names)}.",
                              hint="The number before the colon counts the teachers from 1.")
        if number in values:
            raise EdgetlError(f"--teacher-options is given twice for teacher {number}, {names[number - 1]}.",
                              hint="For the second teacher write 2:key=value.")
        values[number] = pairs
    return tuple(Named(name, _said(name, values.get(number, {}))) for number, name in enumerate(names, 1))


def _pairs(text: str) -> tuple[int, dict[str, str]]:
    head, colon, rest = text.partition(":")
    number, rest = (int(head), rest) if colon and head.strip().isdigit() else (1, text)
    pairs: dict[str, str] = {}
    for one in rest.split(";"):
        key, equals, value = (part.strip() for part in one.partition("="))
        if not equals or not key or not value:
            raise EdgetlError(f"--teacher-options {text}: found '{one}', expected key=value[;key=value...].")
        if key.replace("-", "_") in pairs:
            raise EdgetlError(f"--teacher-options {text} says '{key}' twice.")
        pairs[key.replace("-", "_")] = value
    return number, pairs


def _said(name: str, values: Mapping[str, str]) -> Said:
    kind: type[Said] = GraphTeacher if name.startswith(BLACK_BOX) else NetworkTeacher
    kind = RunTeacher if Path(name).is_dir() else kind
    where = f"--teacher-options of {name}"
    if kind is RunTeacher and values:
        raise EdgetlError(f"{where}: a RUN folder says all of itself, found {', '.join(values)}.",
                          hint="Leave them out.")
    return build(kind, {key: _number(kind, key, value) for key, value in values.items()}, where=where)


def _number(kind: type[Said], key: str, value: str) -> Any:
    """The text as a number where the field is one and the text can be; what cannot is refused with the others."""
    hints = typing.get_args(typing.get_type_hints(kind).get(key))
    wanted = next((one for one in (int, float) if one in hints), None)
    try:
        return value if wanted is None else wanted(value)
    except ValueError:
        return value
