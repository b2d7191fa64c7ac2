"""A training that an older version began goes on, where what that version did is what the options say now."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stop_at import StopAt

from edgetl import recipe, rundir
from edgetl.errors import TrainingError
from edgetl.ledger import CHANGED, FINISHED, Ledger, digest
from edgetl.recipe import Finetune, build
from edgetl.train import checkpoint
from edgetl.train.sameness import require_same
from edgetl.train.teacher import finetune

PhotoFolder = Callable[..., Path]
TINY = {"teacher": "timm/test_resnet", "pretrained": False, "image_size": 32, "epochs": 2, "batch_size": "9",
        "workers": 0, "threads": 1, "checkpoint_minutes": 0.0, "compile": "off"}  # fmt: skip
NEWER = ("random_erasing", "auto_augment", "balance", "compile")  # as if the version before had not had them


def options(data: Path, out: Path, **values: Any) -> Finetune:
    return build(Finetune, {"data": str(data), "out": str(out), **TINY, **values}, where="test")


def test_a_run_of_an_older_version_is_resumed(photo_folder: PhotoFolder, tmp_path: Path) -> None:
    photos = photo_folder(classes=3, images=12)
    with pytest.raises(KeyboardInterrupt):
        finetune(options(photos, tmp_path / "run"), listener=StopAt(2, KeyboardInterrupt()))
    for path in rundir.partial(tmp_path / "run").glob("checkpoint*"):
        state = checkpoint.read(path)
        for name in NEWER:
            del state.scalars["identity"][name]
        checkpoint.write(path, state)
    with pytest.raises(TrainingError, match=r"random_erasing was 0\.0 and is 0\.5"):
        finetune(options(photos, tmp_path / "run", random_erasing=0.5, resume=True))
    with pytest.raises(TrainingError, match="compile was 'off' and is 'auto'"):  # which it did not do then
        finetune(options(photos, tmp_path / "run", compile="auto", resume=True))
    run = finetune(options(photos, tmp_path / "run", resume=True))
    assert len((run / rundir.METRICS).read_text().splitlines()) == 2


def test_a_file_that_is_named_no_more_is_another_training() -> None:
    now = recipe.decisive(options(Path("d"), Path("o")))
    require_same(now, now, "It", Finetune)
    with pytest.raises(TrainingError, match="It had other options: weights sha256 was 'abc' and is None"):
        require_same({**now, "weights sha256": "abc"}, now, "It", Finetune)


def test_every_field_that_may_be_left_out_has_a_meaning_in_old_records() -> None:
    for stage in recipe.STAGES.values():
        required = {name for name, one in recipe.fields_of(stage).items() if one.default is recipe.REQUIRED}
        assert set(recipe.unsaid(stage)) == set(recipe.fields_of(stage)) - required
        json.dumps(recipe.unsaid(stage), allow_nan=False)


def test_a_stage_of_an_older_version_is_kept(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / rundir.RUN).write_text("{}")
    now = recipe.decisive(options(Path("d"), Path("o")))
    older = {name: value for name, value in now.items() if name not in NEWER}
    entry = {"inputs": older, "before": None, "made": digest(tmp_path / "teacher"), "objection": None}
    for inputs, expected in ((now, FINISHED), ({**now, "balance": "sampler"}, CHANGED)):
        ledger = Ledger(tmp_path, {"finetune": entry})
        ledger.fill("finetune", inputs, recipe.unsaid(Finetune))
        assert ledger.state("finetune", inputs, tmp_path / "teacher") == expected
    emptied = Ledger.begun_again(tmp_path, ("finetune",))  # what --overwrite leaves stays what it is
    emptied.fill("finetune", now, recipe.unsaid(Finetune))
    assert emptied.reason("finetune", now) == "as --overwrite asked"
