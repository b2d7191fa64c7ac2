"""Live gates: `edgetl gate` on a bundle against itself, and against itself with a slowdown inside the session.

python benchmarks/gate_live.py BUNDLE --aa 30 --ab 30 --ratio 1.10 [--budget 60s] --out FILE.json

Both kinds take turns in random order, so that the machine's hours are the same to both. BASE and NEW are copies of the
bundle that run on `gate_slowdown.py`; NEW's graphs carry the factor, and otherwise the two are alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the backend goes by its dotted name

import edgetl  # noqa: E402
from benchmarks import gate_slowdown  # noqa: E402
from edgetl import rundir  # noqa: E402
from edgetl.bench import environment  # noqa: E402

BACKEND = gate_slowdown.__name__
MANIFEST = "manifest.json"


def copied(bundle: Path, to: Path, factor: float) -> Path:
    """A copy of the bundle on the slowed backend, the factor in its graphs."""
    shutil.copytree(bundle, to)
    manifest = json.loads((to / MANIFEST).read_text())
    for variant in manifest["variants"]:
        variant["backends"] = [BACKEND]
        model = onnx.load(to / variant["file"])
        entry = model.metadata_props.add()
        entry.key, entry.value = gate_slowdown.KEY, gate_slowdown.value(factor)
        data = model.SerializeToString()
        (to / variant["file"]).write_bytes(data)
        variant |= {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (to / MANIFEST).write_text(json.dumps(manifest))
    return to


def held(base: Path, new: Path, options: argparse.Namespace, seed: int) -> dict:
    """One gate."""
    load = environment.load_average()
    found = edgetl.gate(base=base, new=new, backend=BACKEND, variant=options.variant, threads=options.threads,
                        max_regression=options.max_regression, budget=options.budget, seed=seed)
    latency = found.latency
    print(f"{new.name}: {found.line}", flush=True)
    return {"kind": new.name, "verdict": found.verdict, "line": found.line, "elapsed_s": latency.elapsed_s,
            "pairs": len(latency.log_ratios), "noise": latency.noise, "log_ratios": list(latency.log_ratios),
            "floor": list(latency.floor), "load_average": load}


def summary(rows: list[dict], kind: str) -> dict:
    """Counts with exact intervals, and the time that gates took."""
    mine = [row for row in rows if row["kind"] == kind]
    counts = Counter(row["verdict"] for row in mine)
    kept = {"gates": len(mine), "median_s": float(np.median([row["elapsed_s"] for row in mine])) if mine else None}
    for verdict in ("pass", "fail", "inconclusive"):
        if mine:
            interval = stats.binomtest(counts[verdict], len(mine)).proportion_ci(0.95, "exact")
            kept[verdict] = {"count": counts[verdict], "low": float(interval.low), "high": float(interval.high)}
    return kept


def main() -> None:
    """Holds all gates, prints each, and writes what came of them; Ctrl-C keeps nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--aa", type=int, default=30)
    parser.add_argument("--ab", type=int, default=30)
    parser.add_argument("--ratio", type=float, default=1.10)
    parser.add_argument("--max-regression", default="5%")
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    order = np.random.default_rng(options.seed).permutation(["aa"] * options.aa + ["ab"] * options.ab)
    with tempfile.TemporaryDirectory() as scratch:
        sides = {name: copied(options.bundle, Path(scratch) / name, factor)
                 for name, factor in (("base", 1.0), ("aa", 1.0), ("ab", options.ratio))}
        rows = [held(sides["base"], sides[kind], options, options.seed + number)
                for number, kind in enumerate(map(str, order))]
    told = {kind: summary(rows, kind) for kind in ("aa", "ab")}
    print(json.dumps(told, indent=1))
    if options.out is not None:
        rundir.write_json(options.out, {
            "bundle": str(options.bundle), "ratio": options.ratio, "max_regression": options.max_regression,
            "budget": options.budget, "threads": options.threads, **told, "gates": rows,
            "environment": rundir.environment()})


if __name__ == "__main__":
    main()
