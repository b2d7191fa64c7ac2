"""What `edgetl distill` says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetl.cli import present

MEASURED = {"n": 50, "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95}
GAIN = {"seeds": [3, 4], "student": [0.9, 0.88], "control": [0.86, 0.88], "differences": [0.04, 0.0],
        "sentence": "gain +2.0 points (95 %: -3.0 to +7.0) over 2 seeds and 50 test images: not significant."}


def record(**more: Any) -> dict[str, Any]:
    return {
        "parameters": 400, "macs": 5000, "student": "slim:0.4",
        "teacher": {"model": "timm/test_resnet", "parameters": 1000, "macs": 20000, "metrics": {"test": MEASURED}},
        "metrics": {"val": MEASURED, "test": {**MEASURED, "accuracy": 0.88}, "control": {"test": MEASURED},
                    "gain": GAIN},
        **more,
    }


def test_seeds_beside_their_controls_and_student_beside_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    present.taught(Path("run"), record(seeds=[{}, {}], best_seed=3), as_json=False)
    assert capsys.readouterr().out == """\
seed  student  control  gain, points
   3   90.0 %   86.0 %          +4.0
   4   88.0 %   88.0 %          +0.0

run              run
teacher          timm/test_resnet
student          slim:0.4 with seed 3, of 2 the best on validation
validation       90.0 % of 50 images, 95 % interval 80.0 to 95.0
test             90.0 % -> 88.0 % of 50 images, 95 % interval 80.0 to 95.0
parameters       1,000 -> 400 (40.0 %)
multiplications  20,000 -> 5,000 (25.0 %)
gain             +2.0 points (95 %: -3.0 to +7.0) over 2 seeds and 50 test images: not significant.
"""


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"val": MEASURED}, "not known: --no-control"),
        ({"val": MEASURED, "control": {"val": MEASURED}, "gain": None}, "not known: there are no test images"),
    ],
)
def test_a_gain_that_is_not_known_says_why(
    capsys: pytest.CaptureFixture[str], metrics: dict[str, Any], says: str
) -> None:
    teacher = {"model": "onnx:theirs.onnx", "parameters": 1000, "macs": None}
    present.taught(Path("run"), record(metrics=metrics, teacher=teacher, teachers=[teacher, teacher]), as_json=False)
    out = capsys.readouterr().out
    assert f"gain             {says}\n" in out and "seed " not in out
    assert "teacher          onnx:theirs.onnx and 1 more\n" in out
    assert "multiplications  5,000\n" in out
