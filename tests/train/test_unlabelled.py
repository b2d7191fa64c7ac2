"""Images without a label: what a batch, a loss and a count make of them, and which files join the training."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from stop_at import StopAt
from torch import nn

from edgetl import datasets, loose, losses, rundir, splits, weights
from edgetl.datasets import Item
from edgetl.errors import DataError, EdgetlError, TrainingError
from edgetl.events import Event, Listener, ignore
from edgetl.losses import Given
from edgetl.models import Network
from edgetl.recipe import Distill, Finetune, build
from edgetl.recipe_file import parse_recipe
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import store, unlabelled
from edgetl.train.loader import Batch, TrainLoader
from edgetl.train.loop import Fit, Progress
from edgetl.train.student import distill
from edgetl.train.task import ClassifierTask
from edgetl.train.teacher import finetune
from edgetl.train.unlabelled import Unlabelled

PIXELS = Preprocess(size_hw=(12, 12), mean=(0.5,) * 3, std=(0.5,) * 3)


class Noise:
    """Images of noise, as the loader wants them."""

    def __getitem__(self, row: int) -> np.ndarray[Any, Any]:
        return np.random.default_rng(row).integers(0, 256, (16, 14 + row % 5, 3), np.uint8)


def loader(labelled: int, unlabelled: int, *, views: int = 0, batch: int = 4, **more: Any) -> TrainLoader:
    given = {"data": "x", "out": "y", "teacher": "z", "workers": 0, **more}
    items = [Item(str(row), row % 3 if row < labelled else -1) for row in range(labelled + unlabelled)]
    options = build(Distill, given, where="test")
    return TrainLoader(Noise(), items, 3, PIXELS, options, batch, torch.device("cpu"), views)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize("views", [0, 2])
def test_an_epoch_shows_all_images_once_and_every_batch_has_its_share_of_both(mixup: float, views: int) -> None:
    batches = list(loader(9, 21, views=views, mixup=mixup, batch=5).epoch(1))
    assert sorted(torch.cat([one.index for one in batches]).tolist()) == list(range(30))
    assert {one.labelled for one in batches} <= {1, 2} and sum(one.labelled for one in batches) == 9
    for one in batches:
        known = one.labelled
        assert (one.index[:known] < 9).all() and (one.index[known:] >= 9).all()
        assert (one.labels[:known] >= 0).all() and (one.labels[known:] == -1).all()
        torch.testing.assert_close(one.targets[:known].sum(1), torch.ones(known))
        assert not one.targets[known:].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 12), st.integers(0, 3))
def test_both_kinds_are_spread_evenly_in_any_numbers(labelled: int, others: int, batch: int, epoch: int) -> None:
    if labelled + others < 2:
        return
    made = loader(labelled, others, batch=batch)
    parts = made._split(made._order(epoch))
    assert sorted(np.concatenate(parts).tolist()) == list(range(labelled + others))
    counts = [int((part < labelled).sum()) for part in parts]
    for part, count in zip(parts, counts, strict=True):
        assert (part[:count] < labelled).all() and abs(count - len(part) * labelled / (labelled + others)) < 2


def test_labelled_images_are_shown_the_same_whether_there_are_others_or_not() -> None:
    alone, beside = ({int(row): (image, target) for one in made.epoch(1) for row, image, target
                      in zip(one.index, one.images, one.targets, strict=True)}
                     for made in (loader(9, 0, views=2, mixup=0.4), loader(9, 21, views=2, mixup=0.4)))  # fmt: skip
    for row, (image, target) in alone.items():
        assert torch.equal(image, beside[row][0]) and torch.equal(target, beside[row][1])
    assert len(beside) == 30


def test_without_views_each_kind_is_mixed_with_its_own() -> None:
    made, plain = (loader(9, 21, mixup=mixup, color_jitter=0, label_smoothing=0, batch=10) for mixup in (0.4, 0.0))
    for step, (mixed, pure) in enumerate(zip(made.epoch(0), plain.epoch(0), strict=True)):
        share = float(made._rng(2, 0, step).beta(0.4, 0.4))
        known = mixed.labelled
        partners = [*reversed(range(known)), *reversed(range(known, 10))]
        for mine, theirs in ((mixed.images, pure.images), (mixed.targets, pure.targets)):
            expected = share * theirs + (1 - share) * theirs[partners]
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-3)


def test_images_without_a_label_must_come_last() -> None:
    items = [Item("a", -1), Item("b", 0)]
    options = build(Distill, {"data": "x", "out": "y", "teacher": "z"}, where="test")
    with pytest.raises(ValueError, match="must come after"):
        TrainLoader(Noise(), items, 3, PIXELS, options, 4, torch.device("cpu"))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- losses


class Tiny(nn.Module):
    """A linear classifier of mean colours."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(images.mean(dim=(2, 3)))
        return logits


class Says:
    """A teacher without weights."""

    def ask(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)) / 40

    def answers(self, batch: Batch) -> torch.Tensor:
        return self.ask(batch.images)

    def flush(self) -> None:
        """Has nothing to write."""


def task_of(*loss: str) -> ClassifierTask:
    torch.manual_seed(0)
    network = Network("made/tiny", Tiny(), "fc", PIXELS)
    return ClassifierTask(network, losses.parse(loss), source=Says())


def trained(made: TrainLoader, *loss: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    task = task_of(*loss)
    optimizer = torch.optim.SGD(task.network.parameters(), lr=0.05)
    curve = []
    for epoch in range(2):
        for batch in made.epoch(epoch):
            found = task.forward(batch)["loss"]
            found.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(float(found.detach()))
    return curve, task.network.state_dict()


@pytest.mark.parametrize("views", [0, 2])
def test_images_without_labels_teach_by_soft_labels_what_labelled_ones_do(views: int) -> None:
    more: dict[str, Any] = {"views": views, "mixup": 0.3}
    curve, state = trained(loader(0, 11, **more), "kd:1;temperature=2")
    expected, weights = trained(loader(11, 0, **more), "kd:1;temperature=2")
    assert curve == expected
    assert all(torch.equal(value, weights[name]) for name, value in state.items())


@pytest.mark.parametrize("name", ["labels", "dkd"])
def test_a_loss_on_labels_is_the_mean_over_the_labelled_images(name: str) -> None:
    task = task_of(f"{name}:1,kd:1;temperature=4")
    assert task.of_labelled == {name}
    for batch in loader(9, 21, batch=10).epoch(0):
        known = batch.labelled
        alone = Batch(batch.images[:known], batch.labels[:known], batch.targets[:known], batch.index[:known])
        found, expected = task.forward(batch), task.forward(alone)
        assert found["kd"] != expected["kd"]
        torch.testing.assert_close(found[name], expected[name])
        (gradient,) = torch.autograd.grad(found[name], task.network.fc.bias)
        (wanted,) = torch.autograd.grad(expected[name], task.network.fc.bias)
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("name", ["labels", "dkd"])
def test_without_a_labelled_image_a_loss_on_labels_is_nothing(name: str) -> None:
    task = task_of(f"{name}:1,kd:1;temperature=4")
    for batch in loader(0, 11).epoch(0):
        found = task.forward(batch)
        assert float(found[name].detach()) == 0 and torch.equal(found["loss"], found["kd"])
        gradients = [torch.autograd.grad(found[part], task.network.fc.bias, retain_graph=True)[0]
                     for part in ("loss", "kd")]  # fmt: skip
        assert torch.equal(*gradients) and gradients[0].any()


def test_every_loss_says_whether_it_needs_labels() -> None:
    from edgetl import plugins

    said = {name: plugins.load("losses", name).Loss.needs_labels for name in plugins.names("losses")}
    assert {name for name, needs in said.items() if needs} == {
        "bce", "crd", "dkd", "focal", "labels", "mse", "smooth-l1"}
    given = Given(torch.zeros(4, 3))  # what images without labels have: no loss that takes them may look at it
    answer = losses.Answer(torch.eye(4)[:, :3], [torch.rand(4, 5)])
    for name in ("kd;temperature=4", "dist", "logit-standardization", "rkd"):
        loss = losses.parse([name])[0].loss
        assert torch.equal(loss(answer, answer, given), loss(answer, answer, Given(torch.ones(4, 3))))


# ---------------------------------------------------------------------------------------------------------- counts


def test_what_is_counted_is_the_mean_over_the_images_that_it_is_of() -> None:
    task = task_of("labels:0.5,kd:1;temperature=4")
    fit = Fit.__new__(Fit)
    vars(fit).update(task=task, progress=Progress(), world=types.SimpleNamespace(size=1, total=list))
    right = labels = kd = 0.0
    for batch in loader(5, 21, batch=4).epoch(0):
        result = task.forward(batch)
        fit._count(batch, result)
        known = batch.labelled
        kd += float(result["kd"].detach()) * len(batch.labels)
        labels += float(result["labels"].detach()) * known
        right += float((result["logits"][:known].argmax(1) == batch.labels[:known]).sum())
    assert (fit.progress.images, fit.progress.labelled) == (26, 5)
    means = {name: total / fit._counted(name, 26, 5) for name, total in fit.progress.sums.items()}
    assert means["train_accuracy"] == pytest.approx(right / 5)
    assert means["labels"] == pytest.approx(labels / 5) and means["kd"] == pytest.approx(kd / 26)


# ------------------------------------------------------------------------------------------------------- the files


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", classes=3, images=6, splits=("train", "val", "test"))


def scattered(root: Path, *sources: Path) -> Path:
    """A folder of images without class folders: noise, and copies of files."""
    write_photos(root / "more", classes=2, images=3, seed=9)
    for number, source in enumerate(sources):
        (root / f"copy-{number}{source.suffix}").write_bytes(source.read_bytes())
    return root


def gathered(photos: Path, *folders: Path) -> tuple[Unlabelled, list[Event]]:
    told: list[Event] = []
    data = datasets.open_data(str(photos))
    options = build(Distill, {"data": str(photos), "out": "y", "teacher": "z"}, where="test")
    names = [str(one) for one in folders]
    return unlabelled.gather(names, data, splits.resolve(data, options), "distill", told.append), told


def test_copies_of_held_out_images_are_left_out_with_a_warning(photos: Path, tmp_path: Path) -> None:
    held = [next((photos / split / "amber").iterdir()) for split in ("val", "test")]
    known = next((photos / "train" / "amber").iterdir())
    own = tmp_path / "loose" / "more" / "beryl" / "000.png"
    folder = scattered(tmp_path / "loose", *held, known)
    (folder / "again.png").write_bytes(own.read_bytes())
    found, told = gathered(photos, folder)
    assert found.left_out == {"held_out": 2, "labelled": 1, "copies": 1} and len(found.items) == 6
    assert all(item.label == -1 for item in found.items)
    (warning,) = [one.values["text"] for one in told if one.kind == "warning"]
    assert "2 of the --unlabeled images are also in val or test, such as" in warning and "copy-0" in warning
    data = found.beside(datasets.open_data(str(photos)))
    assert data.read(found.items[0]) and data.read(data.items[0]) == (photos / data.items[0].key).read_bytes()
    assert found.items[0].key not in {item.key for item in data.items}


def test_files_that_cannot_be_decoded_are_counted_and_named(photos: Path, tmp_path: Path) -> None:
    folder = scattered(tmp_path / "loose")
    (folder / "broken.png").write_bytes((folder / "more" / "amber" / "002.png").read_bytes()[:90])
    (folder / "text.jpg").write_text("no picture")
    found, _ = gathered(photos, folder)
    data = found.beside(datasets.open_data(str(photos)))
    items = [*(one for one in data.items if one.split == "train"), *found.items]
    with pytest.raises(DataError, match=r"2 of 26 training images .* cannot be decoded: .*unlabeled:0:broken\.png"):
        store.open_store(data, items, "f", PIXELS, ignore, "distill")


def test_the_fingerprint_is_of_names_and_contents(photos: Path, tmp_path: Path) -> None:
    folder = scattered(tmp_path / "loose")
    first = gathered(photos, folder)[0]
    assert first.fingerprint == gathered(photos, folder)[0].fingerprint == loose.contents([str(folder)])
    victim = folder / "more" / "amber" / "000.png"
    victim.rename(victim.with_name("moved.png"))
    assert gathered(photos, folder)[0].fingerprint != first.fingerprint
    assert gathered(photos)[0].identity == {"unlabeled fingerprint": ""}
    assert unlabelled.gather(None, None, None, "finetune", print).identity == {}  # type: ignore[arg-type]


def test_folders_that_cannot_join_are_one_sentence(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, says in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", "holds no images"),
                         (photos / "val", "all of its 18 images are copies")):  # fmt: skip
        with pytest.raises(DataError, match=says):
            gathered(photos, folder)
    with pytest.raises(EdgetlError, match=r"nothing would be learned .* need labels \(labels, dkd\)"):
        unlabelled.require_use(["more"], losses.parse(["labels,dkd,kd:0"]))
    unlabelled.require_use([], losses.parse(["labels"]))
    unlabelled.require_use(["more"], losses.parse(["labels,kd"]))


def test_a_recipe_names_the_folders_from_its_own_place(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    text = 'data = "x"\n[distill]\nunlabeled = ["more", "nowhere"]\n'
    said = parse_recipe(text, where="test", base=tmp_path).distill
    assert said["unlabeled"] == (str(tmp_path / "more"), "nowhere")


# ------------------------------------------------------------------------------------------------------ in the loop


class Lesson:
    """A teacher of photos, and students that also see loose images."""

    def __init__(self, photos: Path, root: Path) -> None:
        self.root, self.loose = root, scattered(root / "loose")
        plain = {"data": str(photos), "image_size": 24, "batch_size": "6", "workers": 0, "threads": 1}
        given = {**plain, "teacher": "timm/test_resnet", "pretrained": False, "out": str(root / "teacher"), "epochs": 1}
        teacher = finetune(build(Finetune, given, where="test"))
        self.given = {**plain, "teacher": str(teacher), "student": "timm/test_resnet", "pretrained": False, "epochs": 3,
                      "views": 2, "mixup": 0.3, "loss": ["labels:0.5,kd:1"], "unlabeled": [str(self.loose)],
                      "checkpoint_minutes": 0}  # fmt: skip

    def taught(self, name: str, listener: Listener = ignore, **more: Any) -> Path:
        options = build(Distill, {**self.given, "out": str(self.root / name), **more}, where="test")
        return distill(options, listener=listener)


def test_a_student_learns_from_images_without_labels_and_its_control_does_not(photos: Path, tmp_path: Path) -> None:
    lesson = Lesson(photos, tmp_path)
    run = lesson.taught("run")
    record = weights.read_record(run)
    assert record["data"]["unlabelled"] == {"images": 6, "fingerprint": record["identity"]["unlabeled fingerprint"],
                                            "left_out": {"held_out": 0, "labelled": 0, "copies": 0}}  # fmt: skip
    control = weights.read_record(run / "control")
    assert control["options"]["epochs"] == 4 and "unlabelled" not in control["data"]  # 3 * 24 / 18 images
    with pytest.raises(RuntimeError):
        lesson.taught("broken", StopAt(5, RuntimeError()), control=False)
    resumed = lesson.taught("broken", resume=True, control=False)
    assert (resumed / rundir.MODEL).read_bytes() == (run / rundir.MODEL).read_bytes()
    (lesson.loose / "one-more.png").write_bytes((lesson.loose / "more" / "amber" / "002.png").read_bytes()[::-1])
    with pytest.raises(TrainingError, match="unlabeled fingerprint was"):
        lesson.taught("run", resume=True)


@pytest.mark.slow
def test_the_control_of_a_student_that_is_cut_in_steps_gets_its_epochs_too(photos: Path, tmp_path: Path) -> None:
    more = {"student": "slim:0.6", "round_to": 2, "slim_steps": 2, "slim_epochs": 3, "epochs": 1, "views": 1}
    run = Lesson(photos, tmp_path).taught("run", **more)
    control = weights.read_record(run / "control")
    assert (control["options"]["epochs"], control["options"]["slim_epochs"]) == (1, 4)  # 24 / 18 times 1 and 3
    rows = [json.loads(line) for line in (run / "control" / rundir.METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 1, 1, 1, 2]
