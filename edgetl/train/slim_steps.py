"""A student that is cut in steps, with training between the cuts: what each cut breaks is mended before the next.

The shares fall geometrically, so that every cut takes the same part of what is left, and each ranks the channels of
the student as it is then. The last stage gets all the epochs of the recipe, the others a few. While the run is being
built, every student that is done lies in a RUN of its own below `steps/`; all of them see the same views with the same
preprocessing and share one store of soft labels.

Gale et al. 2019 (arXiv:1902.09574) and Renda et al. (ICLR 2020, arXiv:2003.02389) compare cutting once and in steps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import rundir, weights
from edgetl.events import Event
from edgetl.models import Network
from edgetl.recipe import Distill
from edgetl.train import distributed, seed, setting
from edgetl.train.eventfiles import FOLDER as CURVES
from edgetl.train.sameness import require_same
from edgetl.train.setting import STEPS, Setting
from edgetl.train.slimming import Cutter
from edgetl.train.task import ClassifierTask

TaskOf = Callable[[Network], ClassifierTask]  # the student on its losses


def in_steps(options: Distill) -> bool:
    """Whether the student is cut more than once."""
    return options.student.startswith("slim:") and options.slim_steps > 1


def fit(
    place: Setting, student: Network, task_of: TaskOf, folder: Path, stage: str, cutter: Cutter | None
) -> tuple[Network, dict[str, Any]]:
    """The trained student, and what the record says of its cut or its steps (nothing where it is not cut).

    Args:
        place: where the run is made.
        student: before training; in steps, what the first cut left.
        task_of: the student on its losses, with its teacher or without.
        folder: of this training; `metrics.jsonl` comes to lie there, in steps with a column `step`.
        stage: name of the training in events.
        cutter: of students that are cut again; None: this one is not.
    """
    if cutter is None or not in_steps(cutter.options):
        seed.seed_everything(place.options.seed)
        setting.fit(place, task_of(student), student, folder, stage)
        return student, {} if cutter is None else {"cut": cutter.row(student, 1, place.folder)}
    rows: list[dict[str, Any]] = []
    count = cutter.options.slim_steps
    for step in range(1, count + 1):
        here = folder / STEPS / str(step)
        if not weights.is_run(here):
            here.mkdir(parents=True, exist_ok=True)
            cut = student if step == 1 else cutter.kept_cut(student, step, here)
            row = cutter.row(cut, step, place.folder if step == 1 else here)
            _train(_of_step(place, cutter.options, step), cut, task_of, here, stage, row)
        # Read again, so that a resumed run goes on with the same bits in the same order of memory.
        student = _finished(here, place)
        rows.append(weights.read_record(here)["step"])
    if distributed.current().first:  # which alone has written metrics
        _gather(folder, count)
    return student, {"steps": rows}


def _train(place: Setting, student: Network, task_of: TaskOf, folder: Path, stage: str, row: dict[str, Any]) -> None:
    """Trains the student of one step and leaves it as a RUN in its folder."""
    seed.seed_everything(place.options.seed)
    student.module.to(place.device)
    before = setting.Validation(place, student)(student.module.eval())
    seed.seed_everything(place.options.seed)
    after = setting.fit(place, task_of(student), student, folder, stage)
    row |= {"val_accuracy_before": before.accuracy, "val_accuracy_after": after.accuracy}
    told = (
        f"step {row['step']}: {row['kept']:.1%} of the parameters kept; {place.scored(before)} after the cut, "
        f"{place.scored(after)} after {place.options.epochs} epochs"
    )
    place.listener(Event(stage, "note", {"text": told}))
    setting.save(place, student, folder, step=row, metrics={})


def _of_step(place: Setting, options: Distill, step: int) -> Setting:
    """The setting of one step: its epochs, with a warm-up in proportion.

    Without stored views every step draws its own, so that no step sees the same views as the one before.
    """
    epochs = options.epochs if step == options.slim_steps else options.slim_epochs
    changed: dict[str, Any] = {"epochs": epochs, "warmup_epochs": options.warmup_epochs * epochs / options.epochs}
    if not options.views and step < options.slim_steps:
        changed["seed"] = int(np.random.SeedSequence([options.seed, step]).generate_state(1)[0])
    return dataclasses.replace(place, options=dataclasses.replace(options, **changed))


def _finished(folder: Path, place: Setting) -> Network:
    """The trained student of one step.

    Raises:
        TrainingError: it was made with other options or from other inputs.
    """
    run = weights.load(folder, any_task=True)
    what = f"The interrupted run in {place.folder}"
    require_same(run.record["identity"], place.identity, what, type(place.options))
    return run.network


def _gather(folder: Path, count: int) -> None:
    """Puts the steps' metrics into one file, and their curves side by side."""
    lines = []
    for step in range(1, count + 1):
        here = folder / STEPS / str(step)
        rows = (here / rundir.METRICS).read_text().splitlines()
        lines += [json.dumps({"step": step, **json.loads(row)}) for row in rows]
        there = folder / CURVES / f"step-{step}"
        if (here / CURVES).is_dir() and not there.exists():
            there.parent.mkdir(exist_ok=True)
            (here / CURVES).rename(there)
    rundir.write_text(folder / rundir.METRICS, "".join(f"{line}\n" for line in lines))
