"""pack, sign and keygen through the real entry point: exit codes, files, and what the other verbs make of them."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_bundle import edit_manifest, encode, make_bundle, make_photo

from edgetl.cli import app
from edgetl.runtime import load
from edgetl.runtime.__main__ import main as runtime_main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bundle, a photo and a key pair, to be in."""
    monkeypatch.chdir(tmp_path)
    make_bundle(tmp_path / "bundle")
    (tmp_path / "photo.png").write_bytes(encode(make_photo(1)))
    assert app.main(["keygen", "release.key"]) == 0
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = app.main(argv)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def edgetl(*argv: str, module: str = "edgetl", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run([sys.executable, "-m", module, *argv], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


def test_the_whole_way_through_the_real_entry_point(kitchen):
    """Sign, pack, load from one file with the key asked for; then a stranger's, a changed and an unsigned bundle."""
    key = {"EDGETL_PUBLIC_KEY": "release.key.pub"}
    for argv in (["sign", "bundle", "--key", "release.key"], ["pack", "bundle"]):
        done = edgetl(*argv)
        assert done.returncode == 0, done.stderr
    done = edgetl("predict", "bundle.edgetl", "photo.png", "--json", module="edgetl.runtime", **key)
    assert done.returncode == 0, done.stderr
    with load("bundle") as classifier:
        assert json.loads(done.stdout)["label"] == classifier.predict("photo.png").label
    (kitchen / "bundle" / "manifest.json.minisig").unlink()
    done = edgetl("verify", "bundle", **key)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: The bundle is not signed") and "Traceback" not in done.stderr


def test_a_bundle_that_was_changed_after_it_was_signed(kitchen, capsys, monkeypatch):
    said(capsys, "sign", "bundle", "--key", "release.key")
    monkeypatch.setenv("EDGETL_PUBLIC_KEY", "release.key.pub")
    assert said(capsys, "predict", "bundle", "photo.png")[0] == 0
    edit_manifest(kitchen / "bundle", "name", value="another")
    code, out, err = said(capsys, "predict", "bundle", "photo.png")
    assert (code, out) == (1, "") and "does not fit the manifest" in err


def test_pack_says_what_it_wrote(kitchen, capsys):
    code, out, err = said(capsys, "pack", "bundle", "--out", "x.edgetl", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["files"] == ["fp32.onnx", "golden.npz", "manifest.json"]
    assert (found["size_bytes"], found["signed"]) == (Path("x.edgetl").stat().st_size, False)
    code, out, err = said(capsys, "pack", "bundle", "--out", "y.edgetl")
    assert code == 0 and "fp32.onnx, golden.npz, manifest.json" in out and "next: edgetl verify y.edgetl" in err
    assert Path("x.edgetl").read_bytes() == Path("y.edgetl").read_bytes()
    assert stat.S_IMODE(Path("y.edgetl").stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_pack_replaces_nothing_unless_told(kitchen, capsys):
    Path("bundle.edgetl").write_text("mine")
    code, _, err = said(capsys, "pack", "bundle")
    assert code == 1 and "exists already" in err and "--overwrite" in err
    assert Path("bundle.edgetl").read_text() == "mine"
    assert said(capsys, "pack", "bundle", "--overwrite")[0] == 0
    assert zipfile.is_zipfile("bundle.edgetl")
    Path("folder").mkdir()
    assert said(capsys, "pack", "bundle", "--out", "folder", "--overwrite")[0] == 1


def test_pack_leaves_nothing_behind_when_it_fails(kitchen, capsys):
    (kitchen / "bundle" / "fp32.onnx").write_bytes(b"x" * 837)
    before = sorted(kitchen.iterdir())
    code, out, err = said(capsys, "pack", "bundle")
    assert (code, out) == (1, "") and "fp32.onnx was altered" in err
    assert sorted(kitchen.iterdir()) == before


@pytest.mark.parametrize("argv, code, says", [
    (["pack", "absent"], 1, "does not exist"),
    (["pack", "photo.png"], 1, "is a file; expected the folder"),
    (["pack", "."], 1, "has no manifest.json"),
    (["pack"], 2, "Missing argument"),
    (["pack", "bundle", "--out", "no/where/x.edgetl"], 1, "cannot be written"),
    (["sign", "bundle"], 2, "--key"),
    (["sign", "bundle", "--key", "absent"], 1, "absent is missing"),
    (["sign", "bundle", "--key", "photo.png"], 1, "is no minisign secret key"),
    (["sign", "bundle", "--key", "release.key.pub"], 1, "is no minisign secret key"),
    (["sign", "photo.png", "--key", "release.key"], 1, "cannot be changed"),
    (["sign", "bundle", "--key", "release.key", "--comment", "a\nb"], 1, "cannot be signed"),
    (["keygen", "release.key"], 1, "release.key exists already"),
    (["keygen", "no/where/k"], 1, "cannot be written"),
    (["verify", "bundle", "--public-key", "release.key.pub"], 1, "is not signed"),
    (["inspect", "photo.png"], 1, "neither a bundle"),
])
def test_what_cannot_be_done(kitchen, capsys, argv, code, says):
    found, out, err = said(capsys, *argv)
    assert (found, out) == (code, "")
    assert says in err


def test_keys_are_for_their_owner_alone(kitchen):
    assert stat.S_IMODE(Path("release.key").stat().st_mode) == 0o600
    assert "RW" in Path("release.key.pub").read_text()


def test_sign_refuses_a_damaged_bundle(kitchen, capsys):
    (kitchen / "bundle" / "golden.npz").write_bytes(b"x")
    code, _, err = said(capsys, "sign", "bundle", "--key", "release.key")
    assert code == 1 and "golden.npz has 1 bytes" in err
    assert not (kitchen / "bundle" / "manifest.json.minisig").exists()


def test_inspect_and_verify_say_who_signed(kitchen, capsys, monkeypatch):
    assert "signature  none" in said(capsys, "inspect", "bundle")[1]
    said(capsys, "sign", "bundle", "--key", "release.key", "--comment", "release 7")
    said(capsys, "pack", "bundle")
    for bundle in ("bundle", "bundle.edgetl"):
        monkeypatch.delenv("EDGETL_PUBLIC_KEY", raising=False)
        assert "signature  not checked" in said(capsys, "inspect", bundle)[1]
        assert "release 7" in said(capsys, "verify", bundle, "--public-key", "release.key.pub")[1]
        monkeypatch.setenv("EDGETL_PUBLIC_KEY", "release.key.pub")
        shown = json.loads(said(capsys, "inspect", bundle, "--json")[1])
        assert shown["signature"].endswith(": release 7")
        assert (shown["bundle"], shown["name"], len(shown["digest"])) == (bundle, "tiny", 64)


def test_a_manifest_cannot_say_that_it_is_signed(kitchen, capsys):
    edit_manifest(kitchen / "bundle", "signature", value="by everybody")
    assert json.loads(said(capsys, "inspect", "bundle", "--json")[1])["signature"] == "none"


def test_signed_again_it_is_the_later_signature(kitchen, capsys, monkeypatch):
    said(capsys, "sign", "bundle", "--key", "release.key", "--comment", "one")
    said(capsys, "sign", "bundle", "--key", "release.key", "--comment", "two")
    assert "two" in said(capsys, "verify", "bundle", "--public-key", "release.key.pub")[1]


@pytest.mark.parametrize("main", [app.main, runtime_main])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_labels_that_the_terminal_cannot_show_are_no_traceback(kitchen, monkeypatch, encoding, main):
    edit_manifest(kitchen / "bundle", "labels", value=["caf\udce9", "Füchse", "漢字"])
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding, errors="strict"))
    assert main(["predict", "bundle", "photo.png", "--top", "3"]) == 0
    sys.stdout.flush()
    assert b"\\udce9" in buffer.getvalue()
