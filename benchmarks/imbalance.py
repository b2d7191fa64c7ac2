"""One class thinned to a twentieth: macro-F1 on the test split with and without balancing, paired image by image.

    python benchmarks/imbalance.py --data FOLDER --work DIR --seeds 5 --out results/imbalance.json

Trains `full` with --balance none, sampler, loss and logit-adjust, the same seeds for all; validation and test keep all
their images. Macro-F1 is no mean over images, so its interval is that of its linearisation: each image's influence on
it, whose mean is the macro-F1, goes into the crossed interval over seeds and images (`metrics.crossed_interval`); the
influence of an F1 = 2 tp / (2 tp + fp + fn) is that of any ratio of means (B. Efron, The Jackknife, the Bootstrap and
Other Resampling Plans, SIAM 1982, chapter 6). P-values are adjusted for the three comparisons (Holm). Every arm is
measured on the test split: this is about the balancing, and nothing is chosen. On 2 cores at 128 px a training of
10 epochs of 2,800 photos takes about 6 minutes, 20 of them 2 hours.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import subsets
from numpy.typing import NDArray

import edgetl
from edgetl import contrasts, metrics, predictions, rundir, weights
from edgetl.predictions import Predictions

TEACHER = "efficientnet-lite/efficientnet_lite0"
ARMS = ("none", "sampler", "loss", "logit-adjust")


def influences(found: Predictions, classes: int) -> NDArray[np.float64]:
    """Each image's share of the macro-F1, [N]; their mean is the macro-F1.

    F1 of a class is a ratio of means over images: of a = 2 [right and of the class] and b = a + [one of both only].
    The influence of an image on it is (a - F1 b) / mean(b), which has the mean 0.
    """
    shares = []
    for one in range(classes):
        true, said = found.labels == one, found.predicted == one
        hit = 2.0 * (true & said)
        below = hit + (true ^ said)
        if below.sum() == 0:
            continue  # neither a label nor an answer: macro-F1 leaves such a class out
        f1 = hit.sum() / below.sum()
        shares.append(f1 + (hit - f1 * below) / below.mean())
    return np.mean(shares, axis=0)


def trained(options: argparse.Namespace, data: str, balance: str) -> list[Path]:
    """The RUNs of one arm; what is finished stays."""
    folders = []
    for seed in range(options.seed, options.seed + options.seeds):
        out = options.work / f"{balance}_{seed}"
        if not weights.is_run(out):
            edgetl.finetune(data=data, teacher=options.teacher, pretrained=not options.from_scratch, out=out,
                            image_size=options.image_size, epochs=options.epochs, batch_size=options.batch_size,
                            seed=seed, balance=balance, resume=True)
        folders.append(out)
    return folders


def arm(name: str, found: Sequence[Predictions], classes: int, rare: int) -> dict[str, Any]:
    """One row: macro-F1, accuracy, and how many of the rare class are found."""
    shares = np.stack([influences(one, classes) for one in found])
    low, high = metrics.crossed_interval(shares)
    recalls = [float(one.right[one.labels == rare].mean()) for one in found]
    return {"balance": name, "macro_f1": float(shares.mean()), "macro_f1_low": max(0.0, low),
            "macro_f1_high": min(1.0, high), "macro_f1_by_seed": [float(one.mean()) for one in shares],
            "accuracy": float(np.mean([one.right.mean() for one in found])), "rare_recall": float(np.mean(recalls))}


def differences(by_arm: dict[str, list[Predictions]], classes: int) -> list[dict[str, Any]]:
    """Every way of balancing less none, in macro-F1 and in accuracy."""
    plain = by_arm["none"]
    found = []
    for name in [one for one in by_arm if one != "none"]:
        pairs = list(zip(by_arm[name], plain, strict=True))
        f1 = contrasts.over_seeds(np.stack([influences(one, classes) - influences(other, classes)
                                            for one, other in pairs]))
        right = contrasts.over_seeds(np.stack([one.right.astype(float) - other.right for one, other in pairs]))
        found.append({"balance": name, "macro_f1_points": 100 * f1.mean, "low": 100 * f1.low, "high": 100 * f1.high,
                      "p_value": f1.p_value, "accuracy_points": 100 * right.mean, "accuracy_low": 100 * right.low,
                      "accuracy_high": 100 * right.high})
    for one, adjusted in zip(found, contrasts.holm([one["p_value"] for one in found]), strict=True):
        one |= {"p_adjusted": adjusted, "significant": adjusted < 0.05}
    return found


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos in class folders")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rare", default="dress", help="the class that is thinned")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--per-class", type=int, help="training images of each other class (default: all)")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", default="auto")
    parser.add_argument("--seeds", type=int, default=5, help="2 or more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--from-scratch", action="store_true", help="no pretrained weights, to try the script")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be 2 or more: an interval over seeds needs them")
    return options


def main() -> None:
    """Prints the table, and writes it with the machine beside it."""
    options = parsed()
    options.work.mkdir(parents=True, exist_ok=True)
    data = subsets.one_rare(options.data, options.work / f"{options.rare}.csv", rare=options.rare, share=options.share,
                            per_class=options.per_class, seed=0)
    by_arm: dict[str, list[Predictions]] = {}
    labels: list[str] = []
    for name in ARMS:
        folders = trained(options, data, name)
        labels = weights.read_record(folders[0])["labels"]
        by_arm[name] = [predictions.read(folder)["test"] for folder in folders]
    rows = [arm(name, found, len(labels), labels.index(options.rare)) for name, found in by_arm.items()]
    compared = differences(by_arm, len(labels))
    for row in rows:
        print(f"{row['balance']}: macro-F1 {100 * row['macro_f1']:.1f} % ({100 * row['macro_f1_low']:.1f} to "
              f"{100 * row['macro_f1_high']:.1f}), accuracy {100 * row['accuracy']:.1f} %, of {options.rare} "
              f"{100 * row['rare_recall']:.1f} % found")
    for one in compared:
        print(f"{one['balance']} less none: macro-F1 {one['macro_f1_points']:+.1f} points ({one['low']:+.1f} to "
              f"{one['high']:+.1f}), adjusted p {one['p_adjusted']:.4f}")
    if options.out is not None:
        told = {name: getattr(options, name) for name in ("rare", "share", "per_class", "image_size", "epochs",
                                                         "seeds", "seed")}
        rundir.write_json(options.out, {**told, "rows": rows, "differences": compared, "images": subsets.counts(data),
                                        "environment": rundir.environment()})


if __name__ == "__main__":
    main()
