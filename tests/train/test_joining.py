"""Training together with a source data set: what each step shows, what is kept, how it resumes, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stop_at import StopAt

from edgetl import models, rundir, weights
from edgetl.cli.app import main
from edgetl.errors import DataError, TrainingError
from edgetl.events import Event
from edgetl.ledger import Ledger
from edgetl.losses import parse
from edgetl.recipe import Finetune, build
from edgetl.train import joining, setting, store
from edgetl.train.cells import Cells
from edgetl.train.loader import Batch, TrainLoader
from edgetl.train.task import ClassifierTask
from edgetl.train.teacher import finetune
from edgetl.walker import Walker

TINY = {"teacher": "timm/test_resnet", "pretrained": False, "image_size": 32, "epochs": 2, "batch_size": "8",
        "workers": 0, "lr": 3e-3, "threads": 1, "ema": 0.9, "strategy": "joint"}  # fmt: skip
PhotoFolder = Callable[..., Path]


@pytest.fixture
def photos(photo_folder: PhotoFolder) -> Path:
    return photo_folder(classes=2, images=12)


@pytest.fixture
def source(photo_folder: PhotoFolder) -> Path:
    return photo_folder("source", classes=3, images=5, seed=7)


def options(data: Path, source: Path | None, out: Path, **values: Any) -> Finetune:
    joined = {} if source is None else {"source": str(source)}
    return build(Finetune, {"data": str(data), "out": str(out), **TINY, **joined, **values}, where="test")


class Looking:
    """Keeps the batches that a task is shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[joining.JointBatch] = []
        forward = joining.JointTask.forward

        def looked(task: joining.JointTask, batch: joining.JointBatch) -> dict[str, torch.Tensor]:
            self.batches.append(batch)
            return forward(task, batch)

        monkeypatch.setattr(joining.JointTask, "forward", looked)

    @property
    def source_rows(self) -> list[int]:
        return [row for batch in self.batches if batch.source is not None for row in batch.source.index.tolist()]


def test_each_step_shows_both_and_only_the_targets_head_is_kept(
    photos: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, notes = Looking(monkeypatch), list[str]()

    def listener(event: Event) -> None:
        notes.append(str(event.values.get("text")))

    run = finetune(options(photos, source, tmp_path / "run", source_ratio=0.25), listener=listener)
    shown = sum(len(batch.labels) for batch in looking.batches)
    sizes = {(len(batch.labels), len(batch.source.labels)) for batch in looking.batches if batch.source is not None}
    assert sizes <= {(6, 2), (5, 2), (4, 1)}
    rows = looking.source_rows
    assert len(rows) < shown
    assert set(rows[:15]) == set(range(min(15, len(rows))))  # all of the source once before any comes again
    assert set(weights.load(run).network.module.state_dict()) == set(
        models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32).module.state_dict()
    )
    record = weights.read_record(run)
    assert record["labels"] == ["amber", "beryl"] and record["strategy"] == "joint"
    told = record["source"]
    assert (told["images"], len(told["classes"]), told["left_out"]) == (15, 3, 0)
    assert told["data"] == str(source) and len(told["fingerprint"]) == 64
    row = json.loads((run / rundir.METRICS).read_text().splitlines()[-1])
    assert row["loss"] == pytest.approx(row["labels"] + row["source"], rel=1e-3)
    assert any("15 images of 3 classes of source join the training, 25 %" in note for note in notes)


def test_it_resumes_bit_for_bit_in_the_middle_of_an_epoch(photos: Path, source: Path, tmp_path: Path) -> None:
    values = {"checkpoint_minutes": 0.0, "mixup": 0.2}
    whole = finetune(options(photos, source, tmp_path / "whole", **values))
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, source, tmp_path / "broken", **values), listener=StopAt(6, ZeroDivisionError()))
    resumed = finetune(options(photos, source, tmp_path / "broken", **values, workers=1, resume=True))
    assert (resumed / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()


def test_another_source_is_noticed_when_resuming(photos: Path, source: Path, tmp_path: Path) -> None:
    values = {"checkpoint_minutes": 0.0}
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, source, tmp_path / "run", **values), listener=StopAt(2, ZeroDivisionError()))
    next(iter(sorted((source / "amber").iterdir()))).unlink()
    with pytest.raises(TrainingError, match="source fingerprint was"):
        finetune(options(photos, source, tmp_path / "run", **values, resume=True))


def place_of(photos: Path, source: Path, tmp_path: Path, **values: Any) -> tuple[setting.Setting, Finetune]:
    made = options(photos, source, tmp_path / "run", **values)
    (tmp_path / "run").mkdir()
    return setting.prepare(made, tmp_path / "run", "finetune", lambda event: None), made


def test_a_source_image_that_the_target_holds_out_is_left_out(photos: Path, source: Path, tmp_path: Path) -> None:
    place, made = place_of(photos, source, tmp_path)
    held = place.parts.test[0].key
    shutil.copy(photos / held, source / "amber" / "stolen.jpg")
    heard: list[Event] = []
    found = joining.gather(made, dataclasses.replace(place, listener=heard.append))
    assert found.left_out == 1 and len(found.items) == 15
    assert heard[0].kind == "warning" and "1 images of --source are also in val or test" in heard[0].values["text"]


def test_a_source_with_splits_gives_its_training_images(
    photos: Path, photo_folder: PhotoFolder, tmp_path: Path
) -> None:
    split = photo_folder("split", classes=2, images=4, splits=("train", "test"), seed=3)
    place, made = place_of(photos, split, tmp_path)
    items = joining.gather(made, place).items
    assert items and {item.split for item in items} == {"train"}


def rows_of(batch: joining.JointBatch) -> list[int]:
    assert batch.source is not None
    return sorted(batch.source.index.tolist())


def loaders(photos: Path, source: Path, tmp_path: Path, cells: Cells) -> list[list[joining.JointBatch]]:
    """Two epochs of batches."""
    place, made = place_of(photos, source, tmp_path, source_ratio=0.5)
    network = models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32)
    task = joining.JointTask(network, parse(["labels"]), place, joining.gather(made, place), made)
    images = store.open_store(place.data, place.shown, "f", network.preprocess, place.listener, "s")
    own = TrainLoader(images, place.shown, 2, network.preprocess, made, task.own_images(8),
                             torch.device("cpu"), cells=cells)  # fmt: skip
    both = task.loading(own)
    epochs = [list(both.epoch(epoch)) for epoch in range(2)]
    return [[one for one in epoch if isinstance(one, joining.JointBatch)] for epoch in epochs]


def test_processes_and_micro_batches_share_the_same_source_images(
    photos: Path, source: Path, tmp_path: Path
) -> None:
    dealt = []
    for number, cells in enumerate((Cells(), Cells(2, 0, 1), Cells(2, 1, 1))):
        (tmp_path / str(number)).mkdir()
        dealt.append(loaders(photos, source, tmp_path / str(number), cells))
    alone, first, second = ([[rows_of(one) for one in epoch] for epoch in who] for who in dealt)
    for epoch in range(2):
        assert alone[epoch] == [sorted([*a, *b]) for a, b in zip(first[epoch], second[epoch], strict=True)]
    assert alone[0] != alone[1]
    wholes = [one.source.whole for one in dealt[1][0] if one.source is not None]
    assert wholes == [(len(rows), len(rows)) for rows in alone[0]]


def test_batch_norms_remember_the_target_alone(photos: Path, source: Path, tmp_path: Path) -> None:
    place, made = place_of(photos, source, tmp_path)
    joined, alone = (models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32) for _ in range(2))
    alone.module.load_state_dict(joined.module.state_dict())
    task = joining.JointTask(joined, parse(["labels"]), place, joining.gather(made, place), made)
    images = [torch.rand(count, 3, 32, 32) * 255 for count in (4, 6)]
    own, other = (Batch(one, torch.zeros(len(one), dtype=torch.int64), torch.full((len(one), classes), 1 / classes),
                        torch.arange(len(one))) for one, classes in zip(images, (2, 3), strict=True))  # fmt: skip
    task.train_mode()
    found = task.forward(joining.beside(own, other))
    plain = ClassifierTask(alone, parse(["labels"]))
    plain.train_mode()
    assert torch.equal(found["logits"], plain.forward(own)["logits"])
    for name, value in alone.module.named_buffers():
        assert torch.equal(dict(joined.module.named_buffers())[name], value), name
    found["loss"].backward()
    assert all(one.grad is not None for one in task.parameters())
    assert float(found["source"].detach()) == pytest.approx(np.log(3), abs=0.2)  # a quiet head knows nothing yet


def part_of(images: int, whole: int | None) -> Batch:
    """A batch, or so many images of a step."""
    labels = torch.zeros(images, dtype=torch.int64)
    known = None if whole is None else (whole, whole)
    return Batch(torch.zeros(images, 3, 1, 1), labels, torch.zeros(images, 2), labels, whole=known)


def test_the_reported_loss_of_the_source_adds_up_over_processes() -> None:
    """What two processes report, weighted by their target images, is the mean over the step's source images."""
    means, told = (0.7, 0.3), 0.0
    for mean, own, other in zip(means, (3, 2), (1, 3), strict=True):
        batch, source = part_of(own, 5), part_of(other, 4)
        told += own / 5 * mean * joining._by_images(batch, source)
    assert told == pytest.approx(np.average(means, weights=(1, 3)))
    alone = part_of(5, None)
    assert joining._by_images(alone, part_of(4, None)) == 1.0


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ([], "--strategy joint needs --source"),
        (["--source", "nowhere"], "nowhere"),
        (["--source-ratio", "2"], "expected at most 0.95"),
        (["--strategy", "full", "--source", "PHOTOS"], "--source does nothing with --strategy full."),
        (["--strategy", "full", "--source-weight", "2"], "--source-weight does nothing with --strategy full."),
    ],
)
def test_what_cannot_be_joined_is_said(
    extra: list[str], says: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(photos) if word == "PHOTOS" else word for word in extra]
    code = main(["finetune", "--data", str(photos), "--teacher", "timm/test_resnet", "--no-pretrained", "--image-size",
                 "32", "--out", str(tmp_path / "run"), "--strategy", "joint", *words])  # fmt: skip
    assert code == (2 if "expected at most" in says else 1)
    assert says in capsys.readouterr().err


def test_a_source_without_images_to_train_on_is_refused(photos: Path, source: Path, tmp_path: Path) -> None:
    place, made = place_of(photos, source, tmp_path)
    shutil.rmtree(source)
    held = [item.key for item in place.parts.test][:2]
    for place_in, key in enumerate(held):
        folder = source / f"class{place_in}"
        folder.mkdir(parents=True)
        shutil.copy(photos / key, folder / "one.jpg")
    with pytest.raises(DataError, match="has 0 training images that the target does not hold out"):
        joining.gather(made, place)


def test_a_recipe_trains_again_for_another_source(photos: Path, source: Path, tmp_path: Path) -> None:
    made = options(photos, source, tmp_path / "run")

    def inputs() -> dict[str, Any]:
        return Walker(tmp_path, Ledger(tmp_path), lambda event: None)._inputs(made, ())

    before = inputs()
    assert before == inputs()
    sorted((source / "amber").iterdir())[0].unlink()
    assert before != inputs()
