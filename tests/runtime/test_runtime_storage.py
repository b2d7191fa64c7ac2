"""Whatever stands where a file should be: it is read within bounds and without waiting, or refused with a sentence."""

from __future__ import annotations

import io
import os
import socket
import threading
from pathlib import Path

import pytest
from tiny_bundle import make_bundle

from edgetl.errors import BundleError
from edgetl.runtime import bundle as bundles
from edgetl.runtime import load, storage
from edgetl.runtime.bundle import is_bundle, open_bundle
from edgetl.runtime.limits import COMPANION_BYTES, MANIFEST_BYTES
from edgetl.runtime.storage import Folder, free_memory_bytes, open_regular, read_at_most


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


class Endless(io.RawIOBase):
    """Gives zeros for ever, and counts them."""

    given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.given += len(buffer)
        buffer[:] = bytes(len(buffer))
        return len(buffer)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_folder(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


STRANGE = {
    make_pipe: "is a pipe; expected a regular file",
    make_device: "is a link that leaves the bundle",
    make_socket: "cannot be read|is a socket",
    make_folder: "is a folder; expected a regular file",
    make_loop: "cannot be read: Too many levels",
}


@pytest.mark.parametrize("file", ["manifest.json", "fp32.onnx"])
@pytest.mark.parametrize("make", STRANGE)
def test_strange_things_in_place_of_a_file(tmp_path, monkeypatch, make, file):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    bundle = make_bundle(Path("b"))
    (bundle / file).unlink()
    make(bundle / file)
    with pytest.raises(BundleError, match=STRANGE[make]):
        load(bundle)


@pytest.mark.parametrize("make", [make_pipe, make_socket, make_loop])
def test_strange_things_in_place_of_a_bundle(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    make(Path("b"))
    with pytest.raises(BundleError, match=r"^b (is|cannot be)"):
        load("b")
    assert not is_bundle(Path("b"))


def test_a_device_is_no_bundle_and_not_read():
    with pytest.raises(BundleError, match="is a device"):
        load("/dev/zero")


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 5000, "a/" * 3000])
def test_paths_that_no_file_can_have(path):
    with pytest.raises(BundleError):
        load(path)


def test_the_manifest_may_be_a_link_inside_but_not_to_the_outside(bundle, tmp_path):
    manifest = bundle / "manifest.json"
    manifest.rename(bundle / "real.json")
    manifest.symlink_to("real.json")
    open_bundle(bundle)
    (bundle / "real.json").rename(tmp_path / "outside.json")
    manifest.unlink()
    manifest.symlink_to(tmp_path / "outside.json")
    with pytest.raises(BundleError, match="link that leaves the bundle"):
        open_bundle(bundle)


def test_a_folder_of_the_bundle_that_leads_outside(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("s")
    inside = tmp_path / "bundle"
    inside.mkdir()
    (inside / "graphs").symlink_to("../outside")
    with pytest.raises(BundleError, match="link that leaves the bundle"):
        Folder(inside).read("graphs/secret", 10)


def test_no_more_is_read_than_was_asked_for(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 5000)
    folder = Folder(tmp_path)
    assert [len(folder.read("f", most)) for most in (0, 4998, 4999, 5000, 9000)] == [1, 4999, 5000, 5000, 5000]


@pytest.mark.parametrize("told", [0, 10, 1000, 5000])
def test_a_file_that_grows_while_it_is_read(told):
    stream = Endless()
    assert len(read_at_most(io.BufferedReader(stream, 16), 1000, told, "f")) == 1000
    assert stream.given < 2000


def test_files_of_proc_tell_no_size_and_are_read_all_the_same():
    with open_regular("/proc/self/status", "status") as (opened, size):
        assert size == 0
        assert read_at_most(opened, 1 << 20, size, "status").startswith(b"Name:")


def test_a_sparse_giant_takes_no_memory(bundle):
    with (bundle / "fp32.onnx").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=r"has at least 838 bytes; the manifest says 837"):
        load(bundle)
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=f"has more than {MANIFEST_BYTES} bytes"):
        load(bundle)


def test_a_companion_that_is_too_long_is_refused_where_it_would_be_read(bundle):
    (bundle / "README.md").write_bytes(b" " * (COMPANION_BYTES + 1))
    opened = open_bundle(bundle)  # loading does not look at it
    with pytest.raises(BundleError, match=r"README\.md has more than"):
        list(opened.parts())


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with (tmp_path / "f").open("wb") as file:
        file.truncate(storage.ASKED_ABOUT_MEMORY)
    monkeypatch.setattr(storage, "free_memory_bytes", lambda: 1000)
    with pytest.raises(BundleError, match="only 1000 bytes of memory are free"):
        Folder(tmp_path).read("f", 1 << 40)
    monkeypatch.setattr(storage, "free_memory_bytes", lambda: None)  # not known
    assert len(Folder(tmp_path).read("f", 10)) == 11


def test_out_of_memory_is_a_sentence():
    class Full(io.BytesIO):
        def read(self, size=-1):
            raise MemoryError

    with pytest.raises(BundleError, match="there is no memory for them"):
        read_at_most(Full(), 10, 5, "f")


def test_free_memory_is_the_machines_or_the_containers(tmp_path):
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    assert free_memory_bytes(meminfo, cgroup) is None
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 2000 kB\nHugePages_Total: 0\n")
    assert free_memory_bytes(meminfo, cgroup) == 2_048_000
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("max\n")
    assert free_memory_bytes(meminfo, cgroup) == 2_048_000
    (cgroup / "memory.max").write_text("1000000\n")
    (cgroup / "memory.current").write_text("900000\n")
    (cgroup / "memory.stat").write_text("anon 300000\ninactive_file 400000\nactive_file 200000\n")
    assert free_memory_bytes(meminfo, cgroup) == 700_000
    (cgroup / "memory.current").write_text("9000000\n")
    assert free_memory_bytes(meminfo, cgroup) == 0
    assert (free_memory_bytes() or 0) > 1 << 20


def test_a_folder_that_may_not_be_read(bundle, monkeypatch):
    """Root may read everything, so the refusal is planted."""
    def refuse(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage.os, "open", refuse)
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read: Permission denied"):
        open_bundle(bundle)
    with (monkeypatch.context() as patched,
          pytest.raises(BundleError, match="cannot be opened: Permission denied")):
        patched.setattr(bundles.os, "stat", refuse)
        open_bundle(bundle)


def test_no_handle_is_left_behind(bundle):
    (bundle / "pipe").mkdir()
    os.mkfifo(bundle / "queue")
    before = len([*Path("/proc/self/fd").iterdir()])
    folder = Folder(bundle)
    for file in ("pipe", "queue", "absent", "manifest.json"):
        try:
            folder.read(file, 10)
        except BundleError:
            continue
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_pipe_does_not_hold_anybody_up(bundle):
    (bundle / "fp32.onnx").unlink()
    os.mkfifo(bundle / "fp32.onnx")
    refused = threading.Event()

    def attempt() -> None:
        with pytest.raises(BundleError):
            load(bundle)
        refused.set()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    assert refused.wait(300)
    thread.join()
