"""Losses on features in the real loop: which layers they look at, what they train, and that nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import write_photos
from stop_at import StopAt
from torch import nn

from edgetl import losses, models, rundir, weights
from edgetl.errors import EdgetlError
from edgetl.events import ignore
from edgetl.recipe import Distill, Finetune, build
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import features, seed
from edgetl.train.features import Layers
from edgetl.train.loader import Batch
from edgetl.train.student import distill
from edgetl.train.task import ClassifierTask
from edgetl.train.teacher import finetune

COMMON = {"image_size": 32, "epochs": 2, "batch_size": "8", "workers": 0, "threads": 1}
ON_FEATURES = ("at", "crd", "fitnet", "rkd", "sp")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Photos, and a RUN that knows them."""
    photos = write_photos(tmp_path_factory.mktemp("photos") / "photos", classes=3, images=8)
    out = tmp_path_factory.mktemp("teacher") / "run"
    given = {"data": str(photos), "out": str(out), "teacher": "timm/test_resnet", "pretrained": False, **COMMON}
    return photos, finetune(build(Finetune, given, where="test"))


def taught(teacher: tuple[Path, Path], out: Path, loss: str, *, listener: Any = ignore, **more: Any) -> Path:
    given = {"data": str(teacher[0]), "teacher": str(teacher[1]), "out": str(out), "loss": [loss], "control": False,
             **COMMON, **more}
    return distill(build(Distill, given, where="test"), listener=listener)


# ------------------------------------------------------------------------------------------------- which layers


def create(model: str, size: int = 64) -> models.Network:
    return models.create(model, classes=3, pretrained=False, image_size=size)


@pytest.mark.parametrize(
    ("model", "size", "paths"),
    [
        ("torchvision/resnet18", 64, ["relu", "layer1", "layer2", "layer3", "layer4"]),
        ("torchvision/mobilenet_v2", 64, ["features.1", "features.3", "features.6", "features.13", "features"]),
        ("efficientnet-lite/efficientnet_lite0", 64, ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"]),
    ],
)
def test_stages_are_the_last_maps_of_each_resolution(model: str, size: int, paths: list[str]) -> None:
    stages = Layers(create(model, size), "student").stages()
    assert [one.path for one in stages] == paths
    assert [one.shape[1] for one in stages] == [32, 16, 8, 4, 2]


def test_tokens_and_maps_with_channels_last_become_maps() -> None:
    assert features.as_map(torch.zeros(2, 5, 8)).shape == (2, 8, 5, 1)
    assert features.as_map(torch.zeros(2, 7, 7, 96)).shape == (2, 96, 7, 7)
    assert features.as_map(torch.zeros(2, 96, 7, 7)).shape == (2, 96, 7, 7)
    assert features.as_map(torch.zeros(2, 7, 7, 7)).shape == (2, 7, 7, 7)
    for other in (torch.zeros(2), (torch.zeros(2, 3),), torch.zeros(2, 3, dtype=torch.int64)):
        assert features.as_map(other) is None


def test_a_transformer_has_an_embedding_and_tokens() -> None:
    layers = Layers(create("timm/test_vit", 160), "teacher")
    assert layers.embedding().before and layers.embedding().shape == torch.Size([64])
    (blocks,) = layers.named("blocks.0")
    assert blocks.shape[0] == 64 and blocks.shape[2] == 1


def test_looking_at_a_network_leaves_it_as_it_was() -> None:
    network = create("timm/test_resnet")
    network.module.train()
    network.module.get_submodule("bn1").eval()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    Layers(network, "student")
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())
    assert network.module.training and not network.module.get_submodule("bn1").training
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in network.module.modules())


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ("fitnet;student=layer1.0.konv1", "'layer1.0.konv1' does not exist; did you mean 'layer1.0.conv1'"),
        ("sp;teacher=nonsense", "teacher's layer 'nonsense' does not exist"),
        ("sp;teacher=layer1+layer2", r"1 layers of the student \(layer4\) and 2 of the teacher \(layer1, layer2\)"),
    ],
)
def test_a_wrong_layer_is_one_sentence(loss: str, says: str) -> None:
    with pytest.raises(EdgetlError, match=says) as caught:
        ClassifierTask(create("timm/test_resnet"), losses.parse([loss]), create("timm/test_resnet"))
    assert "\n" not in caught.value.message


class Plain(nn.Module):
    """A network without maps, whose last layer is fed with numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(images.flatten(1))
        return found


def test_a_network_without_maps_is_told() -> None:
    plain = models.Network("test/plain", Plain(), "fc", Preprocess(size_hw=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3))
    assert Layers(plain, "student").embedding().shape == torch.Size([192])
    with pytest.raises(EdgetlError, match="has no feature maps"):
        ClassifierTask(plain, losses.parse(["at"]), plain)


def test_embeddings_of_a_map_are_its_mean_over_the_places() -> None:
    student, other = create("timm/test_resnet", 32), create("torchvision/mobilenet_v2", 32)
    torch.manual_seed(0)
    task = ClassifierTask(student, losses.parse(["rkd;student=layer4;teacher=features"]), other)
    task.train_mode()
    seen: list[torch.Tensor] = []
    student.module.get_submodule("layer4").register_forward_hook(lambda _, given, made: seen.append(made))
    batch = Batch(255 * torch.rand(4, 3, 32, 32), torch.arange(4) % 3, torch.eye(3)[[0, 1, 2, 0]], torch.arange(4))
    task(batch)
    assert task._heard is not None
    ours, theirs = task._heard.of(task.terms[0])
    torch.testing.assert_close(ours[0], seen[0].mean(dim=(2, 3)))
    assert theirs[0].shape == (4, 1280)


# ----------------------------------------------------------------------------------------------------- in the loop


@pytest.mark.parametrize("loss", [*ON_FEATURES, "dist", "dkd", "logit-standardization"])
def test_every_loss_trains_a_student_of_another_family(teacher: tuple[Path, Path], tmp_path: Path, loss: str) -> None:
    text = f"labels:0.5,{loss}:1" + (";negatives=5" if loss == "crd" else "")
    run = taught(teacher, tmp_path / "run", text, student="timm/test_efficientnet", pretrained=False, epochs=1)
    (row,) = [json.loads(line) for line in (run / rundir.METRICS).read_text().splitlines()]
    assert row[loss] > 0 and row["loss"] == pytest.approx(0.5 * row["labels"] + row[loss])
    fresh = create("timm/test_efficientnet", 32).module.state_dict()
    assert set(safetensors.torch.load((run / rundir.MODEL).read_bytes())) == set(fresh)
    network = weights.load(run).network.module
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in network.modules())


def test_projections_are_trained_with_the_student(teacher: tuple[Path, Path]) -> None:
    torch.manual_seed(0)
    student, other = create("timm/test_efficientnet", 32), weights.load(teacher[1]).network
    task = ClassifierTask(student, losses.parse(["fitnet:1,crd:1;negatives=4"]), other, losses.Corpus([0, 1, 2, 0]))
    names = [name for name, _ in task.trained() if name.startswith("losses.")]
    own = ["regressors.0", "projections.0", "projections.1"]
    assert [name.split(".", 2)[2] for name in names] == [f"{one}.{what}" for one in own for what in ("weight", "bias")]
    assert {"1.memories.0.rows", "1.memories.1.z"} <= set(task.state())
    task.train_mode()
    batch = Batch(255 * torch.rand(4, 3, 32, 32), torch.arange(4) % 3, torch.eye(3)[[0, 1, 2, 0]], torch.arange(4))
    task(batch)["loss"].backward()
    assert all(value.grad is not None for name, value in task.trained() if name in names)
    assert all(value.grad is None for value in other.module.parameters())


def test_the_scale_of_a_loss_does_not_depend_on_the_others(teacher: tuple[Path, Path]) -> None:
    def parts(text: str) -> dict[str, float]:
        seed.seed_everything(0)
        student, other = create("timm/test_efficientnet", 32), weights.load(teacher[1]).network
        task = ClassifierTask(student, losses.parse([text]), other)
        task.train_mode()
        images = 255 * torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        said = task(Batch(images, torch.arange(6) % 3, torch.eye(3).repeat(2, 1), torch.arange(6)))
        return {name: float(value.detach()) for name, value in said.items() if name not in ("logits", "loss")}

    alone = {name: parts(name)[name] for name in ("at", "sp", "rkd", "dist", "dkd")}
    together = parts("at:1000,sp:3000,rkd:0.1,dist:2,dkd:0")
    assert together == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("step", [2, 4])
def test_what_a_loss_learned_and_remembers_survives_a_resume(
    teacher: tuple[Path, Path], tmp_path: Path, step: int
) -> None:
    more = {"student": "timm/test_efficientnet", "pretrained": False, "checkpoint_minutes": 0}
    loss = "labels:1,crd:0.8,fitnet:1;negatives=5"
    whole = taught(teacher, tmp_path / "whole", loss, **more)
    with pytest.raises(RuntimeError, match="the machine died"):
        taught(teacher, tmp_path / "broken", loss, listener=StopAt(step, RuntimeError("the machine died")), **more)
    again = taught(teacher, tmp_path / "broken", loss, resume=True, **more)
    assert (again / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()
    assert [json.loads(line)["crd"] for line in (again / rundir.METRICS).read_text().splitlines()] == [
        json.loads(line)["crd"] for line in (whole / rundir.METRICS).read_text().splitlines()
    ]
