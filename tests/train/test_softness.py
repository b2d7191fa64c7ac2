"""`temperature=auto`: what it fits in closed form, and that a training takes it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import losses, rundir, weights
from edgetl.errors import EdgetlError
from edgetl.heads import Head
from edgetl.losses import Answer, Given, Term
from edgetl.recipe import Distill, Finetune, build
from edgetl.train import softness
from edgetl.train.aim import PerHead
from edgetl.train.student import distill
from edgetl.train.teacher import finetune

PhotoFolder = Callable[..., Path]


def one_ahead(gap: float, classes: int, images: int = 4) -> torch.Tensor:
    """Logits whose first class is ahead of all others by the same gap."""
    return gap * torch.eye(classes)[torch.zeros(images, dtype=torch.long)]


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 200.0), st.integers(2, 1000))
def test_a_known_gap_has_a_known_temperature(gap: float, classes: int) -> None:
    # p = e^(g/T) / (e^(g/T) + K - 1) = 0.9 where g/T = log(9 (K - 1))
    expected = min(max(1.0, gap / math.log(9 * (classes - 1))), softness.MOST)
    assert softness.fitted([one_ahead(gap, classes)]) == pytest.approx(expected, abs=0.0051)


def test_the_mean_over_images_and_questions_counts() -> None:
    sure, unsure = one_ahead(30.0, 5), torch.zeros(4, 5)
    assert softness.confidence([sure, unsure], 1.0) == pytest.approx((1 + 0.2) / 2, abs=1e-9)
    assert softness.fitted([sure, unsure]) == 1.0
    assert softness.fitted([sure, sure]) == softness.fitted([sure]) > 6


def test_answers_beyond_all_measure_end_at_a_bound() -> None:
    assert softness.fitted([one_ahead(1e6, 3)]) == softness.MOST


@pytest.mark.parametrize("name", ["kd", "dkd"])
@pytest.mark.parametrize("value", ["hot", "0", "-1", "nan", "inf", ""])
def test_what_is_no_temperature_is_one_sentence(name: str, value: str) -> None:
    with pytest.raises(EdgetlError, match=f"The loss '{name}' has temperature={value}, expected auto or a number"):
        losses.parse([f"{name};temperature={value}"])


def test_auto_is_what_kd_does_and_dkd_may_do() -> None:
    def waiting(text: str) -> bool:
        return softness.waits(losses.parse([text])[0])

    assert waiting("kd") and waiting("kd;temperature=auto") and waiting("dkd;temperature=auto")
    assert not any(map(waiting, ("kd;temperature=4", "dkd", "dist", "labels", "logit-standardization")))


def test_a_loss_that_was_not_fitted_does_not_guess() -> None:
    one = Answer(torch.zeros(2, 3))
    for name in ("kd", "dkd"):
        with pytest.raises(RuntimeError, match="was not fitted"):
            losses.parse([f"{name};temperature=auto"])[0].loss(one, one, Given(torch.eye(3)[:2]))


@dataclass
class Place:
    """As much of a setting as is looked at."""

    choices: dict[str, Any]
    parts: Any = None
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_what_is_recorded_is_taken_and_no_teacher_asked() -> None:
    terms = losses.parse(["labels,kd,dkd;temperature=auto"])
    softness.settle(terms, None, Place({"temperature": 2.5}), ())  # type: ignore[arg-type]
    assert [getattr(term.loss, "temperature", None) for term in terms] == [None, 2.5, 2.5]


def test_of_several_heads_each_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = (Head("a", "classify", ("x", "y")), Head("b", "classify", ("p", "q", "r")))
    [term] = losses.parse(["kd"])
    wrapped = Term(term.name, term.weight, PerHead(term.loss, heads))
    said = torch.cat([one_ahead(20.0, 2), one_ahead(10.0, 3)], dim=1)
    monkeypatch.setattr("edgetl.train.asking.logits", lambda *_: said)

    class Parts:
        train = (0,) * 9

    place = Place({}, Parts())
    softness.settle([wrapped], None, place, ())  # type: ignore[arg-type]
    assert term.loss.temperature == softness.fitted([said[:, :2], said[:, 2:]]) == place.choices["temperature"]
    assert "softened with T = " in place.notes[0]


TINY = {"image_size": 32, "epochs": 1, "batch_size": "8", "workers": 0, "lr": 3e-3, "threads": 1}


def surer(run: Path, out: Path, times: float) -> Path:
    """A copy of a RUN whose logits are so many times as large."""
    found = weights.load(run)
    last = [one for one in found.network.module.modules() if isinstance(one, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight *= times
        last.bias *= times
    out.mkdir()
    weights.save(out, found.network, found.record)
    return out


@pytest.mark.parametrize("times", [1.0, 4000.0])
def test_a_training_takes_the_temperature_that_fits(photo_folder: PhotoFolder, tmp_path: Path, times: float) -> None:
    photos = photo_folder(classes=3, images=10)
    mine = {"teacher": "timm/test_resnet", "pretrained": False, "data": str(photos), "out": str(tmp_path / "plain")}
    teacher = surer(finetune(build(Finetune, {**TINY, **mine}, where="test")), tmp_path / "teacher", times)
    notes: list[str] = []

    def taught(name: str, loss: str) -> Path:
        said = {**TINY, "data": str(photos), "teacher": str(teacher), "out": str(tmp_path / name), "control": False}
        options = build(Distill, {**said, "student": "timm/test_resnet", "pretrained": False, "loss": loss}, where="x")
        return distill(options, listener=lambda event: notes.append(str(event.values.get("text", ""))))

    auto = taught("auto", "labels:0.1,kd:0.9")
    found = json.loads((auto / rundir.RUN).read_text())["choices"]["temperature"]
    assert (found > 1.5) if times > 1 else (found == 1.0)
    assert any("sure of its answers to" in note for note in notes)
    said = taught("said", f"labels:0.1,kd:0.9;temperature={found}")
    assert "temperature" not in json.loads((said / rundir.RUN).read_text())["choices"]
    assert (auto / rundir.MODEL).read_bytes() == (said / rundir.MODEL).read_bytes()
