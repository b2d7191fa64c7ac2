"""The whole path for once, with nothing replaced: photos to a verified, measured bundle through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import edgetl
from edgetl.bench import report
from edgetl.cli import app
from edgetl.contact_sheet import draw

RECIPE = """
data = "photos"
image_size = 32
epochs = 1
pretrained = false
val_fraction = 0.25
[finetune]
teacher = "timm/test_resnet"
[distill]
student = "timm/test_efficientnet"
control = false
[export]
target = ["x86-vnni"]
golden = 2
calibration_images = 8
max_drop = 100
min_agreement = 0
[bench]
backend = ["cpu", "torch"]
rounds = 1
block = 50
starts = 1
timeout_s = 600
[gate]
max_student_drop = 100
"""


def test_from_photos_to_a_verified_bundle(
    photo_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo_folder(classes=3, images=12, size=40)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)

    assert app.main(["run", "recipe.toml", "--out", "out"]) == 0
    shown = capsys.readouterr()
    assert "bundle fp32 cpu" in shown.out
    assert "finetune: epoch 1/1" in shown.err
    rows = report.read(Path("out/report")).rows
    assert {(row.kind, row.backend) for row in rows} == {("run", "torch"), ("bundle", "cpu")}
    assert all(row.measured and row.accuracy is not None for row in rows)

    assert app.main(["run", "recipe.toml", "--out", "out", "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == ["finetune", "distill", "export", "bench"]
    assert app.main(["run", "recipe.toml", "--out", "out", "--resume", "--set", "gate.min_teacher_accuracy=100"]) == 3
    assert "The teacher is right on " in capsys.readouterr().err

    assert app.main(["verify", "out/bundle"]) == 0
    assert app.main(["predict", "out/bundle", "photos/coral/000.png"]) == 0
    with edgetl.load("out/bundle") as classifier:
        assert classifier.labels == ("amber", "beryl", "coral")
    with Image.open(draw(Path("out/bundle"), Path("out/student"), Path("out/predictions.png"))) as picture:
        assert picture.size[0] == 4 * (176 + 8) + 8
