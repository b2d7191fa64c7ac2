"""`edgetl finetune`."""

from __future__ import annotations

import shlex

from edgetl.recipe import Finetune

EXAMPLE = "edgetl finetune --data photos --teacher efficientnet-lite/efficientnet_lite0 --out runs/teacher"


def finetune(options: Finetune, as_json: bool) -> None:
    """Fine-tune a pretrained network on labelled images.

    Writes a RUN folder with the model, its record and the split that was used.
    """
    from edgetl import pipeline, weights
    from edgetl.cli import present, progress

    with progress.shown() as listener:
        folder = pipeline.finetune_with(options, listener)
    record = weights.read_record(folder)
    if as_json:
        present.document({"run": str(folder), **record})
        return
    present.pairs(present.run_pairs(folder, record))
    if record.get("heads"):
        present.hint(f"the answers to each image are in {folder / 'answers.npz'}")
    present.hint(f"next: edgetl distill --data {shlex.quote(options.data)} --teacher {folder} --out STUDENT")
