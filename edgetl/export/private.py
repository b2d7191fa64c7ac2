"""What a bundle says of the machine that made it: no paths, since a bundle leaves the house; the RUN keeps them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetl import dataspec, plugins
from edgetl.recipe import Export

PLACES = frozenset({"data", "out", "run", "source", "student", "teacher", "unlabeled", "weights"})  # may hold a path
SAID = "teacher_options"  # each of key=value[;key=value...], of which a value may be a path


def without_folders(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose paths, at any depth, are cut to their final names."""
    return {key: _cut(key, value) for key, value in record.items()}


def shareable(options: Export) -> Export:
    """Options whose paths are cut to their final names."""
    return dataclasses.replace(options, **without_folders(
        {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}))


def _cut(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_folders(value)
    if key == SAID and isinstance(value, list | tuple):
        return [";".join(_cut_value(pair) for pair in str(one).split(";")) for one in value]
    if key == "teacher" and isinstance(value, str):
        return ",".join(final_name(one) for one in value.split(","))
    return final_name(value) if key in PLACES and isinstance(value, str) else value


def _cut_value(pair: str) -> str:
    name, equals, value = pair.partition("=")
    return name + equals + (Path(value).name if equals and value else value)


def final_name(text: str) -> str:
    """`csv:photos.csv` for `csv:/home/me/photos.csv`; names of models and data sets stay as they are."""
    if text.startswith("shards:"):
        return dataspec.without_folders(text)
    kind, colon, path = text.rpartition(":")
    family, slash, _ = path.partition("/")
    if not slash or family in plugins.names("models"):
        return text
    return kind + colon + Path(path).name
