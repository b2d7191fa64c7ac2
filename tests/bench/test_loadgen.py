"""MLPerf's own LoadGen and edgetl on the same latencies: LoadGen logs each in nanoseconds, and what it made of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetl.bench import mlperf
from tests.bench import loadgen_runs

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen has wheels for Linux on x86-64 only")

NAMES = {"SingleStream": "single-stream", "MultiStream": "multi-stream", "Offline": "offline"}
SAMPLE = re.compile(r'"name":"Sample".*?"query_seq":(\d+).*?"complete_ns":(\d+)')


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    root = tmp_path_factory.mktemp("loadgen")
    subprocess.run([sys.executable, loadgen_runs.__file__, str(root)], check=True, capture_output=True, timeout=300)
    return root


def latencies_of(folder: Path) -> np.ndarray:
    """Nanoseconds of every query: from when it was sent to when the last of its samples was answered."""
    # By the line: the trace as a whole is not always JSON.
    samples = [(int(query), int(latency)) for query, latency in SAMPLE.findall(
        (folder / "mlperf_log_trace.json").read_text())]
    found = np.zeros(1 + max(query for query, _ in samples), np.int64)
    for query, latency in samples:
        found[query] = max(found[query], latency)
    return found


def said_by(folder: Path) -> dict:
    """What LoadGen's detailed log says, by key."""
    lines = (folder / "mlperf_log_detail.txt").read_text().splitlines()
    events = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines if line.startswith(":::MLLOG ")]
    return {event["key"]: event["value"] for event in events}


def judged(scenario: str, folder: Path) -> mlperf.Scenario:
    latencies = latencies_of(folder)
    samples = {"SingleStream": 1, "MultiStream": 8}.get(scenario, 0) * len(latencies)
    run = {"latencies_ns": latencies.tolist(), "samples": samples, "duration_s": 0.0, "inputs": "nothing"}
    return mlperf.judge(NAMES[scenario], run, min_duration_s=0.0, images=None)


@pytest.mark.parametrize(("scenario", "count"), [run for run in loadgen_runs.RUNS if run[0] != "Offline"])
def test_estimates_are_loadgens_on_the_same_latencies(logs, scenario, count):
    folder = loadgen_runs.folder_of(logs, scenario, count)
    said, ours = said_by(folder), judged(scenario, folder)
    assert said["result_query_count"] == ours.queries == count
    assert said["early_stopping_met"] is ours.early_stopping_satisfied
    if ours.estimate_s is None:
        needs = re.search(r"Need to process at least (\d+) queries", said["early_stopping_result"])
        assert int(needs[1]) == ours.early_stopping_needs > count
        return
    key = {"SingleStream": "early_stopping_latency_ss", "MultiStream": "early_stopping_latency_ms"}[scenario]
    assert round(ours.estimate_s * 1e9) == said[key]
    assert f"Would discard {ours.discarded} highest" in said["early_stopping_result"]
    assert f"at least {ours.early_stopping_needs} queries" in said["early_stopping_result"]
    plain = {"SingleStream": "result_90.00_percentile_latency_ns",
             "MultiStream": "result_99.00_percentile_per_query_latency_ns"}[scenario]
    assert round(ours.percentile_s * 1e9) == said[plain]


def test_the_99th_percentile_that_loadgen_infers_from_single_stream_is_ours(logs):
    folder = loadgen_runs.folder_of(logs, "SingleStream", 2500)
    assert mlperf.early_stopping(latencies_of(folder), 0.99)[0] == said_by(folder)["early_stopping_latency_ms"]


def test_offline_is_all_samples_by_the_latency_of_the_last(logs):
    folder = loadgen_runs.folder_of(logs, "Offline", 5000)
    latencies = latencies_of(folder)
    assert len(latencies) == 1  # one query
    run = {"latencies_ns": [], "samples": 5000, "duration_s": latencies[0] / 1e9, "inputs": "nothing"}
    ours = mlperf.judge("offline", run, min_duration_s=0.0, images=5000)
    # LoadGen writes six digits.
    assert ours.samples_per_s == pytest.approx(said_by(folder)["result_samples_per_second"], rel=1e-5) and ours.valid
