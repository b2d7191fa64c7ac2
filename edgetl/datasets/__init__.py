"""Catalogue of data sets. A file here has `load(argument: str | None) -> DataSet`.

`argument` is what follows the colon in `--data name:argument` (for a folder the path). A `load` that may take long can
have a second parameter, `listener`, and tell it how far it is.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from edgetl import plugins
from edgetl.errors import DataError, UnknownName
from edgetl.events import Listener, ignore
from edgetl.heads import CLASSIFY, ONE_CLASS, Asked, Head

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ARRAY_ENDING = ".npy"
IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
                           ARRAY_ENDING})


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image."""

    key: str  # stable and unique within the data set, e.g. the path relative to its folder
    label: int  # index into DataSet.labels; 0 where the data set has heads
    split: str | None = None  # one of SPLITS where the data set itself says so, else None
    weight: float = 1.0  # confidence in the label, where the data set states one
    answers: tuple[float, ...] = ()  # to the data set's heads, see `edgetl.heads.truth`; NaN where there is none


@dataclass(frozen=True)
class DataSet:
    """Labelled images that are read one at a time."""

    name: str
    labels: tuple[str, ...]
    items: tuple[Item, ...]  # sorted by key
    read: Callable[[Item], bytes]  # the encoded image file (PNG for sets that hold arrays); safe from several threads
    notes: tuple[str, ...] = ()  # licence, label mapping: shown wherever the data set is used
    source: str = ""  # what --data said
    digest: Callable[[Item], str] | None = None  # SHA-256 of what `read` gives, where that is known without reading
    heads: tuple[Head, ...] = ()  # what is asked of an image; none: one class


def open_data(spec: str, *, foreign: bool = True, listener: Listener = ignore, asked: Asked = ONE_CLASS) -> DataSet:
    """The data set that `--data` names: an existing folder, `csv:FILE`, `shards:SPEC` or a data set's name.

    An existing path wins over a data set of the same name.

    Args:
        spec: PATH, `csv:FILE`, `shards:SPEC`, `NAME[:ARGUMENT]`, or the dotted name of the user's own module with such
            a `load`.
        foreign: whether the user wrote `spec`; False for one that a RUN recorded, see `plugins.load`.
        listener: told of what takes long, by data sets whose `load` has a parameter of this name.
        asked: what shall be known of an image besides one class.

    Raises:
        DataError: nothing of that name; the nearest data set is suggested. The data set knows one class an image only,
            and more is asked. Also whatever the data set finds wrong.
        MissingDependency: the data set comes with a package that is not installed.
    """
    if not spec.strip():
        raise DataError("--data is empty.",
                        hint="Give a folder, csv:FILE, shards:SPEC or a data set's name (`edgetl list datasets`).")
    if _exists(spec):
        found: DataSet = _loaded(plugins.load("datasets", "folder"), spec, spec, listener, asked)
    else:
        found = _load_named(spec, foreign, listener, asked)
    return replace(found, source=spec)


def guess(spec: str) -> Asked:
    """What a table `csv:FILE` seems to ask of an image; one class of all other data.

    Raises:
        DataError: the table cannot be read, or nobody can say.
    """
    name, _, argument = spec.partition(":")
    if name != "csv" or not argument or _exists(spec):
        return ONE_CLASS
    found: Asked = plugins.load("datasets", name).guess(argument)
    return found


def _exists(spec: str) -> bool:
    try:
        return Path(spec).expanduser().exists()
    except (OSError, RuntimeError) as problem:  # may not be looked at, too long for a path; ~user without a home
        raise DataError(f"'{spec}' cannot be looked up: {problem}.",
                        hint="Check the path given as --data.") from problem


def _load_named(spec: str, foreign: bool, listener: Listener, asked: Asked) -> DataSet:
    name, colon, argument = spec.partition(":")
    if "/" in name or name.startswith(("~", ".")):
        raise DataError(f"The folder {spec} does not exist.",
                        hint=f"Check the path given as --data; relative paths count from {Path.cwd()}.")
    try:
        module = plugins.load("datasets", name, foreign=foreign)
    except UnknownName as problem:
        choices = ", ".join(plugins.names("datasets"))
        raise DataError(f"'{spec}' is neither an existing folder nor the name of a data set.{_suggestion(name)}",
                        hint=f"Give a folder, csv:FILE, shards:SPEC, or one of: {choices}.") from problem
    return _loaded(module, argument if colon else None, spec, listener, asked)


def _loaded(module: ModuleType, argument: str | None, spec: str, listener: Listener, asked: Asked) -> DataSet:
    """What a data set's `load` returns, given those of the parameters that it has."""
    offered = {"listener": listener, "asked": asked}
    given = {name: value for name, value in offered.items() if name in inspect.signature(module.load).parameters}
    if not asked.plain and "asked" not in given:
        more = f"--label-columns {','.join(asked.columns)}" if asked.task == CLASSIFY else f"--task {asked.task}"
        raise DataError(f"{more} needs a table, and {spec} knows one class an image.",
                        hint="Give --data csv:FILE with the columns path and those to be learned.")
    found: DataSet = module.load(argument, **given)
    return found


def _suggestion(name: str) -> str:
    beside: list[str] = []
    with contextlib.suppress(OSError):  # where we are may be unreadable or gone, which is no reason to fail
        beside = [path.name for path in Path().iterdir() if path.is_dir() and not path.name.startswith(".")]
    near = (difflib.get_close_matches(name, beside, n=1, cutoff=0.6)
            or difflib.get_close_matches(name.replace("_", "-"), plugins.names("datasets"), n=1, cutoff=0.6))
    return f" Did you mean '{near[0]}'?" if near else ""


def read_file(path: Path) -> bytes:
    """Bytes of an image file.

    Raises:
        DataError: it vanished or may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as problem:
        raise DataError(f"The image {path} cannot be read: {problem.strerror}.",
                        hint="Check the file and its permissions, or remove it from the data.") from problem


def require_classes(labels: tuple[str, ...], where: str) -> None:
    """Checks that there is something to tell apart.

    Raises:
        DataError: fewer than two classes.
    """
    if len(labels) < 2:
        only = f"one class only ('{labels[0]}')" if labels else "no classes"
        raise DataError(f"{where} has {only}; a classifier needs at least two.",
                        hint="Put the images of each class into a folder of its own.")
