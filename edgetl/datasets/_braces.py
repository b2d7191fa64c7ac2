"""Names of many files in one: `train-{000..009}.tar`, `{a,b}.tar`, as shells and the webdataset library write them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgetl.errors import DataError

MOST = 100_000  # names out of one pattern
_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.(-?[0-9]+))?")


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for, in its order; a range keeps its leading zeros.

    Raises:
        DataError: braces that do not match, or more than `MOST` names.
    """
    found = []
    for name in _expanded(pattern):
        if "{" in name or "}" in name:
            raise DataError(f"The braces in '{pattern}' do not match.", hint="Write {000..009} or {a,b}.")
        found.append(name)
        if len(found) > MOST:
            raise DataError(f"'{pattern}' stands for more than {MOST} names.", hint="Give a smaller range.")
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """Each innermost group once for each of its choices; the leftmost changes slowest."""
    for group in _GROUP.finditer(pattern):
        choices = _choices(group[1])
        if choices is not None:
            for one in choices:
                yield from _expanded(pattern[:group.start()] + one + pattern[group.end():])
            return
    yield pattern


def _choices(inside: str) -> Iterator[str] | None:
    """What stands between a pair of braces; None where it is no choice."""
    bounds = _RANGE.fullmatch(inside)
    if bounds:
        return _numbers(bounds[1], bounds[2], int(bounds[3] or 1))
    return iter(inside.split(",")) if "," in inside else None


def _numbers(first: str, last: str, step: int) -> Iterator[str]:
    begin, end, stride = int(first), int(last), abs(step) or 1
    padded = any(len(one.lstrip("-")) > 1 and one.lstrip("-").startswith("0") for one in (first, last))
    width = max(len(first), len(last)) if padded else 0
    numbers = range(begin, end + 1, stride) if begin <= end else range(begin, end - 1, -stride)
    return (f"{number:0{width}d}" for number in numbers)
