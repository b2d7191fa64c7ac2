"""JSON from anybody, read so that every reader in every language sees the same values in it."""

from __future__ import annotations

import json
import math
from typing import Any

from edgetl.runtime.limits import DEPTH

HOLDERS = frozenset({dict, list})  # what `json` makes of tables and lists; it makes no subclasses of them


def parse(text: str) -> Any:
    """The value in a JSON text.

    Stricter than the standard library, which takes NaN, Infinity, numbers beyond a float's range (as infinity) and
    tables that name a key twice (of which other readers may see the other one).

    Raises:
        ValueError: says what is wrong.
    """
    try:
        value = json.loads(text, object_pairs_hook=_table, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as problem:
        raise ValueError("it is nested too deep") from problem
    _check_depth(value)
    return value


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"a table names {twice[:60]!r} twice")
    return made


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:60]} is beyond the range of numbers")
    return value


def _check_depth(value: Any) -> None:
    """Level by level, not by recursion; of every level only what can hold another."""
    level = [value] if type(value) in HOLDERS else []
    for _ in range(DEPTH):
        level = [inner for outer in level for inner in (outer.values() if type(outer) is dict else outer)
                 if type(inner) in HOLDERS]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEPTH} deep")
