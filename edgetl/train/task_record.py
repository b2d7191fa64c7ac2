"""The record of a training whose images have more, or something else, than one class: its figures and its answers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl import evaluate, head_metrics, heads, rundir
from edgetl.heads import REGRESS
from edgetl.models import Network
from edgetl.train.aim import SCORES, Aim
from edgetl.train.loop import Precision
from edgetl.train.validation import torch_predict

if TYPE_CHECKING:
    from edgetl.train.setting import Setting

ANSWERS = "answers.npz"


def measured(setting: Setting, aim: Aim, network: Network, folder: Path) -> dict[str, Any]:
    """The figures of validation and test, from the encoded files on, in fp32.

    What was said to each image is written into `folder`: for each split its keys [N], answers [N, outputs] (logits, or
    values in the unit of the table) and truth [N, outputs] with NaN where nothing is known.
    """
    network.module.eval()
    predict = torch_predict(network.module, setting, Precision(setting.device, None))
    named = {name: items for name, items in (("val", setting.parts.val), ("test", setting.parts.test)) if items}
    said = {
        name: evaluate.answers(predict, items, setting.data.read, network.preprocess, classes=len(setting.data.labels))
        for name, items in named.items()
    }
    logits = {name: one.logits.astype(np.float64) for name, one in said.items()}
    truth = {name: aim.truth(items) for name, items in named.items()}
    keys = {name: np.array([item.key for item in items], np.str_) for name, items in named.items()}
    arrays: Mapping[str, Any] = {f"{split}.{what}": array for what, of in
                                 (("keys", keys), ("answers", logits), ("truth", truth)) for split, array in of.items()}
    target = io.BytesIO()
    np.savez_compressed(target, **arrays)
    rundir.write_bytes(folder / ANSWERS, target.getvalue())
    return head_metrics.card(aim.heads, logits, truth)


def described(setting: Setting, aim: Aim) -> dict[str, Any]:
    """What run.json says of the task."""
    parts = {"train": setting.parts.train, "val": setting.parts.val, "test": setting.parts.test}
    empty = {name: heads.missing(aim.heads, [item.answers for item in of]) for name, of in parts.items() if of}
    values = {"standardised": {"mean": aim.mean.tolist(), "scale": aim.scale.tolist()}} if aim.kind == REGRESS else {}
    return {"task": aim.kind, "heads": heads.to_json(aim.heads), "score": SCORES[aim.kind], "missing": empty, **values}
