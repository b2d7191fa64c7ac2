"""What a shard holds, kept in the cache until the shard changes."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgetl import rundir
from edgetl.datasets import _tar
from edgetl.datasets._places import Place, explained
from edgetl.datasets._tar import Contents
from edgetl.runtime.tuned import cache_root

VERSION = 2  # of the file
ELSEWHERE = "EDGETL_CACHE=FOLDER names another place for what edgetl keeps."


def path_of(place: Place, label: str) -> Path:
    """The file that holds what was found in a shard."""
    key = hashlib.sha256(f"{place.where}\0{label}".encode("utf-8", "surrogateescape")).hexdigest()
    return cache_root() / "shards" / f"{key[:32]}.npz"


def known(place: Place, label: str, state: str) -> Contents | None:
    """What was found in a shard when it was in this state; None where that is not known.

    Args:
        place: where the shard lies.
        label: the field of a .json member that holds the label.
        state: of the shard now.
    """
    try:
        # Opened here: numpy leaves a file open in which it finds no arrays.
        with path_of(place, label).open("rb") as file, np.load(file, allow_pickle=False) as found:
            told = json.loads(found["told"].tobytes())
            if (told["version"], told["state"]) != (VERSION, state):
                return None
            return Contents(told["names"], told["labels"], found["offsets"], found["sizes"], found["digests"],
                            told["left_out"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # not there, or damaged: the shard itself says it again


def made(place: Place, label: str, state: str, told: Callable[[int], None]) -> Contents:
    """What a shard holds, read from it and kept.

    Args:
        place: where the shard lies.
        label: the field of a .json member that holds the label.
        state: of the shard before it is read.
        told: hears how many images were found.

    Raises:
        DataError: see `_tar.contents`.
        OutputError: the cache cannot be written, or is full.
    """
    with explained(place.where), place.open() as file:
        found = _tar.contents(file, place.where, label, told)
    path = path_of(place, label)
    words = {"version": VERSION, "state": state, "names": found.names, "labels": found.labels,
             "left_out": found.left_out}
    text = np.frombuffer(json.dumps(words).encode(), np.uint8)
    with rundir.explained(path, elsewhere=ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with rundir.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, told=text, offsets=found.offsets, sizes=found.sizes, digests=found.digests)
    return found
