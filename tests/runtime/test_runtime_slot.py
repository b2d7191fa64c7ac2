"""The slot: only what answers as training did becomes current, and no kill and no power cut leaves it empty."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import power_cut
import pytest
from tiny_bundle import edit_manifest, make_bundle, make_photo

from edgetl.errors import BundleError, DiskFull, EdgetlError, GateFailed, OutputError
from edgetl.runtime import Slot, archive, durable, load, signature
from edgetl.runtime import slot as slot_module
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.slot import CURRENT, KEPT, LOCK

ROOT = Path(__file__).parents[2]
PHOTO = make_photo(1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> list[Path]:
    """Four good bundles that differ in their names."""
    folder = tmp_path_factory.mktemp("bundles")
    made = [make_bundle(folder / "0")]
    for number in range(1, 4):
        made.append(Path(shutil.copytree(made[0], folder / str(number))))
        edit_manifest(made[-1], "name", value=f"number {number}")
    return made


@pytest.fixture
def slot(tmp_path) -> Slot:
    return Slot(tmp_path / "slot")


def digest(bundle: Path) -> str:
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


def name_of(slot: Slot) -> str:
    """Name of the bundle that is current, loaded and asked."""
    with slot.load(threads=1) as classifier:
        classifier.predict(PHOTO)
        return classifier.manifest.name


def held(slot: Slot) -> set[str]:
    return {path.name for path in slot.root.iterdir()}


def test_a_bundle_becomes_current_and_another_takes_its_place(slot, bundles):
    assert slot.current() is None
    folder = slot.swap(bundles[0], threads=1)
    assert folder == slot.current() == slot.root / digest(bundles[0])
    assert name_of(slot) == "tiny"
    slot.swap(bundles[1], threads=1)
    assert name_of(slot) == "number 1"
    assert held(slot) == {CURRENT, LOCK, digest(bundles[0]), digest(bundles[1])}
    assert (slot.root / CURRENT).read_text() == f"{digest(bundles[1])}\n{digest(bundles[0])}\n"


def test_old_bundles_go_but_for_the_last(slot, bundles):
    for bundle in bundles:
        slot.swap(bundle, threads=1)
    assert held(slot) == {CURRENT, LOCK, *(digest(one) for one in bundles[-KEPT:])}


def test_back_to_the_one_before_and_no_further(slot, bundles):
    slot.swap(bundles[0], threads=1)
    slot.swap(bundles[1], threads=1)
    assert slot.rollback() == slot.root / digest(bundles[0])
    assert name_of(slot) == "tiny"
    assert held(slot) == {CURRENT, LOCK, digest(bundles[0])}
    with pytest.raises(BundleError, match="no bundle to go back to"):
        slot.rollback()
    assert name_of(slot) == "tiny"


def test_a_packed_bundle_is_unpacked_into_the_slot(slot, bundles, tmp_path):
    packed = tmp_path / "new.edgetl"
    with packed.open("wb") as stream:
        archive.write(open_bundle(bundles[1]), stream)
    slot.swap(packed, threads=1)
    packed.unlink()
    assert name_of(slot) == "number 1"
    assert slot.current() == slot.root / digest(bundles[1])


def test_the_same_bundle_again_changes_nothing(slot, bundles):
    slot.swap(bundles[0], threads=1)
    slot.swap(bundles[1], threads=1)
    before = {path: path.stat().st_ino for path in slot.root.rglob("*") if path.name not in (CURRENT, LOCK)}
    slot.swap(bundles[1], threads=1)
    slot.swap(slot.current(), threads=1)
    assert {path: path.stat().st_ino for path in slot.root.rglob("*") if path.name not in (CURRENT, LOCK)} == before
    slot.rollback()
    assert name_of(slot) == "tiny"


def wrong_colours(bundle: Path) -> None:
    edit_manifest(bundle, "preprocess", "color", value="bgr")


def no_golden(bundle: Path) -> None:
    edit_manifest(bundle, "golden", value={})


def altered(bundle: Path) -> None:
    (bundle / "fp32.onnx").write_bytes(b"x" * 837)


def no_graph(bundle: Path) -> None:
    graph = b"no graph"
    (bundle / "fp32.onnx").write_bytes(graph)
    edit_manifest(bundle, "variants", 0, "sha256", value=hashlib.sha256(graph).hexdigest())
    edit_manifest(bundle, "variants", 0, "size_bytes", value=len(graph))


@pytest.mark.parametrize("harm, error", [(wrong_colours, GateFailed), (no_golden, BundleError), (altered, BundleError),
                                         (no_graph, BundleError)])
def test_what_is_refused_leaves_the_old_one_current(slot, bundles, tmp_path, harm, error):
    bad = Path(shutil.copytree(bundles[1], tmp_path / "bad"))
    harm(bad)
    with pytest.raises(error):
        slot.swap(bad, threads=1)
    assert slot.current() is None
    slot.swap(bundles[0], threads=1)
    with pytest.raises(error):
        slot.swap(bad, threads=1)
    assert name_of(slot) == "tiny"
    assert held(slot) == {CURRENT, LOCK, digest(bundles[0])}


def test_an_empty_slot_says_what_to_do(slot, tmp_path):
    for empty in (slot, Slot(tmp_path)):
        with pytest.raises(BundleError, match="holds no bundle yet") as caught:
            empty.load()
        assert "Slot.swap" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\n", b"../../etc\n", b"f" * 64, b"F" * 64 + b"\n", b"\xff\xfe\n"])
def test_a_damaged_pointer_is_told_and_mended_by_a_swap(slot, bundles, content):
    slot.swap(bundles[0], threads=1)
    slot.swap(bundles[1], threads=1)
    (slot.root / CURRENT).write_bytes(content)
    with pytest.raises(BundleError, match="current is damaged"):
        slot.load()
    with pytest.raises(BundleError, match="current is damaged"):
        slot.rollback()
    slot.swap(bundles[1], threads=1)
    assert name_of(slot) == "number 1"
    slot.rollback()
    assert name_of(slot) == "tiny"


@pytest.mark.parametrize("file", ["manifest.json", "fp32.onnx", "golden.npz"])
def test_a_damaged_bundle_is_told_and_mended_by_the_same_swap(slot, bundles, file):
    slot.swap(bundles[0], threads=1)
    damaged = slot.current() / file
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    if file != "golden.npz":  # which only a check reads
        with pytest.raises(BundleError):
            slot.load()
    slot.swap(bundles[0], threads=1)
    assert damaged.read_bytes() == (bundles[0] / file).read_bytes()
    assert name_of(slot) == "tiny"


def test_no_way_back_to_a_damaged_bundle(slot, bundles):
    slot.swap(bundles[0], threads=1)
    slot.swap(bundles[1], threads=1)
    (slot.root / digest(bundles[0]) / "fp32.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="has 1 bytes"):
        slot.rollback()
    assert name_of(slot) == "number 1"


def test_a_bundle_is_current_only_under_its_own_name(slot, bundles):
    slot.swap(bundles[0], threads=1)
    shutil.copy(bundles[1] / "manifest.json", slot.current() / "manifest.json")
    with pytest.raises(BundleError, match="is not the folder's name"):
        slot.load()


def test_every_bundle_of_a_slot_with_a_key_is_signed(tmp_path, bundles):
    secret, public = signature.generate()
    for name, content in (("k", secret), ("k.pub", public)):
        (tmp_path / name).write_bytes(content)
    slot = Slot(tmp_path / "slot", public_key=tmp_path / "k.pub")
    with pytest.raises(BundleError, match="is not signed"):
        slot.swap(bundles[0], threads=1)
    assert not slot.root.exists()
    signed = Path(shutil.copytree(bundles[0], tmp_path / "signed"))
    made = signature.sign((signed / "manifest.json").read_bytes(), signature.read_secret_key(tmp_path / "k"), "x")
    (signed / signature.FILE).write_bytes(made)
    slot.swap(signed, threads=1)
    assert name_of(slot) == "tiny"
    (slot.current() / signature.FILE).unlink()
    with pytest.raises(BundleError, match="is not signed"):
        slot.load()


def test_who_only_loads_needs_no_right_to_write(slot, bundles, monkeypatch):
    slot.swap(bundles[0], threads=1)

    def refuse(*_args, **_more):
        raise AssertionError("something was written")

    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "write", "fsync"):
        monkeypatch.setattr(f"os.{name}", refuse)
    (slot.root / LOCK).chmod(0o444)
    assert slot.current() is not None
    slot.load(threads=1).close()


# --------------------------------------------------------------------------------------------------- several at once


def test_one_waits_for_the_other_and_not_for_ever(slot, bundles):
    slot.swap(bundles[0], threads=1)
    with slot._locked(1):
        with pytest.raises(EdgetlError, match=r"has been changing .* for 0\.2 s"):
            slot.swap(bundles[1], threads=1, wait_s=0.2)
        with pytest.raises(EdgetlError, match="has been changing"):
            slot.rollback(wait_s=0)
        assert name_of(slot) == "tiny"  # loading waits for nobody
    slot.swap(bundles[1], threads=1, wait_s=0)


def test_swapping_and_loading_at_once(slot, bundles):
    """Two that swap four bundles in turn, and two that load all the while: what fails in a thread fails the test."""
    slot.swap(bundles[0], threads=1)
    known = {open_bundle(one).manifest.name for one in bundles}
    done, loads = threading.Event(), []

    def swap(first: int) -> None:
        other, number = Slot(slot.root), 0
        while number < 6 or (len(loads) <= 2 and any(one.is_alive() for one in readers)):  # they may begin late
            other.swap(bundles[(first + number) % 4], threads=1, wait_s=600)
            number += 1

    def read() -> None:
        while not done.is_set():
            with Slot(slot.root).load(threads=1) as classifier:
                loads.append(classifier.manifest.name)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=swap, args=(first,)) for first in (0, 2)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert set(loads) <= known and len(loads) > 2


def test_a_bundle_that_was_swept_while_it_was_loaded(slot, bundles, monkeypatch):
    """The loader looks again when others swapped meanwhile, even back and forth, and complains when nobody did."""
    slot.swap(bundles[0], threads=1)
    other, really, calls = Slot(slot.root), slot_module.load, []

    def while_others_swap(folder: Path, **how: Any) -> Any:
        calls.append(folder)
        if len(calls) > 1:
            return really(folder, **how)
        other.swap(bundles[1], threads=1)
        other.swap(bundles[2], threads=1)  # takes the first away
        try:
            return really(folder, **how)
        finally:
            other.swap(bundles[0], threads=1)

    monkeypatch.setattr(slot_module, "load", while_others_swap)
    slot.load(threads=1).close()
    assert calls == [slot.current()] * 2
    (slot.current() / "manifest.json").unlink()
    with pytest.raises(BundleError, match="manifest"):
        slot.load(threads=1)


# ----------------------------------------------------------------------------------------------- kills and power cuts


def first_swap(slot: Slot, bundles: list[Path]) -> None:
    slot.swap(bundles[0], threads=1)


def prepared(*numbers: int) -> Callable[[Slot, list[Path]], None]:
    def prepare(slot: Slot, bundles: list[Path]) -> None:
        for number in numbers:
            slot.swap(bundles[number], threads=1)

    return prepare


def second_swap(slot: Slot, bundles: list[Path]) -> None:
    slot.swap(bundles[1], threads=1)


def third_swap(slot: Slot, bundles: list[Path]) -> None:
    slot.swap(bundles[2], threads=1)


def mending_swap(slot: Slot, bundles: list[Path]) -> None:
    (slot.root / digest(bundles[1]) / "golden.npz").write_bytes(b"damaged")
    slot.swap(bundles[1], threads=1)


def rollback(slot: Slot, bundles: list[Path]) -> None:
    slot.rollback()


# What happens, what happened before, and what may be current when it is cut short.
STORIES = {
    "the first swap": (first_swap, (), {None, "tiny"}),
    "the second swap": (second_swap, (0,), {"tiny", "number 1"}),
    "the third swap": (third_swap, (0, 1), {"number 1", "number 2"}),
    "the same swap again": (second_swap, (0, 1), {"number 1"}),
    "a swap that mends": (mending_swap, (0, 1), {"number 1"}),
    "a swap back and forth": (second_swap, (1, 0), {"tiny", "number 1"}),
    "a rollback": (rollback, (0, 1), {"number 1", "tiny"}),
}


@pytest.fixture
def quick(monkeypatch):
    """The golden check opens a session, which the story does not need."""
    monkeypatch.setattr("edgetl.runtime.slot.verify", lambda *_, **__: None)


def current_name(slot: Slot) -> str | None:
    """Name of the current bundle, every graph of which is whole; None where there is none."""
    folder = slot.current()
    if folder is None:
        return None
    opened = open_bundle(folder)
    assert opened.digest == folder.name
    for variant in opened.manifest.variants:
        opened.read(variant.file, variant.sha256, variant.size_bytes)
    return opened.manifest.name


@pytest.mark.parametrize("story", STORIES)
def test_a_power_cut_at_any_moment_leaves_a_whole_bundle(story, bundles, tmp_path, quick):
    act, before, allowed = STORIES[story]
    slot = Slot(tmp_path / "slot")
    slot.root.mkdir()
    prepared(*before)(slot, bundles)
    with power_cut.Watch(slot.root) as watch:
        act(slot, bundles)
    assert len(watch.states) > 3
    found = {current_name(Slot(power_cut.write(state, tmp_path / "cut" / str(number))))
             for number, state in enumerate(watch.states)}
    assert found == allowed
    # And what has returned has happened: no cut takes it back.
    afterwards = {current_name(Slot(power_cut.write(state, tmp_path / "after" / str(number))))
                  for number, state in enumerate(watch.disk.after_a_cut())}
    assert afterwards == {current_name(slot)}


@pytest.mark.parametrize("story", STORIES)
def test_a_kill_before_any_change_leaves_a_whole_bundle(story, bundles, tmp_path, quick):
    act, before, allowed = STORIES[story]
    root = tmp_path / "start"
    root.mkdir()
    prepared(*before)(Slot(root), bundles)
    found = set()
    for step in range(400):  # the last step is the one that is never reached
        slot = Slot(Path(shutil.copytree(root, tmp_path / str(step))))
        try:
            with power_cut.Watch(slot.root, dies_at=step):
                act(slot, bundles)
        except power_cut.Killed:
            found.add(current_name(slot))
            slot.swap(bundles[3], threads=1)  # the next swap clears up what was left
            assert current_name(slot) == "number 3"
            assert not [path for path in slot.root.iterdir() if path.name.startswith(".") and path.is_dir()]
        else:
            break
    assert step > 3
    assert found == allowed


def test_the_model_sees_a_swap_that_forgets_to_settle(bundles, tmp_path, quick, monkeypatch):
    """Without the fsyncs a cut may leave a pointer to a bundle whose files are empty: the tests above can fail."""
    slot = Slot(tmp_path / "slot")
    slot.swap(bundles[0], threads=1)
    monkeypatch.setattr(durable, "_sync", lambda folder: None)
    with power_cut.Watch(slot.root) as watch:
        slot.swap(bundles[1], threads=1)
    broken = 0
    for number, state in enumerate(watch.states):
        try:
            current_name(Slot(power_cut.write(state, tmp_path / "cut" / str(number))))
        except BundleError:
            broken += 1
    assert broken > 0


def test_a_full_disk_leaves_the_old_one_current(slot, bundles, monkeypatch):
    slot.swap(bundles[0], threads=1)
    real = durable.os.write

    def full(handle, data):
        if len(data) > 500:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(durable.os, "write", full)
    with pytest.raises(DiskFull, match="No space left"):
        slot.swap(bundles[1], threads=1)
    monkeypatch.undo()
    assert name_of(slot) == "tiny"
    assert held(slot) == {CURRENT, LOCK, digest(bundles[0])}


def test_a_place_that_cannot_be_written(bundles, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Slot(tmp_path / "file" / "slot").swap(bundles[0])


def test_a_file_system_without_fsync_of_folders(slot, bundles, monkeypatch):
    real = durable.os.fsync

    def only_files(handle):
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
            raise OSError(22, "Invalid argument")
        real(handle)

    monkeypatch.setattr(durable.os, "fsync", only_files)
    slot.swap(bundles[0], threads=1)
    assert name_of(slot) == "tiny"


def kills(count: int, seed: int, tmp_path: Path) -> str:
    """What benchmarks/slot_kills.py says after so many real kills."""
    script = ROOT / "benchmarks" / "slot_kills.py"
    done = subprocess.run([sys.executable, str(script), "--kills", str(count), "--seed", str(seed)], text=True,
                          capture_output=True, timeout=600, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kill_9_at_random_moments(tmp_path):
    assert "4 kills, 4 times a whole bundle" in kills(4, 1, tmp_path)


@pytest.mark.slow
def test_kill_9_at_many_random_moments(tmp_path):
    assert "200 kills, 200 times a whole bundle" in kills(200, 2, tmp_path)


def test_what_is_loaded_is_the_copy_in_the_slot(slot, bundles, tmp_path):
    gone = Path(shutil.copytree(bundles[0], tmp_path / "gone"))
    slot.swap(gone, threads=1)
    shutil.rmtree(gone)
    with slot.load(threads=1) as one, load(bundles[0], threads=1) as other:
        assert one.predict(PHOTO) == other.predict(PHOTO)
        assert dataclasses.asdict(one.manifest) == dataclasses.asdict(other.manifest)
