"""A slim student of EfficientNet-Lite0 on photos of clothing, taught in several ways, over several seeds.

    python benchmarks/distill_accuracy.py --data FOLDER --work DIR [--teacher RUN] [--arms kd,control] [--seeds 0,1,2]
                                          [--student slim:0.35] [--latency] [--out results/distill_accuracy.json]

One teacher; a student of at most 35 % of its parameters; each way of teaching ("arm") and seed is a RUN in `--work`.
What is finished is not trained again, what was interrupted goes on, and the result is written after every RUN, so that
the script may be stopped at any time. Seeds are trained one after the other, each with all arms, because every
difference is paired by seed. The arms:

- control: labels alone; kd, dkd, dist: the teacher answers live on new views every epoch;
- kd-t4: kd at T = 4, where the others have the temperature that fits the teacher;
- kd-1, kd-4, kd-8: kd on 1, 4, 8 views an image, which come again;
- kd-steps: kd with the student cut in three steps, and two more epochs after each of the first two;
- patient: `--preset patient` but for its 100 epochs: the teacher's answers alone at T = 1 on 8 consistent views with
  mixup and small crops (Beyer et al., CVPR 2022, arXiv:2106.05237); kd-long, control-long: kd and labels, equally long;
  kd-mixup-long: kd on 8 views with a little mixup, equally long.

The number of threads and the teacher's engine are fixed, so that a busy machine gives the same students as a quiet one.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_pairs import difference, parsed_arms, sentence, tested

import edgetl
from edgetl import rundir, weights
from edgetl.bench.report import Row

TEACHER = "efficientnet-lite/efficientnet_lite0"
SIZE = 128
KD = ["labels:0.1,kd:0.9;temperature=auto"]
SHORT: Mapping[str, Mapping[str, Any]] = {
    "control": {"loss": ["labels"]},
    "kd": {"loss": KD},
    "kd-t4": {"loss": ["labels:0.1,kd:0.9;temperature=4"]},
    "kd-4": {"loss": KD, "views": 4},
    "dist": {"loss": ["labels:1,dist:1"]},
    "kd-1": {"loss": KD, "views": 1},
    "kd-8": {"loss": KD, "views": 8},
    "dkd": {"loss": ["labels:1,dkd:1"]},
    "kd-steps": {"loss": KD, "slim_steps": 3},
}
LONG: Mapping[str, Mapping[str, Any]] = {
    "patient": {"loss": ["kd:1;temperature=1"], "views": 8, "mixup": 1.0, "crop_scale": 0.05},
    "kd-long": {"loss": KD},
    "control-long": {"loss": ["labels"]},
    "kd-mixup-long": {"loss": KD, "views": 8, "mixup": 0.2},
}
ARMS = {**SHORT, **LONG}
AGAINST = (  # what is subtracted from what
    *((arm, "control") for arm in SHORT if arm != "control"),
    *((arm, "kd") for arm in SHORT if arm not in ("control", "kd")),
    ("patient", "kd-long"), ("patient", "control-long"), ("kd-long", "control-long"), ("patient", "kd"),
    ("kd-mixup-long", "kd-long"), ("kd-mixup-long", "control-long"),
)  # fmt: skip


def main() -> None:
    """Trains what is lacking, and writes and prints what there is."""
    options = parsed()
    options.work.mkdir(parents=True, exist_ok=True)
    teacher = teacher_run(options)
    for seed in options.seeds:
        for arm in options.arms:
            run = options.work / arm / f"seed-{seed}"
            if not weights.is_run(run):
                taught(options, teacher, arm, seed, run)
                recorded(options, teacher)
    result = recorded(options, teacher)
    if options.latency:
        result["latency"] = latency(options, teacher)
        written(options, result)
    for name, row in result["differences"].items():
        print(sentence(name, row))


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="a finished RUN, in place of training one")
    parser.add_argument("--student", default="slim:0.35")
    parser.add_argument("--from-scratch", action="store_true", help="a student without published weights")
    parser.add_argument("--student-size", type=int, help="pixels of the student's images (default: its own)")
    parser.add_argument("--prune-cost", default="params+macs")
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--long-epochs", type=int, default=30)
    parser.add_argument("--teacher-epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--latency", action="store_true", help="also measure latencies, on a quiet machine")
    parser.add_argument("--latency-arm", default="patient")
    parser.add_argument("--out", type=Path)
    return parsed_arms(parser, ARMS)


def teacher_run(options: argparse.Namespace) -> Path:
    """The teacher's RUN."""
    if options.teacher is not None:
        return Path(options.teacher)
    return edgetl.finetune(
        data=options.data,
        teacher=TEACHER,
        out=options.work / "teacher",
        image_size=SIZE,
        epochs=options.teacher_epochs,
        threads=options.threads,
        resume=True,
    )


def taught(options: argparse.Namespace, teacher: Path, arm: str, seed: int, run: Path) -> None:
    """Trains one student."""
    print(f"{arm}, seed {seed}", flush=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    edgetl.distill(
        data=options.data,
        teacher=teacher,
        student=options.student,
        pretrained=not options.from_scratch,
        image_size=options.student_size,
        prune_cost=options.prune_cost,
        out=run,
        epochs=options.long_epochs if arm in LONG else options.epochs,
        seed=seed,
        threads=options.threads,
        teacher_engine="cpu",
        control=False,
        resume=True,
        **ARMS[arm],
    )


def recorded(options: argparse.Namespace, teacher: Path) -> dict[str, Any]:
    """The result of all RUNs there are, also those of earlier calls; written if asked."""
    rows = {"teacher": [tested_once(options, teacher, options.work / "teacher.json")]}
    rows["teacher"][0].pop("seed", None)
    for arm in ARMS:
        found = [path for path in sorted((options.work / arm).glob("seed-*")) if weights.is_run(path)]
        tests = [tested_once(options, run, run.parent / f"{run.name}.json") for run in found]
        if tests:
            rows[arm] = tests
    result = {
        "data": Path(options.data).name,
        "image_size": {arm: tests[0]["size_hw"] for arm, tests in rows.items()},
        "student": options.student,
        "from_scratch": options.from_scratch,
        "prune_cost": options.prune_cost,
        "kept_parameters": {
            arm: tests[0]["parameters"] / rows["teacher"][0]["parameters"] for arm, tests in rows.items()
        },
        "epochs": {arm: tests[0]["epochs"] for arm, tests in rows.items()},
        "arms": ARMS,
        "accuracy": {arm: [row["accuracy"] for row in tests] for arm, tests in rows.items()},
        "differences": differences(rows),
        "rows": rows,
        "environment": rundir.environment(),
    }
    written(options, result)
    return result


def tested_once(options: argparse.Namespace, run: Path, cache: Path) -> dict[str, Any]:
    """What a RUN answers to the test images, kept beside it."""
    digest = rundir.sha256((run / rundir.MODEL).read_bytes())
    if cache.is_file():
        row: dict[str, Any] = rundir.read_json(cache, edgetl.errors.EdgetlError)
        if row["sha256"] == digest:
            return row
    record = weights.read_record(run)
    said, found = record["options"], record.get("choices", {}).get("temperature")
    row = {"seed": said["seed"], "epochs": said["epochs"], "loss": said.get("loss"), "sha256": digest,
           "size_hw": record["preprocess"]["size_hw"], **({"temperature": found} if found else {}),
           **tested(run, options.data)}
    rundir.write_json(cache, row)
    return row


def differences(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Each pair of arms over the seeds that both have, and each arm against the teacher."""
    found = {}
    for first, second in AGAINST:
        ours, theirs = ({row["seed"]: row for row in rows.get(arm, ())} for arm in (first, second))
        shared = sorted(set(ours) & set(theirs))
        if shared:
            pair = [ours[seed] for seed in shared], [theirs[seed] for seed in shared]
            found[f"{first} - {second}"] = difference(*pair)
    for arm, tests in rows.items():
        if arm != "teacher":
            found[f"{arm} - teacher"] = difference(tests, rows["teacher"])
    return found


def latency(options: argparse.Namespace, teacher: Path) -> dict[str, Any]:
    """Teacher and student as bundles, fp32 and INT8, one thread, interleaved in one benchmark."""
    runs = {"teacher": teacher, "student": options.work / options.latency_arm / f"seed-{options.seeds[0]}"}
    bundles = {name: options.work / f"bundle-{name}" for name in runs}
    for name, run in runs.items():
        edgetl.export(run=run, data=options.data, out=bundles[name], overwrite=True)
    report = edgetl.bench(
        cases=[str(bundles[name]) for name in runs],
        data=options.data,
        out=options.work / "report",
        backend=["cpu"],
        rounds=10,
        photos=0,
        reference="bundle-teacher fp32 cpu",
        overwrite=True,
    )
    return {"arm": options.latency_arm, "cases": {row.case: described(row) for row in report.rows}}


def described(row: Row) -> dict[str, Any]:
    """One case in plain numbers; the speed-up is against the teacher's fp32."""
    return {
        "seconds": list(row.measurement.seconds),
        "speedup": dataclasses.asdict(row.speedup) if row.speedup is not None else None,
        "accuracy": row.accuracy.accuracy if row.accuracy is not None else None,
        "size_bytes": row.size_bytes,
    }


def written(options: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Writes the result where that was asked for."""
    if options.out is not None:
        rundir.write_json(options.out, result)


if __name__ == "__main__":
    main()
