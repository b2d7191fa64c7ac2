"""The rungs of the ladder to INT8, one file each, in the order in which they are tried.

A file has `climb(ladder) -> Attempt | None`: it makes attempts with `ladder.attempt` (or, where it writes graphs
itself, with `ladder.judge`), each of which becomes a row of the table, and returns the one that it would take. A new
rung is one file and its name in `ORDER`. Where a graph within the limits is not faster than float32, only rungs with
`QUICKENS = True` are tried.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from edgetl.export.ladder import Attempt, Ladder

ORDER = ("calibrated", "equalized", "mixed", "adaptive", "distilled")
OWN = "edgetl"  # what `--quantizer` calls these; another one has a file of its name here, which is the only rung


class Rung(Protocol):
    """What a file here offers."""

    def climb(self, ladder: Ladder) -> Attempt | None:
        """The attempt that the rung would take; None where none of its attempts is within the limits."""


def in_order(quantizer: str = OWN) -> Iterator[Rung]:
    """The rungs of a quantizer; each is imported when it is needed."""
    for name in ORDER if quantizer == OWN else (quantizer,):
        yield cast("Rung", importlib.import_module(f"edgetl.export.rungs.{name}"))
