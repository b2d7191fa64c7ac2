"""Tar files of images with their labels beside them (webdataset's layout), on this machine or behind a URL.

A shard is read through once, when it is seen first or after it changed: where each image lies, its label and its
SHA-256 are kept in the cache. After that every image is read by its range, in any order, so that a training on shards
is as repeatable and resumable as one on a folder; and each image that is read is checked against its SHA-256.
"""

from __future__ import annotations

import bisect
import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgetl.datasets import SPLIT_ALIASES, DataSet, Item, _shard_index, require_classes
from edgetl.datasets._places import Place, find
from edgetl.datasets._tar import Contents
from edgetl.errors import DataError, DataGone
from edgetl.events import Event, Listener, ignore

FORM = ("Write shards:DIR/train-{000..009}.tar, or shards:train=SPEC;val=SPEC;test=SPEC; paths may hold braces and "
        "wildcards or be URLs. ;label=FIELD names the field of .json labels, ;classes=FILE lists the classes.")
CLASSES = "classes.txt"
ASKED_AT_ONCE = 16  # shards whose state is asked for together


@dataclass(frozen=True)
class _Asked:
    """What the text after `shards:` says."""

    patterns: dict[str | None, str]  # by split, None where they were not told apart
    label: str = "label"
    classes: str | None = None


@dataclass
class _Found:
    """All images so far, shard after shard."""

    keys: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    contents: list[Contents] = field(default_factory=list)
    left_out: int = 0


class _Reader:
    """Reads images by their range; its arrays have a row for each item, in the order of the items."""

    def __init__(self, places: Sequence[Place], contents: Sequence[Contents], items: Sequence[Item],
                 order: NDArray[np.int64]) -> None:
        self._places, self._items = places, items
        shard = np.repeat(np.arange(len(contents), dtype=np.int32), [len(one.names) for one in contents])
        self._shard = shard[order]
        self._offset = np.concatenate([one.offsets for one in contents])[order]
        self._size = np.concatenate([one.sizes for one in contents])[order]
        self._digest = np.concatenate([one.digests for one in contents])[order]

    def digest(self, item: Item) -> str:
        """SHA-256 of an image's bytes, hexadecimal, without reading it."""
        known: bytes = self._digest[self._row(item)].tobytes()
        return known.hex()

    def read(self, item: Item) -> bytes:
        """Bytes of an image.

        Raises:
            DataGone: the shard cannot be read any more, or has changed.
        """
        row = self._row(item)
        place = self._places[int(self._shard[row])]
        data = place.read(int(self._offset[row]), int(self._size[row]))
        if hashlib.sha256(data).digest() != self._digest[row].tobytes():
            raise DataGone(f"The shard {place.where} changed after it was looked through: '{item.key}' is not what it "
                           "was.", hint="Run the same command again; a training that has begun starts over.")
        return data

    def _row(self, item: Item) -> int:
        row = bisect.bisect_left(self._items, item.key, key=lambda one: one.key)
        if row == len(self._items) or self._items[row].key != item.key:
            raise KeyError(item.key)
        return row


def load(argument: str | None, listener: Listener = ignore) -> DataSet:
    """The labelled images of tar files.

    A sample is an image `KEY.jpg` (or .png, ...) with its label in `KEY.cls`, in the field `label` of `KEY.json` or in
    `KEY.txt`, the first of them that there is: a class's name or its number. `classes.txt` in the folder of the first
    shard names the classes, one a line, in the order of their numbers. Without it the names that occur are the classes,
    sorted; numbers sort as numbers. Keys of images are `SHARD/MEMBER`.

    Args:
        argument: paths or URLs, see `FORM`.
        listener: told of the first look through the shards.

    Raises:
        DataError: names the shard, and the member where there is one.
        MissingDependency: URLs need fsspec.
        OutputError: the cache cannot be written.
    """
    asked = _asked(argument)
    places: dict[str | None, list[Place]] = {split: find(one) for split, one in asked.patterns.items()}
    every = [place for found in places.values() for place in found]
    prefix = _common_folder([_plain(place.where) for place in every])
    found = _found(places, prefix, asked.label, listener)
    names = _class_names(asked.classes, every[0])
    labels, numbers = _numbered(found.labels, names, every[0].where)
    _require_trained(found.splits, numbers, labels)
    order = np.array(sorted(range(len(found.keys)), key=found.keys.__getitem__), np.int64)
    items = tuple(Item(found.keys[row], numbers[row], found.splits[row]) for row in order.tolist())
    reader = _Reader(every, found.contents, items, order)
    left_out = f"{found.left_out} sample(s) without an image were left out."
    return DataSet(name=posixpath.basename(prefix.rstrip("/")) or "shards", labels=labels, items=items,
                   read=reader.read, notes=(left_out,) if found.left_out else (), source=f"shards:{argument}",
                   digest=reader.digest)


def _asked(argument: str | None) -> _Asked:
    patterns: dict[str | None, str] = {}
    options: dict[str, str] = {}
    for part in (argument or "").split(";"):
        named = re.match(r"([A-Za-z]+)=(.*)", part, re.DOTALL)
        name, value = (named[1].lower(), named[2]) if named else ("", part)
        split = SPLIT_ALIASES.get(name) if name else None
        taken = name in options if name in ("label", "classes") else split in patterns
        if not value or taken or (name and split is None and name not in ("label", "classes")):
            wrong = "is empty" if not value else "is there twice" if taken else "is not known"
            raise DataError(f"The data set 'shards' cannot read '{argument or ''}': '{part}' {wrong}.", hint=FORM)
        if name in ("label", "classes"):
            options[name] = value
        else:
            patterns[split] = value
    if not patterns or (None in patterns and len(patterns) > 1) or not {None, "train"} & patterns.keys():
        raise DataError(f"The data set 'shards' needs one SPEC, or train=SPEC and others beside it; found "
                        f"'{argument}'.", hint=FORM)
    return _Asked(patterns, **options)


def _common_folder(names: Sequence[str]) -> str:
    """The deepest folder that holds all shards; what comes after it in a shard's name tells it from the others."""
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"The shard {twice[0]} is named twice.", hint="Name every shard once, in one split.")
    parts = [name.split("/")[:-1] for name in names]
    shared = 0
    while all(len(one) > shared and one[shared] == parts[0][shared] for one in parts):
        shared += 1
    return "/".join(parts[0][:shared])


def _plain(where: str) -> str:
    """A path or URL without the query that may follow it, which can hold a key."""
    return where.partition("?")[0] if "://" in where else where


def _found(places: dict[str | None, list[Place]], prefix: str, label: str, listener: Listener) -> _Found:
    """The contents of all shards; those that are not known are read, with the listener told of it."""
    found, looked = _Found(), _Looking(listener)
    shards = [(split, place) for split, several in places.items() for place in several]
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:  # every answer of a server takes a while
        states = list(pool.map(lambda shard: shard[1].state(), shards))
    for (split, place), state in zip(shards, states, strict=True):
        contents = _shard_index.known(place, label, state)
        if contents is None:
            contents = _shard_index.made(place, label, state, looked)
            looked.whole()
        begin = _plain(place.where)[len(prefix):].lstrip("/")
        found.keys += [f"{begin}/{member}" for member in contents.names]
        found.labels += contents.labels
        found.splits += [split] * len(contents.names)
        found.contents.append(contents)
        found.left_out += contents.left_out
    looked.end()
    return found


class _Looking:
    """Tells a listener how many images were found in the shards that had to be read."""

    def __init__(self, listener: Listener) -> None:
        self._listener, self._before, self._now, self._begun = listener, 0, 0, False

    def __call__(self, images: int) -> None:
        if not self._begun:
            self._listener(Event("data", "begin", {"what": "look through shards", "total": None, "unit": "images"}))
            self._begun = True
        self._now = images
        if images % 256 == 0:
            self._listener(Event("data", "advance", {"done": self._before + images}))

    def whole(self) -> None:
        """A shard is done; the next one counts anew."""
        self._before, self._now = self._before + self._now, 0

    def end(self) -> None:
        """All shards are done."""
        if self._begun:
            self._listener(Event("data", "end", {"what": "look through shards"}))


def _class_names(classes: str | None, first: Place) -> tuple[str, ...] | None:
    """What `classes=FILE` or the file beside the first shard lists; None where there is neither."""
    if classes is None:
        data = first.beside(CLASSES)
        where = f"{CLASSES} beside {_plain(first.where)}"
    else:
        data, where = _listed(classes)
    if data is None:
        return None
    try:
        names = tuple(line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as problem:
        raise DataError(f"{where} is not UTF-8 text.", hint="List the classes, one a line, in UTF-8.") from problem
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{where} lists the class '{twice}' twice.", hint="List every class once.")
    require_classes(names, where)
    return names


def _listed(classes: str) -> tuple[bytes, str]:
    """The bytes of the file that `classes=` names, and where it is."""
    try:
        files = find(classes)
    except DataError as problem:
        raise DataError(f"classes={classes}: {problem.message}",
                        hint="Name the one file that lists the classes.") from problem
    where = _plain(files[0].where)
    data = files[0].beside(posixpath.basename(where)) if len(files) == 1 else None
    if data is None:
        found = "no file" if len(files) == 1 else f"{len(files)} files"
        raise DataError(f"classes={classes} names {found}.", hint="Name the one file that lists the classes.")
    return data, where


def _numbered(texts: Sequence[str], names: tuple[str, ...] | None, where: str) -> tuple[tuple[str, ...], list[int]]:
    """The classes, and the number of each image's class."""
    present = set(texts)
    whole = all(text.isdecimal() and text.isascii() for text in present)
    if names is None:
        names = tuple(sorted(present, key=int if whole else str))
        require_classes(names, f"The data in {posixpath.dirname(_plain(where))}")
        number = {name: place for place, name in enumerate(names)}
    elif present <= set(names) or not whole:
        number = {name: place for place, name in enumerate(names)}
    else:
        number = {text: int(text) for text in present if int(text) < len(names)}
    strange = sorted(present - number.keys())
    if strange:
        raise DataError(f"The label '{strange[0]}' is none of the {len(names)} classes that are listed.",
                        hint=f"{CLASSES} lists names, one a line; labels are those names, or numbers from 0 on.")
    return names, [number[text] for text in texts]


def _require_trained(splits: Sequence[str | None], numbers: Sequence[int], labels: tuple[str, ...]) -> None:
    """Every class that occurs must have training images where the shards are told apart."""
    if splits[0] is None:
        return
    trained = {number for number, split in zip(numbers, splits, strict=True) if split == "train"}
    absent = sorted(set(numbers) - trained)
    if absent:
        raise DataError(f"The class '{labels[absent[0]]}' is in val or test, but in no training shard.",
                        hint="Every class must occur in the shards of train=.")
