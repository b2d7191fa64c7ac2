"""Two that prepare the same images at once, at the moments when each could harm the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_photos

from edgetl.datasets import DataSet, open_data
from edgetl.errors import OutputError
from edgetl.events import Event, ignore
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import store
from edgetl.train.store import ImageStore

WANTS = Preprocess(size_hw=(16, 16))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return open_data(str(write_photos(tmp_path / "photos", images=4)))


def opened(data: DataSet, listener: Any = ignore) -> ImageStore:
    return store.open_store(data, data.items, "f", WANTS, listener, "test")


def same(data: DataSet, one: ImageStore, other: ImageStore) -> bool:
    return one.folder == other.folder and all(np.array_equal(one[at], other[at]) for at in range(len(data.items)))


def test_the_second_to_be_ready_takes_what_the_first_has_made(data: DataSet, tmp_path: Path) -> None:
    made: list[ImageStore] = []

    def meanwhile(event: Event) -> None:
        if event.kind == "end":  # the images are decoded and have not got their name yet
            made.append(opened(data))

    mine = opened(data, meanwhile)
    assert same(data, mine, made[0])
    assert [one.name for one in (tmp_path / "cache" / "images").iterdir()] == [mine.folder.name]


def test_what_another_has_made_since_it_was_looked_for_is_not_taken_for_damaged(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, made, notes = store._opened, list[ImageStore](), list[Event]()

    def late(folder: Path) -> ImageStore | None:
        found = looked(folder)
        if found is None and not made:
            monkeypatch.setattr(store, "_opened", looked)
            made.append(opened(data))
        return found

    monkeypatch.setattr(store, "_opened", late)
    mine = opened(data, lambda event: notes.append(event) if event.kind == "note" else None)
    assert notes == [] and same(data, mine, made[0])
    assert made[0].folder.stat().st_ino == mine.folder.stat().st_ino


def test_a_disk_that_refuses_the_name_is_still_told(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, new: Path) -> None:
        raise PermissionError(13, "Permission denied", str(new))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        opened(data)
