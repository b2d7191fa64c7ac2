"""The bookkeeping of benchmarks/distill_pairs.py and benchmarks/distill_speed.py; what they measure is not run here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgetl import metrics
from edgetl.recipe_presets import PRESETS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module(name)


def row(text: str) -> dict[str, str]:
    return {"right": text}


def test_one_seed_has_the_score_interval_of_its_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = script("distill_pairs", monkeypatch)
    found = pairs.difference([row("1110")], [row("1001")])
    low, high = metrics.paired_interval(2, 1, 4)
    assert (found["points"], found["low"], found["high"]) == (25.0, 100 * low, 100 * high)
    assert (found["seeds"], found["deviation_over_seeds"]) == (1, None)


def test_several_seeds_have_the_interval_over_seeds_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = script("distill_pairs", monkeypatch)
    found = pairs.difference([row("1110"), row("1111")], [row("1001"), row("1101")])
    low, high = metrics.crossed_interval(np.array([[0, 1, 1, -1], [0, 0, 1, 0]], float))
    assert found["points"] == 25.0
    assert (found["low"], found["high"]) == (100 * low, 100 * high)
    assert [one["points"] for one in found["by_seed"]] == [25.0, 25.0]


def test_one_teacher_stands_against_every_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = script("distill_pairs", monkeypatch)
    found = pairs.difference([row("0111"), row("0011")], [row("1111")])
    assert [one["points"] for one in found["by_seed"]] == [-25.0, -50.0]


def test_the_patient_arm_is_the_preset_but_for_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = script("distill_accuracy", monkeypatch).LONG["patient"]
    preset = PRESETS["patient"].values
    assert {**arm, "loss": tuple(arm["loss"]), "epochs": preset["epochs"]} == preset


def test_every_difference_is_between_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = script("distill_accuracy", monkeypatch)
    assert {arm for pair in accuracy.AGAINST for arm in pair} == set(accuracy.ARMS)


def test_thirty_epochs_are_set_up_once_built_k_times_and_read_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script("distill_speed", monkeypatch)
    found = {
        "stored": [{"setup_s": 5.0, "epochs_s": [20.0, 2.0, 4.0]}],
        "live": [{"setup_s": 1.0, "epochs_s": [21.0]}],
        "student": [{"setup_s": 0.0, "epochs_s": [9.0, 2.0]}],
        "torchdistill": [{"epochs_s": [30.0]}],
        "torchdistill channels-last": [{"epochs_s": [25.0]}],
    }
    plan = {"photos": 100, "all_photos": 200, "engine": "cpu"}
    summed = speed.summed(found, {"seconds_an_image": {"torch": 9.0, "cpu": 0.18}}, plan, 4, 30)
    assert summed["stored_s"] == 2 * (5 + 4 * 20 + 26 * 3)
    assert summed["live_s"] == 2 * (1 + 30 * 21)
    assert summed["bound"] == pytest.approx((0.18 + 0.02) / (0.02 + 4 * 0.18 / 30))
    assert summed["share_of_bound"] == pytest.approx(1262 / 326 / summed["bound"])
    assert summed["peer"] == "torchdistill channels-last"
    assert summed["against_peer"] == 2 * 30 * 25 / 326
    assert summed["peers_s"] == {"torchdistill": 2 * 30 * 30, "torchdistill channels-last": 2 * 30 * 25}


def test_a_part_of_the_photos_keeps_the_proportions_of_the_classes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    speed = script("distill_speed", monkeypatch)
    for split in speed.SPLITS:
        for name, count in (("big", 20), ("small", 4)):
            (tmp_path / "all" / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "all" / split / name / f"{number:02}.jpg").touch()
    speed.chosen(tmp_path / "all", tmp_path / "part", 0.5)
    assert speed.photos_in(tmp_path / "part" / "train") == 12
    assert len(list((tmp_path / "part" / "test" / "small").iterdir())) == 2
