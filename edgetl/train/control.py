"""The control: the same student without its teacher."""

from __future__ import annotations

from typing import Any

from edgetl import losses, weights
from edgetl.models import Network
from edgetl.train import seed, setting
from edgetl.train.setting import Setting
from edgetl.train.task import ClassifierTask

CONTROL = "control"  # folder of the control inside the student's


def run_control(place: Setting, student: Network, more: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the same student, data, views and epochs, on labels alone."""
    folder = place.folder / CONTROL
    folder.mkdir(exist_ok=True)
    if not weights.is_run(folder):
        seed.seed_everything(place.options.seed)
        setting.fit(place, ClassifierTask(student, losses.parse(["labels"])), student, folder, CONTROL)
        setting.save(place, student, folder, metrics=setting.measured(place, student), **more)
    metrics: dict[str, Any] = weights.read_record(folder)["metrics"]
    return metrics
