"""What the names of layers decide is said before any image is looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.cli.app import main
from edgetl.recipe import Distill, build
from edgetl.train import setting
from edgetl.train.student import distill

PhotoFolder = Callable[..., Path]
TEACHER = "timm/test_resnet"


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        pytest.fail("the data was opened")

    monkeypatch.setattr(setting, "prepare", read)


def said(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    own = ["--data", str(folder / "data"), "--out", str(folder / "run"), "--threads", "1"]
    assert main([arguments[0], *own, *arguments[1:]]) == 1
    assert not list(folder.glob(".*partial"))
    return capsys.readouterr().err


@pytest.mark.parametrize(("held", "sentence"), [("layr1", "--freeze 'layr1' matches no module"),
                                                ("stages:9", "--freeze stages:9: timm/test_resnet has"),
                                                ("*", "--freeze '*' holds all of")])  # fmt: skip
def test_freeze(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_is_read: None, held: str, sentence: str
) -> None:
    flags = ["finetune", "--teacher", TEACHER, "--image-size", "32", "--strategy", "partial", "--freeze", held]
    assert sentence in said(flags, tmp_path, capsys)


@pytest.mark.parametrize(("student", "loss", "sentence"), [
    (TEACHER, "labels,fitnet:0.1;teacher=layr3;student=layer3", "the teacher's layer 'layr3' does not exist"),
    (TEACHER, "labels,at:0.1;teacher=layer3;student=layr3", "the student's layer 'layr3' does not exist"),
    ("slim:0.5", "labels,fitnet:0.1;teacher=layer3;student=layr3", "the student's layer 'layr3' does not exist"),
])  # fmt: skip
def test_layers_of_losses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_is_read: None, student: str, loss: str, sentence: str
) -> None:
    flags = ["distill", "--teacher", TEACHER, "--student", student, "--image-size", "32", "--loss", loss]
    assert sentence in said(flags, tmp_path, capsys)


def test_a_comparison_says_it_of_a_row(
    photo_folder: PhotoFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["--strategies", "full", "--strategies", "partial;freeze=layr1"]
    own = ["--data", str(photo_folder()), "--out", str(tmp_path / "out"), "--teacher", TEACHER]
    assert main(["compare-strategies", *own, "--image-size", "32", *arms]) in (1, 2)
    assert "--freeze 'layr1' matches no module" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_right_goes_on_to_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    monkeypatch.setattr(setting, "prepare", reached)
    values = {"data": "nowhere", "teacher": TEACHER, "student": "slim:0.5", "out": str(tmp_path / "run"),
              "image_size": 32, "loss": ("labels,fitnet:0.1;teacher=layer3;student=layer3",)}  # fmt: skip
    with pytest.raises(Reached):
        distill(build(Distill, values, where="test"))
