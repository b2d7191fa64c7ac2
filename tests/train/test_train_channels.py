"""Training on grey images, on RGBA and on planes: from the command line to the device, and what is refused."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import edgetl
from edgetl import models, recipe, rundir, weights
from edgetl.bench import answers_html, photos
from edgetl.cli.app import main
from edgetl.datasets import open_data
from edgetl.errors import EdgetlError
from edgetl.events import ignore
from edgetl.export import golden
from edgetl.recipe import Distill, Finetune, build
from edgetl.runtime.preprocess import Preprocess, decode, prepare
from edgetl.train import augment, channels, damaged, policies, slimming, softlabels, store
from edgetl.train.task import Normalized

QUICK = ("--no-pretrained", "--image-size", "32", "--epochs", "1", "--batch-size", "8", "--threads", "1", "--workers",
         "0")  # fmt: skip
EVERYTHING = ("--auto-augment", "randaugment", "--random-erasing", "0.5", "--mixup", "0.2", "--cutmix", "1", "--vflip")
RGB = Preprocess(size_hw=(8, 8))
BGR = dataclasses.replace(RGB, color="bgr")
GRAY = Preprocess(size_hw=(8, 8), color="gray", mean=(0.4,), std=(0.2,))
RGBA = Preprocess(size_hw=(8, 8), color="rgba", mean=(0.5,) * 4, std=(0.2,) * 4)
FIVE = Preprocess(size_hw=(8, 8), color="planes", mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(0.2,) * 5)


def folder(root: Path, count: int, images: int = 8) -> Path:
    """Class folders of images with so many channels; arrays from five on."""
    chance = np.random.default_rng(0)
    for label, level in (("dark", 0), ("bright", 120)):
        (root / label).mkdir(parents=True)
        for number in range(images):
            pixels = chance.integers(level, level + 120, (36, 40, count), dtype=np.uint8)
            if count > 4:
                np.save(root / label / f"{number}.npy", pixels)
            else:
                Image.fromarray(pixels[:, :, 0] if count == 1 else pixels).save(root / label / f"{number}.png")
    return root


def call(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize(
    ("count", "color"), [(1, "gray"), (4, "rgba"), pytest.param(5, "planes", marks=pytest.mark.slow)]
)
def test_from_images_to_the_device(count: int, color: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The student takes its teacher's channels; the device answers as torch does."""
    data, teacher, student, bundle = folder(tmp_path / "data", count), *(tmp_path / name for name in "tsb")
    assert call("finetune", "--data", data, "--teacher", "timm/test_resnet", "--in-channels", count, "--out", teacher,
                *QUICK, *EVERYTHING) == 0  # fmt: skip
    assert f"from 3 channels to {count}" in capsys.readouterr().err
    assert call("distill", "--data", data, "--teacher", teacher, "--student", "timm/test_efficientnet", "--no-control",
                "--views", 1, "--out", student, *QUICK) == 0  # fmt: skip
    assert call("export", student, "--data", data, "--out", bundle, "--precision", "fp32", "--golden", 1) == 0
    assert call("verify", bundle) == 0
    image = data / "dark" / ("1.npy" if count > 4 else "1.png")
    assert call("predict", bundle, image) == 0
    network = weights.load(student).network
    assert (network.preprocess.color, network.preprocess.channels) == (color, count)
    with torch.no_grad():
        expected = network.module(torch.from_numpy(prepare(image, network.preprocess))[None])
    with edgetl.load(bundle, backend="cpu", variant="fp32") as classifier:
        assert classifier.manifest.preprocess == network.preprocess
        assert classifier.manifest.variants[0].inputs[0].shape == ("N", count, 32, 32)
        pixels = decode(image, network.preprocess)  # arrays, as an application has them
        found = classifier.logits(prepare(pixels, network.preprocess)[None])
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
        assert classifier.predict(pixels).label == classifier.predict(image).label


REFUSED = [
    (3, 4, "has no fourth channel (RGB); this model takes RGBA images"),
    (3, 5, "is an image file (RGB); this model takes arrays of 5 channels"),
    (5, 6, "has shape [36, 40, 5]; this model takes 6 channels"),
    (5, 3, "has shape [36, 40, 5]; expected"),
]


@pytest.mark.parametrize(("found", "asked", "says"), REFUSED)
def test_images_of_other_channels_are_refused_before_the_training(
    found: int, asked: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert call("finetune", "--data", folder(tmp_path / "data", found, 4), "--teacher", "timm/test_resnet",
                "--in-channels", asked, "--out", out, *QUICK) == 1  # fmt: skip
    told = capsys.readouterr().err
    assert says in told
    assert "--in-channels" in told[told.index("hint:") :]
    assert not out.exists()


def test_arrays_of_other_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "data", 5, 4)
    for path in data.rglob("*.npy"):
        np.save(path, np.load(path).astype(np.float32))
    assert call("finetune", "--data", data, "--teacher", "timm/test_resnet", "--in-channels", 5, "--out",
                tmp_path / "run", *QUICK) == 1  # fmt: skip
    assert "holds float32 of shape [36, 40, 5]; expected uint8" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["0", "65", "three"])
def test_a_number_of_channels_that_cannot_be_is_wrong_usage(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("finetune", "--data", "x", "--teacher", "y", "--in-channels", asked, "--out", "z") == 2
    assert "in-channels" in capsys.readouterr().err


def test_a_run_starts_another_and_keeps_its_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "data", 1)
    first = tmp_path / "first"
    assert call("finetune", "--data", data, "--teacher", "timm/test_resnet", "--in-channels", 1, "--strategy", "probe",
                "--out", first, *QUICK) == 0  # fmt: skip
    assert call("finetune", "--data", data, "--teacher", first, "--out", tmp_path / "second", *QUICK[1:]) == 0
    assert weights.read_record(tmp_path / "second")["preprocess"]["color"] == "gray"
    assert call("finetune", "--data", data, "--teacher", first, "--in-channels", 3, "--out", tmp_path / "third",
                *QUICK[1:]) == 1  # fmt: skip
    assert "takes images of 1 channels here, found --in-channels 3" in capsys.readouterr().err


def test_a_gray_student_of_a_teacher_in_color_sees_its_luma(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 3)
    teacher = tmp_path / "teacher"
    assert call("finetune", "--data", data, "--teacher", "timm/test_resnet", "--strategy", "probe", "--out", teacher,
                *QUICK) == 0  # fmt: skip
    assert call("distill", "--data", data, "--teacher", teacher, "--student", "timm/test_efficientnet", "--in-channels",
                1, "--no-control", "--out", tmp_path / "student", *QUICK) == 0  # fmt: skip
    record = weights.read_record(tmp_path / "student")
    assert record["preprocess"]["color"] == "gray"
    assert record["options"]["in_channels"] == 1


def test_the_views_are_those_that_all_can_see() -> None:
    assert channels.shown(GRAY, [GRAY]) is GRAY
    assert channels.shown(RGB, [GRAY]) is RGB
    assert channels.shown(BGR, [RGB]) is BGR
    assert channels.shown(RGBA, [RGBA]) is RGBA
    both = channels.shown(GRAY, [GRAY, RGB])
    assert (both.color, both.mean, both.size_hw) == ("rgb", (0.4,) * 3, (8, 8))
    for student, teacher in ((RGBA, RGB), (RGB, RGBA), (GRAY, FIVE), (FIVE, RGBA),
                             (FIVE, dataclasses.replace(FIVE, mean=(0.5,) * 6, std=(0.5,) * 6))):  # fmt: skip
        with pytest.raises(EdgetlError, match="both must see the same"):
            channels.shown(student, [teacher])


def test_each_network_gets_its_channels_of_the_views() -> None:
    images = torch.rand(2, 3, 8, 8) * 255
    luma = (images * torch.tensor(augment.LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)

    def prepared(wants: Preprocess, given: torch.Tensor) -> torch.Tensor:
        return Normalized(nn.Identity(), wants).prepared(given)

    torch.testing.assert_close(prepared(GRAY, images), (luma / 255 - 0.4) / 0.2)
    torch.testing.assert_close(prepared(GRAY, luma), (luma / 255 - 0.4) / 0.2)
    torch.testing.assert_close(prepared(RGB, luma), prepared(RGB, luma.expand(-1, 3, -1, -1)))
    turned = dataclasses.replace(BGR, mean=RGB.mean[::-1], std=RGB.std[::-1])
    torch.testing.assert_close(prepared(turned, images), prepared(RGB, images).flip(1))
    with pytest.raises(ValueError, match="images of 3 channels are no rgba images of 4"):
        prepared(RGBA, images)


def test_jitter_has_no_saturation_without_colors() -> None:
    images = torch.rand(2, 4, 6, 6) * 200
    assert torch.equal(augment.jitter_colors(images, torch.tensor([[1, 1, 0.3]] * 2)), images)
    flat = augment.jitter_colors(images, torch.tensor([[1, 0.0, 1]] * 2))
    torch.testing.assert_close(flat, images.mean((2, 3), keepdim=True).expand_as(images))
    gray = images[:, :1]
    torch.testing.assert_close(
        augment.jitter_colors(gray, torch.tensor([[1.2, 0.5, 0.1]] * 2)),
        augment.jitter_colors(gray.expand(-1, 3, -1, -1), torch.tensor([[1.2, 0.5, 0.1]] * 2))[:, :1],
    )


@pytest.mark.parametrize("name", sorted({*policies.MOVES, *policies.RECOLORS}))
def test_every_change_takes_every_channel_alone(name: str) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 9, 9), dtype=np.uint8))
    change = policies.Change(name, 4.0 if name == "Posterize" else 0.3)
    found = policies.changed(image, change, [10.0] * 5)
    alone = [policies.changed(one[None], change, [10.0]) for one in image]
    assert torch.equal(found, torch.cat(alone))


def test_the_store_keeps_the_channels_and_tells_them_apart(tmp_path: Path) -> None:
    data = open_data(str(folder(tmp_path / "data", 4, 3)))
    opened = {one.color: store.open_store(data, data.items, "f", one, ignore, "test") for one in (RGB, GRAY, RGBA)}
    assert {color: found[0].shape[2] for color, found in opened.items()} == {"rgb": 3, "gray": 1, "rgba": 4}
    assert len({found.folder for found in opened.values()}) == 3
    assert store.open_store(data, data.items, "f", BGR, ignore, "test").folder == opened["rgb"].folder
    small = store.evaluation_pixels(data, data.items, "f", RGBA)
    assert small.shape == (6, 8, 8, 4)


def test_damaged_images_are_not_those_of_many_channels(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", 5, 3)
    (root / "dark" / "0.npy").write_bytes((root / "dark" / "0.npy").read_bytes()[:-7])
    data = open_data(str(root))
    assert list(damaged.found(data, data.items, "f", ignore, "test")) == ["dark/0.npy"]


def test_the_store_of_soft_labels_knows_the_channels() -> None:
    def key(student: Preprocess) -> Path:
        made = build(Distill, {"data": "d", "teacher": "t", "student": "s", "out": "o"}, where="test")
        return softlabels.folder_of(softlabels.Identity(
            teacher="t", teacher_preprocess=RGB, student_preprocess=student, fingerprint="f", keys=("a",),
            options=dataclasses.asdict(made), engine="torch"))  # fmt: skip

    assert len({key(GRAY), key(channels.shown(GRAY, [RGB])), key(RGB)}) == 3


def test_a_student_has_the_channels_of_its_teacher() -> None:
    teacher = models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32, channels=1)

    def made(**values: object) -> int | None:
        given = {"data": "d", "teacher": "t", "student": "timm/test_vit", "out": "o", **values}
        return slimming.channels_of(build(Distill, given, where="test"), teacher)

    assert made() == 1
    assert made(in_channels=3) == 3
    assert made(student="slim:0.5") == made(student="slim:0.5", in_channels=1) == 1
    with pytest.raises(EdgetlError, match="cut out of a teacher of 1 channels"):
        made(student="slim:0.5", in_channels=4)


def test_drawn_images_have_the_channels() -> None:
    for wants in (RGBA, FIVE):
        for source in golden.synthetic(3, 0, wants):
            assert decode(source, wants).shape[2] == wants.channels
        assert golden.synthetic(3, 0, wants) == golden.synthetic(3, 0, wants)
        asked = build(recipe.Bench, {"cases": ["x"], "out": "o", "photos": 1, "photo_size": "20x10"}, where="test")
        found = photos.choose(asked, None, wants)
        assert found is not None
        assert f"20 x 10 pixels and {wants.channels} channels" in found.described
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((30, 20, 7), np.uint8))
    assert Image.open(io.BytesIO(answers_html.thumbnail(buffer.getvalue()))).size == (20, 30)


def test_old_records_of_runs_are_read_as_before(tmp_path: Path) -> None:
    """A RUN that was made before there were channels has none in its options."""
    network = models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32)
    weights.save(tmp_path, network, {"labels": ["a", "b"], "options": {}})
    assert weights.load(tmp_path).network.preprocess == network.preprocess
    assert "in_channels" not in weights.read_record(tmp_path)["options"]
    assert build(Finetune, {"data": "d", "teacher": "t", "out": "o"}, where="test").in_channels is None
    assert (tmp_path / rundir.RUN).is_file()
