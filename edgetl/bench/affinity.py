"""The cores that a process runs on; only the standard library, because a worker pins itself before it imports more."""

from __future__ import annotations

import os
from collections.abc import Collection

from edgetl.errors import EdgetlError


def allowed() -> tuple[int, ...]:
    """Cores that this process may run on, in rising order; empty where the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def require(cores: Collection[int], own: Collection[int] | None = None) -> None:
    """Returns when a process may pin itself to the cores.

    Args:
        cores: which are asked for.
        own: those that it may use; None is this process's own.

    Raises:
        EdgetlError: it may not use one of them, or the system cannot pin; says which cores there are.
    """
    own = allowed() if own is None else own
    if not own:
        raise EdgetlError("--pin: this system cannot tie a process to cores.", hint="Leave out --pin.")
    foreign = sorted(set(cores).difference(own))
    if foreign:
        raise EdgetlError(f"--pin: this process may not run on core {foreign[0]}; it has the cores "
                          f"{in_words(own)}.", hint="Name some of these.")


def pin(cores: Collection[int]) -> None:
    """Ties this process, and the threads it is going to start, to the cores.

    Raises:
        EdgetlError: see `require`.
    """
    require(cores)
    os.sched_setaffinity(0, cores)


def in_words(cores: Collection[int]) -> str:
    """Numbers in rising order with runs cut short, e.g. `0-3, 6`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1][1:] = [core]
        else:
            runs.append([core])
    return ", ".join("-".join(map(str, run)) for run in runs)
