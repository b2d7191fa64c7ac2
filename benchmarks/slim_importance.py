"""What a cut leaves of a teacher before any further training, by how the channels are ranked.

    python benchmarks/slim_importance.py TEACHER_RUN [--keep 0.4] [--out results/slim_importance.json]

Each ranking keeps the same share of the parameters. The batch norms' statistics are estimated again on 1,024 training
images, and the accuracy is the validation split's, because this is a choice.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgetl import datasets, evaluate, rundir, splits, weights
from edgetl.allocator import set_allocator
from edgetl.compress import cost, prune
from edgetl.recipe import Distill, build
from edgetl.runtime.preprocess import normalize
from edgetl.train import setting, store
from edgetl.train.slimming import taylor_gradients

RANKINGS = {  # the power of the cost, and what it counts
    "effect alone": (0.0, "params"),
    "effect / sqrt(parameters)": (0.5, "params"),
    "effect / parameters": (1.0, "params"),
    "effect / sqrt(multiplications)": (0.5, "macs"),
    "effect / sqrt(share of both)": (0.5, "params+macs"),
    "effect / share of both": (1.0, "params+macs"),
}
STATISTICS_IMAGES = 1024


def estimate_statistics(module: nn.Module, pixels: Any, wants: Any) -> None:
    """Batch norms as plain averages over training images."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    order = np.random.default_rng(0).permutation(len(pixels))[:STATISTICS_IMAGES]
    with torch.no_grad():
        for start in range(0, len(order), 128):
            module(torch.from_numpy(normalize(pixels[np.sort(order[start : start + 128])], wants)))
    module.eval()


def main() -> None:
    """Prints and writes a row for each ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--keep", type=float, default=0.4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    set_allocator()
    run = weights.load(options.teacher)
    source = run.record["data"]["source"]
    data = datasets.open_data(source)
    values = build(Distill, {"data": source, "teacher": str(options.teacher), "out": ""}, where="benchmark")
    parts = splits.resolve(data, values, recorded=run.record["data"]["rule"])
    place = setting.Setting(
        values,
        data,
        parts,
        Path(),
        torch.device("cpu"),
        setting.Precision(torch.device("cpu"), None),
        {},
        {},
        lambda event: None,
        "benchmark",
    )
    pixels = store.evaluation_pixels(data, parts.train, parts.fingerprint, run.network.preprocess)
    gradients = taylor_gradients(run.network, place)

    size = run.network.preprocess.size_hw
    work = cost.image_macs(run.network.module, size)

    def row(name: str, importance: str, counted: str = "params") -> dict[str, Any]:
        found = prune.slim(run.network, options.keep, importance=importance, gradients=gradients, cost=counted)
        kept_macs = cost.image_macs(found.network.module, size) / work
        estimate_statistics(found.network.module, pixels, run.network.preprocess)
        predict = setting.torch_predict(found.network.module, place, place.precision)
        scored = evaluate.evaluate(predict, parts.val, data.read, run.network.preprocess, classes=len(data.labels))
        print(
            f"{name}: keeps {found.kept:.1%} of the parameters and {kept_macs:.1%} of the multiplications, "
            f"validation accuracy {scored.accuracy:.1%}",
            flush=True,
        )
        return {
            "ranking": name,
            "kept": found.kept,
            "kept_macs": kept_macs,
            "accuracy": scored.accuracy,
            "low": scored.accuracy_low,
            "high": scored.accuracy_high,
            "n": scored.n,
        }

    rows = [row("magnitude, same share of every layer", "magnitude")]
    for name, (power, counted) in RANKINGS.items():
        prune.TaylorPerCost.power = power
        rows.append(row(name, "taylor", counted))
    if options.out is not None:
        rundir.write_json(
            options.out,
            {
                "teacher": run.network.model,
                "data": data.name,
                "keep": options.keep,
                "rows": rows,
                "environment": rundir.environment(),
            },
        )


if __name__ == "__main__":
    main()
