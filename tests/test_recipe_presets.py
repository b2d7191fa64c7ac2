"""Presets of a recipe: what they resolve to, and that whatever a person says wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetl import pipeline
from edgetl.cli.app import main
from edgetl.errors import RecipeError
from edgetl.plan import resolve
from edgetl.recipe import Distill, build, check, decisive, fields_of, to_toml
from edgetl.recipe_file import parse_recipe
from edgetl.recipe_presets import PRESETS

GIVEN = {"data": "x", "out": "y", "teacher": "z"}
PATIENT = {"loss": ("kd:1;temperature=1",), "mixup": 1.0, "crop_scale": 0.05, "views": 8, "epochs": 100}


def of(stage: Any, names: Any = PATIENT) -> dict[str, Any]:
    return {name: getattr(stage, name) for name in names}


def typed(*words: str, monkeypatch: pytest.MonkeyPatch) -> Distill:
    """What the command `distill` understands."""
    seen: list[Distill] = []
    monkeypatch.setattr(pipeline, "distill_with", lambda given, listener: seen.append(given) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["distill", "--data", "x", "--out", "y", "--teacher", "z", *words])
    return seen[0]


def test_a_preset_is_its_values_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    said = parse_recipe('data = "x"\n[finetune]\nteacher = "a/b"\n[distill]\npreset = "patient"\n', where="test")
    planned = resolve(said, Path("out")).distill
    plain = build(Distill, GIVEN, where="test")
    for made in (build(Distill, {**GIVEN, "preset": "patient"}, where="test"), planned,
                 typed("--preset", "patient", monkeypatch=monkeypatch)):  # fmt: skip
        assert of(made) == PATIENT != of(plain)
        rest = {name for name in fields_of(Distill) if name not in (*PATIENT, *GIVEN, "preset")}
        assert of(made, rest) == of(plain, rest)


def test_what_is_said_wins_also_where_it_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {**PATIENT, "epochs": 10, "mixup": 0.0}
    text = 'epochs = 10\n[distill]\npreset = "patient"\nmixup = 0.0\n'
    assert of(build(Distill, {**GIVEN, **parse_recipe(text, where="test").distill}, where="test")) == expected
    laid = parse_recipe('[distill]\npreset = "patient"\n', ["distill.epochs=10", "distill.mixup=0.0"], where="test")
    assert of(build(Distill, {**GIVEN, **laid.distill}, where="test")) == expected
    words = ("--preset", "patient", "--epochs", "10", "--mixup", "0.0")
    assert of(typed(*words, monkeypatch=monkeypatch)) == expected
    assert typed("--preset", "patient", "--loss", "labels,kd", monkeypatch=monkeypatch).loss == ("labels,kd",)


def test_the_resolved_values_are_recorded_and_read_again() -> None:
    made = build(Distill, {**GIVEN, "preset": "patient", "epochs": 3}, where="test")
    again = parse_recipe(to_toml(made), where="test").distill
    assert build(Distill, {**GIVEN, **again}, where="test") == made
    spelled_out = build(Distill, {**GIVEN, **PATIENT, "epochs": 3}, where="test")
    assert decisive(spelled_out) == decisive(made)  # --resume goes on with either


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_of_values_that_the_recipe_takes(name: str) -> None:
    values = dict(PRESETS[name].values)
    assert check(Distill, values) == ([], values) and "preset" not in values
    assert "\n" not in PRESETS[name].summary


def test_an_unknown_preset_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--data", "x", "--out", "y", "--teacher", "z", "--preset", "pateint"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines() == [
        "error: --preset: found 'pateint', expected one of patient; did you mean 'patient'?"
    ]
    with pytest.raises(RecipeError, match=r"'distill\.preset': found 'quick'"):
        parse_recipe('[distill]\npreset = "quick"\n', where="test")


def test_the_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "presets"]) == 0
    assert capsys.readouterr().out.startswith("patient  consistent views")
