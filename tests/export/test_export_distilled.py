"""The rung of quantization-aware distillation: when it is tried, what it starts from, and what it sees and leaves."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export.test_export_foreign import PLAIN, saved, taught

from edgetl import datasets, foreign, splits
from edgetl.compress import qat, quantize
from edgetl.compress.course import Untrainable
from edgetl.errors import GateFailed
from edgetl.evaluate import Comparison
from edgetl.export import ladder, quantizing, rungs
from edgetl.export.ladder import Ladder, Plan, Tried
from edgetl.export.rungs import distilled
from edgetl.recipe_quantize import Quantize
from edgetl.targets.x86_vnni import TARGET

CRUDE = dataclasses.replace(TARGET, quantize={**TARGET.quantize, "methods": ("percentile-70",), "rounding": "nearest"})


@pytest.fixture
def photos(photo_folder: Any) -> Path:
    return photo_folder("photos", classes=3, images=24)


def climbing(photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Ladder:
    """A ladder of the first and the last rung, whose calibration cuts most of every activation off."""
    monkeypatch.setattr(rungs, "ORDER", ("calibrated", "distilled"))
    said = Quantize(**{"model": str(saved(folder, taught(photos))), "out": str(folder / "int8.onnx"),
                       "data": str(photos), "threads": 1, "min_agreement": 100.0, "max_drop": 0.0, **PLAIN, **options})
    classifier = foreign.read(Path(said.model), said)
    data = datasets.open_data(said.data)
    parts = splits.resolve(data, said)
    subject = quantizing._subject(said, classifier, data, parts, lambda event: None)
    return Ladder("x86-vnni.int8", CRUDE, subject)


def test_it_is_the_last_rung_and_mends_what_calibration_cannot(tmp_path, photos, monkeypatch):
    climber = climbing(photos, tmp_path, monkeypatch, qat_epochs=6)
    read: list[str] = []
    told: list[str] = []
    given = climber.subject.read

    def spy(item: Any) -> bytes:
        read.append(item.key)
        return given(item)

    images = distilled._images

    def watched(own: Ladder, epoch: int, batch: int) -> Iterator[Any]:
        """Only what training reads: validation images are read by the judge between the rungs."""
        subject = dataclasses.replace(own.subject, read=spy)
        other = object.__new__(Ladder)
        other.subject = subject
        yield from images(other, epoch, batch)

    monkeypatch.setattr(distilled, "_images", watched)
    climber.subject = dataclasses.replace(climber.subject, note=told.append)
    found = climber.climbed()
    first, last = climber.rungs
    assert first["method"] == "percentile-70" and not first["passed"]
    assert last["method"] == "distilled (percentile-70, 6 epochs)" and last["float_layers"] == []
    assert last["agreement"] >= first["agreement"] and (found is None) == (not last["passed"])
    train, val = ({item.key for item in part} for part in (climber.subject.train, climber.subject.val))
    assert set(read) <= train and not set(read) & val
    assert len(read) == 6 * (len(train) // min(32, len(train))) * min(32, len(train))
    assert sum("epoch" in one and "loss" in one for one in told) == 6
    made = climber.tried[-1]
    assert made.plan.method == "percentile-70"


def test_a_loss_of_signal_is_smaller_after_it(tmp_path, photos, monkeypatch):
    climber = climbing(photos, tmp_path, monkeypatch, qat_epochs=8)
    plan = Plan(climber.source, "percentile-70", told="percentile-70")
    before = quantize.write(climber.source, climber.scheme, method=plan.method)
    after = distilled._trained(climber, plan)
    wanted = climber.answers(climber.subject.graph)
    lost = [float(np.square(climber.answers(one.graph) - wanted).sum()) for one in (before, after)]
    assert lost[1] < lost[0]
    assert after.rounding["method"] == "trained" and after.rounding["epochs"] == 8
    onnx.checker.check_model(onnx.load_from_string(after.graph))


def row(plan: Plan, agreement: float) -> Tried:
    return Tried(plan, Comparison(100, agreement, 1.0, 0.0, 2.0, 1, 0, 1.0), {"passed": False})


class Beneath:
    """A ladder of which others have climbed the first rungs."""

    def __init__(self, tried: list[Tried], epochs: int = 1) -> None:
        self.tried, self.name, self.told = tried, "x", []
        said = {"qat_epochs": epochs, "heads": (), "note": lambda _, text: self.told.append(text)}
        self.subject = type("Subject", (), said)()

    def best(self) -> Tried:
        return max(self.tried, key=lambda one: one.found.agreement)


def plan_of(told: str, floats: tuple[str, ...] = ()) -> Plan:
    return Plan(None, "mse", told, floats)


def test_it_starts_from_the_best_with_all_layers_rounded_and_then_from_the_best_of_all():
    whole, worse, mixed = plan_of("mse"), plan_of("entropy"), plan_of("mixed", ("layer",))
    assert distilled.starts(Beneath([row(worse, 0.8), row(whole, 0.9)])) == [whole]
    assert distilled.starts(Beneath([row(worse, 0.8), row(whole, 0.9), row(mixed, 0.95)])) == [whole, mixed]
    assert distilled.starts(Beneath([row(whole, 0.9), row(mixed, 0.85)])) == [whole]


def test_without_epochs_nothing_is_tried():
    assert distilled.climb(Beneath([], epochs=0)) is None


def test_a_graph_that_cannot_be_trained_is_told_in_words(monkeypatch):
    def refuse(*_: Any) -> Any:
        raise Untrainable("The graph has operators that training cannot run: Loop.", hint="Do without.")

    monkeypatch.setattr(distilled, "_trained", refuse)
    beneath = Beneath([row(plan_of("mse"), 0.9)])
    assert distilled.climb(beneath) is None
    assert beneath.told == ["x, distilled: not tried. The graph has operators that training cannot run: Loop. "
                            "Do without."]


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "edgetl.compress.qat", None)
    monkeypatch.delattr("edgetl.compress.qat")
    monkeypatch.setattr(distilled, "_trained", lambda ladder, plan: distilled._qat())
    beneath = Beneath([row(plan_of("mse"), 0.9)])
    assert distilled.climb(beneath) is None
    assert len(beneath.told) == 1 and "not tried. Quantization-aware distillation needs the package" in beneath.told[0]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, MemoryError])
def test_what_is_interrupted_leaves_nothing_half_written(tmp_path, photos, monkeypatch, problem):
    def stop(*_: Any) -> Any:
        raise problem

    monkeypatch.setattr(rungs, "ORDER", ("calibrated", "distilled"))
    monkeypatch.setattr(qat, "fit", stop)
    monkeypatch.setattr(ladder.Limits, "hold", lambda self, found: False)
    model = saved(tmp_path, taught(photos))
    before = sorted(tmp_path.iterdir())
    options = Quantize(**{"model": str(model), "out": str(tmp_path / "int8.onnx"), "data": str(photos), "threads": 1,
                          "target": "x86-avx2", "qat_epochs": 1, **PLAIN})
    with pytest.raises(problem):
        quantizing.quantize(options)
    assert sorted(tmp_path.iterdir()) == before


def test_what_no_rung_brings_within_the_limits_is_refused_with_the_table(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(rungs, "ORDER", ("calibrated", "distilled"))
    monkeypatch.setattr(ladder.Limits, "hold", lambda self, found: False)
    told: list[str] = []
    options = Quantize(**{"model": str(saved(tmp_path, taught(photos))), "out": str(tmp_path / "int8.onnx"),
                          "data": str(photos), "threads": 1, "target": "x86-avx2", "qat_epochs": 1, **PLAIN})
    with pytest.raises(GateFailed, match="outside the limits") as caught:
        quantizing.quantize(options, listener=lambda event: told.append(str(event.values.get("text", ""))))
    assert caught.value.exit_code == 3
    assert any("distilled (" in one and "outside the limits" in one for one in told)
