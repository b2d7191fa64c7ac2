"""`edgetl bench --mode mlperf` from the command's options to the rows of the report."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from edgetl import recipe
from edgetl.bench import mlperf, mlperf_phase, mlperf_table, overview, report, runner
from edgetl.bench.process import WorkerFailed
from edgetl.cli import app
from tests.bench.hand_made import make_report
from tests.tiny_bundle import edit_manifest, encode, make_bundle

HERE = str(Path(__file__).parent)
LABELS = ("cat", "dog", "fox")


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH")))))


def make_tiny(folder: Path, *backends: str) -> Path:
    bundle = make_bundle(folder, labels=LABELS)
    edit_manifest(bundle, "variants", 0, "backends", value=list(backends))
    edit_manifest(bundle, "provenance", value={"run": {"data": {}}})
    return bundle


def make_photos(folder: Path) -> Path:
    for split in ("train", "val", "test"):
        for number, name in enumerate(LABELS):
            place = folder / split / name
            place.mkdir(parents=True)
            for level in range(4):
                shade = np.full((20, 20, 3), 20 * level, np.uint8)
                shade[:, :, number] += 120
                (place / f"{level}.png").write_bytes(encode(shade))
    return folder


def options(tmp_path: Path, bundle: Path, **changes) -> recipe.Bench:
    plain = {"cases": (str(bundle),), "out": str(tmp_path / "report"), "backend": ("benchfakes.fine",), "rounds": 1,
             "block": 50, "starts": 1, "warmup_s": 0.0, "photos": 0, "timeout_s": 600.0, "mode": "mlperf",
             "min_duration_s": 0.01}
    return recipe.Bench(**{**plain, **changes})


def test_every_scenario_of_a_case_stands_in_its_row(tmp_path):
    bundle, photos = make_tiny(tmp_path / "tiny", "benchfakes.fine"), make_photos(tmp_path / "photos")
    heard = []
    found = runner.bench(options(tmp_path, bundle, batch=("4",), data=str(photos)), listener=heard.append)
    assert report.read(tmp_path / "report").rows == found.rows
    single, multi, offline = found.rows[0].mlperf
    assert [one.name for one in found.rows[0].mlperf] == ["single-stream", "multi-stream", "offline"]
    assert all(one.valid and one.reason is None and one.inputs == "12 test images" for one in found.rows[0].mlperf)
    assert len(single.latencies_ns) == single.queries >= 100 and single.estimate_s >= single.percentile_s > 0
    assert multi.queries >= 662 and multi.samples == 8 * multi.queries and multi.early_stopping_needs == 662
    # The data set has 12 images, and the rules ask for no more than that.
    assert offline.min_samples == 12 and offline.samples_per_s > 0 and offline.samples % 4 == 0
    assert not single.full_length
    assert any(event.values.get("what") == "MLPerf's scenarios, 0.01 s or longer each" for event in heard)
    assert any("not an MLPerf result" in table.caption for table in overview.all_tables(found))
    assert "not an MLPerf result" in (tmp_path / "report" / "report.html").read_text()


def test_without_images_inputs_are_made_up_and_cases_that_are_paced_are_left_out(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.fine")
    found = runner.bench(options(tmp_path, bundle, scenario=("single-stream",), interval=("none", "1ms")))
    free, paced = found.rows
    assert [one.inputs for one in free.mlperf] == ["64 made-up inputs"] and paced.mlperf == ()


def test_a_worker_that_dies_leaves_its_latencies_and_the_reason(tmp_path, monkeypatch):
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.fine")
    asked = []

    def dying(self, request, **more):
        if request["do"] == "scenario":
            asked.append(request["scenario"])
            raise WorkerFailed("the worker was ended by SIGKILL")
        return real(self, request, **more)

    from edgetl.bench.process import Process
    real = Process.ask
    monkeypatch.setattr(Process, "ask", dying)
    (row,) = runner.bench(options(tmp_path, bundle)).rows
    assert row.measured and len(row.measurement.seconds) == 40 and asked == ["single-stream"]
    assert [one.reason for one in row.mlperf] == [
        "the worker was ended by SIGKILL", "its worker had ended before", "its worker had ended before"]
    assert not any(one.valid for one in row.mlperf)


def test_nothing_runs_in_the_standard_mode(tmp_path):
    bundle = make_tiny(tmp_path / "tiny", "benchfakes.fine")
    assert runner.bench(options(tmp_path, bundle, mode="standard")).rows[0].mlperf == ()


@pytest.mark.parametrize(("flag", "value"), [("--mode", "mlperff"), ("--scenario", "server"),
                                             ("--min-duration-s", "-1")])
def test_what_is_no_mode_scenario_or_duration_is_refused(tmp_path, capsys, monkeypatch, flag, value):
    monkeypatch.setattr("sys.argv", ["edgetl", "bench", str(tmp_path), "--out", str(tmp_path / "out"), flag, value])
    assert app.main() in (1, 2)
    assert value.lstrip("-") in capsys.readouterr().err


def test_a_scenario_is_waited_for_as_long_as_its_queries_may_take():
    class Trial:
        class case:
            batch = 1

        def call_s(self):
            return 0.5

    # 662 queries of 8 calls of half a second.
    assert mlperf_phase._expected_s(Trial(), "multi-stream", 600.0) == 662 * 8 * 0.5
    assert mlperf_phase._expected_s(Trial(), "single-stream", 600.0) == pytest.approx(660)


def test_the_table_says_what_a_figure_is_and_what_is_wrong_with_it():
    run = {"latencies_ns": [2_000_000] * 70, "samples": 70, "duration_s": 0.14, "inputs": "64 made-up inputs"}
    made = make_report()
    rows = (dataclasses.replace(made.rows[0], mlperf=(
        mlperf.judge("single-stream", run, min_duration_s=600.0, images=None),
        mlperf.judge("single-stream", {**run, "latencies_ns": [1]}, min_duration_s=0.1, images=None),
        mlperf.judge("offline", {**run, "latencies_ns": [], "samples": 1000, "duration_s": 1.0}, min_duration_s=1.0,
                     images=12),
        mlperf.failed("offline", "out of memory", min_duration_s=600.0))), *made.rows[1:])
    (table,) = mlperf_table.tables(dataclasses.replace(made, rows=rows))
    assert "not an MLPerf result; MLPerf's method on your data" in table.caption
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert cells[0]["result"] == "2.00 ms" and cells[0]["min duration"] == "no, 0.140 of 600 s"
    assert cells[0]["min queries"] == "no, 70 of 100" and cells[0]["early stopping"] == "yes"
    assert cells[1]["result"] == "needs 64 queries" and cells[1]["early stopping"] == "no"
    assert cells[1]["min duration"] == "yes, 0.140 of 0.1 s, where MLPerf asks for 600"
    assert cells[2]["result"] == "1000 /s" and cells[2]["early stopping"] == "not asked for"
    assert cells[2]["min queries"] == "yes, 1000 of 12 samples"
    assert cells[3]["result"] == "out of memory" and cells[3]["min queries"] == "–"
    assert [cell["valid"] for cell in cells] == ["no", "no", "shortened", "no"]
    assert not any(table.numeric(column) for column in range(2, len(table.columns)) if column != 7)
    assert not mlperf_table.tables(made)
