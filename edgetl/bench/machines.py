"""How much slower one machine is than another, by the calibration kernel that both measured, and how unsure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgetl.bench import stats
from edgetl.bench.kernel import PARTS, Calibration
from edgetl.bench.report import Report
from edgetl.bench.stats import Interval
from edgetl.errors import EdgetlError

LEAST_BLOCKS = 2  # of one block nobody knows how it varies
SEED = 0


@dataclass(frozen=True)
class Factor:
    """How many times as long the machine of NEW takes for the kernel as that of BASE.

    `value` is the geometric mean of the parts' ratios, as one weighs none of them more than another; `low` and `high`
    are the least and the greatest end of the parts' own intervals. So they hold both kernels' noise and, mostly larger,
    the disagreement of arithmetic, memory and interpreter about the two machines, which is all that is known of how
    far a network may differ from any of them.
    """

    value: float
    low: float
    high: float
    parts: Mapping[str, Interval]


NONE = Factor(1.0, 1.0, 1.0, {})  # of one and the same machine


def factor(base: Calibration, new: Calibration) -> Factor:
    """The factor between two machines from the kernel's times in both reports."""
    parts = {part: stats.ratio(*(_seconds(one, part) for one in (base, new)), seed=SEED) for part in PARTS}
    value = float(np.exp(np.mean([np.log(one.value) for one in parts.values()])))
    lows, highs = zip(*(one.ends() for one in parts.values()), strict=True)
    return Factor(value, min(lows), max(highs), parts)


def require_calibration(report: Report, where: str) -> Calibration:
    """The report's kernel times.

    Raises:
        EdgetlError: there are none, or too few.
    """
    found = report.calibration
    if found is None or len(found.blocks) < LEAST_BLOCKS:
        blocks = "none" if found is None else f"{len(found.blocks)}"
        raise EdgetlError(f"{where} holds {blocks} of the calibration kernel's blocks, by which machines are compared; "
                          f"expected at least {LEAST_BLOCKS}.",
                          hint="Measure again with this version of `edgetl bench` and at least 2 rounds.")
    return found


def between(base: Report, new: Report, names: tuple[str, str]) -> Factor:
    """The factor between the machines of two reports, of which `names` say where they come from.

    Raises:
        EdgetlError: a report has no kernel times, or theirs are of different kernels.
    """
    first, second = (require_calibration(one, name) for one, name in zip((base, new), names, strict=True))
    if first.kernel != second.kernel:
        raise EdgetlError(f"{names[0]} holds times of version {first.kernel} of the calibration kernel, {names[1]} of "
                          f"version {second.kernel}.", hint="Measure both with the same version of edgetl.")
    return factor(first, second)


def _seconds(found: Calibration, part: str) -> stats.Samples:
    return np.array([[getattr(block, part)] for block in found.blocks])
