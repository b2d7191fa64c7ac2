"""Single values of a recipe: from TOML or a flag to a field's type and within its limits, and back to TOML."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any


def nearest(name: str, choices: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def convert(value: Any, hint: Any, field: dataclasses.Field[Any]) -> Any:
    """`value` as the field's type and within its limits, else ValueError with found and expected."""
    if value in field.metadata["words"]:
        return value
    if field.metadata["words"] and isinstance(value, str):
        value = _number(value, field.metadata["words"])
    optional = isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
    if value is None and optional:
        return None
    plain = next(one for one in typing.get_args(hint) or (hint,) if one is not type(None))
    plain = hint if typing.get_origin(hint) is tuple else plain
    if typing.get_origin(plain) is tuple:
        return _check_form(_convert_list(value, field), field)
    return _check_form(_check_limits(_convert_plain(value, plain), field), field)


def _convert_list(value: Any, field: dataclasses.Field[Any]) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(",") if field.metadata["split"] else [value]
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]  # threads = 2
    if field.name == "loss" and isinstance(value, list | tuple):
        value = [loss_text(one) if isinstance(one, Mapping) else one for one in value]
    if not isinstance(value, list | tuple) or not all(type(one) in (str, int) for one in value):
        raise ValueError(f"found {value!r}, expected a list of names")
    if any("\0" in str(one) for one in value):
        raise ValueError(f"found {value!r}, expected texts without the character NUL")
    return tuple(str(one).strip() for one in value if str(one).strip())


def loss_text(table: Mapping[str, Any]) -> str:
    """A `[[loss]]` table in the grammar of the flag: `name:weight;key=value`."""
    if "name" not in table:
        raise ValueError("a [[loss]] table needs a 'name'")
    options = "".join(f";{key}={value}" for key, value in table.items() if key not in ("name", "weight"))
    return f"{table['name']}:{table.get('weight', 1)}{options}"


def _number(text: str, words: Sequence[str]) -> float:
    try:
        return float(text)
    except ValueError as problem:
        named = " or ".join(f"'{one}'" for one in words)
        raise ValueError(f"found {text!r}, expected a number or {named}") from problem


def _convert_plain(value: Any, plain: Any) -> Any:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if plain is str and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # batch_size = 32 beside batch_size = "auto"
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise ValueError(f"found {value!r}, expected {words[plain]}")
    if plain is str and "\0" in value:
        raise ValueError(f"found {value!r}, expected a text without the character NUL")
    if plain is float and not math.isfinite(value):
        raise ValueError(f"found {value!r}, expected a finite number")
    return value


def _check_limits(value: Any, field: dataclasses.Field[Any]) -> Any:
    choices, low, high = (field.metadata[key] for key in ("choices", "low", "high"))
    if choices and value not in choices:
        raise ValueError(f"found '{value}', expected one of {', '.join(choices)}{nearest(str(value), choices)}")
    if low is not None and value < low:
        raise ValueError(f"found {value}, expected at least {low}")
    if high is not None and value > high:
        raise ValueError(f"found {value}, expected at most {high}")
    return value


def _check_form(value: Any, field: dataclasses.Field[Any]) -> Any:
    if field.metadata["form"] is None or value is None:
        return value
    pattern, words = field.metadata["form"]
    for one in value if isinstance(value, tuple) else (value,):
        if not re.fullmatch(pattern, one, re.DOTALL):
            raise ValueError(f"found '{one}', expected {words}")
    return value


def toml_value(value: Any) -> str:
    """A string, number, truth value or list of strings in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(one) for one in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
