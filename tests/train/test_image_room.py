"""Prepared images stay within a limit: the least recently used sets go, and none that is in use."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photos

from edgetl.cli import doctor
from edgetl.datasets import DataSet, open_data
from edgetl.errors import EdgetlError
from edgetl.events import Event, ignore
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import image_room, shelf, store
from edgetl.train.store import ImageStore

WANTS = Preprocess(size_hw=(16, 16))
HOLDING = """
import sys
from pathlib import Path
from edgetl.train import shelf
held = shelf.Held(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(image_room.NAME, raising=False)
    return open_data(str(write_photos(tmp_path / "photos", images=4)))


def opened(data: DataSet, name: str, heard: list[Event] | None = None) -> ImageStore:
    """A set of prepared images; its name stands for other contents."""
    return store.open_store(data, data.items, name, WANTS, ignore if heard is None else heard.append, "test")


def aged(folder: Path, seconds: int) -> None:
    os.utime(folder / shelf.LOCK, (1_000_000 - seconds, 1_000_000 - seconds))


def names() -> set[str]:
    return {one.name for one in image_room.root().iterdir()}


def test_the_least_recently_used_go_and_none_in_use(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [opened(data, name) for name in ("oldest", "used", "young")]
    folders = [one.folder for one in stores]
    for age, folder in enumerate(reversed(folders)):
        aged(folder, age)
    used = stores[1]
    pixels = used[0]
    del stores
    gc.collect()
    size = shelf.size_of(folders[0])
    monkeypatch.setenv(image_room.NAME, f"{3 * size}B")
    new = opened(data, "new")
    assert names() == {new.folder.name, folders[1].name, folders[2].name}
    monkeypatch.setenv(image_room.NAME, "0B")
    heard: list[Event] = []
    last = opened(data, "last", heard)
    assert names() == {new.folder.name, folders[1].name, last.folder.name}
    assert any("more than EDGETL_IMAGES_LIMIT allows" in str(event.values.get("text")) for event in heard)
    assert np.array_equal(used[0], pixels)


def test_what_evaluation_looks_at_is_kept_while_any_part_of_it_is_mapped(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = store.evaluation_pixels(data, data.items, "f", WANTS)[1:3]
    again = store.evaluation_pixels(data, data.items, "f", WANTS)
    gc.collect()
    monkeypatch.setenv(image_room.NAME, "0B")
    assert image_room.make_room(0) == part.size // 2 * len(data.items)
    assert np.array_equal(again[1:3], part) and len(names()) == 1
    del part, again
    gc.collect()
    assert image_room.make_room(0) == 0 and not names()


def test_a_file_for_evaluation_that_is_damaged_is_made_again(data: DataSet) -> None:
    whole = np.array(store.evaluation_pixels(data, data.items, "f", WANTS))
    (path,) = image_room.root().glob("*/evaluation.bin")
    path.write_bytes(b"half")
    assert np.array_equal(store.evaluation_pixels(data, data.items, "f", WANTS), whole)


def test_what_another_process_uses_stays(data: DataSet) -> None:
    folder = opened(data, "other").folder
    gc.collect()
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(folder)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True,
                               env={**os.environ, "PYTHONPATH": "."})  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    shelf.make_room(image_room.root(), 0)
    assert names() == {folder.name}
    process.communicate()
    shelf.make_room(image_room.root(), 0)
    assert not names()


def test_what_a_killed_process_was_writing_is_swept_and_what_is_being_written_is_not(data: DataSet) -> None:
    root = image_room.root()
    with shelf.beginning(root / "mine") as (temporary, held):
        (root / f"{shelf.BEGUN}dead-abc").mkdir()
        (root / f"{shelf.BEGUN}dead-abc" / "pixels.bin").write_bytes(b"half")
        (root / "0123.bin").write_bytes(b"of an earlier version")
        image_room.make_room(0)
        assert names() == {temporary.name}
        temporary.rename(root / "mine")
        assert shelf.make_room(root, -1) == 0 and names() == {"mine"}  # it is still in use
        held.release()
    assert shelf.make_room(root, -1) == 0 and not names()


@pytest.mark.parametrize("said", ["much", "12", "-1GB", "1 TB"])
def test_a_limit_that_is_no_size_is_one_sentence(data: DataSet, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(image_room.NAME, said)
    with pytest.raises(EdgetlError, match=f"EDGETL_IMAGES_LIMIT is '{said}', expected a size with a unit"):
        opened(data, "any")
    assert not names()


def test_the_doctor_shows_what_the_cache_takes(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened(data, "one").folder
    monkeypatch.setenv(image_room.NAME, "1.5GB")
    found = doctor._cache()
    assert found["bytes"] == {"images": shelf.size_of(folder)} and found["limits"]["images"] == 1_500_000_000
    assert "images 0.00 GB of 1.5" in doctor._cached(found)
    monkeypatch.setenv(image_room.NAME, "much")
    assert "EDGETL_IMAGES_LIMIT" in doctor._cached(doctor._cache())
