"""The same training with several seeds: OUT is the RUN that is best on validation, OUT/seeds/N are the others."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgetl import head_metrics, rundir, splits, weights
from edgetl.errors import TrainingError
from edgetl.recipe import Distill, to_toml
from edgetl.recipe_fields import MOST_SEED
from edgetl.train import control, setting
from edgetl.train.setting import Setting

SEEDS = "seeds"  # folder of the other seeds inside the best one's
OWN = (rundir.RUN, rundir.RECIPE, rundir.SPLIT, setting.CHOICES)  # what OUT says for itself


def over_seeds(place: Setting, options: Distill, train: Callable[[Distill, Setting], None]) -> None:
    """Trains with each seed, those that are finished excepted, and makes `place.folder` the RUN of the best.

    Best is the highest validation accuracy, or score of another task than one class, of equals the first seed; the test
    split decides nothing.

    Args:
        place: the training as a whole.
        options: its recipe.
        train: trains one seed in the folder of its own setting, from the start or from a checkpoint.
    """
    if options.seeds == 1:
        train(options, place)
        return
    folders = {}
    for number in range(options.seeds):
        one = dataclasses.replace(options, seed=(options.seed + number) % (MOST_SEED + 1), seeds=1)
        own = _own_setting(place, one)
        if not setting.complete(own):
            place.note(f"seed {one.seed}, {number + 1} of {options.seeds}")
            train(one, own)
        folders[one.seed] = own.folder
    _gather(place, folders)


def _own_setting(place: Setting, options: Distill) -> Setting:
    """The setting of one seed; what an earlier seed or attempt has found out by a trial holds for all."""
    folder = place.folder / SEEDS / str(options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    if weights.is_run(folder):
        place.choices.update(weights.read_record(folder)["choices"])
    elif (folder / setting.CHOICES).is_file():
        place.choices.update(rundir.read_json(folder / setting.CHOICES, TrainingError))
    rundir.write_text(folder / rundir.RECIPE, to_toml(options))
    rundir.write_json(folder / rundir.SPLIT, splits.to_json(place.parts))
    same = {**setting.identity(options, place.parts.fingerprint), **place.unlabelled.identity}
    return dataclasses.replace(place, options=options, folder=folder, identity=same)


def _gather(place: Setting, folders: dict[int, Path]) -> None:
    """Copies the best seed's RUN to where the whole is built; its record, which makes it a RUN, comes last."""
    records = {seed: weights.read_record(folder) for seed, folder in folders.items()}
    best = max(records, key=lambda seed: head_metrics.of_card(records[seed]["metrics"]["val"]) or -math.inf)
    shutil.copytree(folders[best], place.folder, dirs_exist_ok=True, ignore=_own)
    metrics = dict(records[best]["metrics"])
    if metrics.get("gain") is not None:
        metrics["gain"] = control.gain_of(list(folders), list(folders.values()), place.aim)
    said = {"seeds": [_line(seed, record) for seed, record in records.items()], "best_seed": best}
    mine = {"options": dataclasses.asdict(place.options), "identity": dict(place.identity), "metrics": metrics, **said}
    rundir.write_json(place.folder / rundir.RUN, {**records[best], **mine})


def _own(folder: str, names: Sequence[str]) -> list[str]:
    """What is not copied of the best seed; of its control everything is."""
    return [name for name in names if name in OWN] if Path(folder).name != control.CONTROL else []


def _line(seed: int, record: dict[str, Any]) -> dict[str, Any]:
    """What the record of the whole says of one seed: accuracies as shares in 0..1, or the scores of its task."""
    scores = {split: head_metrics.of_card(record["metrics"].get(split, {})) for split in ("val", "test")}
    return {"seed": seed, **scores}


def sweep(folder: Path) -> None:
    """Removes the second copy of the best seed from a finished folder; a process may have died before."""
    best = weights.read_record(folder).get("best_seed")
    if best is not None:
        shutil.rmtree(folder / SEEDS / str(best), ignore_errors=True)
