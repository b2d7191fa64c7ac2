"""The plan of `edgetl run`: every stage's options, checked before the first hour of work is spent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl import extras, losses, plugins, recipe, weights
from edgetl.errors import EdgetlError, MissingDependency, RecipeError, UnknownName
from edgetl.recipe import SCHEMA, STAGES, Bench, Distill, Export, Finetune, Gate, Recipe, build, fields_of
from edgetl.recipe_fields import DataFields

FOLDERS = {"finetune": "teacher", "distill": "student", "export": "bundle", "bench": "report"}
TOOLS = {"torch": "train", "safetensors": "train", "onnx": "train", "PIL": "train", "onnxruntime": "cpu",
         "matplotlib": "cli"}


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
        problems += _precision_problems(built["export"]) + _reference_problems(built["bench"])
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


def _precision_problems(export: Export) -> list[str]:
    targets = [name for name in export.target or plugins.names("targets") if "." not in name]
    known = [name for name in targets if name.replace("_", "-") in plugins.names("targets")]
    precisions = {"fp32"}.union(*(plugins.load("targets", name).TARGET.precisions for name in known))
    if len(known) < len(export.target):
        return []  # a target that is not known here: preflight says so, or it is the user's own
    return [f"'export.precision': found '{one}', expected one of {', '.join(sorted(precisions))}"
            for one in export.precision if one not in precisions]


def _reference_problems(bench: Bench) -> list[str]:
    """A reference that no case of this run can have as its name, see `edgetl.bench.cases`."""
    if bench.reference is None:
        return []
    runs = [re.escape(f"{FOLDERS[stage]} torch") for stage in ("finetune", "distill") if "torch" in bench.backend]
    bundles = [rf"{FOLDERS['export']} \S+ {re.escape(one)}" for one in bench.backend if one != "torch"]
    threads = "( all threads| [0-9]+ threads?)" if len(bench.threads) > 1 else ""
    batch = f"( batch ({'|'.join(bench.batch)}))" if len(bench.batch) > 1 else ""
    arrival = "( back-to-back| paced .+)" if len(bench.interval or ()) > 1 else ""
    if re.fullmatch(f"({'|'.join([*runs, *bundles])}){threads}{batch}{arrival}", bench.reference):
        return []
    example = "teacher torch" if runs else f"bundle fp32 {bench.backend[0]}"
    return [f"'bench.reference': found '{bench.reference}', which no case of this run is called; expected a name as "
            f"the report shows it, e.g. '{example}'"]


def to_toml(plan: Plan) -> str:
    """The resolved recipe: every key that a recipe may say, so that it can be run again."""
    return "\n".join([f"schema = {SCHEMA}\n", *(recipe.to_toml(getattr(plan, name)) for name in STAGES)])


def preflight(plan: Plan) -> None:
    """Returns when every name is known and every package is there: before the hours of work, not after.

    Raises:
        UnknownName: a model, loss, target or backend; suggests the nearest.
        MissingDependency: names the extra to install.
        EdgetlError: a model is written in no known way, or its weights cannot be used.
    """
    for package, extra in TOOLS.items():
        extras.require(package, extra=extra, purpose="`edgetl run`")
    require_model(plan.finetune.teacher, plan.finetune.weights)
    require_model(plan.distill.student, plan.distill.weights)
    for target in plan.export.target:
        plugins.require("targets", target)
    for backend in plan.bench.backend:
        plugins.require("backends", backend)
    losses.parse(plan.distill.loss)


def require_model(model: str, file: str | None) -> None:
    """Returns when a model can be built, without building it.

    Args:
        model: FAMILY/VARIANT, a RUN folder, or slim:R.
        file: what --weights says.

    Raises:
        UnknownName: no such family or variant; suggests the nearest.
        MissingDependency: the family's package, or what cuts slim:R, is not installed.
        EdgetlError: a model written in no known way; a file of weights that is not there or would not be read.
    """
    if not model:
        raise EdgetlError("The name of the model is empty.",
                          hint="Give FAMILY/VARIANT (`edgetl list models`) or a RUN folder.")
    weights.require_read(model, file)
    if model.startswith("slim:"):
        extras.require("torch_pruning", extra="train", purpose=f"The student {model}")
    elif Path(model).is_dir() and not weights.is_run(Path(model)):
        weights.read_record(Path(model))  # says what the folder lacks
    elif not Path(model).is_dir():
        _require_variant(model)
        if file is not None and not Path(file).is_file():
            found = "is a folder" if Path(file).is_dir() else "does not exist"
            raise EdgetlError(f"The file of weights {file} {found}.")


def _require_variant(model: str) -> None:
    family, slash, variant = model.partition("/")
    if not slash or not variant:
        raise EdgetlError(f"'{model}' is not a model: expected FAMILY/VARIANT or a RUN folder.",
                          hint=f"Families: {', '.join(plugins.names('models'))}; `edgetl list models` shows them.")
    try:
        variants = plugins.load("models", family).variants()
    except ModuleNotFoundError as problem:
        if "." in family:  # the user's own module
            raise
        raise MissingDependency(problem.name or family, extra="train", purpose=f"The model {model}") from problem
    if variant.partition(".")[0] not in variants:  # timm writes the weights' tag behind a dot
        raise UnknownName("model", variant, variants)
