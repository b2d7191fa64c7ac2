"""The paths within what `--data` says: `FOLDER`, `csv:FILE`, `shards:SPEC` with its parts, or a name without any."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePath

PATTERN = "{*?["  # what begins the part of a path that stands for several


def changed(spec: str, change: Callable[[str], str], *, urls: bool = False) -> str:
    """The same text with every path in it put through `change`.

    Args:
        spec: what `--data` says.
        change: gets a path; of shards it may hold braces and wildcards.
        urls: whether it gets URLs, too.
    """
    scheme, colon, rest = spec.partition(":")
    if scheme == "shards" and colon:
        return "shards:" + ";".join(_changed_part(part, change, urls) for part in rest.split(";"))
    return f"csv:{change(rest)}" if scheme == "csv" and colon else change(spec)


def _changed_part(part: str, change: Callable[[str], str], urls: bool) -> str:
    found = re.match(r"[A-Za-z]+=", part)
    begin = found[0] if found else ""
    path = part[len(begin):]
    kept = begin == "label=" or not path or ("://" in path and not urls)
    return part if kept else begin + change(path)


def absolute(spec: str) -> str:
    """What `--data` said, so that it can be found from any folder."""
    always = spec.startswith(("csv:", "shards:"))
    return changed(spec, lambda path: _full(path) if always or Path(path).exists() else path)


def _full(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def anchored(spec: str, base: Path) -> str:
    """The same with relative paths counted from `base`, where something is there."""
    return changed(spec, lambda path: str((base / path).absolute()) if path and _fixed(base / path).exists() else path)


def _fixed(path: Path) -> Path:
    """The deepest folder of a pattern that is the same for all that it stands for; a plain path itself."""
    for parent in reversed(path.parents):
        if any(sign in parent.name for sign in PATTERN):
            return parent.parent
    return path.parent if any(sign in path.name for sign in PATTERN) else path


def without_folders(spec: str) -> str:
    """The same with last names only, for pages that are shown to others; of URLs too, which may hold a key."""
    return changed(spec, lambda path: PurePath(path.partition("?")[0] if "://" in path else path).name, urls=True)
