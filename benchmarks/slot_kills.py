"""How a slot fares when the processes that swap its bundle are killed with SIGKILL, again and again, at random moments.

    python benchmarks/slot_kills.py [--kills 200] [--writers 2] [--seed 0] [--bundle BUNDLE]
                                    [--out benchmarks/results/slot_kills.json]

The writers swap three bundles in turn, with the golden check, until they are killed at the same moment; then another
process loads the slot and classifies a picture. The kills fall evenly over the first three swaps. Nothing is cleared
between kills, so all begin with what those before left. The bundles are a tiny one and copies under other names, or
BUNDLE and copies. A kill does not take away what the kernel has not written yet; cuts of power are worked out from the
system calls in tests/runtime/test_runtime_slot.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tiny bundle

from edgetl import rundir, timing
from edgetl.runtime import Slot
from edgetl.runtime.slot import INCOMING, OUTGOING

SWAPS_BEFORE_THE_LAST_KILL = 3


def in_a_child(work: Callable[[], object]) -> int:
    """Number of the child that does the work and nothing else; this process opens no session and has no threads."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:  # whatever it was; the child must not go on as its parent
            traceback.print_exc()
            os._exit(1)
    return child


def finished(child: int) -> int:
    """Exit code of a child; negative is the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def swap_for_ever(root: Path, bundles: list[Path]) -> None:
    """Swaps in the bundles in turn, beginning with the one after the current, until the end."""
    slot = Slot(root)
    while True:
        slot.swap(bundles[(place(slot, bundles) + 1) % len(bundles)], threads=1)


def place(slot: Slot, bundles: list[Path]) -> int:
    """Which of the bundles is current; -1 where none is."""
    current = slot.current()
    return -1 if current is None else [digest(one) for one in bundles].index(current.name)


def digest(bundle: Path) -> str:
    """SHA-256 of a bundle's manifest."""
    return rundir.sha256((bundle / "manifest.json").read_bytes())


def check(root: Path) -> None:
    """Loads what is current and classifies a picture; raises what goes wrong."""
    with Slot(root).load(threads=1) as classifier:
        height, width = classifier.manifest.preprocess.size_hw
        classifier.predict(np.random.default_rng(0).integers(0, 256, (height + 9, width + 5, 3), np.uint8))


def three_bundles(folder: Path, bundle: Path | None) -> list[Path]:
    """A bundle and two copies under other names: as a slot keeps two, every swap copies one and removes another."""
    from tiny_bundle import edit_manifest, make_bundle

    made = [make_bundle(folder / "0") if bundle is None else Path(shutil.copytree(bundle, folder / "0"))]
    for number in (1, 2):
        made.append(Path(shutil.copytree(made[0], folder / str(number))))
        edit_manifest(made[-1], "name", value=f"copy {number}")
    return made


def left(root: Path) -> str:
    """What the dead process left lying about."""
    found = [name for name in (INCOMING, OUTGOING) if (root / name).is_dir()]
    found += ["an unfinished file"] if any(root.rglob(".*.tmp")) else []
    return ", ".join(found) or "nothing"


def run(kills: int, writers: int, seed: int, folder: Path, bundle: Path | None) -> dict[str, Any]:
    """Does the kills and counts what came of them."""
    import onnxruntime  # noqa: F401  once, and not in every child: the kills shall fall into the swaps

    random = np.random.default_rng(seed)
    bundles, root = three_bundles(folder, bundle), folder / "slot"
    begin = timing.now_s()
    if finished(in_a_child(lambda: [Slot(root).swap(one, threads=1) for one in bundles])) != 0:
        raise SystemExit("the first swaps failed")
    swap_s = (timing.now_s() - begin) / len(bundles)
    whole, leftovers, currents = 0, Counter[str](), Counter[str]()
    for number in range(kills):
        children = [in_a_child(lambda: swap_for_ever(root, bundles)) for _ in range(writers)]
        time.sleep(float(random.uniform(0, SWAPS_BEFORE_THE_LAST_KILL * swap_s)))
        for child in children:
            os.kill(child, signal.SIGKILL)
        if any(finished(child) != -signal.SIGKILL for child in children):
            raise SystemExit(f"before kill {number} a process ended by itself")
        leftovers[left(root)] += 1
        whole += finished(in_a_child(lambda: check(root))) == 0
        currents[str(place(Slot(root), bundles))] += 1
    return {"kills": kills, "writers": writers, "whole": whole, "left_behind": dict(leftovers),
            "current_after": dict(currents), "swap_s": swap_s, "seed": seed}


def main() -> int:
    """Exit code 0 if every kill left a whole bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        found = run(options.kills, options.writers, options.seed, Path(folder).resolve(), options.bundle)
    print(f"{found['kills']} kills, {found['whole']} times a whole bundle; left behind: "
          f"{json.dumps(found['left_behind'])}")
    if options.out is not None:
        rundir.write_json(options.out, {**found, "environment": rundir.environment()})
    return 0 if found["whole"] == found["kills"] else 1


if __name__ == "__main__":
    sys.exit(main())
