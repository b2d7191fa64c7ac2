"""The fields of a verb's dataclass as its keyword arguments, in Python: what help() shows, and what a call makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgetl.recipe import build, fields_of
from edgetl.recipe_fields import REQUIRED

Verb = TypeVar("Verb", bound=Callable[..., Any])
Options = TypeVar("Options")


def shows(stage: type[Any]) -> Callable[[Verb], Verb]:
    """Gives a verb the signature that its `**fields` stand for, so that help() and editors show it."""
    def decorated(verb: Verb) -> Verb:
        own = inspect.signature(verb)
        fields = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=field.type,
                                    default=inspect.Parameter.empty if field.default is REQUIRED else field.default)
                  for name, field in fields_of(stage).items()]
        shown = own.replace(parameters=[*fields, own.parameters["listener"]])
        verb.__signature__ = shown  # type: ignore[attr-defined]
        return verb

    return decorated


def built(stage: type[Options], fields: Mapping[str, Any], verb: str) -> Options:
    """The dataclass of a verb from its keyword arguments; paths may be `Path`s.

    Raises:
        RecipeError: every problem at once; begins with the verb's name.
    """
    return build(stage, {name: _plain(value) for name, value in fields.items()}, where=f"edgetl.{verb}()")


def _plain(value: Any) -> Any:
    """Paths as text, also within a list."""
    if isinstance(value, Path):
        return str(value)
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
