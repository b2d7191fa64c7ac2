"""Memory and disk of large data sets: pages that are given back, bytes an image, and room that is looked at first."""

from __future__ import annotations

import io
import mmap
import sys
import tarfile
import tracemalloc
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photos

from edgetl import splits
from edgetl.datasets import DataSet, Item, open_data
from edgetl.errors import DataGone, DiskFull
from edgetl.events import Event, ignore
from edgetl.recipe_fields import DataFields
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import resident, room, store
from edgetl.train.resident import Resident

Usage = namedtuple("Usage", "total used free")
WANTS = Preprocess(size_hw=(16, 16))


class Recorder:
    """A map that notes what it is advised."""

    def __init__(self) -> None:
        self.advice: list[int] = []

    def madvise(self, advice: int) -> None:
        self.advice.append(advice)


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    path = tmp_path / "pixels.bin"
    path.write_bytes(bytes(range(256)) * 4096)
    return np.memmap(path, np.uint8, "r")


def resident_kilobytes(path: str) -> int:
    """What /proc says is in this process's memory of a mapped file."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("only Linux tells what of a mapped file is in memory")
    lines = smaps.read_text().splitlines()
    begin = next(place for place, line in enumerate(lines) if line.endswith(path))
    return next(int(line.split()[1]) for line in lines[begin:] if line.startswith("Rss:"))


def test_pages_are_given_back_every_so_many_bytes(mapped: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "LIMIT", 1000)
    monkeypatch.setattr(resident, "AROUND", 0)
    counted = Resident(mapped[256:].reshape(-1, 256))  # a view of a view is still of the same file
    assert counted._map is mapped.base
    counted._map = recorder = Recorder()
    for size, calls in ((999, 0), (1, 1), (999, 1), (5000, 2)):
        counted.read(size)
        assert recorder.advice == [mmap.MADV_DONTNEED] * calls


def test_what_is_mapped_around_a_small_image_counts(mapped: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "LIMIT", 10 * (resident.AROUND + 3072))
    counted = Resident(mapped)
    counted._map = recorder = Recorder()
    for number in range(1, 21):
        counted.read(3072)
        assert len(recorder.advice) == number // 10


def test_what_was_given_back_is_no_memory_of_this_process(mapped: np.ndarray) -> None:
    path = str(mapped.filename)
    assert int(mapped.max()) == 255
    if resident_kilobytes(path) < 1024:
        pytest.skip("this system does not count pages that were read as memory of the process")
    Resident(mapped).give_back()
    assert resident_kilobytes(path) == 0
    assert mapped[258] == 2 and int(mapped.sum()) == 4096 * 255 * 128


def test_an_array_in_memory_is_left_alone() -> None:
    array = np.arange(10, dtype=np.uint8)
    Resident(array).give_back()
    assert array.tolist() == list(range(10))


def test_a_store_gives_back_what_was_read_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path))
    data = open_data(str(write_photos(tmp_path / "photos", images=4)))
    opened = store.open_store(data, data.items, "f", WANTS, ignore, "test")
    opened._resident._map = recorder = Recorder()
    pixels = [opened[place] for place in range(len(opened))]
    assert not recorder.advice
    monkeypatch.setattr(resident, "LIMIT", 1)
    assert all(np.array_equal(opened[place], one) for place, one in enumerate(pixels))
    assert len(recorder.advice) == len(pixels)


# ------------------------------------------------------------------------------------------------------- bytes an image

def synthetic(images: int) -> DataSet:
    """Items as a folder of photos gives them, whose bytes are their keys."""
    keys = (f"class-{place % 10}/photo-{place:06d}.jpg" for place in range(images))
    items = tuple(sorted((Item(key, place % 10) for place, key in enumerate(keys)), key=lambda item: item.key))
    return DataSet("synthetic", tuple(f"class-{place}" for place in range(10)), items, lambda item: item.key.encode())


def test_an_item_is_small() -> None:
    item = Item("a", 1, "train")
    assert not hasattr(item, "__dict__")
    assert sys.getsizeof(item) <= 8 * 4 + 40


def test_bytes_that_an_indexed_image_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a closed form: what stays is an item and a place in a tuple; what is needed in between is bounded."""
    images = 10_000
    monkeypatch.setattr(splits, "SLICE", 16)  # what waits in the pool does not grow with the images
    splits.resolve(synthetic(100), DataFields(data=""))  # what is loaded on first use is no cost of an image
    tracemalloc.start()
    try:
        data = synthetic(images)
        opened = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        parts = splits.resolve(data, DataFields(data=""))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    key, item, place = sys.getsizeof(data.items[0].key), sys.getsizeof(data.items[0]), 8
    assert len(parts.train) + len(parts.val) + len(parts.test) == images
    assert opened / images < key + item + place + 40  # a small integer is shared
    assert (kept - opened) / images < item + place + 40  # the split is written into items of their own
    digest, entry = sys.getsizeof("0" * 64), sys.getsizeof(dict.fromkeys(range(images))) / images
    assert (peak - opened) / images < item + digest + 2 * entry + 4 * place + 10  # nothing else for each image at once


def test_bytes_that_an_image_of_a_shard_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    images = 2000
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as opened:
        for place in range(images):
            for ending in ("jpg", "cls"):
                member = tarfile.TarInfo(f"photo-{place:06d}.{ending}")
                member.size = 1
                opened.addfile(member, io.BytesIO(b"%d" % (place % 2)))
    open_data(f"shards:{tmp_path}/a.tar")  # looks through the shard, and loads what is loaded on first use
    tracemalloc.start()
    try:
        data = open_data(f"shards:{tmp_path}/a.tar")
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    key, item, place = sys.getsizeof(data.items[0].key), sys.getsizeof(data.items[0]), 8
    row = 4 + 8 + 8 + 32  # shard, first byte, size, SHA-256
    assert kept / images < key + item + place + row + 40


def test_waiting_images_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "SLICE", 8)
    monkeypatch.setattr(splits, "MANY", 20)
    heard: list[Event] = []
    data = synthetic(20)
    found = splits.content_digests(data, heard.append)
    assert list(found) == [item.key for item in data.items]
    assert [event.values.get("done") for event in heard] == [None, 8, 16, 20, None]
    assert [event.kind for event in heard][::4] == ["begin", "end"]
    heard.clear()
    splits.content_digests(synthetic(19), heard.append)
    assert heard == []


# ----------------------------------------------------------------------------------------------------- room on the disk

def test_images_that_would_not_fit_are_refused_before_any_is_written(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    data = open_data(str(write_photos(tmp_path / "photos", images=4)))
    free = len(data.items) * 32 * 32 * 3
    monkeypatch.setattr(room.shutil, "disk_usage", lambda place: Usage(2 * free, free + 1, free - 1))
    heard: list[Event] = []
    with pytest.raises(DiskFull, match=r"training images need about 0\.0 MB in .* are free") as caught:
        store.open_store(data, data.items, "f", WANTS, heard.append, "test")
    assert "EDGETL_CACHE" in caught.value.hint and "--image-size" in caught.value.hint
    assert not heard and not list((tmp_path / "cache").rglob("pixels.bin"))
    with pytest.raises(DiskFull, match="for evaluation"):
        less = 16 * 16 * 3 * len(data.items) - 1
        monkeypatch.setattr(room.shutil, "disk_usage", lambda place: Usage(free, free, less))
        store.evaluation_pixels(data, data.items, "f", WANTS)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda place: Usage(2 * free, free, free))
    assert len(store.open_store(data, data.items, "f", WANTS, ignore, "test")) == len(data.items)


def test_the_estimate_is_the_mean_of_those_that_can_be_decoded() -> None:
    items = [Item(str(place), 0) for place in range(1000)]

    def decoded(item: Item) -> np.ndarray | str:
        return "damaged" if item.key == "0" else np.zeros((10, 10, 3), np.uint8)

    assert room.estimated_bytes(items, decoded) == 300 * 1000
    assert room.estimated_bytes(items[:1], decoded) == 0
    assert room.estimated_bytes([], decoded) == 0


def test_data_that_is_gone_is_no_damaged_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path))

    def gone(item: Item) -> bytes:
        raise DataGone("the server is away")

    data = DataSet("remote", ("a", "b"), tuple(Item(str(place), place % 2) for place in range(4)), gone)
    with pytest.raises(DataGone, match="server is away"):
        store.open_store(data, data.items, "f", WANTS, ignore, "test")
    with pytest.raises(DataGone, match="server is away"):
        store.require_readable(data, data.items, "test", WANTS, ignore, "test")
    with pytest.raises(DataGone, match="server is away"):
        store.evaluation_pixels(data, data.items, "f", WANTS)
