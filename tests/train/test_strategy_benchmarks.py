"""The scripts that compare strategies, domains and ways of balancing: their bookkeeping, and once each in the small."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgetl import datasets, metrics, splits
from edgetl.predictions import Predictions
from edgetl.recipe_compare_strategies import CompareStrategies
from edgetl.recipe_fields import DataFields
from edgetl.train import strategies

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PhotoFolder = Callable[..., Path]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    monkeypatch.delitem(sys.modules, "strategies", raising=False)
    return importlib.import_module(name)


def answered(labels: list[int], predicted: list[int]) -> Predictions:
    score = np.ones(len(labels), np.float32)
    return Predictions(np.array([str(place) for place in range(len(labels))]), np.array(labels, np.int64),
                       np.array(predicted, np.int64), score, score)


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_influence_is_the_macro_f1(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    imbalance = script("imbalance", monkeypatch)
    drawn = np.random.default_rng(seed).integers(0, 4, (2, 60))
    found = answered(drawn[0].tolist(), drawn[1].tolist())
    matrix = metrics.confusion(found.predicted, found.labels, 6)  # of which two classes do not occur
    assert imbalance.influences(found, 6).mean() == pytest.approx(metrics.macro_f1(matrix))


def test_an_influence_is_what_the_image_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    imbalance = script("imbalance", monkeypatch)
    drawn = np.random.default_rng(0).integers(0, 3, 400)
    said = np.where(np.random.default_rng(1).random(400) < 0.8, drawn, (drawn + 1) % 3)
    found = answered(drawn.tolist(), said.tolist())
    less = answered(drawn[1:].tolist(), said[1:].tolist())
    whole, without = imbalance.influences(found, 3), imbalance.influences(less, 3).mean()
    assert without == pytest.approx(whole.mean() - (whole[0] - whole.mean()) / 399, abs=1e-5)


def test_balancing_is_compared_with_none_and_adjusted(monkeypatch: pytest.MonkeyPatch) -> None:
    imbalance = script("imbalance", monkeypatch)
    labels = [0, 1, 2] * 40
    poor, good = answered(labels, [0, 1, 0] * 40), answered(labels, labels)
    made = imbalance.differences({"none": [poor, poor], "loss": [good, good], "sampler": [poor, poor]}, 3)
    assert [one["balance"] for one in made] == ["loss", "sampler"]
    assert made[0]["macro_f1_points"] == pytest.approx(100 * (1 - (2 / 3 + 1 + 0) / 3))
    assert (made[0]["significant"], made[1]["significant"]) == (True, False)
    assert made[0]["accuracy_points"] == pytest.approx(100 / 3)


def test_few_images_stay_of_each_class_and_all_of_validation_and_test(
    photo_folder: PhotoFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subsets = script("subsets", monkeypatch)
    photos = photo_folder(classes=2, images=20)
    spec = subsets.few(photos, tmp_path / "few.csv", per_class=3, val_fraction=0.2, test_fraction=0.3, seed=0)
    assert subsets.counts(spec) == {"train": {"amber": 3, "beryl": 3}, "val": {"amber": 3, "beryl": 3},
                                    "test": {"amber": 6, "beryl": 6}}
    data = datasets.open_data(spec)
    parts = splits.resolve(data, DataFields(data=spec))
    assert [len(parts.of(split)) for split in datasets.SPLITS] == [6, 6, 12]


def test_one_class_is_thinned(photo_folder: PhotoFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subsets = script("subsets", monkeypatch)
    photos = photo_folder(classes=3, images=40, size=8)
    whole = subsets.counts(subsets.one_rare(photos, tmp_path / "a.csv", rare="beryl", share=1, per_class=None, seed=0))
    thin = subsets.counts(subsets.one_rare(photos, tmp_path / "b.csv", rare="beryl", share=0.1, per_class=None, seed=0))
    assert {**whole["train"], "beryl": round(0.1 * whole["train"]["beryl"])} == thin["train"]
    assert (whole["val"], whole["test"]) == (thin["val"], thin["test"])
    few = subsets.counts(subsets.one_rare(photos, tmp_path / "c.csv", rare="beryl", share=0.2, per_class=20, seed=0))
    assert few["train"] == {"amber": 20, "beryl": 4, "coral": 20}
    with pytest.raises(SystemExit, match="no class 'opal' in the data; it has amber, beryl, coral"):
        subsets.one_rare(photos, tmp_path / "d.csv", rare="opal", share=0.1, per_class=None, seed=0)


@pytest.mark.parametrize("name", ["strategies", "domains"])
def test_every_row_of_a_script_is_one_that_can_be_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = script(name, monkeypatch).ROWS
    source = {"source": "photos"} if name == "domains" else {}
    options = CompareStrategies(data="d", teacher="t", out="o", strategies=tuple(rows), **source)
    assert [arm.options.strategy for arm in options.arms(strategies.require)[0]] == [
        one.partition(";")[0] for one in rows]


def test_the_results_do_not_say_where_things_lie(
    photo_folder: PhotoFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = photo_folder(classes=2, images=8), tmp_path / "found.json"
    domains = script("domains", monkeypatch)
    given = (f"--source {photos} --target {photos} --work {tmp_path / 'work'} --out {out} --teacher timm/test_resnet "
             "--from-scratch --image-size 32 --epochs 1 --source-epochs 1 --per-class 3 --seeds 1 --batch-size 4 "
             "--threads 1 --strategies probe --strategies probe;image-size=40")
    monkeypatch.setattr(sys, "argv", ["domains", *given.split()])
    domains.main()
    found = json.loads(out.read_text())
    assert str(tmp_path) not in out.read_text()
    assert [found[name] for name in ("source", "target", "per_class")] == ["photos", "photos", 3]
    assert found["images"]["train"] == {"amber": 3, "beryl": 3}
    assert {row["strategy"] for row in found["rows"]} == {"probe", "probe;image-size=40"}
