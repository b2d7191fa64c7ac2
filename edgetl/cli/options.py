"""A command's flags, made from the fields of its recipe dataclass: one place for names, defaults, limits and help."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import typer

from edgetl import recipe_fields, recipe_presets, recipe_values
from edgetl.errors import EdgetlError
from edgetl.recipe import fields_of
from edgetl.recipe_fields import REQUIRED

Stage = TypeVar("Stage")
JSON = "as_json"
CONTEXT = "context"  # of typer, which knows what was typed
Threads = Annotated[int, typer.Option(help="Threads; 0 takes what the machine allows.", min=0,
                                      max=recipe_fields.MOST_THREADS)]
Json = Annotated[bool, typer.Option("--json", show_default=False, help="Print the result as one JSON document.")]


class WrongUsage(EdgetlError):
    """The command was typed in a way that cannot be understood; exit code 2."""

    exit_code = 2


def flag(name: str) -> str:
    """The flag that carries a field: `max_drop` -> `--max-drop`."""
    return "--" + name.replace("_", "-")


def parameters(stage: type[Any]) -> list[inspect.Parameter]:
    """One parameter a field, annotated for typer; positional ones become arguments."""
    hints = typing.get_type_hints(stage)
    return [_parameter(name, hints[name], field) for name, field in fields_of(stage).items()]


def _parameter(name: str, hint: Any, field: dataclasses.Field[Any]) -> inspect.Parameter:
    required = field.default is REQUIRED
    default: Any = inspect.Parameter.empty if required else field.default
    plain = str if field.metadata["words"] else _plain(hint)
    if isinstance(default, tuple):
        default = list(default)
    info = _argument(name, plain, field) if field.metadata["positional"] else _option(name, plain, field)
    annotation: Any = Annotated[plain | None if default is None else plain, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _plain(hint: Any) -> Any:
    """The type that typer parses: no None, and a list where the recipe has a tuple."""
    if isinstance(hint, types.UnionType):
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
    return list[str] if typing.get_origin(hint) is tuple else hint


def _argument(name: str, plain: Any, field: dataclasses.Field[Any]) -> Any:
    metavar = name.upper() + ("..." if plain is list[str] else "")
    return typer.Argument(help=field.metadata["help"], show_default=False, metavar=metavar)


def _option(name: str, plain: Any, field: dataclasses.Field[Any]) -> Any:
    """A typer option; limits and choices are checked by the recipe, so that a file and a flag get the same sentence."""
    meta = field.metadata
    if plain is bool:
        # --no-resume and --no-overwrite would say nothing: nobody else can have said the opposite.
        spelled = flag(name) if meta["given"] else f"{flag(name)}/--no-{name.replace('_', '-')}"
        return typer.Option(spelled, help=meta["help"], show_default=not meta["given"])
    shown = field.default not in (REQUIRED, None, ())
    help = meta["help"] + (" Commas or repeated." if meta["split"] else "")
    if meta["choices"]:
        return typer.Option(flag(name), help=help, show_default=shown, metavar="|".join(meta["choices"]),
                            autocompletion=_completing(meta["choices"]))
    metavar = {int: "N", float: "X"}.get(plain, name.rpartition("_")[2].upper())
    metavar = "|".join(("X", *meta["words"])) if meta["words"] else metavar
    return typer.Option(flag(name), help=help, show_default=shown, metavar=metavar)


def _completing(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [one for one in choices if one.startswith(incomplete)]

    return complete


def command(stage: type[Stage], body: Callable[[Stage, bool], None]) -> Callable[..., None]:
    """A function for typer whose flags are the fields of `stage` and --json; it calls `body(options, as_json)`."""

    def invoked(**values: Any) -> None:
        shown_as_json, context = values.pop(JSON), values.pop(CONTEXT)
        said = {name for name in values if context.get_parameter_source(name).name == "COMMANDLINE"}
        body(read(stage, values, said), shown_as_json)

    as_json = inspect.Parameter(JSON, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    invoked.__name__ = body.__name__
    invoked.__doc__ = body.__doc__
    context = inspect.Parameter(CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    invoked.__signature__ = inspect.Signature([*parameters(stage), as_json, context])  # type: ignore[attr-defined]
    return invoked


def read(stage: type[Stage], values: Mapping[str, Any], said: Collection[str] = ()) -> Stage:
    """The stage's dataclass from what typer parsed.

    Args:
        stage: the dataclass.
        values: all flags, those that were left out at their defaults.
        said: the names of those that were typed, which win over a preset.

    Raises:
        WrongUsage: a value outside its limits; names every such flag.
    """
    hints = typing.get_type_hints(stage)
    problems: list[str] = []
    kept: dict[str, Any] = {}
    for name, field in fields_of(stage).items():
        try:
            kept[name] = recipe_values.convert(_uncommaed(values[name], field), hints[name], field)
        except ValueError as problem:
            shown = name.upper() if field.metadata["positional"] else flag(name)
            problems.append(f"{shown}: {problem}")
    if problems:
        raise WrongUsage("; ".join(problems))
    return stage(**recipe_presets.resolved(kept, said))


def _uncommaed(value: Any, field: dataclasses.Field[Any]) -> Any:
    """A repeated flag may hold several values with commas each."""
    if field.metadata["split"] and isinstance(value, list):
        return [part for one in value for part in one.split(",")]
    return value
