"""How often the interval of the gain of several heads, of labels and of values leaves out zero where there is no gain.

python benchmarks/task_gain_coverage.py [--repetitions 500] [--out benchmarks/results/task_gain_coverage.json]

Students and controls are made up alike, so that the true gain of each task's score (mean accuracy, mAP, R2) is exactly
zero: what is known of an image is drawn, and what a network says is the truth with errors on top, some of its kind
(`method`), some of its seed (`chance`), and with seeds that are noisier than others (`seed`). The interval is
`edgetl.task_scores.over_seeds`, which `edgetl distill` and `edgetl compare-strategies` state for these tasks; at
95 % it should hold zero in 95 % of the experiments. No clock is involved.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from edgetl import rundir, task_scores
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Head
from edgetl.task_scores import Said

TASKS = {
    "heads": (Head("shape", CLASSIFY, ("a", "b", "c")), Head("colour", CLASSIFY, ("d", "e"))),
    "labels": (Head("labels", MULTILABEL, ("a", "b", "c", "d", "e")),),
    "values": (Head("values", REGRESS, ("a", "b")),),
}
SEEDS = (1, 3, 5)
IMAGES = (40, 100, 372)
PREVALENCE = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the labels
SPREAD = {"seeds are alike": 0.0, "seeds differ": 0.3}  # of the logarithm of a seed's noise


def truth(name: str, images: int, generator: np.random.Generator) -> np.ndarray:
    """What is known of images [N, outputs], a tenth of it not."""
    asked = TASKS[name]
    if name == "heads":
        classes = [generator.integers(0, len(head.labels), images) for head in asked]
        known = np.concatenate([np.eye(len(head.labels))[of] for head, of in zip(asked, classes, strict=True)], axis=1)
        known[generator.random(images) < 0.1, : len(asked[0].labels)] = np.nan
        return known
    shape = (images, len(asked[0].labels))
    values = generator.normal(size=shape) if name == "values" else (generator.random(shape) < PREVALENCE).astype(float)
    values[generator.random(shape) < 0.1] = np.nan
    return values


def answers(name: str, known: np.ndarray, seeds: int, spread: float, generator: np.random.Generator) -> list[Said]:
    """What the seeds of one method say."""
    keys = np.array([f"{place}" for place in range(len(known))])
    right = np.nan_to_num(known, nan=0.5)
    method = generator.normal(0, 0.5, known.shape)
    return [Said(TASKS[name], keys,
                 right + method + np.exp(generator.normal(0, spread)) * generator.normal(0, 0.3, known.shape), known)
            for _ in range(seeds)]  # fmt: skip


def coverage(name: str, world: str, seeds: int, images: int, repetitions: int, seed: int) -> dict:
    """One row of the result."""
    generator, hits, halves = np.random.default_rng([seed, seeds, images]), 0, []
    for _ in range(repetitions):
        known = truth(name, images, generator)
        sides = [answers(name, known, seeds, SPREAD[world], generator) for _ in range(2)]
        found = task_scores.over_seeds(*sides)
        hits += found.low <= 0 <= found.high
        halves.append((found.high - found.low) / 2)
    exact = binomtest(hits, repetitions).proportion_ci()
    return {"task": name, "world": world, "seeds": seeds, "images": images, "repetitions": repetitions,
            "coverage": hits / repetitions, "coverage_low": exact.low, "coverage_high": exact.high,
            "median_half_width": float(np.median(halves))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name in TASKS:
        for world in SPREAD:
            for seeds in SEEDS:
                for images in IMAGES:
                    rows.append(coverage(name, world, seeds, images, options.repetitions, options.seed))
                    print(f"{name:8}{world:18}{seeds:3} seeds{images:5} images: {rows[-1]['coverage']:.3f}", flush=True)
    if options.out is not None:
        result = {"confidence": 0.95, "seed": options.seed, "rows": rows, "environment": rundir.environment()}
        rundir.write_text(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
