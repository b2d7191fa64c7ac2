"""The temperature of an exported variant: from the answers of its own graph to the validation images alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import write_photos
from tiny_run import write_run

import edgetl.runtime
from edgetl import calibration, datasets, evaluate, metrics, rundir, scorecard, splits
from edgetl.events import Event
from edgetl.export import bundle as bundles
from edgetl.export import scaling, variants
from edgetl.export.bundle import export
from edgetl.export.variants import Built, Stock
from edgetl.recipe import Export, build
from edgetl.runtime import limits
from edgetl.runtime import manifest as manifests
from edgetl.runtime.preprocess import Preprocess

pytestmark = pytest.mark.usefixtures("written_once")


def options(run: Path | str, out: Path | str, **values: Any) -> Export:
    plain = {"run": str(run), "out": str(out), "threads": 1, "golden": 4, "precision": ["fp32"]}
    return build(Export, {**plain, **values}, where="test")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of which some lie in the wrong folder, so that no answers can all be right."""
    folder = write_photos(tmp_path_factory.mktemp("data") / "photos", classes=3, images=24)
    for photo in sorted((folder / "amber").iterdir())[:8]:
        photo.rename(folder / "coral" / f"amber-{photo.name}")
    return folder


@pytest.fixture(scope="module")
def heard() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def bundle(photos: Path, heard: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scaled")
    values = {"val_fraction": 0.4, "split_seed": 3}
    run = write_run(folder / "run", photos, options("", "", **values), steps=8)
    return export(options(run, folder / "bundle", reject_accuracy=5.0, **values), listener=heard.append)


def manifest_of(folder: Path) -> manifests.Manifest:
    return manifests.from_json((folder / manifests.MANIFEST).read_text(), where=str(folder))


def logits_of(bundle: Path, photos: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    data = datasets.open_data(str(photos))
    items = splits.resolve(data, options("", "", val_fraction=0.4, split_seed=3)).of(split)
    with edgetl.runtime.load(bundle, backend="cpu", variant="fp32") as classifier:
        files = [data.read(item) for item in items]
        scores = np.array([classifier.predict(file).score for file in files])
        return classifier.logits(files), np.array([item.label for item in items]), scores


def test_the_manifest_has_the_temperature_of_the_validation_images(bundle: Path, photos: Path,
                                                                   heard: list[Event]) -> None:
    manifest = manifest_of(bundle)
    assert manifest.schema == manifests.SCALED
    variant = manifest.variants[0]
    logits, labels, scores = logits_of(bundle, photos, "val")
    found = calibration.fit_temperature(logits, labels)
    assert variant.temperature is not None and variant.temperature == pytest.approx(found.value, rel=1e-3)
    assert scores == pytest.approx(metrics.softmax(logits, variant.temperature).max(axis=1), abs=1e-6)
    for row in variant.evaluations:
        logits, labels, _ = logits_of(bundle, photos, row["split"])
        for ending, temperature in (("", 1.0), ("_scaled", variant.temperature)):
            assert row[f"nll{ending}"] == pytest.approx(calibration.nll(logits, labels, temperature), abs=1e-4)
            assert row[f"brier{ending}"] == pytest.approx(calibration.brier(logits, labels, temperature), abs=1e-4)
            assert row[f"ece{ending}"] == pytest.approx(metrics.ece(logits / temperature, labels), abs=1e-3)
    assert any(f"fp32: temperature {variant.temperature:.3g} by {found.n} validation images" in event.values["text"]
               for event in heard if event.kind == "note")
    card = (bundle / "README.md").read_text()
    assert f"| fp32 | {variant.temperature:.3g} | val | {found.n} |" in card


def test_the_score_to_reject_below_and_the_drift_reference_are_of_scaled_scores(bundle: Path, photos: Path) -> None:
    manifest = manifest_of(bundle)
    _, _, scores = logits_of(bundle, photos, "val")
    assert manifest.rejection is not None and manifest.reject_below is not None
    check = next(one for one in manifest.rejection["checks"] if one["split"] == "val")
    assert check["accepted"] == (scores >= manifest.reject_below).sum()
    assert manifest.drift_reference is not None
    assert manifest.drift_reference["top"]["mean"] == pytest.approx(scores.mean(), abs=1e-6)


def built(val: evaluate.Evaluation | None) -> Built:
    variant = manifests.Variant("fp32", "fp32.onnx", "portable", "fp32", 18, rundir.sha256(b""), 0, (), (), ("cpu",))
    return Built(variant, b"", cast(Any, None), val)


def test_where_nothing_can_be_fitted_the_scores_stay_and_the_reason_is_told() -> None:
    notes: list[str] = []
    stock = cast(Stock, SimpleNamespace(note=notes.append))
    without = built(None)
    assert scaling.fitted(stock, without) is without and not notes
    right = built(evaluate.summarize(np.eye(3, dtype=np.float32), np.arange(3), ("a", "b", "c")))
    assert scaling.fitted(stock, right) is right
    assert notes == [f"fp32: its scores are left as they are, for on the 3 validation images {calibration.ALL_RIGHT}."]


def test_a_scaled_evaluation_has_the_figures_of_its_scores() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (50, 4)).astype(np.float32)
    found = evaluate.summarize(logits, np.arange(50) % 4, tuple(map(str, range(50))))
    half = evaluate.scaled(found, 2.0)
    again = evaluate.summarize(logits / 2, found.labels, found.keys)
    for name in ("accuracy", "macro_f1", "ece", "nll", "brier"):
        assert getattr(half, name) == pytest.approx(getattr(again, name)), name
    assert evaluate.scaled(found, None) is found


def test_the_tables_that_grow_with_the_classes_stay_in_the_run() -> None:
    confusion = np.full((300, 300), 7)
    figures = {"accuracy": 0.5, "confusion": confusion.tolist(), "classes": scorecard.classes(confusion)}
    scores = {"value": 2.0, "splits": {"val": {"ece": 0.1, "reliability": {"before": {"count": [1] * 15}}}}}
    record = {"metrics": {"val": figures, "gain": {"seeds": [1]}, "temperature": scores},
              "teachers": [{"model": "big", "metrics": {"test": figures}}]}
    assert bundles.concise(record) == {
        "metrics": {"val": {"accuracy": 0.5}, "gain": {"seeds": [1]},
                    "temperature": {"value": 2.0, "splits": {"val": {"ece": 0.1}}}},
        "teachers": [{"model": "big", "metrics": {"test": {"accuracy": 0.5}}}]}
    assert record["metrics"]["val"] is figures and "confusion" in figures


def test_a_thousand_classes_fit_into_a_manifest() -> None:
    """Their confusion alone would have a million numbers on lines of their own; the runtime reads 4 MB."""
    generator = np.random.default_rng(0)
    few, many = (evaluate.summarize(generator.normal(0, 1, (300, k)), np.arange(300) % k, tuple(map(str, range(300))))
                 for k in (100, 1000))
    assert "confusion" in variants.figures(few, None) and "confusion" not in variants.figures(many, 2.0)
    assert variants.figures(many, 2.0)["nll_scaled"] == evaluate.scaled(many, 2.0).nll
    assert "nll_scaled" not in variants.figures(many, None)
    rows = tuple(variants.figures(many, 2.0) for _ in range(2))
    whole = [dataclasses.replace(built(None).variant, name=str(place), evaluations=rows) for place in range(8)]
    text = manifests.to_json(manifests.Manifest(2, "big", "classify", tuple(f"label {k}" for k in range(1000)),
                                                Preprocess((8, 8)), tuple(whole)))
    assert len(text) < limits.MANIFEST_BYTES / 10
