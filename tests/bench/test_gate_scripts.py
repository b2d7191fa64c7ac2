"""The bookkeeping of the gate's scripts in benchmarks/: traces, gates drawn from them, the slowdown."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from edgetl.bench import pairs, sequential
from edgetl.runtime.manifest import from_json
from tests.tiny_bundle import graph_spec, make_bundle, make_graph

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def replay() -> ModuleType:
    return script("gate_replay")


def trace_file(path: Path, noise: float, count: int = 60) -> Path:
    """BASE against itself; every process has a speed of its own, calls of 1 ms, pairs of 2 s."""
    draw = np.random.default_rng(0)
    speeds = 1e-3 * np.exp(noise * draw.normal(size=(count, 2, 1, 1)))
    found = [pairs.Pair(np.broadcast_to(one, (2, 2, 5)), 2.0 * number, 2.0, number % 2, (0, 1, 1, 0))
             for number, one in enumerate(speeds)]
    script("gate_traces").write(path, found, {"pattern": {"kept": 5, "dropped": 1, "blocks": 2}, "unit_s": 1e-7})
    return path


def options(**changes) -> argparse.Namespace:
    return argparse.Namespace(**{"gates": 40, "margin": 0.05, "seed": 0, **changes})


def test_a_trace_is_read_as_the_gate_measures_it(tmp_path, replay):
    trace = replay.read(trace_file(tmp_path / "quiet.npz", 0.01), pairs.LOWER)
    assert trace.name == "quiet" and trace.log_ratios.shape == trace.elapsed_s.shape == (60,)
    assert np.std(trace.log_ratios) == pytest.approx(0.01 * math.sqrt(2), rel=0.3)
    assert trace.calls_s == pytest.approx(np.full((60, 2), 6 * 3 * 1e-3), rel=0.1)
    assert json.dumps(replay.describe(trace))


def test_the_ratio_goes_into_new_alone_and_costs_time(tmp_path, replay):
    trace = replay.read(trace_file(tmp_path / "quiet.npz", 0.0), pairs.LOWER)
    gate = replay.Gate(trace, 1.5, np.random.default_rng(0))
    assert gate.measure(True) == 0.0 and gate.passed_s == pytest.approx(2.0)
    assert gate.measure(False) == pytest.approx(math.log(1.5), abs=1e-3)
    assert gate.passed_s == pytest.approx(4.0 + 0.5 * 0.018)


def test_stretches_are_consecutive_and_labels_are_drawn(tmp_path, replay):
    trace = replay.read(trace_file(tmp_path / "quiet.npz", 0.05), pairs.LOWER)
    gate = replay.Gate(trace, 1.0, np.random.default_rng(1))
    drawn = np.array([gate.measure(False) for _ in range(10 * replay.STRETCH)])
    places = [int(np.argmin(np.abs(np.abs(trace.log_ratios) - abs(one)))) for one in drawn]
    for begin in range(0, len(places), replay.STRETCH):
        assert set(np.diff(places[begin:begin + replay.STRETCH]) % 60) == {1}
    signs = np.sign(drawn * trace.log_ratios[places])
    assert 20 < (signs > 0).sum() < 60


def test_rates_are_counted_with_exact_intervals(tmp_path, replay):
    trace = replay.read(trace_file(tmp_path / "quiet.npz", 0.01), pairs.LOWER)
    equal, slower = (replay.replay(trace, ratio, 60.0, options()) for ratio in (1.0, 1.10))
    assert equal["pass"] == {"count": 40, "rate": 1.0, "low": pytest.approx(0.025 ** (1 / 40)), "high": 1.0}
    assert slower["fail"]["count"] == 40 and slower["inconclusive"]["high"] == pytest.approx(1 - 0.025 ** (1 / 40))
    assert equal["time_s"]["p50"] == 2.0 * (sequential.FLOOR_PAIRS + equal["pairs"]["p50"])
    assert json.dumps([equal, slower])


def test_the_slowdown_is_in_the_graph_of_new(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS.parent))
    live = script("gate_live")
    slowdown = sys.modules["benchmarks.gate_slowdown"]
    made = live.copied(make_bundle(tmp_path / "bundle"), tmp_path / "slow", 1.25)
    variant = from_json((made / "manifest.json").read_text(), where="x").variants[0]
    assert variant.backends == ("benchmarks.gate_slowdown",)
    graph = (made / variant.file).read_bytes()
    assert onnx.load_model_from_string(graph).metadata_props[0].value == "1.250000"
    feeds = {"image": np.zeros((1, 3, 16, 16), np.float32)}
    for data, factor in ((graph, 1.25), (make_graph(), 1.0)):
        session = slowdown.open(data, graph_spec(), threads=1, cache_dir=None, options={})
        assert session.factor == factor and session.run(feeds)["logits"].shape == (1, 3)
        session.close()
    with pytest.raises(ValueError, match="not between 1 and 10"):
        slowdown.value(10.0)


def test_a_call_lasts_as_many_times_as_long(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS.parent))
    slowdown = importlib.import_module("benchmarks.gate_slowdown")
    clock = iter([10.0, 12.0, 12.1, 12.9, 13.0])  # it took 2 s, and is to take 3

    class Session:
        close = info = None

        def run(self, feeds):
            return feeds

    monkeypatch.setattr(slowdown.timing, "now_s", lambda: next(clock))
    assert slowdown.Slowed(Session(), 1.5).run({"a": 1}) == {"a": 1}
    assert next(clock, None) is None
