"""The files of the soft-label store: damage, a full disk, several processes at once, and no more than the limit."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.errors import EdgetlError, OutputError
from edgetl.train import shelf, softlabels, views
from edgetl.train.loader import Batch, require_refresh, view_of
from edgetl.train.softlabels import SoftLabels
from edgetl.train.views import View

IMAGES, CLASSES = 6, 4


class Teacher:
    """Says of an image what its row and view are; counts what it is asked."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return images.mean(dim=(1, 2, 3))[:, None] * torch.arange(1.0, CLASSES + 1)


def batch_of(rows: list[int], view: int = 0) -> Batch:
    index = torch.tensor(rows)
    images = (index + 10.0 * view).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return Batch(images, index % 2, torch.eye(2)[index % 2], index, view)


def said(rows: list[int], view: int = 0) -> torch.Tensor:
    return Teacher()(batch_of(rows, view).images).half().float()


def full_view(seed: int = 0, classes: int = CLASSES) -> View:
    view = View.empty(IMAGES, classes)
    view.put(torch.arange(IMAGES), torch.randn(IMAGES, classes, generator=torch.Generator().manual_seed(seed)))
    return view


# ---------------------------------------------------------------------------------------------------------- damage


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([CLASSES, views.MANY + 1]), st.data())
def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path_factory: pytest.TempPathFactory, classes: int,
                                                data: st.DataObject) -> None:  # fmt: skip
    whole = views.encoded(full_view(classes=classes))
    place = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 250))
    damaged = bytearray(whole)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / f"flipped-{classes}.safetensors"
    path.write_bytes(damaged)
    try:
        found = views.read(path, IMAGES, classes)
    except EdgetlError:
        return
    if found is not None:  # a bit that means nothing, such as a blank of the header
        assert all(torch.equal(one, full_view(classes=classes).tensors()[name])
                   for name, one in found.tensors().items())  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.integers(0, 2000))
def test_cut_off_and_foreign_files_are_noticed(tmp_path_factory: pytest.TempPathFactory, what: bytes | int) -> None:
    whole = views.encoded(full_view())
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(whole[: min(what, len(whole) - 1)] if isinstance(what, int) else what)
    with pytest.raises(EdgetlError):
        views.read(path, IMAGES, CLASSES)


def test_a_flipped_logit_is_asked_again_and_told(tmp_path: Path) -> None:
    teacher, told = Teacher(), list[str]()
    rows = list(range(IMAGES))
    SoftLabels(tmp_path / "store", IMAGES, CLASSES, teacher).answers(batch_of(rows))
    (path,) = (tmp_path / "store").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    again = SoftLabels(tmp_path / "store", IMAGES, CLASSES, teacher, note=told.append)
    assert torch.equal(again.answers(batch_of(rows)), said(rows)) and teacher.images == 2 * IMAGES
    assert told == [f"{path} is damaged: its SHA-256 is not the recorded one. The teacher is asked again."]
    assert views.read(path, IMAGES, CLASSES) is not None  # written anew


def test_the_size_is_what_the_documentation_says() -> None:
    assert (views.bytes_an_image(10), views.bytes_an_image(views.MANY), views.bytes_an_image(1000)) == (21, 513, 387)
    assert len(views.encoded(full_view())) - IMAGES * views.bytes_an_image(CLASSES) < 400


def test_the_figures_of_several_stores_are_one_sentence() -> None:
    one = {"bytes": 900_000, "bytes_an_image": 21, "views": 8, "images": 2761, "asked": 22_088, "reused": 60_742}
    assert softlabels.sentence(one) == (
        "Soft labels: 8 views of 2,761 images take 900.0 kB (21 bytes an image and view); the teacher looked at 22,088 "
        "images, 60,742 answers were reused."
    )
    both = softlabels.summed([one, one])
    assert (both["views"], both["images"], both["asked"]) == (8, 2761, 44_176)
    assert "take 1.8 MB (42 bytes" in softlabels.sentence(both)


# ------------------------------------------------------------------------------------------------------- full disk


def test_a_disk_that_takes_no_more_is_one_sentence_and_what_was_there_stays(tmp_path: Path) -> None:
    store = SoftLabels(tmp_path / "store", IMAGES, CLASSES, Teacher())
    store.answers(batch_of([0, 1]))
    store.flush()
    before = {path.name: path.read_bytes() for path in store.folder.glob("*.safetensors")}
    store.answers(batch_of([2, 3]))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"view-0000.*File too large.*EDGETL_CACHE=FOLDER") as caught:
            store.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in caught.value.message
    assert {path.name: path.read_bytes() for path in store.folder.glob("*.safetensors")} == before
    assert not list(store.folder.glob(f".*{softlabels.rundir.UNFINISHED}"))
    store.flush()  # there is room again: nothing was forgotten
    teacher = Teacher()
    SoftLabels(tmp_path / "store", IMAGES, CLASSES, teacher).answers(batch_of([0, 1, 2, 3]))
    assert teacher.images == 0


# ------------------------------------------------------------------------------------------------- several at once


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1), st.booleans()), max_size=20))
def test_several_may_fill_one_store_in_any_order(tmp_path_factory: pytest.TempPathFactory,
                                                 steps: list[tuple[int, int, int, bool]]) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("shared") / "store"
    stores = [SoftLabels(folder, IMAGES, CLASSES, Teacher()) for _ in range(3)]
    asked = set()
    for who, part, view, flush in steps:
        rows = [2 * part, 2 * part + 1]
        assert torch.equal(stores[who].answers(batch_of(rows, view)), said(rows, view))
        asked.add((part, view))
        if flush:
            stores[who].flush()
    for store in stores:
        store.flush()
    late = Teacher()
    final = SoftLabels(folder, IMAGES, CLASSES, late)
    for part, view in asked:  # what any of them learned is kept
        final.answers(batch_of([2 * part, 2 * part + 1], view))
    assert late.images == 0


def test_what_another_has_written_meanwhile_is_not_asked_again(tmp_path: Path) -> None:
    mine, theirs = Teacher(), Teacher()
    first, second = (SoftLabels(tmp_path / "store", IMAGES, CLASSES, one) for one in (mine, theirs))
    first.answers(batch_of([0, 1]))
    second.answers(batch_of([2, 3]))
    second.flush()
    first.answers(batch_of([2, 3]))
    first.flush()
    second.answers(batch_of([0, 1]))
    assert (mine.images, theirs.images) == (2, 2)
    assert first.told()[0]["reused"] == second.told()[0]["reused"] == 2


FILL = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_softlabel_store import Teacher, batch_of, CLASSES
from edgetl.train.softlabels import SoftLabels
store = SoftLabels(Path(sys.argv[2]), 600, CLASSES, Teacher())
for step in range(300):
    row = (2 * step + int(sys.argv[3])) % 600
    store.answers(batch_of([row], step % 2))
    store.flush()
    print(step, flush=True)
"""


@pytest.mark.slow
def test_processes_fill_one_store_at_once_and_one_that_is_killed_harms_nothing(tmp_path: Path) -> None:
    def start(offset: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", FILL, str(Path(__file__).parent), str(tmp_path / "store"), str(offset)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    first, second, killed = start(0), start(1), start(0)
    assert killed.stdout is not None
    while killed.stdout.readline().strip() not in ("20", ""):
        pass
    killed.kill()
    killed.communicate()
    for one in (first, second):
        one.communicate(timeout=300)
        assert one.returncode == 0
    teacher = Teacher()
    store = SoftLabels(tmp_path / "store", 600, CLASSES, teacher)
    for step in range(300):
        for row in (2 * step, 2 * step + 1):
            assert torch.equal(store.answers(batch_of([row], step % 2)), said([row], step % 2))
    assert teacher.images == 0


# ------------------------------------------------------------------------------------------------- within the limit


def filled(folder: Path, *, view: int = 0, limit_bytes: int = softlabels.LIMIT_BYTES, kept: int = 0) -> SoftLabels:
    store = SoftLabels(folder, IMAGES, CLASSES, Teacher(), limit_bytes=limit_bytes, kept=kept)
    store.answers(batch_of(list(range(IMAGES)), view))
    return store


def aged(folder: Path, seconds: int) -> None:
    os.utime(folder / shelf.LOCK, (1_000_000 - seconds, 1_000_000 - seconds))


def test_the_least_recently_used_store_goes_first_and_none_that_is_in_use(tmp_path: Path) -> None:
    names = ("oldest", "used", "older", "young")
    stores = {name: filled(tmp_path / name) for name in names}
    for age, name in enumerate(reversed(names)):
        aged(tmp_path / name, age)
    size = shelf.size_of(tmp_path / "young")
    for name in ("oldest", "older", "young"):
        del stores[name]
    gc.collect()
    filled(tmp_path / "new", limit_bytes=3 * size)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "used", "young"]
    assert shelf.make_room(tmp_path, 0) == size  # `used`, which is left
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
    stores.clear()
    gc.collect()
    assert shelf.make_room(tmp_path, 0) == 0 and not list(tmp_path.iterdir())


def test_a_use_makes_a_store_young_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        filled(tmp_path / name)
        aged(tmp_path / name, 100)
    SoftLabels(tmp_path / "one", IMAGES, CLASSES, Teacher())
    gc.collect()
    shelf.make_room(tmp_path, shelf.size_of(tmp_path / "one"))
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_what_a_killed_process_was_removing_is_swept(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    (tmp_path / f"{shelf.GONE}x-1").mkdir()
    (tmp_path / f"{shelf.GONE}x-1" / "view-0000.safetensors").write_bytes(b"half")
    shelf.make_room(tmp_path, softlabels.LIMIT_BYTES)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_store_in_the_middle_of_its_removal_is_made_again(tmp_path: Path) -> None:
    held = shelf.Held(tmp_path / "store")
    held.release()
    assert shelf.make_room(tmp_path, -1) == 0
    again = shelf.Held(tmp_path / "store")
    assert (tmp_path / "store" / shelf.LOCK).exists() and shelf.make_room(tmp_path, -1) == 0
    again.release()
    assert (tmp_path / "store").is_dir()


def test_views_that_are_not_shown_any_more_make_room_for_new_ones(tmp_path: Path) -> None:
    one = len(views.encoded(full_view()))
    store = SoftLabels(tmp_path / "store", IMAGES, CLASSES, Teacher(), kept=2, limit_bytes=4 * one)
    rows = list(range(IMAGES))
    for number in range(12):
        assert torch.equal(store.answers(batch_of(rows, number)), said(rows, number))
        assert store.size_bytes <= 4 * one and len(store._views) <= 2
    names = sorted(path.name for path in store.folder.glob("*.safetensors"))
    assert names[-2:] == ["view-0010.safetensors", "view-0011.safetensors"]


# --------------------------------------------------------------------------------------------------- views drawn anew


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.integers(0, 5), st.integers(0, 60))
def test_views_are_shown_in_turn_and_drawn_anew(count: int, more: int, epoch: int) -> None:
    refresh = count + more
    time, within = divmod(epoch, refresh)
    assert view_of(epoch, count, refresh) == time * count + within % count
    assert view_of(epoch, count) == epoch % count and view_of(epoch, 0) == epoch
    shown = {view_of(one, count, refresh) for one in range(time * refresh, (time + 1) * refresh)}
    assert shown == set(range(time * count, (time + 1) * count))  # each of this time, none of another


@pytest.mark.parametrize(("count", "refresh", "says"), [(0, 3, "without --views"), (4, 3, "less than --views 4")])
def test_a_refresh_that_makes_no_sense_is_refused(count: int, refresh: int, says: str) -> None:
    with pytest.raises(EdgetlError, match=says):
        require_refresh(count, refresh)
    require_refresh(4, 0)
    require_refresh(4, 4)
