"""Raw latencies of one bundle against itself in the gate's own pattern: pairs of fresh processes, blocks in turns.

python benchmarks/gate_traces.py BUNDLE --minutes 40 [--noisy] --out benchmarks/results/gate_traces_quiet.npz

With --noisy another process computes as fast as it can for a while, rests for a while, and so on at random. The file
holds, for every pair, latencies in units of 0.1 us [pairs, 2, blocks, calls], what the pair cost in wall-clock time,
when it began, on which cores, and in which order the blocks came; and, as JSON, the machine and what was measured.
Ctrl-C ends the recording early and keeps what there is.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgetl import rundir, timing
from edgetl.bench import environment, gate_cases, pairs
from edgetl.recipe_gate import RegressionGate

UNIT_S = 1e-7
# Works for 0.5 to 8 s and rests for 1 to 12 s, on one thread: two fifths of the time one core has another tenant.
NEIGHBOUR = """
import sys, time
import numpy as np
draw, table = np.random.default_rng(int(sys.argv[1])), np.zeros((512, 512), np.float32)
while True:
    end = time.monotonic() + draw.uniform(0.5, 8.0)
    while time.monotonic() < end:
        table @ table
    time.sleep(draw.uniform(1.0, 12.0))
"""


@contextlib.contextmanager
def neighbour(wanted: bool, seed: int) -> Iterator[None]:
    """A process that comes and goes, for the time of the block."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(seed)], env=one_thread) if wanted else None
    try:
        yield
    finally:
        if child is not None:
            child.kill()
            child.wait()


def record(options: argparse.Namespace) -> tuple[list[pairs.Pair], dict]:
    """The pairs, and what was measured."""
    asked = RegressionGate(base=options.bundle, new=options.bundle, backend=options.backend, variant=options.variant,
                           threads=options.threads)
    chosen = gate_cases.find(asked)
    order, begun_s = np.random.default_rng(options.seed), timing.now_s()
    found: list[pairs.Pair] = []
    plan = pairs.probe([chosen.base], chosen.options)  # before the neighbour moves in: the same blocks as in the quiet
    with neighbour(options.noisy, options.seed), contextlib.suppress(KeyboardInterrupt):
        while timing.now_s() - begun_s < 60 * options.minutes:
            found.append(pairs.measure((chosen.base, chosen.base), chosen.options, plan, order, origin_s=begun_s))
            if len(found) % 20 == 0:
                ratios = [100 * one.log_ratio for one in found]
                print(f"{(timing.now_s() - begun_s) / 60:.1f} min, {len(found)} pairs, middle of |log ratio| "
                      f"{np.median(np.abs(ratios)):.2f} %", flush=True)
    return found, {"case": chosen.base.name, "threads": chosen.base.threads, "batch": chosen.base.batch,
                   "pattern": dataclasses.asdict(plan), "noisy": options.noisy,
                   "seed": options.seed, "minutes": options.minutes, "unit_s": UNIT_S}


def write(path: Path, found: list[pairs.Pair], about: dict) -> None:
    """One compressed file, without pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(
            file, ticks=np.stack([np.round(one.seconds / UNIT_S) for one in found]).astype(np.uint32),
            begun_s=[one.begun_s for one in found], elapsed_s=[one.elapsed_s for one in found],
            started_first=np.array([one.started_first for one in found], np.uint8),
            turns=np.array([one.turns for one in found], np.uint8),
            cores=np.array([one.cores for one in found], np.uint16), about=json.dumps(about))


def main() -> None:
    """Records and writes; Ctrl-C ends the recording early and keeps what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--noisy", action="store_true")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    busy = environment.load_average()
    found, about = record(options)
    write(options.out, found, {**about, "load_average": busy, "environment": rundir.environment()})
    print(f"{len(found)} pairs in {options.out}, {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
