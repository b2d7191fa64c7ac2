"""`edgetl list`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgetl.cli.options import Json, WrongUsage

EXAMPLE = """
edgetl list losses
edgetl list models timm
"""

KINDS = ("losses", "models", "targets", "backends", "datasets", "strategies", "presets")


def _complete(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def list_names(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}.", metavar="KIND", autocompletion=_complete)],
    family: Annotated[str | None, typer.Argument(help="With models: the family whose variants to list.",
                                                 metavar="[FAMILY]")] = None,
    as_json: Json = False,
) -> None:
    """List the names that flags and recipes know."""
    from edgetl.cli import present
    from edgetl.recipe_values import nearest

    if kind not in KINDS:
        raise WrongUsage(f"KIND: found '{kind}', expected one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if family is not None and kind != "models":
        raise WrongUsage(f"FAMILY goes with models only; found it with {kind}.")
    special = {"strategies": _strategies, "presets": _presets}
    found = _variants(family) if family is not None else special[kind]() if kind in special else _catalogue(kind)
    if as_json:
        present.document([{"name": name, "summary": summary} for name, summary in found.items()])
        return
    width = max(map(len, found), default=0)
    for name, summary in found.items():
        print(f"{name.ljust(width)}  {summary}".rstrip())


def _catalogue(kind: str) -> dict[str, str]:
    from edgetl import plugins

    return {name: plugins.summary(kind, name) for name in plugins.names(kind)}


def _strategies() -> dict[str, str]:
    from edgetl.recipe_finetune import STRATEGIES

    return {name: strategy.summary for name, strategy in STRATEGIES.items()}


def _presets() -> dict[str, str]:
    from edgetl.recipe_presets import PRESETS

    return {name: preset.summary for name, preset in PRESETS.items()}


def _variants(family: str) -> dict[str, str]:
    from edgetl import extras, plugins

    plugins.require("models", family)
    extras.require("torch", extra="train", purpose="Listing models")
    return {f"{family}/{name}": "" for name in plugins.load("models", family).variants()}
