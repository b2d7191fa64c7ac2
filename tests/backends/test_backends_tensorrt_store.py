"""The store of engines: nothing damaged or strange is ever used, and nothing is built twice without need."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import made_engines
import power_cut
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_engines import FLAVOR, PLACE, Builder, Engine, How, plan_of, wanted
from tiny_bundle import graph_spec

from edgetl.backends import _tensorrt_sidecar, _tensorrt_store
from edgetl.backends._tensorrt_store import EngineStore, Place, read_engine, write_engine
from edgetl.errors import BundleError, DiskFull, OutputError
from edgetl.runtime import durable

ROOT = Path(__file__).parents[2]
OF = wanted()


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What is forced to the disk is looked at by `power_cut`; the tests need not wait until it is there."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "engines"


@pytest.fixture
def store(folder) -> EngineStore:
    return EngineStore(folder)


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != _tensorrt_store.LOCK)


def plan_file(folder: Path) -> Path:
    return next(folder.glob("*.engine"))


def side_file(folder: Path) -> Path:
    return next(folder.glob("*.engine.json"))


def edit(path: Path, *keys: str, value: object) -> None:
    """Writes one value into a sidecar."""
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


# ------------------------------------------------------------------------------------------------ built once, then read


def test_an_engine_is_built_once_and_then_read(store, folder):
    builder = Builder(OF)
    first = store.get(OF, builder)
    second = EngineStore(folder).get(OF, builder)
    assert (first.built, second.built, builder.calls) == (True, False, 1)
    assert first.plan == second.plan == plan_of(OF)
    assert first.why == "it was not built here yet"
    assert first.note == second.note == second.why == ""
    assert second.sidecar.precisions == {"fp32": 0.25, "fp16": 0.75}
    assert second.sidecar.build_s == 1.5
    assert second.sidecar == first.sidecar


def test_the_sidecar_says_what_it_is_of(store, folder):
    store.get(OF, Builder(OF))
    told = json.loads(side_file(folder).read_text())
    assert told["schema"] == 1
    assert told["fingerprint"] == {
        "flavor": "rtx", "version": "1.7.1.116", "compute_capabilities": ["8.9"], "driver": "580.65",
        "device": "NVIDIA L4", "system": PLACE.system, "graph_sha256": OF["graph_sha256"],
        "inputs": {"image": ["N", 3, 16, 16]},
        "flags": {"batches": [1, 1, 32], "compute_capabilities": [], "workspace_bytes": None,
                  "optimization_level": None, "version_compatible": False, "hardware_compatible": "none"}}
    assert told["plan_size_bytes"] == plan_file(folder).stat().st_size == made_engines.PLAN_BYTES
    assert told["proofs"] == []
    assert told["edgetl"]


def test_the_default_is_the_cache_of_the_user(own_home):
    EngineStore(None).get(OF, Builder(OF))
    assert len(held(own_home / "cache" / "edgetl" / "engines")) == 2


OTHERS = {
    "flavor": wanted(flavor=dataclasses.replace(FLAVOR, name="tensorrt")),
    "version": wanted(flavor=dataclasses.replace(FLAVOR, version="1.7.2.5")),
    "compute capability": wanted(place=dataclasses.replace(PLACE, compute_capabilities=("8.6",))),
    "driver": wanted(place=dataclasses.replace(PLACE, driver="580.66")),
    "no driver": wanted(place=dataclasses.replace(PLACE, driver=None)),
    "card": wanted(place=dataclasses.replace(PLACE, device="NVIDIA L40")),
    "system": wanted(place=dataclasses.replace(PLACE, system="Linux-riscv64")),
    "graph": wanted(graph=b"another graph"),
    "inputs": wanted(spec=dataclasses.replace(graph_spec(), inputs=(
        dataclasses.replace(graph_spec().inputs[0], shape=(4, 3, 16, 16)),))),
    "batches": wanted(how=How(batches=(1, 1, 64))),
    "version compatible": wanted(how=How(version_compatible=True)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_field_is_another_engine(store, what):
    store.get(OF, Builder(OF))
    other = OTHERS[what]
    builder = Builder(other)
    assert store.get(other, builder).plan == plan_of(other) != plan_of(OF)
    assert builder.calls == 1
    assert not store.get(OF, Builder(OF)).built
    assert not store.get(other, builder).built


@pytest.mark.parametrize("what", OTHERS)
def test_a_sidecar_that_says_so_under_the_name_of_ours_is_not_believed(store, folder, what):
    """As if two fingerprints had one key."""
    store.get(OF, Builder(OF))
    edit(side_file(folder), "fingerprint", value=OTHERS[what])
    again = store.get(OF, Builder(OF))
    assert again.built
    assert again.why.startswith("it was built ")
    assert not store.get(OF, Builder(OF)).built


# ------------------------------------------------------------------------------------------------ damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\x00 garbage" * 300)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("file", [plan_file, side_file])
@pytest.mark.parametrize("harm", [cut, grow, flip, empty, garbage, pipe, dangling, endless, Path.unlink])
def test_damage_means_built_again(store, folder, file, harm):
    store.get(OF, Builder(OF))
    if file is side_file and harm is flip:  # a byte of a number or a text that means something
        edit(side_file(folder), "plan_sha256", value="0" * 64)
    elif file is side_file and harm is grow:
        side_file(folder).write_bytes(side_file(folder).read_bytes() + b"x")
    else:
        harm(file(folder))
    builder = Builder(OF)
    again = store.get(OF, builder)
    assert (again.built, again.plan, builder.calls) == (True, plan_of(OF), 1)
    assert again.why and again.note == ""
    assert not store.get(OF, builder).built


@pytest.mark.parametrize("keys, value", [
    (["schema"], 2), (["schema"], "1"), (["schema"], None), (["fingerprint"], []), (["fingerprint", "flags"], None),
    (["plan_size_bytes"], 0), (["plan_size_bytes"], 2**70), (["plan_size_bytes"], 1), (["plan_sha256"], 7),
    (["precisions"], {"fp16": "all"}), (["build_s"], -1), (["proofs"], "all"), (["fingerprint", "new"], 1)])
def test_a_sidecar_of_the_future_or_of_nobody_means_built_again(store, folder, keys, value):
    store.get(OF, Builder(OF))
    edit(side_file(folder), *keys, value=value)
    assert store.get(OF, Builder(OF)).built
    assert not store.get(OF, Builder(OF)).built


def test_a_folder_in_the_place_of_a_plan_is_not_fatal(store, folder):
    store.get(OF, Builder(OF))
    plan = plan_file(folder)
    plan.unlink()
    plan.mkdir()
    found = store.get(OF, Builder(OF))
    assert (found.built, found.plan) == (True, plan_of(OF))
    assert "cannot be written" in found.note


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_what_another_user_learned_is_not_used(store, folder):
    store.get(OF, Builder(OF, timing_cache=b"learned"))
    store.keep_kernels(OF, b"compiled")
    for path in (*folder.glob("timing-*"), *folder.glob("*.kernels")):
        os.chown(path, 12345, 12345)
    assert store.timing_cache(OF) is None
    assert store.kernels(OF) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
@pytest.mark.parametrize("file", [plan_file, side_file])
def test_what_another_user_wrote_is_not_used(store, folder, file):
    store.get(OF, Builder(OF))
    os.chown(file(folder), 12345, 12345)
    found = store.get(OF, Builder(OF))
    assert found.built
    assert "belongs to the user 12345" in found.why
    assert not store.get(OF, Builder(OF)).built


HARM = st.tuples(st.sampled_from(["flip", "cut", "delete", "swap", "double"]), st.integers(0, 2**31),
                 st.integers(1, 255))


def harmed(data: bytes, other: bytes, kind: str, place: int, value: int) -> bytes | None:
    place %= len(data)
    return {"flip": data[:place] + bytes([data[place] ^ value]) + data[place + 1:], "cut": data[:place],
            "delete": None, "swap": other, "double": data + data}[kind]


def put(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


@settings(max_examples=30, deadline=None)
@given(harm=HARM)
def test_any_change_of_a_plan_means_built_again(tmp_path_factory, harm):
    folder = tmp_path_factory.mktemp("engines")
    store = EngineStore(folder)
    store.get(OF, Builder(OF))
    put(plan_file(folder), harmed(plan_file(folder).read_bytes(), side_file(folder).read_bytes(), *harm))
    found = store.get(OF, Builder(OF))
    assert (found.built, found.plan) == (True, plan_of(OF))
    assert not store.get(OF, Builder(OF)).built


@settings(max_examples=30, deadline=None)
@given(harm=HARM)
def test_after_any_change_of_a_sidecar_the_right_plan_comes_out(tmp_path_factory, harm):
    folder = tmp_path_factory.mktemp("engines")
    store = EngineStore(folder)
    store.get(OF, Builder(OF))
    meant = json.loads(side_file(folder).read_bytes())
    put(side_file(folder), harmed(side_file(folder).read_bytes(), plan_file(folder).read_bytes(), *harm))
    found = store.get(OF, Builder(OF))
    assert found.plan == plan_of(OF)
    if not found.built:  # then only what is for people had changed
        told = json.loads(side_file(folder).read_bytes())
        assert all(told[name] == meant[name] for name in ("schema", "fingerprint", "plan_sha256", "plan_size_bytes"))
    assert not store.get(OF, Builder(OF)).built


@settings(max_examples=15, deadline=None)
@given(asked=st.lists(st.sampled_from(["itself", *OTHERS]), min_size=1, max_size=8))
def test_each_fingerprint_is_built_when_it_comes_first_and_never_again(tmp_path_factory, asked):
    store = EngineStore(tmp_path_factory.mktemp("engines"))
    seen = set()
    for what in asked:
        of = OTHERS.get(what, OF)
        found = store.get(of, Builder(of))
        assert (found.plan, found.built) == (plan_of(of), what not in seen)
        seen.add(what)


# ------------------------------------------------------------------------------------------------ a bounded folder


def graphs(count: int) -> list[dict]:
    return [wanted(graph=bytes([number])) for number in range(count)]


def used_at(store: EngineStore, of: dict, when: int) -> None:
    """As if an engine had last been used then: file systems keep time in ticks that are longer than a test."""
    for path in (store._plan(of), _tensorrt_sidecar.sidecar_path(store._plan(of))):
        os.utime(path, (when, when))


def test_the_least_recently_used_goes_first(folder):
    one, two, three = graphs(3)
    store = EngineStore(folder, 9000)  # two of 3,000 bytes and their sidecars
    for when, of in ((1000, one), (2000, two)):
        store.get(of, Builder(of))
        used_at(store, of, when)
    assert not store.get(one, Builder(one)).built  # used now
    assert store.get(three, Builder(three)).note == ""
    assert len(held(folder)) == 4
    assert not store.get(one, Builder(one)).built
    assert not store.get(three, Builder(three)).built
    assert store.get(two, Builder(two)).built


def test_what_was_just_written_stays_and_what_is_too_large_is_used_all_the_same(folder):
    one, two = graphs(2)
    store = EngineStore(folder, 4500)
    store.get(one, Builder(one))
    assert store.get(two, Builder(two)).note == ""
    assert not store.get(two, Builder(two)).built
    large = Builder(one, size=5000)
    found = store.get(one, large)
    assert (found.built, found.plan) == (True, large.engine.plan)
    assert "5" in found.note and "limited to 4500" in found.note
    assert not store.get(two, Builder(two)).built  # nothing was removed for what is not kept


def test_files_of_others_in_the_folder_stay_and_do_not_count(folder):
    one, two = graphs(2)
    folder.mkdir()
    for name in ("notes.txt", "mine.engine", "x" * 32 + ".engine", "timing.cache"):
        (folder / name).write_bytes(bytes(9000))
    store = EngineStore(folder, 4500)
    store.get(one, Builder(one))
    store.get(two, Builder(two))
    assert (folder / "mine.engine").stat().st_size == 9000
    assert len(held(folder)) == 6
    assert not store.get(two, Builder(two)).built


# ------------------------------------------------------------------------------------------------ the timing cache


def test_what_a_builder_learned_is_there_for_the_next(store, folder):
    assert store.timing_cache(OF) is None
    store.get(OF, Builder(OF, timing_cache=b"kernels"))
    for known in (OF, OTHERS["graph"], OTHERS["driver"], OTHERS["batches"]):
        assert store.timing_cache(known) == b"kernels"
    for unknown in ("flavor", "version", "compute capability", "card"):
        assert store.timing_cache(OTHERS[unknown]) is None
    store.get(OTHERS["graph"], Builder(OTHERS["graph"], timing_cache=b"more kernels"))
    assert store.timing_cache(OF) == b"more kernels"
    assert len([name for name in held(folder) if name.startswith("timing")]) == 1


@pytest.mark.parametrize("harm", [cut, grow, flip, empty, garbage, dangling, endless, Path.unlink])
def test_a_damaged_timing_cache_is_as_good_as_none(store, folder, harm):
    store.get(OF, Builder(OF, timing_cache=b"kernels" * 99))
    harm(next(folder.glob("timing-*")))
    assert store.timing_cache(OF) is None
    other = OTHERS["graph"]
    store.get(other, Builder(other, timing_cache=b"again"))
    assert store.timing_cache(OF) == b"again"


def test_a_timing_cache_that_does_not_fit_beside_its_engine_is_left_out(folder):
    store = EngineStore(folder, 4500)
    found = store.get(OF, Builder(OF, timing_cache=bytes(1000)))
    assert found.note == ""
    assert "The timing cache is not kept: it has 1065 bytes" in found.notes[0]
    assert store.timing_cache(OF) is None
    assert not store.get(OF, Builder(OF)).built


# ------------------------------------------------------------------------------------------------ compiled kernels


def test_compiled_kernels_are_kept_with_their_engine_and_go_with_it(store, folder):
    assert store.kernels(OF) is None
    assert store.keep_kernels(OF, b"compiled") == "its engine is not kept"
    store.get(OF, Builder(OF))
    assert store.keep_kernels(OF, b"compiled") == ""
    assert store.keep_kernels(OF, b"compiled more") == ""
    assert store.kernels(OF) == b"compiled more"
    assert store.kernels(OTHERS["driver"]) is None
    assert len(held(folder)) == 3
    store.discard(OF)
    assert held(folder) == []
    assert store.kernels(OF) is None


def test_compiled_kernels_are_removed_with_the_least_recently_used_engine(folder):
    one, two = graphs(2)
    store = EngineStore(folder, 6500)
    store.get(one, Builder(one))
    assert store.keep_kernels(one, bytes(1000)) == ""
    used_at(store, one, 1000)
    os.utime(store._plan(one).with_suffix(".kernels"), (1000, 1000))
    store.get(two, Builder(two))
    assert len(held(folder)) == 2
    assert "room for" in store.keep_kernels(two, bytes(6000))
    assert not store.get(two, Builder(two)).built


@pytest.mark.parametrize("harm", [cut, grow, flip, empty, garbage, dangling, endless, Path.unlink])
def test_damaged_kernels_are_as_good_as_none(store, harm):
    store.get(OF, Builder(OF))
    store.keep_kernels(OF, b"compiled" * 99)
    harm(store._plan(OF).with_suffix(".kernels"))
    assert store.kernels(OF) is None
    assert store.keep_kernels(OF, b"again") == ""
    assert store.kernels(OF) == b"again"


def test_kernels_for_which_there_is_no_room_are_compiled_again(store, monkeypatch):
    store.get(OF, Builder(OF))

    def full(path, data):
        raise DiskFull(f"{path} could not be written: No space left on device.")

    monkeypatch.setattr(durable, "write", full)
    assert "No space left" in store.keep_kernels(OF, b"compiled")
    assert store.kernels(OF) is None


# ------------------------------------------------------------------------------------------------ several at once


SLOW = """
import hashlib, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from made_engines import Builder, wanted
from edgetl.backends._tensorrt_store import EngineStore
of, folder, log = wanted(), Path(sys.argv[2]), Path(sys.argv[3])
def make():
    with log.open("a") as lines:
        lines.write("built\\n")
    print("building", flush=True)
    time.sleep(float(sys.argv[4]))
    return Builder(of)()
found = EngineStore(folder).get(of, make)
print(found.built, found.note, hashlib.sha256(found.plan).hexdigest(), flush=True)
"""


def racer(folder: Path, log: Path, seconds: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SLOW, str(ROOT), str(folder), str(log), str(seconds)],
                            stdout=subprocess.PIPE, text=True)


def test_two_processes_that_want_one_engine_build_it_once(folder, tmp_path):
    log = tmp_path / "log"
    first = racer(folder, log, 1.0)
    assert first.stdout.readline() == "building\n"
    second = racer(folder, log, 1.0)
    told = [process.communicate(timeout=600)[0].splitlines()[-1].split() for process in (first, second)]
    assert [one[0] for one in told] == ["True", "False"]
    assert told[0][-1] == told[1][-1] == hashlib.sha256(plan_of(OF)).hexdigest()
    assert log.read_text() == "built\n"
    assert len(held(folder)) == 2


def test_a_builder_that_was_killed_leaves_nothing_and_blocks_nobody(folder, tmp_path):
    log = tmp_path / "log"
    builder = racer(folder, log, 1000)
    assert builder.stdout.readline() == "building\n"
    builder.send_signal(signal.SIGKILL)
    assert builder.wait(timeout=600) == -signal.SIGKILL
    builder.stdout.close()
    assert held(folder) == []
    found = EngineStore(folder, patience_s=0).get(OF, Builder(OF))
    assert (found.built, found.note, found.plan) == (True, "", plan_of(OF))


def test_who_waits_too_long_builds_for_itself(folder):
    """A stopped builder holds the lock for as long as it is stopped."""
    store = EngineStore(folder, patience_s=0.01)
    with EngineStore(folder)._locked(1.0):
        found = store.get(OF, Builder(OF))
    assert (found.built, found.plan) == (True, plan_of(OF))
    assert "another process has been building" in found.note
    assert held(folder) == []


def test_threads_of_one_process_build_once(folder):
    entered, release = threading.Event(), threading.Event()
    builder = Builder(OF)

    def slow() -> Engine:
        entered.set()
        assert release.wait(600)
        return builder()

    found = []
    threads = [threading.Thread(target=lambda: found.append(EngineStore(folder).get(OF, slow))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert entered.wait(600)
    release.set()
    for thread in threads:
        thread.join(600)
    assert sorted(one.built for one in found) == [False, False, True]
    assert {one.plan for one in found} == {plan_of(OF)}
    assert builder.calls == 1


def test_a_build_that_fails_leaves_nothing_and_blocks_nobody(store, folder):
    def failing() -> Engine:
        raise BundleError("The graph cannot be parsed.")

    with pytest.raises(BundleError, match="cannot be parsed"):
        store.get(OF, failing)
    assert held(folder) == []
    assert EngineStore(folder, patience_s=0).get(OF, Builder(OF)).note == ""


# ------------------------------------------------------------------------------------------------ kills, power cuts


def test_no_kill_and_no_power_cut_leaves_half_an_engine(tmp_path):
    """Every change of the disk is the last one, once; and everything that a power cut may leave is read again."""
    with power_cut.Watch(made(tmp_path / "whole")) as watch:
        assert EngineStore(tmp_path / "whole").get(OF, Builder(OF, timing_cache=b"kernels")).note == ""
    steps, states = watch.steps, watch.states
    assert steps > 10 and len(states) > 10
    for number in range(steps):
        folder = made(tmp_path / f"killed-{number}")
        with pytest.raises(power_cut.Killed), power_cut.Watch(folder, dies_at=number):
            EngineStore(folder).get(OF, Builder(OF, timing_cache=b"kernels"))
        assert_whole(folder)
    built = [assert_whole(power_cut.write(content, tmp_path / f"cut-{number}"))
             for number, content in enumerate(states)]
    assert {True, False} == set(built)


def made(folder: Path) -> Path:
    """A store with an engine that is damaged and one that is left unfinished: the most to be done."""
    EngineStore(folder).get(OF, Builder(OF))
    flip(plan_file(folder))
    (folder / f".{'0' * 32}.engine{durable.UNFINISHED}").write_bytes(b"half")
    return folder


def assert_whole(folder: Path) -> bool:
    """The right plan comes out and nothing unfinished stays; whether it had to be built."""
    found = EngineStore(folder, patience_s=0).get(OF, Builder(OF))
    assert (found.plan, found.note) == (plan_of(OF), "")
    if found.built:
        assert not list(folder.glob(".*.tmp"))
    assert not EngineStore(folder).get(OF, Builder(OF)).built
    return found.built


# ------------------------------------------------------------------------------------------------ folders that refuse


def test_a_full_disk_means_used_and_not_kept(store, folder, monkeypatch):
    real = durable.os.write

    def full(handle, data):
        if len(data) > 2000:
            real(handle, data[:100])
            raise OSError(28, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(durable.os, "write", full)
    found = store.get(OF, Builder(OF))
    assert (found.built, found.plan) == (True, plan_of(OF))
    assert "No space left" in found.note
    assert held(folder) == []
    monkeypatch.undo()
    assert store.get(OF, Builder(OF)).note == ""


def test_a_disk_that_is_full_behind_the_plan_leaves_no_plan_without_a_sidecar(store, folder, monkeypatch):
    real = durable.write

    def full(path, data):
        if path.suffix == ".json":
            raise DiskFull(f"{path} could not be written: No space left on device.")
        real(path, data)

    monkeypatch.setattr(durable, "write", full)
    assert "No space left" in store.get(OF, Builder(OF)).note
    assert held(folder) == []


def test_a_disk_without_room_for_the_timing_cache_keeps_the_engine(store, monkeypatch):
    real = durable.write

    def full(path, data):
        if path.suffix == ".cache":
            raise DiskFull(f"{path} could not be written: No space left on device.")
        real(path, data)

    monkeypatch.setattr(durable, "write", full)
    found = store.get(OF, Builder(OF, timing_cache=b"x"))
    assert found.note == ""
    assert "The timing cache is not kept" in found.notes[0] and "No space left" in found.notes[0]
    assert not store.get(OF, Builder(OF)).built


def test_a_place_that_is_no_folder_means_used_and_not_kept(tmp_path):
    (tmp_path / "file").touch()
    store = EngineStore(tmp_path / "file" / "engines")
    found = store.get(OF, Builder(OF))
    assert (found.built, found.plan) == (True, plan_of(OF))
    assert "cannot be written" in found.note
    assert "cannot be written" in store.prove(OF, found.sidecar, "golden")


def test_a_user_without_a_home_builds_each_time(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "EDGETL_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    store = EngineStore(None)
    found = store.get(OF, Builder(OF))
    assert (found.built, found.plan) == (True, plan_of(OF))
    assert "no home folder" in found.note and "EDGETL_CACHE" in found.note
    assert "no home folder" in store.prove(OF, found.sidecar, "golden")
    assert "no home folder" in store.keep_kernels(OF, b"compiled")
    assert store.discard(OF) == ""
    assert store.timing_cache(OF) is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.ENOLCK])
def test_a_folder_that_may_only_be_read_serves_what_it_has(folder, monkeypatch, number):
    """Root may write anywhere, so the system calls refuse."""
    EngineStore(folder).get(OF, Builder(OF))
    real = os.open

    def refusing(path, flags, mode=0o777):
        if Path(path).is_relative_to(folder) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, mode)

    def refuse(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(os, "utime", refuse)
    assert not EngineStore(folder).get(OF, Builder(OF)).built
    other = OTHERS["graph"]
    found = EngineStore(folder).get(other, Builder(other))
    assert (found.built, found.plan) == (True, plan_of(other))
    assert os.strerror(number) in found.note
    assert os.strerror(number) in EngineStore(folder).prove(OF, found.sidecar, "golden")


# ------------------------------------------------------------------------------------------------ proofs


def test_a_proof_is_kept_with_the_engine_and_goes_with_it(store, folder):
    sidecar = store.get(OF, Builder(OF)).sidecar
    assert store.proofs(OF, sidecar.plan_sha256) == ()
    assert store.prove(OF, sidecar, "golden-1") == ""
    assert store.prove(OF, sidecar, "golden-2") == ""
    assert store.prove(OF, sidecar, "golden-1") == ""
    again = EngineStore(folder).get(OF, Builder(OF))
    assert (again.built, again.sidecar.proofs) == (False, ("golden-2", "golden-1"))
    assert store.proofs(OF, sidecar.plan_sha256) == ("golden-2", "golden-1")
    assert store.proofs(OF, "0" * 64) == ()
    assert store.discard(OF) == ""
    assert held(folder) == []
    assert store.get(OF, Builder(OF)).sidecar.proofs == ()


def test_a_proof_of_an_engine_that_another_has_replaced_is_not_recorded(store):
    """As if two processes had built without being able to lock the folder."""
    sidecar = store.get(OF, Builder(OF)).sidecar
    assert store.discard(OF) == ""
    other = Engine(b"another plan", {}, 1.0, None)
    store.get(OF, lambda: other)
    assert store.prove(OF, sidecar, "golden") == "another engine has taken its place"
    found = store.get(OF, Builder(OF))
    assert (found.plan, found.built, found.sidecar.proofs) == (b"another plan", False, ())


def test_the_latest_proofs_are_kept(store):
    sidecar = store.get(OF, Builder(OF)).sidecar
    for number in range(20):
        store.prove(OF, sidecar, str(number))
    assert store.proofs(OF, sidecar.plan_sha256) == tuple(map(str, range(4, 20)))


def test_of_an_engine_that_lies_elsewhere_the_sidecar_alone_is_kept(store, folder):
    sidecar = _tensorrt_sidecar.sidecar_of(Builder(OF).engine, OTHERS["no driver"])
    assert store.prove(OF, sidecar, "golden") == ""
    assert store.proofs(OF, sidecar.plan_sha256) == ("golden",)
    assert [path.suffix for path in folder.glob("*.*") if path.name != ".lock"] == [".json"]
    assert store.get(OF, Builder(OF)).built


def test_a_proof_does_not_wait_for_a_long_build(store, monkeypatch):
    sidecar = store.get(OF, Builder(OF)).sidecar
    monkeypatch.setattr(_tensorrt_store, "PROOF_PATIENCE_S", 0.01)
    with EngineStore(store.folder)._locked(1.0):
        assert "another process" in store.prove(OF, sidecar, "golden")
    assert store.proofs(OF, sidecar.plan_sha256) == ()


# ------------------------------------------------------------------------------------------------ FILE.engine


AHEAD = wanted(how=How(compute_capabilities=("8.6", "8.9", "12.0")), place=Place.ahead(("12.0", "8.9", "8.6")))


def test_a_place_ahead_of_time_is_sorted_by_number():
    assert Place.ahead(("12.0", "8.9", "8.6")).compute_capabilities == ("8.6", "8.9", "12.0")
    assert Place.ahead(("8.6",)).driver is None
    assert Place.ahead(("8.6",)).system == _tensorrt_sidecar.this_system()


def file_of(tmp_path: Path, of: dict) -> Path:
    path = tmp_path / "model.engine"
    assert write_engine(path, Builder(of).engine, of).fingerprint == of
    return path


def here(**changes) -> dict:
    """A fingerprint for the card of PLACE on the system of this machine."""
    return wanted(place=dataclasses.replace(PLACE, **changes))


@pytest.mark.parametrize("capability, device", [("8.6", "NVIDIA A10"), ("8.9", "NVIDIA L4"), ("12.0", "RTX 5090")])
def test_an_engine_built_ahead_of_time_fits_its_cards_with_any_driver(tmp_path, capability, device):
    path = file_of(tmp_path, AHEAD)
    found = read_engine(path, here(compute_capabilities=(capability,), device=device, driver="999.9"))
    assert (found.plan, found.reason) == (plan_of(AHEAD), "")
    assert found.sidecar.fingerprint == AHEAD


@pytest.mark.parametrize("wanted_here, says", [
    (here(compute_capabilities=("7.5",)), "built for compute capability 8.6, 8.9, 12.0, here is 7.5"),
    (here() | {"version": "1.8.0.1"}, "built for version 1.7.1.116, here is 1.8.0.1"),
    (here() | {"flavor": "tensorrt"}, "built for flavor rtx, here is tensorrt"),
    (here() | {"system": "Linux-riscv64"}, "here is Linux-riscv64"),
    (here() | {"graph_sha256": "0" * 64}, "built from another graph"),
])
def test_an_engine_for_another_machine_or_graph_says_so(tmp_path, wanted_here, says):
    found = read_engine(file_of(tmp_path, AHEAD), wanted_here)
    assert found.plan is None
    assert says in found.reason


def test_an_engine_built_on_a_card_fits_that_card_and_driver_alone(tmp_path):
    path = file_of(tmp_path, here())
    assert read_engine(path, here()).plan == plan_of(here())
    assert "built for driver 580.65, here is 581.1" in read_engine(path, here(driver="581.1")).reason
    assert "built for card NVIDIA L4, here is NVIDIA L40" in read_engine(path, here(device="NVIDIA L40")).reason


def test_flags_count_where_they_were_asked_for(tmp_path):
    path = file_of(tmp_path, AHEAD)
    asked = wanted(how=How(batches=(1, 8, 8)))
    assert read_engine(path, asked).plan
    assert read_engine(path, asked, ("batches",)).reason == (
        "it was built with batches 1, 1, 32, asked for is 1, 8, 8")


def test_compatible_engines_fit_more(tmp_path):
    place = Place.ahead(("8.6",))
    hardware = file_of(tmp_path, wanted(how=How(hardware_compatible="ampere-plus"), place=place))
    assert read_engine(hardware, here(compute_capabilities=("8.9",))).plan
    assert read_engine(hardware, here(compute_capabilities=("7.5",))).plan is None
    same = file_of(tmp_path, wanted(how=How(hardware_compatible="same-compute-capability")))
    assert read_engine(same, here(device="NVIDIA L40")).plan
    assert read_engine(same, here(compute_capabilities=("8.6",))).plan is None
    assert read_engine(same, here(driver="581.1")).plan is None
    version = file_of(tmp_path, wanted(how=How(version_compatible=True), place=place))
    fits = here(compute_capabilities=("8.6",))
    assert read_engine(version, fits | {"version": "1.8.0.2"}).plan
    for other in ("1.6.9.1", "2.0.0.0"):
        assert read_engine(version, fits | {"version": other}).plan is None


@pytest.mark.parametrize("harm", [cut, grow, flip, empty, garbage, pipe, dangling, endless, Path.unlink])
def test_damaged_files_have_a_reason(tmp_path, harm):
    path = file_of(tmp_path, AHEAD)
    fits = here()
    assert read_engine(path, fits).plan
    kept = _tensorrt_sidecar.sidecar_path(path).read_bytes()
    harm(path)
    found = read_engine(path, fits)
    assert found.plan is None and "model.engine" in found.reason
    path.unlink(missing_ok=True)
    file_of(tmp_path, AHEAD)
    if harm is not flip:
        harm(_tensorrt_sidecar.sidecar_path(path))
        assert "model.engine.json" in read_engine(path, fits).reason
    _tensorrt_sidecar.sidecar_path(path).unlink(missing_ok=True)
    _tensorrt_sidecar.sidecar_path(path).write_bytes(kept)
    assert read_engine(path, fits).plan


def test_an_engine_cannot_be_written_into_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_engine(tmp_path / "nowhere" / "model.engine", Builder(OF).engine, OF)
