"""`import edgetl` costs nothing and offers the verbs."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import edgetl
from edgetl import pipeline
from edgetl.errors import RecipeError
from edgetl.recipe import STAGES, fields_of
from edgetl.recipe_compare import Compare
from edgetl.recipe_compare_strategies import CompareStrategies
from edgetl.recipe_engine import Engine
from edgetl.recipe_gate import RegressionGate
from edgetl.recipe_prune import Prune
from edgetl.recipe_quantize import Quantize
from edgetl.recipe_report import Report as Gallery
from edgetl.recipe_tune import Tune

VERBS = {**{name: stage for name, stage in STAGES.items() if name != "gate"}, "tune": Tune, "report": Gallery,
         "gate": RegressionGate, "compare": Compare, "quantize": Quantize, "engine": Engine,
         "prune": Prune, "compare_strategies": CompareStrategies}


def test_all_is_what_there_is() -> None:
    assert edgetl.__all__ == sorted(edgetl.__all__)
    for name in edgetl.__all__:
        assert getattr(edgetl, name) is not None
    assert set(edgetl.__all__) <= set(dir(edgetl))
    with pytest.raises(AttributeError, match="no attribute 'compress_everything'"):
        edgetl.compress_everything  # noqa: B018


def test_importing_edgetl_imports_nothing_but_the_standard_library() -> None:
    code = "import sys; before = set(sys.modules); import edgetl; print(*sorted(n for n in sys.modules if '.' not in n "
    code += "and n not in sys.stdlib_module_names))"
    found = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(edgetl.__file__).parents[1],
    )
    assert [name for name in found.stdout.split() if not name.startswith("_")] == ["edgetl"]


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_take_the_recipe_s_fields(verb: str) -> None:
    shown = inspect.signature(getattr(pipeline, verb)).parameters
    fields = fields_of(VERBS[verb])
    assert list(shown) == [*fields, "listener"]
    known = "data" if "data" in fields else next(iter(fields))
    with pytest.raises(RecipeError) as caught:
        getattr(edgetl, verb)(**{f"{known}a": "x", "flavour": "mint"})
    assert str(caught.value).startswith(f"edgetl.{verb}() has ")
    assert f"unknown key '{known}a'; did you mean '{known}'?" in str(caught.value)


@pytest.mark.parametrize("verb", VERBS)
def test_the_signature_of_a_verb_is_seen_from_the_package(verb: str) -> None:
    shown = inspect.signature(getattr(edgetl, verb)).parameters
    assert list(shown) == [*fields_of(VERBS[verb]), "listener"]


@pytest.mark.parametrize("verb", ["export", "bench"])
def test_a_package_of_a_verb_s_name_can_be_called_and_stays_a_package(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, verb, lambda **fields: fields)
    importlib.import_module(f"edgetl.{verb}")
    assert getattr(edgetl, verb)(out="x") == {"out": "x"}
    assert inspect.ismodule(getattr(edgetl, verb))


def test_paths_and_the_listener_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    monkeypatch.setattr(pipeline, "bench_with", lambda options, listener: (options, listener))
    options, listener = edgetl.bench(cases=[Path("a"), "b"], out=Path("o"), listener=heard.append)
    assert (options.cases, options.out) == (("a", "b"), "o")
    assert listener == heard.append
