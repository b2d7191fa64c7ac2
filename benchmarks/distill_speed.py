"""How long a heavy teacher makes a distillation: edgetl with its store of soft labels, edgetl live, and torchdistill.

    python benchmarks/distill_speed.py --data FOLDER --work DIR --torchdistill SITE [--photos 1536] [--rounds 2]
                                       [--out results/distill_speed.json]

EfficientNet-Lite2 at its own 260 px teaches timm/mobilenetv4_conv_small_050 at 128 px, 30 epochs. Every loop has the
same two networks and normalisations, the same crops and flips (no jitter), batch, optimizer, allocator and threads;
torchdistill 1.1.5 runs as its own examples do, with two loader workers, once as it comes and once with channels-last
tensors, which are quicker here; the quicker of the two is compared with. The cases are interleaved in rounds, each in a
fresh process. One epoch of each kind is measured and 30 are computed from that:

    torchdistill: E e            live: s + E l            K views: s + K b + (E - K) r

with e, l, b, r the seconds of an epoch, with the teacher asked (b) or its answers read (r), and s what comes before the
first step (decoding all photos once, the teacher's graph). edgetl's epochs hold validation and checkpoints,
torchdistill's do not. The bound is (t_T + t_S) / (t_S + K t_T / E), t_T and t_S the seconds per image of the teacher
alone and of the student alone. With --photos, times are scaled to all of the training photos, s with them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetl import rundir
from edgetl.runtime.session import usable_threads

STEPS = Path(__file__).with_name("distill_speed_steps.py")
PEERS = ("torchdistill", "torchdistill channels-last")
CASES = (*PEERS, "live", "stored", "student")
VIEWS = (1, 4, 8)
SPLITS = ("train", "val", "test")


def main() -> None:
    """Measures, prints and writes."""
    options = parsed()
    options.work.mkdir(parents=True, exist_ok=True)
    plan = planned(options)
    engine = step("teacher", plan, options.work)
    plan["engine"] = min(engine["seconds_an_image"], key=engine["seconds_an_image"].get)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(options.rounds):
        for case in CASES:
            if case in PEERS and options.torchdistill is None:
                continue
            found[case].append(step(case, plan, options.work))
            print(f"round {number + 1}: {case} {found[case][-1]['epochs_s']}", flush=True)
    result = {
        "teacher": plan["teacher_model"],
        "student": plan["student"],
        "photos": {"measured": plan["photos"], "all": plan["all_photos"]},
        "epochs": options.epochs,
        "batch": plan["batch"],
        "threads": plan["threads"],
        "teacher_alone": engine,
        "teacher_engine": plan["engine"],
        "rounds": found,
        "views": {str(views): summed(found, engine, plan, views, options.epochs) for views in VIEWS},
        "peak_memory_bytes": {case: max(row["peak_memory_bytes"] for row in rows) for case, rows in found.items()},
        "store": found["stored"][-1]["store"],
        "environment": rundir.environment(),
    }
    for views, row in result["views"].items():
        print(f"K = {views}: {row}")
    if options.out is not None:
        rundir.write_json(options.out, result)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, val and test")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--torchdistill", type=Path, help="folder that holds the package torchdistill")
    parser.add_argument("--photos", type=int, help="training photos to measure with (default: all)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def planned(options: argparse.Namespace) -> dict[str, Any]:
    """What every step is told."""
    everything = photos_in(options.data / "train")
    share = min(1.0, (options.photos or everything) / everything)
    data = options.work / f"photos-{options.photos or 'all'}"
    if not data.exists():
        chosen(options.data, data, share)
    return {
        "data": str(data),
        "photos": photos_in(data / "train"),
        "all_photos": everything,
        "torchdistill": str(options.torchdistill),
        "teacher": str(options.work / f"teacher-{options.photos or 'all'}"),
        "teacher_model": "efficientnet-lite/efficientnet_lite2",
        "student": "timm/mobilenetv4_conv_small_050",
        "student_size": 128,
        "batch": 32,
        "workers": 2,
        "threads": options.threads,
        "crop_scale": 0.35,
        "lr": 1e-3,
        "weight_decay": 0.05,
        "clip_norm": 5.0,
        "temperature": 4.0,
        "label_weight": 0.1,
    }


def photos_in(folder: Path) -> int:
    """Files in all class folders."""
    return sum(path.is_file() for path in folder.glob("*/*"))


def chosen(source: Path, target: Path, share: float) -> None:
    """Copies the first part of every class, so that each split keeps its proportions."""
    for split in SPLITS:
        for folder in sorted((source / split).iterdir()):
            names = sorted(path.name for path in folder.iterdir())
            (target / split / folder.name).mkdir(parents=True)
            for name in names[: max(2, round(share * len(names)))]:
                shutil.copy(folder / name, target / split / folder.name / name)


def step(name: str, plan: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """What a step found, in a process and with a cache of its own."""
    cache, out = work / "cache", work / "step.json"
    shutil.rmtree(cache, ignore_errors=True)
    environment = {**os.environ, "EDGETL_CACHE": str(cache.resolve())}
    command = [sys.executable, str(STEPS), name, json.dumps(plan), str(out)]
    subprocess.run(command, check=True, env=environment)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def summed(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    engine: Mapping[str, Any],
    plan: Mapping[str, Any],
    views: int,
    epochs: int,
) -> dict[str, Any]:
    """Total seconds of `epochs` epochs on all photos with so many views, and what they are against the others'."""
    scale = plan["all_photos"] / plan["photos"]

    def with_views(row: Mapping[str, Any]) -> float:
        build, *later = row["epochs_s"]
        return float(scale * (row["setup_s"] + views * build + (epochs - views) * statistics.median(later)))

    stored = [with_views(row) for row in found["stored"]]
    live = [scale * (row["setup_s"] + epochs * row["epochs_s"][0]) for row in found["live"]]
    t_teacher = engine["seconds_an_image"][plan["engine"]]
    t_student = statistics.median(row["epochs_s"][-1] for row in found["student"]) / plan["photos"]
    bound = (t_teacher + t_student) / (t_student + views * t_teacher / epochs)
    row = {
        "stored_s": statistics.median(stored),
        "live_s": statistics.median(live),
        "against_live": statistics.median(live) / statistics.median(stored),
        "bound": bound,
        "share_of_bound": statistics.median(live) / statistics.median(stored) / bound,
        "t_teacher_s": t_teacher,
        "t_student_s": t_student,
    }
    peers = {case: [scale * epochs * one["epochs_s"][0] for one in found[case]] for case in PEERS if case in found}
    if peers:
        quicker = min(peers, key=lambda case: statistics.median(peers[case]))
        against = [theirs / ours for theirs, ours in zip(peers[quicker], stored, strict=True)]
        row |= {
            "peers_s": {case: statistics.median(values) for case, values in peers.items()},
            "peer": quicker,
            "peer_s": statistics.median(peers[quicker]),
            "against_peer": statistics.median(against),
            "against_peer_by_round": against,
        }
    return row


if __name__ == "__main__":
    main()
