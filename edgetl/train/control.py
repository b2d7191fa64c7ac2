"""The control: the same student without its teacher, and what the teacher is worth beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetl import losses, predictions, weights
from edgetl.models import Network
from edgetl.train import gain, seed, setting
from edgetl.train.setting import Setting
from edgetl.train.task import ClassifierTask

CONTROL = "control"  # folder of the control inside the student's


def finish(place: Setting, student: Network, untaught: Network | None, more: dict[str, Any]) -> None:
    """Measures the taught student, trains its control where there is one, and writes the RUN with the gain.

    Args:
        place: where the student was trained.
        student: with the weights that are kept.
        untaught: the student as it was before; None leaves the control out.
        more: what the record says besides.
    """
    metrics: dict[str, Any] = setting.measured(place, student, place.folder)
    if untaught is not None:
        metrics["control"] = run_control(place, untaught, more)
        metrics["gain"] = gain_of([place.options.seed], [place.folder])
    setting.save(place, student, place.folder, metrics=metrics, **more)


def run_control(place: Setting, student: Network, more: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the same student, data, views and epochs, on labels alone."""
    folder = place.folder / CONTROL
    folder.mkdir(exist_ok=True)
    if not weights.is_run(folder):
        seed.seed_everything(place.options.seed)
        setting.fit(place, ClassifierTask(student, losses.parse(["labels"])), student, folder, CONTROL)
        setting.save(place, student, folder, metrics=setting.measured(place, student, folder), **more)
    metrics: dict[str, Any] = weights.read_record(folder)["metrics"]
    return metrics


def gain_of(seeds: Sequence[int], folders: Sequence[Path]) -> dict[str, Any] | None:
    """The gain of students over the controls inside their folders, as plain JSON; None where there are no test images.

    Args:
        seeds: what they were trained with.
        folders: their RUNs, one a seed.
    """
    students, controls = ([predictions.read(folder / inner) for folder in folders] for inner in ("", CONTROL))
    if not all("test" in one for one in (*students, *controls)):
        return None
    return gain.between(seeds, *([one["test"] for one in side] for side in (students, controls))).to_json()
