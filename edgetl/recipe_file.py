"""Recipes as TOML: a table a stage (`[finetune]`, `[distill]`, `[export]`, `[bench]`, `[gate]`).

A key above the tables is the default of that field in every stage that has it. All problems of a file are reported
at once.
"""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetl.dataspec import anchored
from edgetl.errors import RecipeError
from edgetl.recipe import SCHEMA, STAGES, Recipe, check, fields_of
from edgetl.recipe_fields import REQUIRED, DataFields
from edgetl.recipe_values import nearest, toml_value


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with `--set stage.key=value` laid over it.

    Raises:
        RecipeError: not readable, not TOML, or any key or value is wrong; all problems at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise RecipeError([f"the recipe cannot be read: {problem.strerror}"], where=str(path)) from problem
    except UnicodeDecodeError as problem:
        raise RecipeError(["this is not a text file; expected TOML"], where=str(path)) from problem
    return parse_recipe(text, overrides, where=str(path), base=path.parent)


def parse_recipe(text: str, overrides: Sequence[str] = (), *, where: str, base: Path | None = None) -> Recipe:
    """See `read_recipe`; `base` is the folder that relative paths count from."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise RecipeError([f"this is not TOML: {problem}"], where=where) from problem
    _anchor(tables, base)
    problems = _apply_overrides(tables, overrides)
    if tables.pop("schema", SCHEMA) != SCHEMA:
        problems.append(f"'schema' is not {SCHEMA}, the only one that this version reads")
    top = {key: value for key, value in tables.items() if key not in STAGES}
    problems += _top_problems(top)
    stages = {name: _stage_values(name, tables.get(name, {}), top, problems) for name in STAGES}
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)), where=where)
    return Recipe(**stages)


def _top_problems(top: Mapping[str, Any]) -> list[str]:
    """Keys above the tables that no stage has, or that no recipe may say."""
    problems = []
    for key in top:
        owners = [fields_of(stage)[key] for stage in STAGES.values() if key in fields_of(stage)]
        if not owners:
            known = {name for stage in STAGES.values() for name in fields_of(stage)}
            problems.append(f"unknown key '{key}'{nearest(key, [*sorted(known), *STAGES])}")
        elif all(field.metadata["given"] for field in owners):
            problems.append(f"'{key}' is decided by `edgetl run`; remove it")
    return problems


def _stage_values(name: str, table: Any, top: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    if not isinstance(table, dict):
        problems.append(f"'{name}' is {table!r}, expected a table [{name}]")
        return {}
    given = [key for key, field in fields_of(STAGES[name]).items() if field.metadata["given"]]
    problems += [f"'{name}.{key}' is decided by `edgetl run`; remove it" for key in table if key in given]
    inherited = {key: value for key, value in top.items() if key in fields_of(STAGES[name]) and key not in given}
    shared_problems, shared = check(STAGES[name], inherited)
    own_problems, own = check(STAGES[name], {key: one for key, one in table.items() if key not in given},
                              prefix=f"{name}.")
    problems += shared_problems + own_problems
    return {**shared, **own}


def _anchor(tables: dict[str, Any], base: Path | None) -> None:
    """Relative paths of a recipe count from its folder when something is there; those of --set from where you are."""
    paths = {name for stage in STAGES.values() for name, field in fields_of(stage).items() if field.metadata["path"]}
    for table in (tables, *(one for one in tables.values() if isinstance(one, dict))):
        for name, value in table.items():
            if base is not None and name in paths and isinstance(value, str):
                table[name] = anchored(value, base)
            elif base is not None and name in paths and isinstance(value, list):
                table[name] = [anchored(one, base) if isinstance(one, str) else one for one in value]


def _apply_overrides(tables: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    problems = []
    for one in overrides:
        key, equals, text = one.partition("=")
        stage, dot, name = key.rpartition(".")
        if not equals or not name or (dot and stage not in STAGES):
            problems.append(f"--set {one}: expected STAGE.KEY=VALUE with STAGE one of {', '.join(STAGES)}")
            continue
        table = tables.setdefault(stage, {}) if dot else tables
        if isinstance(table, dict):  # what is no table is reported with the file's other problems
            table[name] = literal(text)
    return problems


def literal(text: str) -> Any:
    """A TOML value, or the text itself: nobody wants to quote quotes for a shell."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if set(found) == {"value"} else text


def commented(stages: Mapping[str, Mapping[str, Any]], top: Mapping[str, Any], *, head: str) -> str:
    """A recipe with every key that a recipe may say, its help above it; keys left at their default are comments.

    Args:
        stages: the values to set, by stage and key.
        top: the values to set above the tables.
        head: lines of the comment at the top.
    """
    lines = [*(f"# {line}".rstrip() for line in head.splitlines()), "", f"schema = {SCHEMA}"]
    owner = {name: field for stage in reversed(STAGES.values()) for name, field in fields_of(stage).items()}
    # Data and split are one for all stages, so they stand above the tables.
    above = {name: owner[name] for name in (*fields_of(DataFields), *top)}
    for name, field in above.items():
        lines += _key_lines(name, field, top)
    for stage_name, stage in STAGES.items():
        lines += ["", f"[{stage_name}]"]
        for name, field in fields_of(stage).items():
            if not field.metadata["given"] and name not in above:
                lines += _key_lines(name, field, stages.get(stage_name, {}))
    return "\n".join(lines) + "\n"


def _key_lines(name: str, field: Any, values: Mapping[str, Any]) -> list[str]:
    if name in values:
        return [*_help_lines(field.metadata), f"{name} = {toml_value(values[name])}"]
    default = "..." if field.default in (None, REQUIRED) else toml_value(field.default)
    return [*_help_lines(field.metadata), f"# {name} = {default}"]


def _help_lines(metadata: Mapping[str, Any]) -> list[str]:
    choices = f" One of: {', '.join(metadata['choices'])}." if metadata["choices"] else ""
    return [f"# {line}" for line in textwrap.wrap(metadata["help"] + choices, 116)]
