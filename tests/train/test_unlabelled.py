"""Images without a label: what a batch, a loss and a count make of them, and which files join the training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgetl import losses
from edgetl.datasets import Item
from edgetl.losses import Given
from edgetl.models import Network
from edgetl.recipe import Distill, build
from edgetl.runtime.preprocess import Preprocess
from edgetl.train.loader import Batch, TrainLoader
from edgetl.train.loop import Fit, Progress
from edgetl.train.task import ClassifierTask

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
    task = task_of(f"{name}:1,kd:1")
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
    task = task_of(f"{name}:1,kd:1")
    for batch in loader(0, 11).epoch(0):
        found = task.forward(batch)
        assert float(found[name].detach()) == 0 and not found[name].requires_grad
        assert torch.equal(found["loss"], found["kd"]) and found["loss"].requires_grad


def test_every_loss_says_whether_it_needs_labels() -> None:
    from edgetl import plugins

    said = {name: plugins.load("losses", name).Loss.needs_labels for name in plugins.names("losses")}
    assert {name for name, needs in said.items() if needs} == {"crd", "dkd", "labels"}
    given = Given(torch.zeros(4, 3))  # what images without labels have: no loss that takes them may look at it
    answer = losses.Answer(torch.eye(4)[:, :3], [torch.rand(4, 5)])
    for name in ("kd", "dist", "logit-standardization", "rkd"):
        loss = plugins.load("losses", name).Loss()
        assert torch.equal(loss(answer, answer, given), loss(answer, answer, Given(torch.ones(4, 3))))


# ---------------------------------------------------------------------------------------------------------- counts


def test_what_is_counted_is_the_mean_over_the_images_that_it_is_of() -> None:
    task = task_of("labels:0.5,kd:1")
    fit = Fit.__new__(Fit)
    fit.task, fit.progress = task, Progress()
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
