"""A graph whose digest is computed while the session is made: what is altered is thrown away, and nothing is lost."""

from __future__ import annotations

import _thread
from pathlib import Path

import pytest
from tiny_bundle import edit_manifest, make_bundle

from edgetl.backends import cpu
from edgetl.errors import BackendUnavailable, BundleError
from edgetl.runtime import bundle as bundles
from edgetl.runtime import load, signature

PUBLIC = "RWSgcjLtRTpjB0UdSGBFGM9xbPPIc3f43zanDE3D/J/Y0dnjAHhsgB8+"
GRAPH = "fp32.onnx"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def opened(monkeypatch) -> list[bytes]:
    """The bytes that ONNX Runtime was given, for bundles of any size."""
    given: list[bytes] = []
    real = cpu.open

    def spy(graph, *rest, **more):
        given.append(graph)
        return real(graph, *rest, **more)

    monkeypatch.setattr(cpu, "open", spy)
    monkeypatch.setattr(bundles, "BESIDE_BYTES", 0)
    return given


def alter(bundle: Path, place: int = -1) -> None:
    """Changes one byte of the graph."""
    data = bytearray((bundle / GRAPH).read_bytes())
    data[place] ^= 1
    (bundle / GRAPH).write_bytes(data)


class Made:
    """A session that knows whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def described(bundle: Path) -> tuple[bundles.Bundle, tuple[str, str, int]]:
    made = bundles.open_bundle(bundle)
    variant = next(one for one in made.manifest.variants if one.file == GRAPH)
    return made, (variant.file, variant.sha256, variant.size_bytes)


def test_a_sound_graph_is_opened_once_from_the_bytes_that_were_read(bundle, opened):
    with load(bundle, "cpu", "fp32", 1):
        assert opened == [(bundle / GRAPH).read_bytes()]


def test_what_was_made_of_an_altered_graph_is_closed(bundle, monkeypatch):
    monkeypatch.setattr(bundles, "BESIDE_BYTES", 0)
    made, told = described(bundle)
    alter(bundle)
    session = Made()
    with pytest.raises(BundleError, match=r"fp32\.onnx was altered"):
        made.open_beside(*told, lambda graph: session)
    assert session.closed


@pytest.mark.parametrize("place", range(0, 400, 23))
def test_an_altered_graph_is_called_so_whatever_the_engine_thinks_of_it(bundle, opened, place):
    alter(bundle, place)
    with pytest.raises(BundleError, match="was altered: its SHA-256 is not the manifest's"):
        load(bundle, "cpu", "fp32", 1)
    assert len(opened) == 1  # it did see it


def test_a_bug_on_altered_bytes_is_damage_and_on_sound_ones_a_bug(bundle, monkeypatch):
    monkeypatch.setattr(bundles, "BESIDE_BYTES", 0)
    made, told = described(bundle)

    def buggy(graph: bytes) -> Made:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    with pytest.raises(UnicodeDecodeError):
        made.open_beside(*told, buggy)
    alter(bundle)
    with pytest.raises(BundleError, match="was altered"):
        made.open_beside(*told, buggy)


def test_what_is_wrong_with_a_sound_graph_is_said(bundle, opened):
    edit_manifest(bundle, "variants", 0, "inputs", 0, "name", value="picture")
    with pytest.raises(BundleError, match=r"expected \['picture'\]"):
        load(bundle, "cpu", "fp32", 1)


def test_an_interruption_goes_through(bundle, monkeypatch):
    monkeypatch.setattr(bundles, "BESIDE_BYTES", 0)
    made, told = described(bundle)

    def interrupted(graph: bytes) -> Made:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.open_beside(*told, interrupted)


def test_an_interruption_while_it_waits_closes_what_was_made(bundle, monkeypatch):
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundles, "BESIDE_BYTES", 0)
    monkeypatch.setattr(bundles, "_begin_sha256", lambda data: interrupted)
    made, told = described(bundle)
    session = Made()
    with pytest.raises(KeyboardInterrupt):
        made.open_beside(*told, lambda graph: session)
    assert session.closed


def refused(*anything) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("why", ["small", "no thread"])
def test_otherwise_the_digest_comes_first(bundle, opened, monkeypatch, why):
    if why == "small":
        monkeypatch.setattr(bundles, "BESIDE_BYTES", 1 << 20)
    else:
        monkeypatch.setattr(_thread, "start_new_thread", refused)
    load(bundle, "cpu", "fp32", 1).close()
    assert len(opened) == 1
    alter(bundle)
    with pytest.raises(BundleError, match="was altered"):
        load(bundle, "cpu", "fp32", 1)
    assert len(opened) == 1


def test_with_a_public_key_the_digest_comes_first(tmp_path, bundle, opened, monkeypatch):
    monkeypatch.setattr(bundles, "_seal", lambda *rest: signature.Seal("0000000000000000", ""))
    load(bundle, "cpu", "fp32", 1, public_key=PUBLIC).close()
    assert len(opened) == 1
    alter(bundle)
    with pytest.raises(BundleError, match="was altered"):
        load(bundle, "cpu", "fp32", 1, public_key=PUBLIC)
    assert len(opened) == 1


def test_a_backend_that_does_not_say_so_sees_sound_graphs_only(bundle, opened, monkeypatch):
    monkeypatch.delattr(cpu, "SURVIVES_DAMAGE")
    alter(bundle)
    with pytest.raises(BundleError, match="was altered"):
        load(bundle, "cpu", "fp32", 1)
    assert not opened


def test_a_digest_that_the_thread_could_not_compute_is_computed_again(bundle, opened, monkeypatch):
    real, calls = bundles._sha256, []

    def at_first_not(data: bytes) -> str:
        calls.append(len(data))
        if len(calls) == 2:  # the first is the manifest's
            raise SystemExit  # ends a thread without a word
        return real(data)

    monkeypatch.setattr(bundles, "_sha256", at_first_not)
    with load(bundle, "cpu", "fp32", 1):
        assert len(calls) == 3


def test_an_engine_that_is_not_there_is_said(bundle, monkeypatch):
    monkeypatch.setattr(bundles, "BESIDE_BYTES", 0)
    made, told = described(bundle)

    def absent(graph: bytes) -> Made:
        raise BackendUnavailable("it cannot run here")

    with pytest.raises(BackendUnavailable, match="it cannot run here"):
        made.open_beside(*told, absent)
