"""The bookkeeping of benchmarks/stopwatch.py: the verdicts, what each side is given, and the side that edgetl is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundle import make_bundle, make_graph

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import stopwatch


def rounds(middle, spread, seed):
    generator = np.random.default_rng(seed)
    return [{"median_s": middle * (1 + spread * generator.standard_normal())} for _ in range(12)]


@pytest.mark.parametrize(("factor", "spread", "said"), [
    (1.0, 0.002, "agrees"), (1.02, 0.002, "agrees"), (1.08, 0.002, "differs"), (0.9, 0.002, "differs"),
    (1.0, 0.2, "not sure")])
def test_medians_agree_only_where_the_whole_interval_lies_within_the_limit(factor, spread, said):
    found = stopwatch.verdict(rounds(1e-3, spread, 0), rounds(factor * 1e-3, spread, 1), "median_s")
    assert found["verdict"] == said
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"] and len(found["peer_rounds_s"]) == 12


def test_every_side_gets_the_same_graph_and_the_inputs_of_the_worker(tmp_path):
    bundle, folder = make_bundle(tmp_path / "tiny"), tmp_path / "jobs"
    folder.mkdir()
    (job,) = stopwatch.jobs([bundle], "10ms", 50, folder, "cpu")
    assert job.graph.read_bytes() == make_graph() and job.interval_s == 0.01 and job.arrival == "10ms"
    arrays = [np.load(file) for file in job.inputs]
    wanted = stopwatch.worker.make_feeds(job.case.subject.spec, 1)
    assert all(np.array_equal(array, feeds["image"]) for array, feeds in zip(arrays, wanted, strict=True))
    sides, absent = stopwatch.sides(job)
    assert list(sides) == ["edgetl", "bare loop"] and "pace" in absent["onnxruntime_test"]
    unpaced = stopwatch.sides(stopwatch.jobs([bundle], "back-to-back", 50, folder, "cpu")[0])
    assert {"edgetl", "bare loop", "onnxruntime_test"} <= set(unpaced[0]) and "LoadGen" in {**unpaced[0], **unpaced[1]}


def test_the_sides_of_onnx_runtime_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(stopwatch, "WARMUP_S", 0.0)
    bundle, folder = make_bundle(tmp_path / "tiny"), tmp_path / "jobs"
    folder.mkdir()
    (job,) = stopwatch.jobs([bundle], "back-to-back", 50, folder, "cpu")
    found = {name: side(job) for name, side in stopwatch.sides(job)[0].items()}
    assert all(set(found[name]) == {"median_s"} for name in found if name == "LoadGen")
    assert set(found["edgetl"]) == {"median_s", "mean_s"} and set(found["bare loop"]) == {"median_s"}
    assert set(found["onnxruntime_test"]) == {"mean_s"}
    assert all(value > 0 for one in found.values() for value in one.values())
