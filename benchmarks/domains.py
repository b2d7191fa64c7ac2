"""From a source domain to a target domain: which way of fine-tuning carries over, and whether the source still helps.

    python benchmarks/domains.py --source PACS/photo --target PACS/sketch --work DIR --out results/domains.json

The network is fine-tuned on the source domain first; that RUN is the teacher of all rows on the target, of which only
--per-class training images a class are used (validation and test stay whole). `joint` trains with the source beside it.
PACS: D. Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017, arXiv:1710.03077 (9,991 images of 7
classes in 4 domains). Intervals at 95 % cover seeds and images; differences are paired. On 2 cores at 128 px, with 20
images a class and 30 epochs, a training takes about 1 minute, a joint one 2, and the source's own 3.
"""

from __future__ import annotations

from pathlib import Path

import strategies
import subsets

import edgetl
from edgetl import rundir, weights

ROWS = ("probe", "full", "lp-ft", "full;l2-sp=0.1", "full;l2-sp=1", "full;wise-ft", "joint")


def main() -> None:
    """Prints the table, and writes it with the machine beside it."""
    parser = strategies.arguments(__doc__)
    parser.set_defaults(seeds=3, epochs=30)
    parser.add_argument("--source", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--target", type=Path, required=True, help="folder with the same classes")
    parser.add_argument("--source-epochs", type=int, default=6)
    parser.add_argument("--per-class", type=int, default=20, help="training images of each class of the target")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    teacher = options.work / f"source_{options.source.name}"
    if not weights.is_run(teacher):
        edgetl.finetune(data=options.source, teacher=options.teacher, pretrained=not options.from_scratch, out=teacher,
                        image_size=options.image_size, epochs=options.source_epochs, batch_size=options.batch_size,
                        seed=options.seed, threads=options.threads, resume=True)
    name = f"{options.source.name}_to_{options.target.name}"
    options.data = subsets.few(options.target, options.work / f"{name}.csv", per_class=options.per_class,
                               val_fraction=0.2, test_fraction=0.3, seed=0)
    own = weights.read_record(teacher)["metrics"]["test"]
    result = strategies.compared(options, teacher=teacher, source=options.source, out=options.work / name,
                                 strategies=options.strategies or list(ROWS))
    result |= {"source": options.source.name, "target": options.target.name, "per_class": options.per_class,
               "images": subsets.counts(options.data),
               "source_test": {key: own[key] for key in ("n", "accuracy", "accuracy_low", "accuracy_high")}}
    if options.out is not None:
        rundir.write_json(options.out, result)


if __name__ == "__main__":
    main()
