"""What each rung of the ladder to INT8 gives: all are climbed, whatever the limits, and judged on two splits.

python benchmarks/ladder_rungs.py BUNDLE... --data D [--target x86-vnni] [--methods min-max,mse]
    [--rounding nearest] [--calibration-images 256] [--images N] [--out benchmarks/results/ladder_rungs.json]

A BUNDLE's float32 graph is quantized. Its rows are those of the manifest's table (validation images, latency beside
float32 in turn) with the accuracy and the agreement on the test images beside, which choose nothing. `--rounding` takes
another rounding of the weights than the target's as the start, which shows what the rungs give a graph that has lost
something. `--images` takes the first so many of each split, for a try.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from edgetl import datasets, evaluate, rundir, splits
from edgetl.datasets import Item
from edgetl.evaluate import Evaluation
from edgetl.export import ladder, variants
from edgetl.export.ladder import Attempt, Ladder, Limits, Plan, Subject
from edgetl.recipe_fields import DataFields
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.session import GraphSpec
from edgetl.targets import Target
from edgetl.timing import now_s

NOTHING = Limits(None, 101.0)  # is within them, so that every rung is tried


class Watched(Ladder):
    """A ladder that judges its attempts on the test images, too."""

    test: tuple[Item, ...]
    reference: Evaluation

    def judge(self, plan: Plan, made: Any) -> Attempt:
        """The attempt; its row has the figures of the test split."""
        attempt, subject = super().judge(plan, made), self.subject
        found = ladder.judged(attempt.made.graph, self.spec, self.test, subject.read, subject.preprocess,
                              subject.threads)
        beside = evaluate.compare(found, self.reference)
        attempt.row.update(test_accuracy=found.accuracy, test_agreement=beside.agreement,
                           test_drop_points=beside.drop_points, test_n=found.n)
        return attempt


def climbed(folder: Path, data: Any, parts: Any, target: Target, asked: argparse.Namespace) -> dict[str, Any]:
    """All rungs of one bundle."""
    bundle = open_bundle(folder)
    variant = next(one for one in bundle.manifest.variants if one.name == "fp32")
    graph = bundle.read(variant.file, variant.sha256, variant.size_bytes)
    spec = GraphSpec(variant.inputs, variant.outputs, variant.precision)
    wants = bundle.manifest.preprocess
    train, val, test = (part[:asked.images] if asked.images else part for part in (parts.train, parts.val, parts.test))
    reference, tested = (ladder.judged(graph, spec, part, data.read, wants, asked.threads) for part in (val, test))
    subject = Subject(graph, spec, wants, train, val, data.read, reference, NOTHING, asked.calibration_images, 0,
                      asked.threads, print)
    rungs = Watched(f"{target.name}.int8", target, subject)
    rungs.test, rungs.reference = test, tested
    begin = now_s()
    rungs.climbed()
    return {"model": bundle.manifest.name, "target": target.name, "size_hw": list(wants.size_hw),
            "fp32_accuracy": reference.accuracy, "fp32_test_accuracy": tested.accuracy, "n": reference.n,
            "calibration_images": len(rungs.items), "seconds": now_s() - begin, "rungs": rungs.rungs, **rungs.record}


def table(found: dict[str, Any]) -> str:
    """The rows in markdown."""
    lines = [f"{found['model']}, {found['target']}: fp32 {100 * found['fp32_accuracy']:.2f} % on validation, "
             f"{100 * found['fp32_test_accuracy']:.2f} % on test", "",
             "| rung | validation % | agreement % | test % | agreement % | ms | fp32 ms |", f"|{'---|' * 7}"]
    for row in found["rungs"]:
        shares = (row[name] for name in ("accuracy", "agreement", "test_accuracy", "test_agreement"))
        times = (f"{1e3 * row[name]:.3f}" if row[name] else "not measured" for name in ("latency_s", "fp32_latency_s"))
        lines.append(f"| {row['method']} | {' | '.join([*(f'{100 * one:.2f}' for one in shares), *times])} |")
    return "\n".join(lines)


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--target")
    parser.add_argument("--methods")
    parser.add_argument("--rounding", choices=("nearest", "compensated"))
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    target = variants.one_target(asked.target)
    scheme = dict(target.quantize) | ({"methods": tuple(asked.methods.split(","))} if asked.methods else {})
    target = dataclasses.replace(target, quantize=scheme | ({"rounding": asked.rounding} if asked.rounding else {}))
    data = datasets.open_data(asked.data)
    parts = splits.resolve(data, DataFields(data=asked.data))
    found = []
    for folder in asked.bundle:
        found.append(climbed(folder, data, parts, target, asked))
        print(table(found[-1]), end="\n\n")
    if asked.out is not None:
        written = {"environment": rundir.environment(), "scheme": target.quantize, "rows": found}
        asked.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
