"""`--freeze`: what of a network stays as it is, by globs over the names of modules and parameters, or by stages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.train.stages import in_words, of_head, stages

STAGES = re.compile(r"stages:(\d+)")


def frozen(network: Network, patterns: Sequence[str]) -> frozenset[str]:
    """Names of the parameters that patterns hold.

    A glob matches a parameter by its own name or by that of a module around it; a `*` spans dots. `stages:N` matches
    the first N stages, see `edgetl.train.stages`.

    Args:
        network: whose parameters.
        patterns: as --freeze has them.

    Raises:
        EdgetlError: a pattern matches nothing, there are fewer stages, or the head or everything would be held.
    """
    found: set[str] = set()
    for pattern in patterns:
        number = STAGES.fullmatch(pattern)
        matched = _first_stages(network, int(number[1])) if number is not None else _matching(network, pattern)
        _require_head(network, pattern, matched)
        found |= matched
    return frozenset(found)


def _first_stages(network: Network, count: int) -> set[str]:
    known = stages(network)
    if not 1 <= count <= len(known):
        raise EdgetlError(
            f"--freeze stages:{count}: {network.model} has {len(known)} stages, expected a number from 1 to "
            f"{len(known)}.",
            hint=f"They are {in_words(known)}." if known else "It has nothing but a head.",
        )
    return {name for stage in known[:count] for name in stage.parameters}


def _matching(network: Network, pattern: str) -> set[str]:
    names = [name for name, _ in network.module.named_parameters()]
    matched = {name for name in names if any(fnmatchcase(path, pattern) for path in _paths(name))}
    if not matched:
        paths = dict.fromkeys(path for name in names for path in _paths(name))
        near = difflib.get_close_matches(pattern, list(paths), 3, 0.3)
        say = ", ".join(near or dict.fromkeys(name.partition(".")[0] for name in names))
        raise EdgetlError(
            f"--freeze '{pattern}' matches no module and no parameter of {network.model}.",
            hint=f"It has for example: {say}; or give stages:N for the first N of: {in_words(stages(network))}.",
        )
    return matched


def _paths(name: str) -> list[str]:
    """A parameter's name and those of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _require_head(network: Network, pattern: str, matched: set[str]) -> None:
    names = {name for name, _ in network.module.named_parameters()}
    if matched == names:
        raise EdgetlError(
            f"--freeze '{pattern}' holds all of {network.model}, so nothing would be learned.",
            hint="Hold less of it; --strategy probe fits the head alone.",
        )
    held = sorted(matched & of_head(network))
    if held:
        raise EdgetlError(
            f"--freeze '{pattern}' holds the head, too ({', '.join(held)}), which is what has to learn the classes.",
            hint="Name what comes before the head, or give stages:N for the first N stages.",
        )
