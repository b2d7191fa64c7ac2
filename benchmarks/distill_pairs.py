"""Students against each other on the very same test images: who was right where, and how sure a difference is.

What `distill_accuracy.py` and `cifar_anchor.py` share. One seed's interval is the score interval of paired shares; over
several seeds the interval covers both the images and the seeds (`metrics.crossed_interval`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl import datasets, evaluate, metrics, splits, weights
from edgetl.recipe import Distill, build

Right = NDArray[np.bool_]  # [N], in the order of the split's keys
SUMMED = ("n", "correct", "accuracy", "accuracy_low", "accuracy_high")


def parsed_arms(parser: argparse.ArgumentParser, arms: Collection[str]) -> argparse.Namespace:
    """The options of a command line, whose `--arms` must be among those that there are."""
    options = parser.parse_args()
    unknown = sorted(set(options.arms) - set(arms))
    if unknown:
        parser.error(f"unknown arms {unknown}; there are {', '.join(arms)}")
    return options


def tested(run: Path, source: str) -> dict[str, Any]:
    """The test split as the model of a RUN answers it; "right" has a 0 or 1 for each image."""
    opened = weights.load(run)
    data = datasets.open_data(source)
    values = build(Distill, {"data": source, "teacher": "teacher", "out": "out"}, where="benchmark")
    items = splits.resolve(data, values, recorded=opened.record["data"]["rule"]).test
    wants = opened.network.preprocess

    def predict(images: evaluate.Images) -> NDArray[Any]:
        with torch.no_grad():
            return opened.network.module(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    found = evaluate.evaluate(predict, items, data.read, wants, classes=len(opened.labels))
    right = found.logits.argmax(axis=1) == found.labels
    return {
        **{name: getattr(found, name) for name in SUMMED},
        "right": "".join("1" if one else "0" for one in right),
        "val_accuracy": opened.record["metrics"].get("val", {}).get("accuracy"),
        "parameters": weights.parameter_count(opened.network.module),
    }


def right_of(row: Mapping[str, Any]) -> Right:
    """What `tested` wrote, as booleans [N]."""
    return np.array([one == "1" for one in row["right"]])


def difference(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy of `first` minus that of `second` in points, with its 95 % interval; row i of both is of one seed.

    A single row of `second` (a teacher) stands against every row of `first`.
    """
    ours = np.stack([right_of(row) for row in first])
    theirs = np.stack([right_of(row) for row in second])
    theirs = np.broadcast_to(theirs, ours.shape)
    by_seed = [_of_one_seed(one, other) for one, other in zip(ours, theirs, strict=True)]
    points = [row["points"] for row in by_seed]
    found = by_seed[0] if len(by_seed) == 1 else _of_seeds(ours, theirs)
    spread = statistics.stdev(points) if len(points) > 1 else None
    return {
        "points": found["points"],
        "low": found["low"],
        "high": found["high"],
        "seeds": len(by_seed),
        "deviation_over_seeds": spread,
        "by_seed": by_seed,
    }


def _of_one_seed(ours: Right, theirs: Right) -> dict[str, float]:
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    low, high = metrics.paired_interval(gained, lost, len(ours))
    return {"points": 100 * (gained - lost) / len(ours), "low": 100 * low, "high": 100 * high}


def _of_seeds(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> dict[str, float]:
    """Of [seeds, N]."""
    differences = ours.astype(float) - theirs.astype(float)
    low, high = metrics.crossed_interval(differences)
    return {"points": 100 * float(differences.mean()), "low": 100 * low, "high": 100 * high}


def sentence(name: str, found: Mapping[str, Any]) -> str:
    """A difference in words."""
    return f"{name}: {found['points']:+.2f} points [{found['low']:+.2f}, {found['high']:+.2f}], {found['seeds']} seeds"
