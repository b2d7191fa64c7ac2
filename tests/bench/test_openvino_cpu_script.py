"""The bookkeeping of benchmarks/openvino_cpu.py: what is held against what, the verdicts, and the exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgetl.runtime import processor
from tests.tiny_bundle import make_bundle

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import openvino_cpu


def seconds(middle, spread, seed):
    generator = np.random.default_rng(seed)
    levels = middle * (1 + spread * generator.standard_normal((12, 1)))
    return levels * (1 + 0.01 * generator.standard_normal((12, 60)))


@pytest.mark.parametrize(("factor", "spread", "said"), [
    (0.8, 0.005, "not slower"), (1.0, 0.005, "not slower"), (1.015, 0.002, "not slower"), (1.10, 0.005, "slower"),
    (1.05, 0.4, "not sure")])
def test_slower_is_a_ratio_that_matters_and_is_beyond_doubt(factor, spread, said):
    found = openvino_cpu.verdict(seconds(1e-3, spread, 0), seconds(factor * 1e-3, spread, 1))
    if said == "not sure" and found["ratio"] <= 1:
        pytest.fail("the seeds must make it slower, by chance")
    assert found["verdict"] == said
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"] and len(found["cpu_rounds_s"]) == 12


def test_the_worst_verdict_is_the_exit_code():
    rows = [{"verdict": "not slower"}, {"verdict": "not sure"}, {"verdict": "slower"}]
    assert openvino_cpu.outcome(rows[:1], []) == 0
    assert openvino_cpu.outcome(rows[:2], [{"agreement": 1.0}]) == 4
    assert openvino_cpu.outcome(rows, []) == 3
    assert openvino_cpu.outcome(rows[:1], [{"right": True}, {"right": False}]) == 3


@pytest.mark.parametrize("bf16", [True, False])
def test_the_variants_of_a_bundle_run_both_ways_and_fp32_in_bf16_too(tmp_path, monkeypatch, bf16):
    monkeypatch.setattr(processor, "accelerates", lambda precision: "a feature" if bf16 else None)
    bundle = make_bundle(tmp_path / "tiny", second={"backends": ("cpu",), "precision": "int8"})
    (one,) = openvino_cpu.of_bundles([str(bundle)])  # the second variant has no other side
    assert (one.name, one.precision) == ("tiny fp32", "fp32")
    assert list(one.ways) == ["cpu", "openvino", *(["bf16"] if bf16 else [])]
    if bf16:
        assert (one.ways["bf16"].backend, one.ways["bf16"].spec.precision) == ("openvino", "bf16")


def test_both_sides_are_timed_in_fresh_processes_and_answer_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "accelerates", lambda precision: None)
    graphs = list(openvino_cpu.of_bundles([str(make_bundle(tmp_path / "tiny"))]))
    monkeypatch.setattr(openvino_cpu.stopwatch, "WARMUP_S", 0.0)
    found = openvino_cpu.measured(graphs[0], "back-to-back", 1, 50, np.random.default_rng(0))
    assert {way: one.shape for way, one in found.items()} == {"cpu": (1, 50), "openvino": (1, 50)}
    rows = openvino_cpu.agreed(graphs)
    assert [row["agreement"] for row in rows] == [1.0, 1.0]
    assert all(row["greatest_difference"] < 1e-4 for row in rows)
