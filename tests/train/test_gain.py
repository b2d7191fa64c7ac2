"""The gain over the control: its words, and trainings with several seeds that are broken off and resumed."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_photos
from stop_at import StopAt

from edgetl import metrics, predictions, rundir, weights
from edgetl.compress import cost
from edgetl.datasets import DataSet
from edgetl.errors import TrainingError
from edgetl.events import Event, ignore
from edgetl.predictions import Predictions
from edgetl.recipe import Distill, Finetune, build
from edgetl.recipe_fields import MOST_SEED
from edgetl.splits import Duplicates, Splits
from edgetl.train import gain, repeats
from edgetl.train.loop import Precision
from edgetl.train.setting import Setting
from edgetl.train.student import distill
from edgetl.train.teacher import finetune

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gain_coverage

COMMON = {"image_size": 32, "epochs": 1, "batch_size": "8", "workers": 0, "threads": 1}


def said(right: list[int], keys: str = "k") -> Predictions:
    n = len(right)
    zero = np.zeros(n, np.float32)
    return Predictions(np.array([f"{keys}{one}" for one in range(n)]), np.ones(n, np.int64),
                       np.array(right, np.int64), zero, zero)


def test_one_seed_is_paired_over_the_images_and_says_what_it_does_not_know() -> None:
    student, control = said([1] * 18 + [0] * 2), said([1] * 10 + [0] * 8 + [0, 1])
    found = gain.between([7], [student], [control])
    assert (found.student, found.control, found.images) == ((0.9,), (0.55,), 20)
    assert found.mean == found.differences[0] == pytest.approx(0.35)
    assert (found.low, found.high) == metrics.paired_interval(8, 1, 20)
    assert found.significant
    assert found.sentence() == (
        f"gain +35.0 points (95 %: {100 * found.low:+.1f} to {100 * found.high:+.1f}), paired over 20 test images: "
        "significant. One seed says nothing of the spread over seeds; --seeds 3 would.")


def test_several_seeds_cover_seeds_and_images() -> None:
    random = np.random.default_rng(0)
    students, controls = ([said(random.binomial(1, share, 400).tolist()) for _ in range(3)] for share in (0.9, 0.6))
    found = gain.between([0, 1, 2], students, controls)
    right = np.array([one.right for one in students], float) - np.array([one.right for one in controls], float)
    assert (found.low, found.high) == metrics.crossed_interval(right)
    assert found.differences == pytest.approx(np.subtract(found.student, found.control))
    assert found.sentence().endswith("over 3 seeds and 400 test images: significant.")
    worse = gain.between([0, 1, 2], controls, students)
    assert worse.significant and "the teacher has done harm" in worse.sentence()


def test_the_documentation_has_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs/gain.md").read_text()
    table = page.partition("| field |")[2].partition("\n\n")[0]
    found = gain.between([0], [said([1, 0])], [said([1, 1])])
    assert set(re.findall(r"`(\w+)`", table)) == set(found.to_json())
    assert all(f"`SPLIT.{field.name}`" in page for field in dataclasses.fields(Predictions))


def test_chance_is_called_chance() -> None:
    found = gain.between([0, 1], [said([1, 0, 1]), said([1, 1, 1])], [said([1, 1, 0]), said([1, 1, 1])])
    assert not found.significant
    assert found.sentence().endswith(": not significant, the teacher may not have helped.")
    assert json.loads(json.dumps(found.to_json()))["significant"] is False


def test_the_interval_holds_the_truth_where_those_of_one_source_do_not() -> None:
    found = gain_coverage.coverage("seeds differ", 3, 372, repetitions=100, seed=0)
    assert found["crossed"]["covered"] >= 0.92  # 95 % less what a hundred experiments can miss
    assert found["images alone"]["covered"] < 0.8
    images = gain_coverage.coverage("images decide", 3, 372, repetitions=100, seed=0)
    assert images["crossed"]["covered"] >= 0.92 and images["seeds alone"]["covered"] < 0.8


def test_other_images_are_not_paired() -> None:
    with pytest.raises(ValueError, match="different images"):
        gain.between([0], [said([1, 0])], [said([1, 0], keys="other")])


# ----------------------------------------------------------------------------------------------------- trainings


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Photos, and a RUN that knows them."""
    root = tmp_path_factory.mktemp("taught")
    photos = write_photos(root / "photos", classes=3, images=8)
    given = {"data": str(photos), "out": str(root / "run"), "teacher": "timm/test_resnet", "pretrained": False}
    return photos, finetune(build(Finetune, {**given, **COMMON}, where="test"))


def student(taught: tuple[Path, Path], out: Path, *, listener: Any = ignore, **more: Any) -> Path:
    given = {"data": str(taught[0]), "teacher": str(taught[1]), "out": str(out), "student": "timm/test_efficientnet",
             "pretrained": False, **COMMON, **more}
    return distill(build(Distill, given, where="test"), listener=listener)


@pytest.fixture(scope="module")
def whole(taught: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two seeds, with their controls."""
    return student(taught, tmp_path_factory.mktemp("whole") / "run", seeds=2, seed=4)


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*")
            if path.name in (rundir.MODEL, predictions.FILE)}


def test_the_run_is_the_seed_that_is_best_on_validation(whole: Path) -> None:
    record = weights.read_record(whole)
    assert [one["seed"] for one in record["seeds"]] == [4, 5]
    best = record["best_seed"]
    assert record["metrics"]["val"]["accuracy"] == max(one["val"] for one in record["seeds"])
    assert best == max(record["seeds"], key=lambda one: one["val"])["seed"]
    other = 9 - best
    assert [path.name for path in (whole / "seeds").iterdir()] == [str(other)]
    assert weights.is_run(whole / "seeds" / str(other)) and weights.is_run(whole / "control")
    assert record["options"]["seeds"] == 2 and record["options"]["seed"] == 4
    assert weights.read_record(whole / "seeds" / str(other))["options"]["seed"] == other
    assert "seeds = 2" in (whole / rundir.RECIPE).read_text()


def test_the_gain_is_that_of_the_answers_that_are_kept(whole: Path) -> None:
    record = weights.read_record(whole)
    found = record["metrics"]["gain"]
    folders = {record["best_seed"]: whole, 9 - record["best_seed"]: whole / "seeds" / str(9 - record["best_seed"])}
    ordered = [folders[seed] for seed in found["seeds"]]
    right = np.array([predictions.read(folder)["test"].right for folder in ordered], float)
    plain = np.array([predictions.read(folder / "control")["test"].right for folder in ordered], float)
    assert (found["seeds"], found["images"]) == ([4, 5], right.shape[1])
    assert found["mean"] == pytest.approx((right - plain).mean())
    assert (found["low"], found["high"]) == metrics.crossed_interval(right - plain)
    assert record["macs"] == cost.image_macs(weights.load(whole).network.module, (32, 32)) > 0
    assert right[0].mean() == weights.read_record(ordered[0])["metrics"]["test"]["accuracy"]


def test_each_seed_is_the_run_that_it_would_be_alone(taught: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    other = next((whole / "seeds").iterdir())
    alone = student(taught, tmp_path / "alone", seed=int(other.name))
    assert files_of(alone) == files_of(other)
    found = weights.read_record(alone)["metrics"]["gain"]
    assert found == weights.read_record(other)["metrics"]["gain"] and len(found["seeds"]) == 1


def test_fine_tuning_keeps_its_answers_too(taught: tuple[Path, Path]) -> None:
    record, kept = weights.read_record(taught[1]), predictions.read(taught[1])
    for split in ("val", "test"):
        assert kept[split].right.mean() == record["metrics"][split]["accuracy"]


class Second(StopAt):
    """Breaks off in the control of the second seed; counts the steps of the first."""

    def __init__(self, step: int) -> None:
        super().__init__(step, ZeroDivisionError())
        self.second, self.steps = False, 0

    def __call__(self, event: Event) -> None:
        self.second |= "seed 5" in str(event.values.get("text"))
        self.steps += event.kind == "advance" and not self.second
        if self.second and event.stage == "control":
            super().__call__(event)


def test_a_kill_in_the_second_seed_costs_nothing_of_the_first(
    taught: tuple[Path, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"seeds": 2, "seed": 4}
    gather = repeats._gather

    def killed(*what: Any) -> None:
        gather(*what)
        raise ZeroDivisionError  # between the record and the last rename

    first, again, last = Second(2), Second(-1), Second(-1)
    with pytest.raises(ZeroDivisionError):
        student(taught, tmp_path / "run", listener=first, **given)
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(repeats, "_gather", killed)
        student(taught, tmp_path / "run", listener=again, resume=True, **given)
    run = student(taught, tmp_path / "run", listener=last, resume=True, **given)
    assert first.steps > 0 and again.second and again.steps == last.steps == 0 and not last.second
    assert files_of(run) == files_of(whole)
    assert weights.read_record(run)["metrics"] == weights.read_record(whole)["metrics"]
    assert not list(tmp_path.glob(".*partial"))


def test_finished_seeds_are_left_alone_and_more_of_them_are_another_training(
    taught: tuple[Path, Path], whole: Path
) -> None:
    before, heard = files_of(whole), []
    student(taught, whole, seeds=2, seed=4, resume=True, listener=lambda event: heard.append(event.kind))
    assert files_of(whole) == before and "advance" not in heard
    with pytest.raises(TrainingError, match="seeds was 2 and is 3"):
        student(taught, whole, seeds=3, seed=4, resume=True)


def test_without_a_control_there_is_no_gain(taught: tuple[Path, Path], tmp_path: Path) -> None:
    run = student(taught, tmp_path / "run", control=False, seeds=2)
    found = weights.read_record(run)["metrics"]
    assert "gain" not in found and "control" not in found and not (run / "control").exists()


@pytest.mark.parametrize(("val", "best"), [((0.5, 0.75, 0.6), 0), ((0.7, 0.7, 0.6), MOST_SEED), ((0.1, 0.2, 0.3), 1)])
def test_validation_chooses_and_the_test_split_does_not(tmp_path: Path, val: tuple[float, ...], best: int) -> None:
    """Seeds count on from the greatest one at 0; of equals the first is taken."""
    given = {"data": "d", "teacher": "t", "out": "o", "seed": MOST_SEED, "seeds": 3, "control": False}
    options = build(Distill, given, where="test")
    empty = Splits((), (), (), "fingerprint", {}, Duplicates())
    alone = torch.device("cpu")
    place = Setting(options, DataSet("d", (), (), lambda item: b""), empty, tmp_path, alone, Precision(alone, None), {},
                    {"of": "all"}, ignore, "distill")
    trained: list[tuple[int, Any]] = []

    def train(one: Distill, own: Setting) -> None:
        trained.append((one.seed, own.choices.get("found")))
        own.choices["found"] = one.seed  # what a seed finds out by a trial holds for the next
        accuracy = val[len(trained) - 1]
        metrics = {"val": {"accuracy": accuracy}, "test": {"accuracy": 1 - accuracy}}
        record = {"schema": 1, "kind": "run", "metrics": metrics, "choices": {}, "options": {}, "identity": {}}
        (own.folder / rundir.MODEL).write_text(str(one.seed))
        (own.folder / "control").mkdir()
        (own.folder / "control" / rundir.RUN).write_text("{}")
        rundir.write_json(own.folder / rundir.RUN, record)

    repeats.over_seeds(place, options, train)
    repeats.sweep(tmp_path)
    assert trained == [(MOST_SEED, None), (0, MOST_SEED), (1, 0)]
    assert weights.read_record(tmp_path)["best_seed"] == best and (tmp_path / rundir.MODEL).read_text() == str(best)
    assert (tmp_path / "control" / rundir.RUN).is_file() and weights.read_record(tmp_path)["identity"] == {"of": "all"}
    assert {int(one.name) for one in (tmp_path / "seeds").iterdir()} == {MOST_SEED, 0, 1} - {best}
