"""The control: the same student without its teacher, and what the teacher is worth beside it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetl import losses, predictions, task_scores, weights
from edgetl.heads import SCORES
from edgetl.models import Network
from edgetl.recipe import Distill
from edgetl.train import gain, setting, slim_steps, task_losses
from edgetl.train.aim import Aim
from edgetl.train.setting import Setting
from edgetl.train.slimming import Cutter
from edgetl.train.task import ClassifierTask

CONTROL = "control"  # folder of the control inside the student's


def finish(
    place: Setting, student: Network, untaught: Network | None, more: dict[str, Any], cutter: Cutter | None = None
) -> None:
    """Measures the taught student, trains its control where there is one, and writes the RUN with the gain.

    Args:
        place: where the student was trained.
        student: with the weights that are kept.
        untaught: the student as it was before; None leaves the control out.
        more: what the record says besides.
        cutter: of a student that is cut in steps; None where it is not.
    """
    if place.aim is not None:
        place.aim.settle(student)
    metrics: dict[str, Any] = setting.measured(place, student, place.folder)
    if untaught is not None:
        metrics["control"] = run_control(place, untaught, more, cutter)
        metrics["gain"] = gain_of([place.options.seed], [place.folder], place.aim)
    setting.save(place, student, place.folder, metrics=metrics, **more)


def run_control(place: Setting, student: Network, more: dict[str, Any], cutter: Cutter | None = None) -> dict[str, Any]:
    """Metrics of the same student, data, views and epochs, on labels alone.

    The control of a student that is cut in steps goes the same way, from the same first cut on: as many cuts to the
    same shares, each ranked anew on the control as it is then, and the same epochs after each. A control that was cut
    out of the taught student would owe its weights to the teacher.

    It sees no images without a label, and takes as many steps on the others.
    """
    place = place.labelled_only()
    if cutter is not None and isinstance(place.options, Distill):
        cutter = dataclasses.replace(cutter, options=place.options)
    folder = place.folder / CONTROL
    folder.mkdir(exist_ok=True)
    if not weights.is_run(folder):
        task_of = functools.partial(on_labels, aim=place.aim)
        student, steps = slim_steps.fit(place, student, task_of, folder, CONTROL, cutter)
        if place.aim is not None:
            place.aim.settle(student)
        setting.save(place, student, folder, metrics=setting.measured(place, student, folder), **more | steps)
    metrics: dict[str, Any] = weights.read_record(folder)["metrics"]
    return metrics


def on_labels(student: Network, aim: Aim | None = None) -> ClassifierTask:
    """A student that learns from labels alone; of another task than one class by its own loss on them."""
    own = (task_losses.LABELS,)
    terms = losses.parse(own) if aim is None else task_losses.of_task(own, aim.heads)
    return ClassifierTask(student, terms, aim=aim)


def gain_of(seeds: Sequence[int], folders: Sequence[Path], aim: Aim | None = None) -> dict[str, Any] | None:
    """The gain of students over the controls inside their folders, as plain JSON; None where there are no test images.

    Args:
        seeds: what they were trained with.
        folders: their RUNs, one a seed.
        aim: what they say of an image; None is one class.
    """
    if aim is not None:
        ours, plain = ([task_scores.read(folder / inner, aim.heads) for folder in folders] for inner in ("", CONTROL))
        if not all("test" in one for one in (*ours, *plain)):
            return None
        tested, untaught = ([one["test"] for one in side] for side in (ours, plain))
        return gain.of_task(seeds, tested, untaught, SCORES[aim.kind]).to_json()
    students, controls = ([predictions.read(folder / inner) for folder in folders] for inner in ("", CONTROL))
    if not all("test" in one for one in (*students, *controls)):
        return None
    return gain.between(seeds, *([one["test"] for one in side] for side in (students, controls))).to_json()
