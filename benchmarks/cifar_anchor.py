"""CIFAR-10 against published figures: two classifiers evaluated exactly, and one teaching the other's architecture.

    python benchmarks/cifar_anchor.py --data FOLDER --weights FOLDER --work DIR [--seeds 0,1,2] [--epochs 20]
                                      [--views 8] [--arms control,kd] [--out results/cifar_anchor.json]

FOLDER of the data holds train/CLASS/*.png and test/CLASS/*.png; that of the weights Y. Idelbayev's
`resnet20-12fca82f.th` and `resnet56-4bfd9763.th`, which say 91.73 % and 93.39 % of the 10,000 test images. First both
are evaluated by edgetl's own loader and preprocessing: 9,173 and 9,339 right answers, or the result says that it is
not so. Then, unless `--seeds none`, ResNet-56 teaches a ResNet-20 that starts from nothing. Its control has the labels
alone, and new views in every epoch, where the taught student has only `--views` of each image: if that helps one of
them, it is the control. The differences get paired intervals over the test images. A tenth of the training images is
held out for the choice of the best epoch.

Every arm and seed is a RUN in `--work`: the script may be stopped at any time, and goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_pairs import difference, parsed_arms, sentence, tested

import edgetl
from edgetl import datasets, models, rundir, splits, weights
from edgetl.recipe import Distill, build
from edgetl.runtime.session import usable_threads

PUBLISHED = {"resnet20": 9173, "resnet56": 9339}  # right answers of 10,000
ARMS: Mapping[str, list[str]] = {
    "control": ["labels"],
    "kd": ["labels:0.1,kd:0.9;temperature=auto"],
    "kd-t1": ["labels:0.1,kd:0.9;temperature=1"],
    "dkd": ["labels:1,dkd:1"],
    "dist": ["labels:1,dist:2;temperature=4"],
}


def main() -> None:
    """Evaluates, trains what is lacking, and writes and prints what there is."""
    options = parsed()
    options.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"published": {name: anchored(options, name) for name in PUBLISHED}}
    for name, row in result["published"].items():
        print(f"{name}: {row['correct']} of {row['n']} right, published {row['published']}", flush=True)
    written(options, result)
    for seed in options.seeds:
        for arm in options.arms:
            if not weights.is_run(options.work / arm / f"seed-{seed}"):
                taught(options, arm, seed)
                recorded(options, result)
    recorded(options, result)
    for name, row in result["differences"].items():
        print(sentence(name, row))


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=["control", "kd"])
    parser.add_argument("--seeds", type=seeds_of, default=[0, 1, 2], help="e.g. 0,1,2, or none")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--crop-scale", type=float, default=0.6)
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--teacher-engine", default="cpu", choices=("torch", "cpu", "openvino"))
    parser.add_argument("--out", type=Path)
    return parsed_arms(parser, ARMS)


def seeds_of(text: str) -> list[int]:
    """Numbers between commas; "none" is no seed."""
    return [] if text == "none" else [int(one) for one in text.split(",")]


def source(options: argparse.Namespace) -> str:
    """The data as `--data` of edgetl wants it."""
    return f"cifar10:{options.data}"


def anchored(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """What a published file of weights answers to the test images, through edgetl from the PNG on."""
    run, cache = options.work / name, options.work / f"{name}.json"
    if not weights.is_run(run):
        published_run(options, name, run)
    if not cache.is_file():
        rundir.write_json(cache, tested(run, source(options)))
    row: dict[str, Any] = rundir.read_json(cache, edgetl.errors.EdgetlError)
    return {**row, "published": PUBLISHED[name], "exact": row["correct"] == PUBLISHED[name]}


def published_run(options: argparse.Namespace, name: str, run: Path) -> None:
    """Makes a RUN of a published file of weights, which was trained elsewhere."""
    data = datasets.open_data(source(options))
    values = build(Distill, {"data": data.source, "teacher": "teacher", "out": "out"}, where="benchmark")
    parts = splits.resolve(data, values)
    file = next(options.weights.glob(f"{name}-*.th"))
    network = models.create(f"cifar/{name}", classes=len(data.labels), weights=file)
    run.mkdir(parents=True, exist_ok=True)
    about = {"source": data.source, "name": data.name, "fingerprint": parts.fingerprint, "rule": dict(parts.rule)}
    origin = {"file": file.name, "sha256": rundir.sha256(file.read_bytes())}
    weights.save(run, network, {"labels": list(data.labels), "data": about, "metrics": {}, "published": origin})


def taught(options: argparse.Namespace, arm: str, seed: int) -> None:
    """Trains one student from nothing."""
    run = options.work / arm / f"seed-{seed}"
    print(f"{arm}, seed {seed}", flush=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    edgetl.distill(
        data=source(options),
        teacher=options.work / "resnet56",
        student="cifar/resnet20",
        pretrained=False,
        out=run,
        loss=ARMS[arm],
        epochs=options.epochs,
        views=0 if arm == "control" else options.views,
        seed=seed,
        lr=options.lr,
        batch_size=str(options.batch_size),
        crop_scale=options.crop_scale,
        color_jitter=0.0,
        threads=options.threads,
        teacher_engine=options.teacher_engine,
        control=False,
        resume=True,
    )


def recorded(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Fills in all RUNs there are, also those of earlier calls, and writes the result."""
    rows: dict[str, dict[int, Any]] = {}
    for arm in ARMS:
        for run in sorted((options.work / arm).glob("seed-*")):
            if weights.is_run(run):
                cache = run.parent / f"{run.name}.json"
                if not cache.is_file():
                    rundir.write_json(cache, tested(run, source(options)))
                rows.setdefault(arm, {})[int(run.name.partition("-")[2])] = rundir.read_json(
                    cache, edgetl.errors.EdgetlError
                )
    said = ("epochs", "views", "lr", "batch_size", "crop_scale", "threads", "teacher_engine")
    result["student"] = {"model": "cifar/resnet20", **{name: getattr(options, name) for name in said}}
    result["accuracy"] = {arm: {seed: row["accuracy"] for seed, row in by.items()} for arm, by in rows.items()}
    result["differences"] = {
        f"{arm} - control": paired(by, rows["control"])
        for arm, by in rows.items()
        if arm != "control" and set(by) & set(rows.get("control", {}))
    }
    result["rows"] = rows
    written(options, result)


def paired(ours: Mapping[int, Any], theirs: Mapping[int, Any]) -> dict[str, Any]:
    """The difference over the seeds that both have."""
    shared = sorted(set(ours) & set(theirs))
    return difference([ours[seed] for seed in shared], [theirs[seed] for seed in shared])


def written(options: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Writes the result with the machine beside it, where that was asked for."""
    if options.out is not None:
        rundir.write_json(options.out, {**result, "environment": rundir.environment()})


if __name__ == "__main__":
    main()
