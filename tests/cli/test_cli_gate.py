"""`edgetl gate` at the shell: its one line, its exit codes, what is refused, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_bundle import make_bundle

from edgetl.bench import gate, pairs, sequential
from edgetl.bench.sequential import Look, Outcome
from edgetl.bench.stats import Interval
from edgetl.cli import app

FAKES = str(Path(__file__).parents[1] / "bench")


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = app.main(argv)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


def outcome(verdict: str, ratio: Interval) -> Outcome:
    look = Look(14, 0.4, ratio, None if verdict == "inconclusive" else verdict)
    return Outcome(verdict, (0.006, -0.006), (0.0,) * 14, (look,), 21.2, 1.5)


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(make_bundle(tmp_path / "bundle"))


CASES = {
    0: (outcome("pass", Interval(0.996, 0.989, 1.003, 0.94)),
        "pass: NEW is 0.4 % faster than BASE (-1.1 to +0.3 %), limit 5 %, 14 pairs in 21 s; noise floor 0.6 %\n", ""),
    3: (outcome("fail", Interval(1.098, 1.081, 1.12, 0.94)),
        "fail: NEW is 9.8 % slower than BASE (+8.1 to +12.0 %), limit 5 %, 14 pairs in 21 s; noise floor 0.6 %\n",
        "error: The gate said no: NEW is 9.8 % slower than BASE"),
    4: (outcome("inconclusive", Interval(1.03, 0.99, 1.07, 0.94)),
        "inconclusive: NEW is 3.0 % slower than BASE (-1.0 to +7.0 %), limit 5 %, 14 pairs in 21 s; noise floor "
        "0.6 %\n",
        "hint: Give a budget of about "),
}


@pytest.mark.parametrize("code", CASES)
def test_one_line_and_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bundle: str, code: int
) -> None:
    found, line, told = CASES[code]
    monkeypatch.setattr(sequential, "conduct", lambda *_, **__: found)
    monkeypatch.setattr(gate.pairs, "probe", lambda *_, **__: pairs.Pattern(3, 1, 2))
    argv = ("gate", bundle, bundle, "--backend", "cpu")
    shown = said(capsys, *argv)
    assert shown[:2] == (code, line) and told in shown[2]
    shown = said(capsys, *argv, "--json")
    values = json.loads(shown[1])
    assert shown[0] == code and values["line"] + "\n" == line and values["verdict"] == found.verdict


def test_real_processes_and_a_budget_that_they_do_not_fit_in(bundle: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "edgetl", "gate", bundle, bundle, "--backend", "cpu", "--budget",
                           "10ms", "--out", str(tmp_path / "out")],
                          capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 4, done.stderr
    assert done.stdout.startswith("inconclusive: a pair of processes takes ")
    assert "hint: Give a budget of about" in done.stderr
    values = json.loads((tmp_path / "out" / "gate.json").read_text())
    assert len(values["floor_pairs"]) == 2 and values["pairs"] == []


def test_a_worker_that_dies_is_no_pass(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                                       bundle: str) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (FAKES, os.environ.get("PYTHONPATH")))))
    monkeypatch.syspath_prepend(FAKES)
    graph = str(Path(bundle) / "fp32.onnx")
    code, out, err = said(capsys, "gate", graph, graph, "--backend", "benchfakes.killed")
    assert (code, out) == (1, "")
    assert err.count("error: ") == 1 and "SIGKILL" in err and "nothing can be compared" in err


def test_ctrl_c_leaves_no_worker(bundle: str, tmp_path: Path) -> None:
    graph = str(Path(bundle) / "fp32.onnx")
    running = subprocess.Popen([sys.executable, "-m", "edgetl", "gate", graph, graph, "--backend", "benchfakes.hangs",
                                "--out", str(tmp_path / "out")],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": FAKES, "BENCHFAKES_BEGUN": str(tmp_path / "begun")})
    while not (tmp_path / "begun").exists() and running.poll() is None:
        time.sleep(0.01)
    workers = psutil.Process(running.pid).children()
    assert workers
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=600)
    assert (running.returncode, out) == (app.INTERRUPTED, "") and "Interrupted." in err and "Traceback" not in err
    assert not psutil.wait_procs(workers, timeout=300)[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        ((), 2, "Missing argument 'BASE'"),
        (("BUNDLE",), 2, "Missing argument 'NEW'"),
        (("BUNDLE", "BUNDLE", "--max-regression", "5"), 2,
         "--max-regression: found '5', expected a percentage above 0: 5% or 2.5%"),
        (("BUNDLE", "BUNDLE", "--max-regression", "0%"), 2, "--max-regression: found '0%'"),
        (("BUNDLE", "BUNDLE", "--max-regression=-5%"), 2, "--max-regression: found '-5%'"),
        (("BUNDLE", "BUNDLE", "--max-size", "5"), 2, "--max-size: found '5', expected a size or a growth"),
        (("BUNDLE", "BUNDLE", "--max-size=-10%"), 2, "--max-size: found '-10%'"),
        (("BUNDLE", "BUNDLE", "--budget", "0s"), 2, "--budget: found '0s'"),
        (("BUNDLE", "BUNDLE", "--budget", "1h"), 2, "--budget: found '1h', expected a duration above 0 with a unit"),
        (("BUNDLE", "BUNDLE", "--min-accuracy", "101"), 2, "--min-accuracy: found 101.0, expected at most 100"),
        (("BUNDLE", "BUNDLE", "--batch", "0"), 2, "--batch: found 0, expected at least 1"),
        (("gone", "BUNDLE"), 1, "gone does not exist"),
        (("BUNDLE", "gone"), 1, "gone does not exist"),
        (("BUNDLE", "BUNDLE", "--variant", "int4"), 1, "There is no variant named 'int4'"),
        (("BUNDLE", "BUNDLE", "--backend", "opnvino"), 1, "There is no backend named 'opnvino'. Did you mean"),
        (("BUNDLE", "BUNDLE", "--backend", "torch"), 1, "No variant of 'tiny' that was asked for can run here"),
        (("BUNDLE", "BUNDLE", "--max-drop", "1"), 1, "--max-drop needs images to measure accuracy on."),
        (("BUNDLE", "BUNDLE", "--data", "gone"), 1, "gone"),
        (("BUNDLE", "BUNDLE", "--out", "BUNDLE"), 1, "exists already"),
    ],
)
def test_wrong_use_and_what_cannot_be_are_one_sentence(
    capsys: pytest.CaptureFixture[str], bundle: str, argv: tuple[str, ...], code: int, told: str
) -> None:
    found = said(capsys, "gate", *(bundle if word == "BUNDLE" else word for word in argv))
    assert found[:2] == (code, "")
    assert found[2].count("error: ") == 1 and told in found[2]
