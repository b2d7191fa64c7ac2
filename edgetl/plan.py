"""The plan of `edgetl run`: every stage's options, checked before the first hour of work is spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl import extras, losses, plugins, recipe
from edgetl.errors import EdgetlError, RecipeError
from edgetl.recipe import (
    SCHEMA,
    STAGES,
    Bench,
    DataFields,
    Distill,
    Export,
    Finetune,
    Gate,
    Recipe,
    build,
    fields_of,
)

FOLDERS = {"finetune": "teacher", "distill": "student", "export": "bundle", "bench": "report"}
TOOLS = {"torch": "train", "safetensors": "train", "onnx": "train", "PIL": "train", "onnxruntime": "cpu"}


@dataclass(frozen=True)
class Plan:
    """Every stage of a recipe with all of its options."""

    finetune: Finetune
    distill: Distill
    export: Export
    bench: Bench
    gate: Gate


def resolve(said: Recipe, out: Path, *, where: str = "the recipe") -> Plan:
    """Every stage's options: what the recipe says and where `edgetl run` puts things.

    Raises:
        RecipeError: a stage lacks a key; all problems at once.
    """
    at = {stage: str(out / folder) for stage, folder in FOLDERS.items()}
    # One data set and one split for all stages: what [finetune] says holds where the others are silent.
    shared = {name: value for name, value in said.finetune.items() if name in fields_of(DataFields)}
    values: dict[str, Mapping[str, Any]] = {
        "finetune": {**said.finetune, "out": at["finetune"]},
        "distill": {**shared, **said.distill, "teacher": at["finetune"], "out": at["distill"]},
        "export": {**shared, **said.export, "run": at["distill"], "out": at["export"]},
        "bench": {**shared, **said.bench, "cases": _cases(said, at), "out": at["bench"]},
        "gate": said.gate,
    }
    return Plan(**_build_all(values, where))


def _cases(said: Recipe, at: Mapping[str, str]) -> tuple[str, ...]:
    """What the asked backends can open: torch the RUNs, all others the bundle."""
    backends = set(said.bench.get("backend", fields_of(Bench)["backend"].default))
    runs = (at["finetune"], at["distill"]) if "torch" in backends else ()
    return (*runs, *((at["export"],) if backends - {"torch"} else ()))


def _build_all(values: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any]:
    built: dict[str, Any] = {}
    problems: list[str] = []
    for name, stage in STAGES.items():
        try:
            built[name] = build(stage, values[name], where=name)
        except RecipeError as problem:
            problems += problem.problems
    if not problems:
        problems += _gate_problems(built["gate"], built["bench"])
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)), where=where)
    return built


def _gate_problems(gate: Gate, bench: Bench) -> list[str]:
    """What the gate will need and the benchmark will not measure."""
    asked = [name for name in fields_of(Gate) if getattr(gate, name) is not None]
    if asked and "torch" not in bench.backend:
        return [f"'gate.{asked[0]}' needs the teacher's accuracy: 'bench.backend' must include torch"]
    if gate.max_student_drop is not None and set(bench.backend) == {"torch"}:
        return ["'gate.max_student_drop' needs the bundle's accuracy: 'bench.backend' must include one that opens it"]
    return []


def to_toml(plan: Plan) -> str:
    """The resolved recipe: every key that a recipe may say, so that it can be run again."""
    return "\n".join([f"schema = {SCHEMA}\n", *(recipe.to_toml(getattr(plan, name)) for name in STAGES)])


def preflight(plan: Plan) -> None:
    """Returns when every name is known and every package is there: before the hours of work, not after.

    Raises:
        UnknownName: a model family, loss, target or backend; suggests the nearest.
        MissingDependency: names the extra to install.
        EdgetlError: a model is written in no known way.
    """
    for package, extra in TOOLS.items():
        extras.require(package, extra=extra, purpose="`edgetl run`")
    for model in (plan.finetune.teacher, plan.distill.student):
        _require_model(model)
    for target in plan.export.target:
        plugins.require("targets", target)
    for backend in plan.bench.backend:
        plugins.require("backends", backend)
    losses.parse(plan.distill.loss)


def _require_model(model: str) -> None:
    if model.startswith("slim:") or Path(model).is_dir():
        return
    family, slash, variant = model.partition("/")
    if not slash or not variant:
        raise EdgetlError(f"'{model}' is not a model: expected FAMILY/VARIANT or a RUN folder.",
                          hint=f"Families: {', '.join(plugins.names('models'))}; `edgetl list models` shows them.")
    plugins.require("models", family)
