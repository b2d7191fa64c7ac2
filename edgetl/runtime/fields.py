"""Reads JSON tables strictly: every wrong field is one sentence that names it, what was found and what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from edgetl.errors import BundleError
from edgetl.runtime.limits import PATH_BYTES, TEXT

Value = TypeVar("Value")


def words(value: Any) -> str:
    """A JSON value as it may stand in a sentence, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Table:
    """One JSON object whose fields are asked for by name and kind.

    A field that is absent gives `default`; without a default it is a BundleError, and so is a field of another kind.
    """

    def __init__(self, values: Any, where: str) -> None:
        self.where = where
        if not isinstance(values, Mapping):
            raise BundleError(f"{where}: found {words(values)}, expected a table.")
        self.values: Mapping[str, Any] = values

    def wrong(self, name: str, expected: str) -> BundleError:
        """The sentence for a field whose value is not what was expected."""
        return BundleError(f"{self.where}: '{name}' is {words(self.values.get(name))}, expected {expected}.")

    def get(self, name: str, accept: Callable[[Any], bool], expected: str, default: Value | None) -> Any:
        """The field's value if `accept` says so."""
        if name not in self.values:
            if default is None:
                raise BundleError(f"{self.where}: '{name}' is missing, expected {expected}.")
            return default
        if not accept(self.values[name]):
            raise self.wrong(name, expected)
        return self.values[name]

    def text(self, name: str, default: str | None = None, *, choices: tuple[str, ...] = ()) -> str:
        """A string of at most TEXT characters, one of `choices` where there are some."""
        given: Any = self.values.get(name)
        if is_text(given) and (not choices or given in choices):
            return str(given)  # nearly always; the sentences below take longer to write than to look
        long = isinstance(found := self.values.get(name), str) and len(found) > TEXT
        expected = f"one of {', '.join(choices)}" if choices else f"at most {TEXT} characters" if long else "a text"

        def accept(found: Any) -> bool:
            return is_text(found) and (not choices or found in choices)

        return str(self.get(name, accept, expected, default))

    def whole(self, name: str, default: int | None = None, *, low: int = 0, high: int = 2**63) -> int:
        """An integer within `low` and `high`."""
        given: Any = self.values.get(name)
        if is_whole(given) and low <= given <= high:
            return int(given)
        limits = f"a whole number from {low}" + (f" to {high}" if high < 2**63 else " up")
        value: int = self.get(name, lambda found: is_whole(found) and low <= found <= high, limits, default)
        return value

    def number(self, name: str, default: float | None = None, *, low: float = -math.inf, above: float = -math.inf,
               high: float = math.inf) -> float:
        """A finite number of at least `low`, above `above`, at most `high`."""
        given: Any = self.values.get(name)
        if is_number(given) and low <= given <= high and given > above:
            return float(given)
        limits = [f"of at least {low:g}"] if low > -math.inf else []
        limits += [f"above {above:g}"] if above > -math.inf else []
        limits += [f"of at most {high:g}"] if high < math.inf else []

        def accept(found: Any) -> bool:
            return is_number(found) and low <= found <= high and found > above

        return float(self.get(name, accept, " ".join(["a finite number", " and ".join(limits)]).strip(), default))

    def truth(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value: bool = self.get(name, lambda found: isinstance(found, bool), "true or false", default)
        return value

    def texts(self, name: str, default: tuple[str, ...] | None = None, *, least: int = 0,
              most: int | None = None) -> tuple[str, ...]:
        """A list of `least` to `most` strings."""
        def accept(found: Any) -> bool:
            return is_list(found, is_text, least, most)

        expected = _list_of("texts", least, most, self.values.get(name))

        return tuple(self.get(name, accept, expected, default))

    def numbers(self, name: str, default: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """A list of finite numbers."""
        found = self.get(name, lambda found: is_list(found, is_number, 1), "a list of finite numbers", default)
        return tuple(float(one) for one in found)

    def wholes(self, name: str, *, count: int, low: int, high: int) -> tuple[int, ...]:
        """A list of exactly `count` integers within `low` and `high`."""

        def accept(found: Any) -> bool:
            return is_list(found, is_whole, count) and len(found) == count and all(low <= one <= high for one in found)

        return tuple(self.get(name, accept, f"{count} whole numbers from {low} to {high}", None))

    def table(self, name: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """An object, as it is."""
        value: Mapping[str, Any] = self.get(name, lambda found: isinstance(found, Mapping), "a table", default)
        return value

    def tables(self, name: str, default: tuple[Any, ...] | None = None, *, least: int = 0,
               most: int | None = None) -> tuple[Any, ...]:
        """A list of `least` to `most` objects, as they are."""
        def accept(found: Any) -> bool:
            return is_list(found, lambda one: isinstance(one, Mapping), least, most)

        expected = _list_of("tables", least, most, self.values.get(name))

        return tuple(self.get(name, accept, expected, default))


def is_text(value: Any) -> bool:
    """Whether `value` is a string of at most TEXT characters."""
    return isinstance(value, str) and len(value) <= TEXT


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold."""
    return (isinstance(value, float) and math.isfinite(value)) or (is_whole(value) and abs(value) < 1e300)


def is_list(value: Any, accept: Callable[[Any], bool], least: int = 0, most: int | None = None) -> bool:
    """Whether `value` is a list of `least` to `most` values that are all accepted."""
    return (isinstance(value, list | tuple) and least <= len(value) <= (len(value) if most is None else most)
            and all(map(accept, value)))


def _list_of(what: str, least: int, most: int | None, found: Any) -> str:
    """What was expected, e.g. `a list of at least 1 tables`; the upper limit only where it is the matter."""
    if most is not None and isinstance(found, list) and len(found) > most:
        return f"a list of at most {most} {what}, not {len(found)}"
    return f"a list of at least {least} {what}" if least else f"a list of {what}"


def stays_inside(path: str) -> bool:
    """Whether a file's name is a relative path in its shortest form that stays in the bundle, on every system.

    Symbolic links are looked at when the file is read.
    """
    if not {"", ".", ".."}.isdisjoint(path.split("/")):
        return False
    # A backslash separates and a colon names a drive on Windows; others cannot be written everywhere, or deceive.
    if any(character in '\\:"*?<>|' or not character.isprintable() for character in path):
        return False
    return len(path.encode()) <= PATH_BYTES


def has_control(text: str) -> bool:
    """Whether a text holds what is no character to show: it steers a terminal, ends a line, or is half of a character.

    Bytes of file names that are no UTF-8, which Python writes as U+DC80 to U+DCFF, are let through.
    """
    return re.search("[\\x00-\\x1f\\x7f-\\x9f\ud800-\udc7f\udd00-\udfff]", text) is not None
