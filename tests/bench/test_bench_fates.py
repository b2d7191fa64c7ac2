"""What becomes of a benchmark whose workers die, and of one that is itself killed or interrupted."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from bench.test_bench_runner import fakes_on_the_path, make_tiny, options  # noqa: F401

from edgetl import rundir
from edgetl.bench import cases, phases, process, report, runner, tables
from edgetl.bench.trial import Trial
from edgetl.errors import OutputError
from edgetl.events import ignore

QUICK = {"warmup_s": 0.0, "photos": 0}


def test_every_kind_of_death_is_a_failed_row_with_its_reason(tmp_path):
    told = {"segfault": "the worker was ended by SIGSEGV",
            "aborts": "the worker was ended by SIGABRT; it last wrote: terminate called after throwing an instance of "
                      "'std::bad_alloc'",
            "limited": "out of memory"}
    backends = ("benchfakes.fine", *(f"benchfakes.{name}" for name in told))
    bundle = make_tiny(tmp_path / "tiny", *backends)
    found = runner.bench(options(tmp_path, bundle, backend=backends, rounds=3, **QUICK))
    rows = {row.backend.rpartition(".")[2]: row for row in found.rows}
    assert {name: rows[name].measurement.reason for name in told} == told
    assert rows["fine"].measured and rows["fine"].measurement.rounds == 3
    assert found.status == report.COMPLETE and len(found.calibration.blocks) == 3
    assert len(tables.failures(found).rows) == len(told)


def test_the_others_go_on_after_one_hangs(tmp_path):
    backends = ("benchfakes.stuck", "benchfakes.fine")
    chosen = options(tmp_path, make_tiny(tmp_path / "tiny", *backends), backend=backends, **QUICK)
    stuck, fine = (Trial(case, dataclasses.replace(chosen, timeout_s=seconds))
                   for case, seconds in zip(cases.find(chosen), (2.0, 60.0), strict=True))
    order = np.random.default_rng(0)
    with phases.closing((stuck, fine)):
        phases.start((stuck, fine), 1, order, ignore)
        phases.measure((stuck, fine), 3, order, ignore)
    assert stuck.row().measurement.reason == "no answer within 2 s (--timeout-s allows more)"
    assert fine.row().measured and fine.row().measurement.rounds == 3


def test_a_death_after_the_rounds_costs_no_latency(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.lonely")
    found = runner.bench(options(tmp_path, bundle, backend=("benchfakes.lonely",), concurrency=("2",), window_s=0.01))
    row = found.rows[0]
    assert row.measured and row.throughputs == () and row.best_throughput.concurrency == 1
    assert row.decode_s == ()  # the process is no more
    assert [note for note in found.notes if "no throughput: the worker was ended by SIGKILL" in note]


def killed_in_round(number: int, how: signal.Signals, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A benchmark in a process of its own that gets a signal when that round has been written down."""
    code = f"""
import os, sys
from edgetl.bench import phases
measure, rounds = phases.measure, []
def watched(*those, after, **others):
    def ended():
        after()
        rounds.append(1)
        if len(rounds) == {number}:
            os.kill(os.getpid(), {int(how)})
    measure(*those, after=ended, **others)
phases.measure = watched
from edgetl.cli.app import main
sys.exit(main(sys.argv[1:]))
"""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600,
                          env=process._environment())


@pytest.fixture
def arguments(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.fine")
    return ["bench", str(bundle), "--backend", "benchfakes.fine", "--out", str(tmp_path / "report"), "--rounds", "9",
            "--block", "50", "--starts", "1", "--warmup-s", "0", "--photos", "0"]


def test_what_was_measured_before_a_kill_can_be_read(tmp_path, arguments):
    ended = killed_in_round(4, signal.SIGKILL, arguments)
    assert ended.returncode == -signal.SIGKILL and not (tmp_path / "report").exists()
    kept = rundir.partial(tmp_path / "report")
    found = report.read(kept)
    assert found.status == report.PARTIAL and found.rows[0].measurement.rounds == 4
    assert len(found.rows[0].measurement.seconds) == 4 * (50 - 10)
    assert tables.summary(found).rows
    with pytest.raises(OutputError, match="interrupted benchmark of") as refused:
        runner.bench(options(tmp_path, tmp_path / "tiny"))
    assert str(kept) in refused.value.message and "--overwrite" in refused.value.hint
    runner.bench(options(tmp_path, tmp_path / "tiny", overwrite=True, **QUICK))
    assert not kept.exists() and report.read(tmp_path / "report").status == report.COMPLETE


def test_ctrl_c_keeps_what_was_measured_and_says_where(tmp_path, arguments):
    ended = killed_in_round(2, signal.SIGINT, arguments)
    kept = rundir.partial(tmp_path / "report")
    assert ended.returncode == 130
    assert f"measured so far: {kept / 'report.json'}" in ended.stderr and "error: Interrupted." in ended.stderr
    assert report.read(kept).rows[0].measurement.rounds == 2


def test_ctrl_c_within_a_round_keeps_the_unequal_blocks(tmp_path):
    heard = []

    def interrupt(event):
        heard.append(event)
        if event.kind == "advance" and event.values.get("done") == 3 and "measuring" in begun():
            raise KeyboardInterrupt

    def begun():
        return [one.values["what"] for one in heard if one.kind == "begin"]

    backends = ("benchfakes.fine", "benchfakes.colourblind")
    bundle = make_tiny(tmp_path / "tiny", *backends)
    with pytest.raises(KeyboardInterrupt):
        runner.bench(options(tmp_path, bundle, backend=backends, **QUICK), listener=interrupt)
    found = report.read(rundir.partial(tmp_path / "report"))
    assert sorted(row.measurement.rounds for row in found.rows) == [1, 2]


def test_a_round_that_takes_long_is_written_down_before_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SAVE_EVERY_S", -1.0)
    seen = []

    def look(event):
        if event.kind == "advance" and event.values.get("case") and (kept / "report.json").exists():
            seen.append(sorted(row.measurement.rounds for row in report.read(kept).rows))

    kept = rundir.partial(tmp_path / "report")
    backends = ("benchfakes.fine", "benchfakes.colourblind")
    bundle = make_tiny(tmp_path / "tiny", *backends)
    runner.bench(options(tmp_path, bundle, backend=backends, **QUICK), listener=look)
    assert seen == [[0, 1], [1, 1], [1, 2], [2, 2]]


def test_a_case_without_a_block_is_pending_in_a_partial_report(tmp_path):
    def interrupt(event):
        if event.kind == "advance" and "measuring" in begun and event.values["done"] == 1:
            raise KeyboardInterrupt
        if event.kind == "begin":
            begun.append(event.values["what"])

    begun: list[str] = []
    backends = ("benchfakes.fine", "benchfakes.colourblind")
    bundle = make_tiny(tmp_path / "tiny", *backends)
    with pytest.raises(KeyboardInterrupt):
        runner.bench(options(tmp_path, bundle, backend=backends, **QUICK), listener=interrupt)
    found = report.read(rundir.partial(tmp_path / "report"))
    assert sorted(row.measurement.status for row in found.rows) == [report.MEASURED, report.PENDING]
    assert json.loads(report.dumps(found))["status"] == "partial" and "broken off" in tables.failures(found).rows[0][1]
    assert len(tables.summary(found).rows) == 1
