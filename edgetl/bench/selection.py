"""Which of the measured cases to run: the fastest within the accuracy allowed, where "faster" is beyond doubt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetl.bench import stats

FASTER_BY = 1.03  # the least effect: medians that are closer are as good as one another
SIGNIFICANCE = 0.05  # and the most that a rank test over the rounds may say for chance
LEAST_ROUNDS = 5  # the least in which that test can reach it: 2**-5 is below it, 2**-4 is not
FP32 = "fp32"
RANKS = {FP32: 0, "fp16": 1, "bf16": 1}  # the lower, the more precise; INT8 comes after all of these
LEAST_PRECISE = 2
ROUNDING = 1e-9  # points; a limit that is met exactly is met


@dataclass(frozen=True)
class Candidate:
    """A variant on a backend with a number of threads, and what is known of it here."""

    variant: str
    backend: str
    threads: int
    precision: str
    rounds_s: tuple[float, ...] = ()  # median latency of each round, one image a call, rounds side by side
    reason: str | None = None  # why it cannot be chosen, whatever the others do
    drop_points: float | None = None  # validation accuracy below fp32's; None is not known
    accuracy_from: str | None = None  # who says so; where it is not known, why it could not be measured

    @property
    def median_s(self) -> float | None:
        """The middle of the rounds; None where there are none."""
        return float(np.median(self.rounds_s)) if self.rounds_s else None

    @property
    def name(self) -> str:
        """How sentences call it."""
        return f"{self.variant} on {self.backend} with {self.threads} thread{'s' * (self.threads != 1)}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "median_s": self.median_s}


@dataclass(frozen=True)
class Verdict:
    """What to run of a group of candidates, and why the others not."""

    chosen: Candidate | None
    why: str
    refusals: tuple[str | None, ...]  # of the group, in its order


def faster(one: Candidate, other: Candidate) -> bool:
    """Whether `one` is faster by at least `FASTER_BY`, and the rounds, pair by pair, leave no doubt of it."""
    if one.median_s is None or other.median_s is None or other.median_s < FASTER_BY * one.median_s:
        return False
    gains = [math.log(slow / quick) for quick, slow in zip(one.rounds_s, other.rounds_s, strict=True)]
    return stats.signed_rank(gains) <= SIGNIFICANCE


def decide(group: Sequence[Candidate], *, max_drop: float, by_name: bool = False) -> Verdict:
    """The candidate of a group to run.

    A variant of less precision than fp32 must keep its accuracy within `max_drop` points and be faster than the
    quickest of the group that is more precise and may be chosen: fp16 than fp32, INT8 than fp16 and fp32. Of those
    left the fastest is taken, or the first, in the group's order, of those that it is not faster than.

    Args:
        group: in the order of preference.
        max_drop: points of validation accuracy.
        by_name: whether the user named the variant; then neither accuracy nor fp32 is held against it.
    """
    running = [one for one in group if one.reason is None]
    reference = min((one for one in running if one.precision == FP32), key=_median, default=None)
    refusals = tuple(one.reason for one in group) if by_name else _refusals(group, max_drop)
    left = [one for one, refusal in zip(group, refusals, strict=True) if refusal is None]
    if not left:
        return Verdict(None, "nothing of it may be chosen", refusals)
    fastest = min(left, key=_median)
    chosen = next(one for one in left if not faster(fastest, one))
    return Verdict(chosen, _why(chosen, fastest, reference, len(left)), refusals)


def _refusals(group: Sequence[Candidate], max_drop: float) -> tuple[str | None, ...]:
    """Why each of a group may not be chosen: the most precise first, for the others are held against them."""
    found = [one.reason for one in group]
    quickest: Candidate | None = None
    for rank in range(LEAST_PRECISE + 1):
        places = [place for place, one in enumerate(group)
                  if one.reason is None and RANKS.get(one.precision, LEAST_PRECISE) == rank]
        for place in places:
            found[place] = _refusal(group[place], quickest, max_drop)
        allowed = [group[place] for place in places if found[place] is None]
        quickest = min((*allowed, *([] if quickest is None else [quickest])), key=_median, default=None)
    return tuple(found)


def _refusal(one: Candidate, reference: Candidate | None, max_drop: float) -> str | None:
    if one.precision == FP32:
        return None
    if one.drop_points is None:
        return f"its validation accuracy is not known: {one.accuracy_from or '--data measures it'}"
    if one.drop_points > max_drop + ROUNDING:
        return f"it loses {one.drop_points:.2f} points of validation accuracy, {max_drop:g} are allowed"
    if reference is not None and not faster(one, reference):
        return f"it is not faster than {reference.name} ({_ms(one)} against {_ms(reference)})"
    return None


def _why(chosen: Candidate, fastest: Candidate, reference: Candidate | None, count: int) -> str:
    than = f", {reference.name} {_ms(reference)}" if reference is not None and reference is not chosen else ""
    if chosen is fastest:
        among = f"the fastest of the {count}" if count > 1 else "the only one"
        return f"{_ms(chosen)}{than}; {among} that may be chosen"
    return (f"{_ms(chosen)}{than}; {fastest.name} ({_ms(fastest)}) is not faster by {100 * (FASTER_BY - 1):.0f} % "
            "beyond doubt, so the first in the manifest's order is taken")


def _median(one: Candidate) -> float:
    found = one.median_s
    if found is None:
        raise ValueError(f"{one.name} has neither latencies nor a reason why it has none")
    return found


def _ms(one: Candidate) -> str:
    return f"{1e3 * _median(one):.3g} ms"
