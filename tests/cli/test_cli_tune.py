"""`edgetl tune` at the shell: what it prints, what stays, what the device's own command says afterwards, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import make_bundle

from edgetl.bench import tune
from edgetl.bench.selection import Candidate
from edgetl.bench.tune import Tuning
from edgetl.cli import app
from edgetl.runtime import tuned


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = app.main(argv)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=600)


def test_a_bundle_is_tuned_and_then_loaded_so(tmp_path: Path) -> None:
    bundle = str(make_bundle(tmp_path / "bundle"))
    done = run("edgetl", "tune", bundle, "--backend", "cpu", "--threads", "1", "--budget", "10ms", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["chosen"] | {"why": ""} == {"variant": "fp32", "backend": "cpu", "threads": 1, "why": ""}
    assert len(found["cases"]) == 1 and len(found["cases"][0]["rounds_s"]) == tune.LEAST_ROUNDS
    assert "tune: measuring" in done.stderr and f"kept in {found['path']}" not in done.stdout
    told = run("edgetl.runtime", "info", bundle, "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["why"].startswith(f"tuned {found['tuned_at']}: ")
    gone = run("edgetl", "tune", bundle, "--forget")
    assert (gone.returncode, gone.stdout) == (0, "1 forgotten\n")
    assert "has not measured it" in run("edgetl.runtime", "info", bundle).stdout


def test_the_table_says_what_was_chosen_and_why_not_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = (Candidate("x86-vnni.int8", "cpu", 1, "int8", (1e-3,) * 5, None, 0.25, "recorded by the export"),
            Candidate("fp32", "cpu", 1, "fp32", (2e-3,) * 5),
            Candidate("fp32", "openvino", 1, "fp32", reason="cannot run on openvino: it is absent"))
    entry = tuned.Entry("a" * 64, "cells", tuned.machine(), {}, "2026-01-02", ())
    made = Tuning(entry, tmp_path / "x.json", rows[0], "1 ms", rows, (None, None, rows[2].reason), 5, 3.0, ())
    monkeypatch.setattr(tune, "tune", lambda options, listener: made)
    code, out, err = said(capsys, "tune", "b")
    assert code == 0
    assert [line.split()[:6] for line in out.splitlines()[1:4]] == [
        ["x86-vnni.int8", "cpu", "1", "1.000", "5", "0.25"], ["fp32", "cpu", "1", "2.000", "5", "-"],
        ["fp32", "openvino", "1", "-", "0", "-"]]
    assert out.splitlines()[1].endswith("  chosen")
    assert out.splitlines()[3].endswith("  cannot run on openvino: it is absent")
    assert "chosen: x86-vnni.int8 on cpu with 1 thread: 1 ms" in out
    assert f"kept in {tmp_path / 'x.json'}" in err
    code, out, _ = said(capsys, "tune", "b", "--json")
    assert json.loads(out)["cases"][2]["refusal"] == rows[2].reason


def test_forgetting(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert said(capsys, "tune", "--forget") == (0, "There was nothing to forget.\n", "")
    folder = tuned.cache_root() / tuned.FOLDER
    folder.mkdir(parents=True)
    for name in ("a-0.json", "b-0.json", "notes.txt"):
        (folder / name).write_text("")
    code, out, _ = said(capsys, "tune", "--forget", "--json")
    assert (code, len(json.loads(out)["forgotten"])) == (0, 2)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        ((), 2, "Missing argument 'BUNDLE'."),
        (("BUNDLE", "--budget", "1h"), 2, "--budget: found '1h', expected a duration above 0 with a unit: 60s or 5m"),
        (("BUNDLE", "--budget", "0s"), 2, "--budget: found '0s'"),
        (("BUNDLE", "--threads", "one"), 2, "--threads: found 'one', expected whole numbers"),
        (("BUNDLE", "--max-drop", "101"), 2, "--max-drop: found 101.0, expected at most 100"),
        (("gone",), 1, "gone does not exist"),
        (("gone", "--forget"), 1, "gone does not exist"),
        (("BUNDLE", "--variant", "int4"), 1, "There is no variant named 'int4'"),
        (("BUNDLE", "--backend", "opnvino"), 1, "There is no backend named 'opnvino'. Did you mean 'openvino'?"),
        (("BUNDLE", "--backend", "torch"), 1, "Nothing of 'tiny' that was asked for can run here"),
        (("BUNDLE", "--data", "gone"), 1, "gone"),
    ],
)
def test_wrong_use_and_what_cannot_be_are_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: tuple[str, ...], code: int, told: str
) -> None:
    bundle = str(make_bundle(tmp_path / "bundle"))
    found = said(capsys, "tune", *(bundle if word == "BUNDLE" else word for word in argv))
    assert found[:2] == (code, "")
    assert found[2].startswith("error: ") and told in found[2]
    assert not list(tmp_path.rglob("*.json.*"))


def test_a_cache_that_cannot_be_written_is_told_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetl.bench.tune.os.access", lambda *_: False)  # root, who may run this, may write anywhere
    code, out, err = said(capsys, "tune", str(make_bundle(tmp_path / "bundle")))
    assert (code, out) == (1, "")
    assert "cannot be written: it is read-only" in err
    assert "EDGETL_CACHE=FOLDER" in err
