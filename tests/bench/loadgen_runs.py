"""Runs MLPerf's LoadGen on a system that answers at once: `python loadgen_runs.py FOLDER`, a run for each of `RUNS`.

In a process of its own, since LoadGen has threads and a state that outlive a run.
"""

from __future__ import annotations

import sys
from pathlib import Path

RUNS = [("SingleStream", count) for count in (20, 63, 64, 100, 1000, 2500)]
RUNS += [("MultiStream", count) for count in (100, 661, 662, 1001, 1500)]
RUNS += [("Offline", 5000)]


def folder_of(root: Path, scenario: str, count: int) -> Path:
    """Where a run leaves its logs."""
    return root / f"{scenario}-{count}"


def run(scenario: str, count: int, out: Path) -> None:
    """One run of LoadGen, with the trace that holds the latency of every sample in nanoseconds."""
    import mlperf_loadgen

    def issue(samples):
        mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(one.id, 0, 0) for one in samples])

    out.mkdir()
    system = mlperf_loadgen.ConstructSUT(issue, lambda: None)
    library = mlperf_loadgen.ConstructQSL(64, 64, lambda samples: None, lambda samples: None)
    settings, logs = mlperf_loadgen.TestSettings(), mlperf_loadgen.LogSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, scenario)
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = 0, count
    outputs = mlperf_loadgen.LogOutputSettings()
    outputs.outdir, outputs.copy_summary_to_stdout = str(out), False
    logs.log_output, logs.enable_trace = outputs, True
    mlperf_loadgen.StartTestWithLogSettings(system, library, settings, logs)
    mlperf_loadgen.DestroyQSL(library)
    mlperf_loadgen.DestroySUT(system)


if __name__ == "__main__":
    for scenario, count in RUNS:
        run(scenario, count, folder_of(Path(sys.argv[1]), scenario, count))
