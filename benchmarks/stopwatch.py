"""Whether edgetl's stopwatch says what others say: its median against bare loops and the runtimes' own tools.

python benchmarks/stopwatch.py BUNDLE|MODEL.onnx... --out benchmarks/results/stopwatch.json
    [--rounds 10] [--calls 500] [--arrival back-to-back,10ms]

In every round, each side measures the same graph once in a fresh process, in random order; a round gives every side one
figure, and a peer is compared by the ratio of its median over the rounds with edgetl's, with a bootstrap interval.

edgetl           a case of `edgetl bench`: warm-up, then a block of so many calls, the first 10 dropped
bare loop        `session.run` of ONNX Runtime, or `infer` of an OpenVINO request, between two readings of the clock
LoadGen          MLPerf's, single-stream, on the bare session: the median of its log; back to back only
onnxruntime_test the test tool of ONNX Runtime's package, made to take one thread: the mean of all its calls, held
                 against edgetl's mean; it cannot pace its calls
benchmark_app    OpenVINO's own (-api sync -nstreams 1 -inference_only false): its median before it is rounded, which is
                 by the engine's own clock and holds no copy of an input or output; and the time of its loop by its
                 calls, held against edgetl's mean

The pattern is the same for all: one thread on one core, to which all are bound; batch 1; the very same four inputs in
turn (onnxruntime_test takes one of them); calls back to back, or paced by moments that lie `--arrival` apart; and
glibc keeps the memory that is freed, as edgetl's workers have it. onnxruntime_perf_test would be ONNX Runtime's better
tool; it is part of no package and has to be built with ONNX Runtime from source, so it is not here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import recipe, rundir
from edgetl.bench import cases, stats, worker
from edgetl.bench.cases import Case
from edgetl.bench.environment import load_average
from edgetl.bench.trial import Trial
from edgetl.timing import DROPPED

WARMUP_S = 10.0  # at most, which is the default of `edgetl bench`
LIMIT = 0.03  # the medians may lie so far apart
BACK_TO_BACK = "back-to-back"
# What `edgetl.allocator.set_allocator` sets in edgetl's own workers.
GLIBC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}

OPENING = {"cpu": """
import onnxruntime
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = settings.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(asked["graph"], settings, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
""", "openvino": """
import openvino
core = openvino.Core()
model = core.read_model(asked["graph"])
model.reshape({model.inputs[0]: list(inputs[0].shape)})
compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1",
                                             "INFERENCE_NUM_THREADS": "1", "INFERENCE_PRECISION_HINT": "f32"})
request, ports = compiled.create_infer_request(), compiled.outputs
"""}
CALL = {"cpu": "session.run(None, {name: array})",
        "openvino": "results = request.infer({0: array}); [results[port] for port in ports]"}
LOOP = """
import json, statistics, sys, time
import numpy as np
asked = json.loads(sys.argv[1])
inputs = [np.load(file) for file in asked["inputs"]]
{opening}
seconds, start = [], time.perf_counter()
for number in range(asked["calls"] + asked["dropped"]):
    if asked["interval_s"] is not None:
        remaining = start + number * asked["interval_s"] - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)
    array = inputs[number % len(inputs)]
    begin = time.perf_counter()
    {call}
    seconds.append(time.perf_counter() - begin)
print(json.dumps(statistics.median(seconds[asked["dropped"]:])))
"""
# Single-stream; the median of all queries, in nanoseconds, from its detailed log.
LOADGEN = """
import json, pathlib, sys, tempfile
import mlperf_loadgen as loadgen
import numpy as np
asked = json.loads(sys.argv[1])
inputs = [np.load(file) for file in asked["inputs"]]
{opening}
def issue(samples):
    for one in samples:
        array = inputs[one.index]
        {call}
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(one.id, 0, 0)])
for array in inputs * 3:
    {call}
settings, logs, outputs = loadgen.TestSettings(), loadgen.LogSettings(), loadgen.LogOutputSettings()
settings.scenario, settings.mode = loadgen.TestScenario.SingleStream, loadgen.TestMode.PerformanceOnly
settings.min_duration_ms, settings.min_query_count = 0, asked["calls"]
with tempfile.TemporaryDirectory() as folder:
    outputs.outdir, outputs.copy_summary_to_stdout, logs.log_output = folder, False, outputs
    loadgen.StartTestWithLogSettings(loadgen.ConstructSUT(issue, lambda: None), loadgen.ConstructQSL(
        len(inputs), len(inputs), lambda samples: None, lambda samples: None), settings, logs)
    lines = pathlib.Path(folder, "mlperf_log_detail.txt").read_text().splitlines()
said = [json.loads(line.removeprefix(":::MLLOG ")) for line in lines if '"result_50.00_percentile_latency_ns"' in line]
print(json.dumps(said[0]["value"] / 1e9))
"""
# It has no option for threads, and takes as many as the processor has cores. Its package would import PyTorch.
ONNXRUNTIME_TEST = """
import pathlib, runpy, sys
import numpy as np
import onnxruntime
tool = runpy.run_path(str(pathlib.Path(onnxruntime.__file__).parent / "tools" / "onnxruntime_test.py"))
make = onnxruntime.InferenceSession
def with_one_thread(graph, sess_options, providers):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    return make(graph, settings, providers=["CPUExecutionProvider"])
graph, calls, file = sys.argv[1:]
name = make(graph, providers=["CPUExecutionProvider"]).get_inputs()[0].name
onnxruntime.InferenceSession = with_one_thread
tool["run_model"](graph, int(calls), feeds={name: np.load(file)})
"""
# Its main function with its own arguments; what its loop returns is written down before main rounds it.
BENCHMARK_APP = """
import json, sys
from openvino.tools.benchmark import main
loop = main.Benchmark.main_loop
def listening(*arguments):
    found = loop(*arguments)
    with open(target, "w") as file:
        json.dump({"median_s": found[1] / 1000, "mean_s": found[5] / found[6]}, file)
    return found
target = sys.argv.pop(1)
main.Benchmark.main_loop = listening
main.main()
"""


@dataclass(frozen=True)
class Job:
    """One graph on one backend in one arrival pattern."""

    case: Case
    graph: Path  # a file of its own
    inputs: tuple[Path, ...]
    calls: int
    arrival: str

    @property
    def interval_s(self) -> float | None:
        """From the begin of a call to the begin of the next; None is back to back."""
        return None if self.arrival == BACK_TO_BACK else cases.interval_s(self.arrival)


Side = Callable[[Job], Mapping[str, float]]  # what is measured in a fresh process: median_s, or mean_s


def edgetl(job: Job) -> Mapping[str, float]:
    """Median and mean of what `edgetl bench` measures."""
    trial = Trial(job.case, options([job.case.subject.source], job.case.subject.backend, job.arrival, job.calls))
    try:
        trial.start(keep=True)
        trial.warm_up()
        trial.block()
    finally:
        trial.close()
    seconds = trial.measurement().seconds
    if not trial.alive:
        raise SystemExit(f"edgetl: {trial.reason}")
    return {"median_s": float(np.median(seconds)), "mean_s": float(np.mean(seconds))}


def bare_loop(job: Job, code: str = LOOP) -> Mapping[str, float]:
    """Median of a loop as one writes it without edgetl."""
    asked = {"graph": str(job.graph), "inputs": [str(one) for one in job.inputs], "calls": job.calls,
             "dropped": DROPPED, "interval_s": job.interval_s}
    return {"median_s": float(json.loads(child("-c", filled(code, job), json.dumps(asked))))}


def filled(code: str, job: Job) -> str:
    """A program with the opening and the call of the job's backend."""
    backend = job.case.subject.backend
    for name, part in (("{opening}", OPENING[backend]), ("{call}", CALL[backend])):
        code = code.replace(name, part)
    return code


def mlperf_loadgen(job: Job) -> Mapping[str, float]:
    """Median by the clock of MLPerf's LoadGen, which asks the bare session."""
    return bare_loop(job, LOADGEN)


def onnxruntime_test(job: Job) -> Mapping[str, float]:
    """Mean that ONNX Runtime's test tool prints, its first call included."""
    said = child("-c", ONNXRUNTIME_TEST, str(job.graph), str(job.calls), str(job.inputs[0]))
    (line,) = [line for line in said.splitlines() if line.startswith("avg latency: ")]
    return {"mean_s": float(line.split()[2]) / 1000}


def benchmark_app(job: Job) -> Mapping[str, float]:
    """Median of OpenVINO's benchmark_app, and where nothing sleeps also the duration of its loop by its calls."""
    tensor = job.case.subject.spec.inputs[0]
    size = ",".join(map(str, np.load(job.inputs[0]).shape))
    pace = () if job.interval_s is None else ("-max_irate", str(1 / job.interval_s))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "found.json")
        child("-c", BENCHMARK_APP, str(target), "-m", str(job.graph), "-d", "CPU", "-api", "sync", "-hint", "none",
              "-nstreams", "1", "-nthreads", "1", "-infer_precision", "f32", "-inference_only", "false",
              "-niter", str(job.calls), "-shape", f"[{size}]", "-ip", {"float32": "f32", "uint8": "u8"}[tensor.dtype],
              "-i", f"{tensor.name}:" + ",".join(map(str, job.inputs)), *pace)
        found: dict[str, float] = json.loads(target.read_text())
    return found if job.interval_s is None else {"median_s": found["median_s"]}


def child(*words: str) -> str:
    """What a fresh Python prints, with the allocator that edgetl's workers have."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env={**os.environ, **GLIBC})
    if done.returncode:
        raise SystemExit(f"{' '.join(words)[-200:]}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def sides(job: Job) -> tuple[dict[str, Side], dict[str, str]]:
    """Who can measure a job, edgetl first, and who cannot and why."""
    found: dict[str, Side] = {"edgetl": edgetl, "bare loop": bare_loop}
    absent = {}
    if job.arrival != BACK_TO_BACK:
        absent["LoadGen"] = "its single-stream scenario cannot pace its queries"
    elif importlib.util.find_spec("mlperf_loadgen") is None:
        absent["LoadGen"] = "mlcommons-loadgen is not installed"
    else:
        found["LoadGen"] = mlperf_loadgen
    if job.case.subject.backend == "openvino":
        if importlib.util.find_spec("openvino.tools.benchmark") is None:
            absent["benchmark_app"] = "this openvino has none"
        else:
            found["benchmark_app"] = benchmark_app
    elif job.arrival != BACK_TO_BACK:
        absent["onnxruntime_test"] = "it cannot pace its calls"
    else:
        found["onnxruntime_test"] = onnxruntime_test
    return found, absent


def compared(job: Job, rounds: int, order: np.random.Generator) -> list[dict[str, Any]]:
    """One row a peer."""
    present, absent = sides(job)
    figures: dict[str, list[Mapping[str, float]]] = {name: [] for name in present}
    for _ in range(rounds):
        for place in order.permutation(len(present)):
            name = list(present)[place]
            figures[name].append(present[name](job))
    what = {"graph": job.case.subject.title, "backend": job.case.subject.backend, "arrival": job.arrival}
    rows = [{**what, "peer": name, **verdict(figures["edgetl"], figures[name], kind)}
            for name in present if name != "edgetl" for kind in figures[name][0]]
    return rows + [{**what, "peer": name, "reason": reason} for name, reason in absent.items()]


def verdict(own: list[Mapping[str, float]], peers: list[Mapping[str, float]], kind: str) -> dict[str, Any]:
    """The ratio peer / edgetl with its interval; it `agrees` where the whole interval is within `LIMIT` of 1."""
    ours, theirs = np.array([one[kind] for one in own]), np.array([one[kind] for one in peers])
    found = stats.speedup(theirs[:, None], ours[:, None], seed=0)
    assert found.low is not None and found.high is not None
    within = max(abs(found.low - 1), abs(found.high - 1)) <= LIMIT
    apart = found.low > 1 + LIMIT or found.high < 1 - LIMIT
    return {"of": kind.removesuffix("_s"), "edgetl_s": float(np.median(ours)), "peer_s": float(np.median(theirs)),
            "ratio": found.value, "ratio_low": found.low, "ratio_high": found.high,
            "verdict": "agrees" if within else "differs" if apart else "not sure",
            "edgetl_rounds_s": ours.tolist(), "peer_rounds_s": theirs.tolist()}


def options(paths: list[Path], backends: str, arrival: str, calls: int) -> recipe.Bench:
    """The options of `edgetl bench` that a job stands for."""
    paced = {} if arrival == BACK_TO_BACK else {"interval": (arrival,)}
    return recipe.Bench(cases=tuple(map(str, paths)), out="none", backend=tuple(backends.split(",")),
                        block=calls + DROPPED, warmup_s=WARMUP_S, **paced)


def jobs(paths: list[Path], arrival: str, calls: int, folder: Path, backends: str = "cpu,openvino") -> list[Job]:
    """Every graph on each of the backends, its bytes and inputs in files of `folder`."""
    found = []
    for case in cases.find(options(paths, backends, arrival, calls)):
        subject, place = case.subject, folder / f"{len(list(folder.iterdir()))}"
        place.mkdir()
        graph = place / "graph.onnx"
        begin, size = subject.within or (0, subject.size_bytes)
        graph.write_bytes(subject.graph.read_bytes()[begin:begin + size])
        inputs = [place / f"{number}.npy" for number in range(worker.POOL)]
        for file, feeds in zip(inputs, worker.make_feeds(subject.spec, 1), strict=True):
            (array,) = feeds.values()
            np.save(file, array)
        found.append(Job(case, graph, tuple(inputs), calls, arrival))
    return found


def bind() -> int | None:
    """Binds this process, and so all that it starts, to one core; None where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))  # the first is where most of the system's own work is done
    os.sched_setaffinity(0, {core})
    return core


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--arrival", default=f"{BACK_TO_BACK},10ms")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    busy, core, order = load_average(), bind(), np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgetl-stopwatch-") as folder:
        for arrival in asked.arrival.split(","):
            for job in jobs(asked.cases, arrival, asked.calls, Path(folder)):
                rows += compared(job, asked.rounds, order)
                print(json.dumps([{name: value for name, value in row.items() if not name.endswith("rounds_s")}
                                  for row in rows if row["graph"] == job.case.subject.title
                                  and row["arrival"] == arrival], indent=1))
    if asked.out is not None:
        rundir.write_json(asked.out, {"limit": LIMIT, "rounds": asked.rounds, "calls": asked.calls, "core": core,
                                      "rows": rows, "load_average": busy, "environment": rundir.environment()})


if __name__ == "__main__":
    main()
