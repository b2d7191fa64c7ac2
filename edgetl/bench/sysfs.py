"""What Linux tells in small files of one value; what a machine does not tell is None."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def text(path: Path) -> str | None:
    """The value in words; None where there is no such file, it may not be read, or it is empty."""
    try:
        return path.read_text(errors="replace").strip(" \0\n\t") or None
    except OSError:
        return None  # many machines, and most containers, do not tell


def number(path: Path) -> int | None:
    """The value as a whole number; None where it is none."""
    found = text(path)
    return int(found) if found is not None and found.lstrip("-").isdecimal() and found.isascii() else None


def ranges(numbers: Sequence[int]) -> str:
    """Numbers as the kernel writes lists of processors, e.g. `0-3,8`."""
    parts: list[list[int]] = []
    for one in sorted(set(numbers)):
        if parts and one == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], one]
        else:
            parts.append([one])
    return ",".join("-".join(map(str, part)) for part in parts)
