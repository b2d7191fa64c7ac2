"""Whether INT8 pays: edgetl's default against fp32 and against every quantizer that keeps the same budget.

    python benchmarks/quantize_latency.py --work DIR [--models efficientnet_lite0,...] [--sizes 128,224]
        [--backends cpu,openvino] [--threads 1,0] [--arrival back-to-back,10ms] [--starts 3] [--rounds 4] [--calls 50]
        [--peer-python PATH] [--tools ort-default,...] [--out results/quantize_latency.json]

Each network (see `quantize_networks.py`) becomes a bundle by edgetl's own export, and `edgetl tune` chooses on this
machine what its default is: for each backend and thread count. The other tools round the bundle's fp32 graph with the
same calibration images. A graph counts where it keeps the budget on the validation pictures, on that backend: at most
--max-drop points below fp32 and at least --min-agreement percent the same answers; of one that does not, a user would
keep fp32, so it counts as a speed-up of 1.

In every sitting of --starts each graph gets a fresh process, warms up, and then takes --rounds turns of so many calls,
in random order; the same stopwatch for all, one image a call. The default was chosen in other measurements than those
that judge it. It is slower than another graph where it takes 3 % longer or more and the whole interval of the ratio,
over all rounds, is above 1. `integer` counts the nodes that the engine itself computes with integers, from its own
profiler; a graph's row also says how long the integer, float, converting and moving nodes take.

Each network at each size is written when it is done, and a second call goes on. Exit code 0: the default is nowhere
slower than fp32 nor than the fastest other graph within the budget; 3: somewhere it is; 4: somewhere it cannot be said.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import openvino_cpu
import quantize_accuracy
import quantize_networks
import quantize_peers
import stopwatch
from quantize_accuracy import OWN, Graph, listed

import edgetl
from edgetl import evaluate, rundir
from edgetl.bench import profiling, stats
from edgetl.bench.cases import Case, Subject
from edgetl.bench.environment import load_average
from edgetl.bench.selection import FASTER_BY
from edgetl.bench.trial import Trial
from edgetl.errors import EdgetlError
from edgetl.export.ladder import Limits
from edgetl.runtime import processor
from edgetl.runtime.bundle import Bundle, open_bundle
from edgetl.timing import DROPPED

FP32 = "fp32"
RESULT = "latency.json"
SLOWER, UNDECIDED, NOT_SLOWER = openvino_cpu.SLOWER, openvino_cpu.UNDECIDED, openvino_cpu.NOT_SLOWER
PROFILED_CALLS = 30


def main() -> int:
    """Measures what is lacking, prints and writes what there is."""
    options = parsed()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ["EDGETL_CACHE"] = str(options.work.resolve() / "cache")  # where `edgetl tune` keeps its choice
    for name, size in itertools.product(options.models, options.sizes):
        folder = options.work / f"{name}-{size}"
        if options.again or not (folder / RESULT).is_file():
            rundir.write_json(folder / RESULT, of_network(options, name, size, folder))
        written(options)
    found = recorded(options)
    for one in found:
        print("\n".join(lines(one)))
    means = geometric_means(found)
    for one in means:
        print(summary_line(one))
    return outcome(found)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", type=listed, default=list(quantize_networks.PANEL))
    parser.add_argument("--sizes", type=lambda text: [int(one) for one in text.split(",")], default=[128, 224])
    parser.add_argument("--backends", type=listed, default=list(quantize_accuracy.BACKENDS))
    parser.add_argument("--threads", type=lambda text: [int(one) for one in text.split(",")], default=[1, 0])
    parser.add_argument("--arrival", type=listed, default=[stopwatch.BACK_TO_BACK, "10ms"])
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4, help="of each start")
    parser.add_argument("--calls", type=int, default=50, help="of each round, beside the dropped ones")
    parser.add_argument("--tune", default="20s", help="how long `edgetl tune` measures, for each backend and threads")
    parser.add_argument("--warmup-s", type=float, default=stopwatch.WARMUP_S)
    parser.add_argument("--targets", type=listed, default=[openvino_cpu.target()])
    parser.add_argument("--tools", type=listed, default=list(quantize_peers.TOOLS))
    parser.add_argument("--peer-python", type=Path, help="interpreter that has NNCF (default: this one)")
    parser.add_argument("--calibration-images", type=int, default=128)
    parser.add_argument("--max-drop", type=float, default=1.0)
    parser.add_argument("--min-agreement", type=float, default=96.0)
    parser.add_argument("--epochs", type=int, default=20, help="of the networks' little training")
    parser.add_argument("--qat-epochs", type=int, default=0, help="of the rung that trains, see `edgetl export`")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    unknown = sorted(set(options.models) - set(quantize_networks.PANEL))
    if unknown:
        parser.error(f"unknown models {unknown}; there are {', '.join(quantize_networks.PANEL)}")
    return options


# ---------------------------------------------------------------------------------------------------------- one network


def of_network(options: argparse.Namespace, name: str, size: int, folder: Path) -> dict[str, Any]:
    """Everything of a network at a size; one that cannot be exported is a row with the reason."""
    head = {"model": name, "architecture": quantize_networks.PANEL[name], "size": size}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        bundle = open_bundle(quantize_networks.bundle(options, name, size, folder))
    except EdgetlError as problem:
        return {**head, "reason": str(problem), "default": None, "graphs": [], "rows": []}
    work = quantize_peers.workload(str(options.work / "pictures"), None, options.calibration_images)
    peers = quantize_accuracy.peers_of(options, bundle, work, folder)
    graphs = [*quantize_accuracy.own_graphs(bundle)]
    graphs += [quantize_accuracy.graph_of(one, bundle) for one in peers if one.graph is not None]
    files = {way_of(one): file_of(one, folder) for one in graphs}
    judged = budgets(options, graphs, work, bundle)
    rows = []
    for backend, threads in itertools.product(options.backends, options.threads):
        runnable = [one for one in graphs if backend in one.backends]
        default, why = chosen(options, bundle, backend, threads)
        for arrival in options.arrival:
            seconds = measured(options, runnable, files, backend, threads, arrival)
            about = {"backend": backend, "threads": threads, "arrival": arrival, "default": default, "why": why}
            rows.append({**about, **held(seconds, default, judged[backend])})
            print(name, size, row_line(rows[-1]), flush=True)
    return {
        **head,
        "reason": None,
        "default": bundle.manifest.variants[0].name,
        "rejected": [one["sentence"] for one in bundle.manifest.provenance.get("rejected", ())],
        "tools": {one.tool: {"seconds": one.seconds, "reason": one.reason, **one.told} for one in peers},
        "graphs": [
            {"way": way_of(one), "size_bytes": len(one.data), "backends": backends(options, one, files, judged)}
            for one in graphs
        ],
        "rows": rows,
    }


def way_of(one: Graph) -> str:
    """What a graph is called in a row: the variant's name, or the tool's."""
    return one.variant if one.tool == OWN else one.tool


def file_of(one: Graph, folder: Path) -> Path:
    """The graph as a file of its own."""
    path = folder / "graphs" / f"{way_of(one)}.onnx"
    path.parent.mkdir(exist_ok=True)
    rundir.write_bytes(path, one.data)
    return path


def budgets(
    options: argparse.Namespace, graphs: Sequence[Graph], work: quantize_peers.Workload, bundle: Bundle
) -> dict[str, dict[str, dict[str, Any]]]:
    """By backend and way: what is lost of the answers to the validation pictures, and whether that is allowed."""
    limits, found = Limits(options.max_drop, options.min_agreement), {}
    every = argparse.Namespace(threads=0)
    for backend in options.backends:
        answers = {
            way_of(one): quantize_accuracy.answered(every, one, backend, work, work.parts.val, bundle)
            for one in graphs
            if backend in one.backends
        }
        compared = {way: evaluate.compare(own, answers[FP32]) for way, own in answers.items()}
        found[backend] = {
            way: {**dataclasses.asdict(one), "accuracy": answers[way].accuracy, "within": limits.hold(one)}
            for way, one in compared.items()
        }
    return found


def chosen(options: argparse.Namespace, bundle: Bundle, backend: str, threads: int) -> tuple[str, str]:
    """The variant that `edgetl tune` takes on a backend with so many threads, and why."""
    tuning = edgetl.tune(
        bundle=str(bundle.path),
        backend=[backend],
        threads=[str(threads)],
        max_drop=options.max_drop,
        budget=options.tune,
    )
    assert tuning is not None  # nothing was to be forgotten
    return tuning.chosen.variant, tuning.why


def backends(
    options: argparse.Namespace,
    one: Graph,
    files: Mapping[str, Path],
    judged: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """By backend: what a graph loses, and what its nodes compute with."""
    return {
        backend: {"budget": judged[backend][way_of(one)], "kernels": kernels(one, backend)}
        for backend in options.backends
        if backend in one.backends
    }


def kernels(one: Graph, backend: str) -> dict[str, dict[str, float]]:
    """By kind of arithmetic: how many nodes the engine runs, and the seconds of a call that they take."""
    chance = np.random.default_rng(0)
    shape = [size if isinstance(size, int) else 1 for size in one.spec.inputs[0].shape]
    feeds = [{one.spec.inputs[0].name: chance.standard_normal(shape, dtype=np.float32)} for _ in range(4)]
    told = profiling.profile(backend, one.data, one.spec, feeds, threads=1, calls=PROFILED_CALLS, options={})
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"nodes": 0, "seconds": 0.0})
    for layer in told["layers"]:
        found[layer["kind"]]["nodes"] += 1
        found[layer["kind"]]["seconds"] += layer["median_s"]
    return dict(found)


# ------------------------------------------------------------------------------------------------------------ measuring


def measured(
    options: argparse.Namespace,
    graphs: Sequence[Graph],
    files: Mapping[str, Path],
    backend: str,
    threads: int,
    arrival: str,
) -> dict[str, np.ndarray]:
    """Seconds [starts x rounds, calls] of each way, in turns."""
    order = np.random.default_rng(0)
    found: dict[str, list[tuple[float, ...]]] = {way_of(one): [] for one in graphs}
    settings = dataclasses.replace(stopwatch.options([], backend, arrival, options.calls), warmup_s=options.warmup_s)
    for _ in range(options.starts):
        trials = {way_of(one): Trial(case_of(one, files, backend, threads, arrival), settings) for one in graphs}
        with ExitStack() as stack:
            for trial in trials.values():
                stack.callback(trial.close)
                trial.start(keep=True)
                trial.warm_up()
            for _ in range(options.rounds):
                for place in order.permutation(len(trials)):
                    list(trials.values())[place].block()
        for way, trial in trials.items():
            if not trial.alive:
                raise SystemExit(f"{way} on {backend}: {trial.reason}")
            found[way] += [tuple(one["seconds"]) for one in trial.blocks]
    return {way: np.array(seconds) for way, seconds in found.items()}


def case_of(one: Graph, files: Mapping[str, Path], backend: str, threads: int, arrival: str) -> Case:
    """One image a call."""
    file = files[way_of(one)]
    subject = Subject(way_of(one), file, "onnx", backend, file, one.spec, precision=one.spec.precision)
    return Case(way_of(one), subject, threads, 1, None if arrival == stopwatch.BACK_TO_BACK else arrival)


def held(seconds: Mapping[str, np.ndarray], default: str, judged: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The default against fp32, and against the fastest graph of another tool that keeps the budget."""
    ways = {way: described(own, seconds[FP32], judged[way]["within"]) for way, own in seconds.items()}
    others = {way: one["median_s"] for way, one in ways.items() if one["within"] and way in quantize_peers.TOOLS}
    fastest = min(others, key=lambda way: others[way]) if others else None
    return {
        "ways": ways,
        "against_fp32": verdict(seconds[default], seconds[FP32], same=default == FP32),
        "fastest_peer": fastest,
        "against_peer": None if fastest is None else verdict(seconds[default], seconds[fastest], same=False),
    }


def described(own: np.ndarray, fp32: np.ndarray, within: bool) -> dict[str, Any]:
    """A graph's median, and how many times as fast as fp32 it is."""
    found = stats.speedup(fp32, own, seed=0)
    return {
        "median_s": float(np.median(own)),
        "rounds_s": np.median(own, axis=1).tolist(),
        "speedup": found.value,
        "speedup_low": found.low,
        "speedup_high": found.high,
        "within": within,
    }


def verdict(own: np.ndarray, other: np.ndarray, *, same: bool) -> dict[str, Any]:
    """How many times as long `own` takes as `other`, and whether that is slower; the same graph is not."""
    if same:
        return {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "verdict": NOT_SLOWER}
    found = stats.speedup(own, other, seed=0)
    low, high = found.ends()
    said = UNDECIDED
    if high < FASTER_BY or found.value <= 1:
        said = NOT_SLOWER
    elif found.value >= FASTER_BY and low > 1:
        said = SLOWER
    return {"ratio": found.value, "ratio_low": low, "ratio_high": high, "verdict": said}


# -------------------------------------------------------------------------------------------------------------- telling


def geometric_means(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Speed-ups over fp32 by backend, threads and arrival; of a graph outside the budget 1, since fp32 is kept."""
    gathered: dict[tuple[str, int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in (row for one in found for row in one["rows"]):
        ways, own = row["ways"], gathered[row["backend"], row["threads"], row["arrival"]]
        own[OWN].append(1.0 if row["default"] == FP32 else ways[row["default"]]["speedup"])
        for tool in (one for one in quantize_peers.TOOLS if one in ways):
            own[tool].append(ways[tool]["speedup"] if ways[tool]["within"] else 1.0)
            own[f"{tool}, whatever it loses"].append(ways[tool]["speedup"])
    return [
        {
            "backend": backend,
            "threads": threads,
            "arrival": arrival,
            "speedups": {way: {"mean": mean(values), "graphs": len(values)} for way, values in own.items()},
        }
        for (backend, threads, arrival), own in gathered.items()
    ]


def mean(values: Sequence[float]) -> float:
    """The geometric one."""
    return math.exp(sum(map(math.log, values)) / len(values))


def outcome(found: Sequence[Mapping[str, Any]]) -> int:
    """The exit code."""
    said = {
        row[side]["verdict"]
        for one in found
        for row in one["rows"]
        for side in ("against_fp32", "against_peer")
        if row[side] is not None
    }
    return next((openvino_cpu.EXIT[one] for one in (SLOWER, UNDECIDED) if one in said), 0)


def recorded(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What there is, also of earlier calls."""
    folders = [options.work / f"{name}-{size}" for name in quantize_networks.PANEL for size in options.sizes]
    return [rundir.read_json(one / RESULT, EdgetlError) for one in folders if (one / RESULT).is_file()]


def written(options: argparse.Namespace) -> None:
    """Writes all there is with the machine beside it, where that was asked for."""
    if options.out is None:
        return
    found = recorded(options)
    said = ("starts", "rounds", "calls", "max_drop", "min_agreement", "calibration_images", "tune", "targets")
    rundir.write_json(
        options.out,
        {
            "slower_from": FASTER_BY,
            "dropped": DROPPED,
            **{name: getattr(options, name) for name in said},
            "means": geometric_means(found),
            "networks": found,
            "exit": outcome(found),
            "load_average": load_average(),
            "features": list(processor.features()),
            "environment": rundir.environment(),
        },
    )


def lines(one: Mapping[str, Any]) -> list[str]:
    """A network in words."""
    head = f"{one['model']} at {one['size']} px"
    if one["reason"]:
        return [f"{head}: {one['reason']}"]
    told = [f"{head}; the bundle's default is {one['default']}", *one["rejected"]]
    for graph in one["graphs"]:
        for backend, found in graph["backends"].items():
            nodes = {kind: int(each["nodes"]) for kind, each in found["kernels"].items()}
            budget = found["budget"]
            told.append(
                f"  {graph['way']:16} {backend:9} {nodes.get('integer', 0):3} of {sum(nodes.values()):3} integer, "
                f"{-budget['drop_points']:+.2f} points, agreement {100 * budget['agreement']:.1f} %"
                f"{'' if budget['within'] else ', outside the budget'}"
            )
    told += [f"  {tool}: {each['reason']}" for tool, each in one["tools"].items() if each["reason"]]
    return [*told, *(f"  {row_line(row)}" for row in one["rows"])]


def row_line(row: Mapping[str, Any]) -> str:
    """A row for the terminal."""
    ways = "  ".join(
        f"{way} {1e3 * one['median_s']:.2f}{'' if one['within'] else '!'}" for way, one in row["ways"].items()
    )
    sides = [f"to fp32 {said(row['against_fp32'])}"]
    if row["against_peer"] is not None:
        sides.append(f"to {row['fastest_peer']} {said(row['against_peer'])}")
    where = f"{row['backend']}, {row['threads'] or 'all'} threads, {row['arrival']}"
    return f"{where}: takes {row['default']}; ms {ways}; {'; '.join(sides)}"


def said(found: Mapping[str, Any]) -> str:
    """A ratio in words."""
    return f"{found['ratio']:.3f} [{found['ratio_low']:.3f}, {found['ratio_high']:.3f}] {found['verdict']}"


def summary_line(one: Mapping[str, Any]) -> str:
    """The means of a backend, threads and arrival."""
    each = ", ".join(f"{way} {found['mean']:.2f}x" for way, found in one["speedups"].items())
    return f"{one['backend']}, {one['threads'] or 'all'} threads, {one['arrival']}: {each}"


if __name__ == "__main__":
    sys.exit(main())
