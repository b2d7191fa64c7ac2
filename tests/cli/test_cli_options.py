"""Flags are the recipe's fields: names, defaults and values are the same on both sides."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from edgetl import recipe
from edgetl.cli import app, options
from edgetl.recipe import STAGES, Bench, Distill, Export, Finetune, fields_of
from edgetl.recipe_compare import Compare
from edgetl.recipe_compare_strategies import CompareStrategies
from edgetl.recipe_engine import Engine
from edgetl.recipe_fields import REQUIRED
from edgetl.recipe_gate import RegressionGate
from edgetl.recipe_prune import Prune
from edgetl.recipe_quantize import Quantize
from edgetl.recipe_report import Report as Gallery
from edgetl.recipe_tune import Tune

VERBS = {"finetune": Finetune, "distill": Distill, "export": Export, "bench": Bench, "tune": Tune,
         "report": Gallery, "gate": RegressionGate, "compare": Compare, "quantize": Quantize, "engine": Engine,
         "prune": Prune, "compare-strategies": CompareStrategies}


def command(name: str) -> Any:
    return typer.main.get_command(app.app).commands[name]  # type: ignore[attr-defined]


def minimal(stage: type[Any]) -> list[str]:
    """The shortest command line that a stage accepts."""
    words = []
    for name, field in fields_of(stage).items():
        if field.default is REQUIRED:
            words += ["x"] if field.metadata["positional"] else [options.flag(name), "x"]
    return words


def parsed(verb: str, *words: str) -> Any:
    values = dict(command(verb).make_context(verb, [*minimal(VERBS[verb]), *words]).params)
    assert values.pop(options.JSON) is False
    return options.read(VERBS[verb], values)


def test_the_verbs_are_the_stages_that_have_commands() -> None:
    assert {**{name: stage for name, stage in STAGES.items() if name != "gate"}, "tune": Tune,
            "report": Gallery, "gate": RegressionGate, "compare": Compare, "quantize": Quantize,
            "engine": Engine, "prune": Prune, "compare-strategies": CompareStrategies} == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_flags_and_fields_are_the_same_set(verb: str) -> None:
    fields = fields_of(VERBS[verb])
    flags = {one.name for one in command(verb).params} - {options.JSON}
    assert flags == set(fields)
    for one in command(verb).params:
        if one.name == options.JSON:
            continue
        positional = fields[one.name].metadata["positional"]
        assert (one.param_type_name == "argument") == positional
        if not positional:
            assert options.flag(one.name) in one.opts
        assert one.help.startswith(fields[one.name].metadata["help"])


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_are_the_same(verb: str) -> None:
    stage = VERBS[verb]
    words = {
        name: ["x"] if "tuple" in str(field.type) else "x"
        for name, field in fields_of(stage).items()
        if field.default is REQUIRED
    }
    assert parsed(verb) == recipe.build(stage, words, where="here")


def test_a_list_is_repeated_or_has_commas() -> None:
    assert parsed("bench", "--backend", "cpu,torch", "--backend", "openvino").backend == ("cpu", "torch", "openvino")
    assert parsed("bench", "two", "three").cases == ("x", "two", "three")
    losses = ("--loss", "labels:0.1,kd:0.9;temperature=4", "--loss", "dist:1")
    assert parsed("distill", *losses).loss == ("labels:0.1,kd:0.9;temperature=4", "dist:1")


def test_a_truth_value_has_a_flag_for_each_side_unless_it_is_a_permission() -> None:
    assert parsed("finetune", "--no-hflip", "--vflip").hflip is False
    assert parsed("finetune", "--no-hflip", "--vflip").vflip is True
    assert parsed("finetune", "--resume").resume is True
    secondary = {one.name: one.secondary_opts for one in command("finetune").params}
    assert secondary["resume"] == secondary["overwrite"] == []
    assert secondary["hflip"] == ["--no-hflip"]


def test_numbers_and_what_is_not_set() -> None:
    made = parsed("finetune", "--lr", "1e-4", "--image-size", "96", "--batch-size", "32")
    assert (made.lr, made.image_size, made.batch_size, made.crop_fraction) == (1e-4, 96, "32", None)


def test_every_wrong_flag_is_named() -> None:
    with pytest.raises(options.WrongUsage) as caught:
        parsed("export", "--golden", "0", "--max-drop", "101", "--golden-kind", "photo")
    assert str(caught.value) == (
        "--max-drop: found 101.0, expected at most 100; --golden: found 0, expected at least 1; "
        "--golden-kind: found 'photo', expected one of photos, synthetic; did you mean 'photos'?"
    )
    assert caught.value.exit_code == 2
