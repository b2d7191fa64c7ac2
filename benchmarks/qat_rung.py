"""What quantization-aware distillation gives an INT8 graph: before and after, on images that chose nothing.

python benchmarks/qat_rung.py BUNDLE... --data D [--target x86-vnni] [--method min-max] [--rounding nearest]
    [--epochs 1,2,5] [--seeds 0,1,2] [--images N] [--threads 2] [--out benchmarks/results/qat_rung.json]

A BUNDLE's float32 graph is quantized by one calibration method, and the INT8 graph is trained on the training images
for so many epochs with each seed. Every graph is judged against float32 on the validation and on the test images.
`--rounding nearest` begins with weights that are rounded without compensation, `--images` takes the first so many of
each split, for a try.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from edgetl import datasets, evaluate, rundir, splits
from edgetl.export import ladder, variants
from edgetl.export.ladder import Attempt, Ladder, Limits, Plan, Subject
from edgetl.export.rungs import distilled
from edgetl.recipe_fields import DataFields
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.session import GraphSpec
from edgetl.timing import now_s

NOTHING = Limits(None, 101.0)  # is within them


def main() -> None:
    """Trains what is asked for; writes and prints the rows."""
    asked = parsed()
    data = datasets.open_data(asked.data)
    parts = splits.resolve(data, DataFields(data=asked.data))
    result: dict[str, Any] = {"environment": rundir.environment(), "target": asked.target, "method": asked.method,
                              "rounding": asked.rounding, "threads": asked.threads, "images": asked.images,
                              "models": {}}
    for folder in asked.bundles:
        result["models"][folder.name] = rows_of(folder, data, parts, asked)
        if asked.out:
            rundir.write_bytes(asked.out, (json.dumps(result, indent=1) + "\n").encode())


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--target", default="x86-vnni")
    parser.add_argument("--method", default="min-max")
    parser.add_argument("--rounding", default="compensated", choices=("compensated", "nearest"))
    parser.add_argument("--epochs", type=numbers, default=[1, 2, 5])
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """Numbers between commas."""
    return [int(one) for one in text.split(",")]


def rows_of(folder: Path, data: Any, parts: Any, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The graph before, and after each training."""
    bundle = open_bundle(folder)
    variant = next(one for one in bundle.manifest.variants if one.name == "fp32")
    graph = bundle.read(variant.file, variant.sha256, variant.size_bytes)
    spec = GraphSpec(variant.inputs, variant.outputs, variant.precision)
    wants = bundle.manifest.preprocess
    train, val, test = (part[:asked.images] if asked.images else part for part in (parts.train, parts.val, parts.test))
    answers = [ladder.judged(graph, spec, part, data.read, wants, asked.threads) for part in (val, test)]
    subject = Subject(graph, spec, wants, train, val, data.read, answers[0], NOTHING, 256, 0, asked.threads, print)
    target = variants.one_target(asked.target)
    target = dataclasses.replace(target, quantize={**target.quantize, "rounding": asked.rounding})
    climber = Ladder(f"{folder.name}.{target.name}.int8", target, subject)
    plan = Plan(climber.source, asked.method, told=asked.method)

    def row(attempt: Attempt, **told: Any) -> dict[str, Any]:
        on_test = ladder.judged(attempt.made.graph, climber.spec, test, data.read, wants, asked.threads)
        found = evaluate.compare(on_test, answers[1])
        print(f"{folder.name} {told}, test: {found.sentence()}", flush=True)
        return {**told, "val": dataclasses.asdict(attempt.found), "test": dataclasses.asdict(found),
                "test_accuracy": on_test.accuracy, "fp32_test_accuracy": answers[1].accuracy,
                "losses": attempt.made.rounding.get("losses")}

    rows = [row(climber.attempt(plan), epochs=0)]
    for epochs in asked.epochs:
        for seed in asked.seeds:
            begun_s = now_s()
            climber.subject = dataclasses.replace(subject, qat_epochs=epochs, seed=seed)
            made = distilled.attempt(climber, plan)
            rows.append(row(made, epochs=epochs, seed=seed, seconds=round(now_s() - begun_s, 1)))
        drops = [one["test"]["drop_points"] for one in rows if one["epochs"] == epochs]
        print(f"{folder.name}, {epochs} epochs: {statistics.mean(drops):+.2f} points lost on test, the mean of seeds")
    return rows


if __name__ == "__main__":
    main()
