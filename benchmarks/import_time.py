"""What it costs to have a runtime: seconds to import it over numpy, in fresh processes side by side, and its size.

python benchmarks/import_time.py [--rounds 40] [--out benchmarks/results/import_time.json]

A case whose package is not installed is left out. edgetl's size is that of the wheel for devices, unpacked and packed;
the others' is that of the files that their wheels installed. edgetl needs one of the others to run a graph: the
installed size is that of a case with all it requires except numpy, of edgetl with the extra `cpu`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgetl import rundir
from edgetl.bench import stats
from edgetl.bench.environment import load_average

ROOT = Path(__file__).parents[1]
# Name -> the statement, and the distribution whose size is told.
CASES = {
    "edgetl.runtime": ("import edgetl.runtime", None),
    "onnxruntime": ("import onnxruntime", "onnxruntime"),
    "openvino": ("import openvino", "openvino"),
    "ai-edge-litert": ("from ai_edge_litert import interpreter", "ai-edge-litert"),
}
CPU_EXTRA = ("onnxruntime", "pillow")  # what edgetl[cpu] brings
CHILD = "import sys, time; import numpy; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"


def once(statement: str) -> float:
    """Seconds that the statement takes in a fresh interpreter that has numpy."""
    # pip compiles what it installs; a shell that forbids Python to keep what it compiled would have it done every time.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", CHILD.format(statement)], capture_output=True, text=True, check=True,
                          env=kept)
    return float(done.stdout)


def measured(rounds: int) -> list[dict]:
    """One row a case; in every round each is imported once, in random order, after a round that fills the caches."""
    names = [name for name, (statement, _) in CASES.items()
             if importlib.util.find_spec(statement.split()[1].split(".")[0]) is not None]
    order, seconds = np.random.default_rng(0), {name: [] for name in names}
    for turn in range(rounds + 1):
        for place in order.permutation(len(names)):
            found = once(CASES[names[place]][0])
            if turn:
                seconds[names[place]].append(found)
    rows = []
    for name in names:
        middle = stats.median_interval(seconds[name])
        rows.append({"case": name, "median_s": middle.value, "low_s": middle.low, "high_s": middle.high,
                     "seconds": seconds[name], "size_bytes": size_of(CASES[name][1]),
                     "installed_bytes": installed_size(name)})
    return rows


def size_of(distribution: str | None) -> int:
    """Bytes on disk that a distribution installed, caches of Python left out; of edgetl the wheel for devices."""
    if distribution is None:
        return wheel()["unpacked_bytes"]
    files = metadata.files(distribution) or ()
    return sum(Path(str(file.locate())).stat().st_size for file in files if file.suffix != ".pyc")


def installed_size(case: str) -> int:
    """Bytes on disk of a case with all it requires except numpy, which every case requires."""
    distribution = CASES[case][1]
    if distribution is None:
        return size_of(None) + sum(size_of(one) for one in required(CPU_EXTRA))
    return sum(size_of(one) for one in required((distribution,)))


def required(distributions: Iterable[str]) -> set[str]:
    """Names of the distributions and of all that they require, without their extras and without numpy."""
    found: set[str] = set()
    left = list(distributions)
    while left:
        name = canonicalize_name(left.pop())
        if name in found or name == "numpy":
            continue
        found.add(name)
        left += [one.name for one in map(Requirement, metadata.requires(name) or ())
                 if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def wheel() -> dict[str, int]:
    """Sizes of the wheel for devices."""
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out],
                       cwd=ROOT / "deploy" / "device-wheel", capture_output=True, check=True)
        (made,) = Path(out).glob("*.whl")
        with zipfile.ZipFile(made) as opened:
            unpacked = sum(one.file_size for one in opened.infolist())
        return {"packed_bytes": made.stat().st_size, "unpacked_bytes": unpacked}


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    busy = load_average()
    rows = measured(options.rounds)
    print(json.dumps([{name: value for name, value in row.items() if name != "seconds"} for row in rows], indent=1))
    if options.out is not None:
        rundir.write_json(options.out, {"over": "numpy", "cases": rows, "wheel": wheel(), "load_average": busy,
                                        "environment": rundir.environment()})


if __name__ == "__main__":
    main()
