"""The record of a training whose images have more, or something else, than one class: its figures and its answers."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl import evaluate, head_metrics, heads, rundir
from edgetl.heads import REGRESS, SCORES
from edgetl.models import Network
from edgetl.task_scores import ANSWERS, PARTS, Said
from edgetl.train.aim import Aim
from edgetl.train.loop import Precision
from edgetl.train.validation import torch_predict

if TYPE_CHECKING:
    from edgetl.train.setting import Setting


def measured(setting: Setting, aim: Aim, network: Network, folder: Path) -> dict[str, Any]:
    """The figures of validation and test, from the encoded files on, in fp32.

    What was said to each image is written into `folder`: for each split its keys [N], answers [N, outputs] (logits, or
    values in the unit of the table) and truth [N, outputs] with NaN where nothing is known.
    """
    network.module.eval()
    found = said(setting, aim, torch_predict(network.module, setting, Precision(setting.device, None)), network)
    arrays: Mapping[str, Any] = {f"{split}.{part}": getattr(one, part) for part in PARTS
                                 for split, one in found.items()}
    target = io.BytesIO()
    np.savez_compressed(target, **arrays)
    rundir.write_bytes(folder / ANSWERS, target.getvalue())
    return card(aim, found)


def said(setting: Setting, aim: Aim, predict: evaluate.Predict, network: Network) -> dict[str, Said]:
    """What a network says to the images of validation and test, by split, as it speaks."""
    named = {name: items for name, items in (("val", setting.parts.val), ("test", setting.parts.test)) if items}
    return {
        name: Said(
            aim.heads,
            np.array([item.key for item in items], np.str_),
            evaluate.answers(predict, items, setting.data.read, network.preprocess,
                             classes=len(setting.data.labels)).logits.astype(np.float64),
            aim.truth(items),
        )
        for name, items in named.items()
    }  # fmt: skip


def card(aim: Aim, found: Mapping[str, Said]) -> dict[str, Any]:
    """The figures of each split."""
    return head_metrics.card(aim.heads, {name: one.answers for name, one in found.items()},
                             {name: one.truth for name, one in found.items()})


def of_teacher(setting: Setting, aim: Aim, network: Network) -> dict[str, Any]:
    """The figures of a teacher, which speaks in standardised values while it teaches."""
    module = network.module.to(setting.device).eval()
    found = said(setting, aim, torch_predict(module, setting, Precision(setting.device, None)), network)
    return card(aim, {name: dataclasses.replace(one, answers=one.answers * aim.scale + aim.mean)
                      for name, one in found.items()})


def described(setting: Setting, aim: Aim, columns: Sequence[str]) -> dict[str, Any]:
    """What run.json says of the task.

    Args:
        setting: of the training.
        aim: of the training.
        columns: what was asked of the table by name, for stages that read it again.
    """
    parts = {"train": setting.parts.train, "val": setting.parts.val, "test": setting.parts.test}
    empty = {name: heads.missing(aim.heads, [item.answers for item in of]) for name, of in parts.items() if of}
    values = {"standardised": {"mean": aim.mean.tolist(), "scale": aim.scale.tolist()}} if aim.kind == REGRESS else {}
    return {"task": aim.kind, "heads": heads.to_json(aim.heads), "label_columns": list(columns),
            "score": SCORES[aim.kind], "missing": empty, **values}
