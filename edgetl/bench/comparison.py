"""What a comparison of two reports found, as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edgetl.bench.machines import Factor
from edgetl.bench.stats import Interval
from edgetl.errors import GateFailed, GateUndecided

SCHEMA = 1
FASTER, SLOWER, SAME, INCONCLUSIVE = "faster", "slower", "same", "inconclusive"
PASS, FAIL = "pass", "fail"
SIGNIFICANCE = 0.01  # the most that the rank test of a verdict may say for chance
# And of the gate, over all its cases: how often it says no, at most, where each is slower by exactly what is allowed.
FALSE_ALARMS = 0.05


@dataclass(frozen=True)
class Case:
    """A case that both reports measured in the same way."""

    name: str
    base_s: float  # median latency of one call
    new_s: float
    ratio: Interval  # new / base; of different machines what is left of it after their factor
    p_value: float  # of the rank test over the rounds, two-sided
    verdict: str  # "faster" | "slower" | "same" | "inconclusive"
    gate: str | None = None  # "pass" | "fail" | "inconclusive"; None where there is no gate
    gate_p_value: float | None = None  # that it is slower than allowed by chance, Holm's over all cases
    accuracy_points: Interval | None = None  # new - base in percentage points
    accuracy_reason: str | None = None  # why there is none
    base_bytes: int | None = None
    new_bytes: int | None = None


@dataclass(frozen=True)
class Apart:
    """A case that cannot be compared."""

    name: str
    reason: str
    matters: bool  # whether a gate cannot pass without it: BASE measured it


@dataclass(frozen=True)
class Comparison:
    """Two reports against each other."""

    schema: int
    base: str
    new: str
    least_effect: float  # share
    max_regression: float | None  # share; None where there is no gate
    cases: tuple[Case, ...]
    apart: tuple[Apart, ...]
    machines: tuple[str, ...]  # fields of the fingerprint that differ; none on one machine
    factor: Factor  # by which the ratios were divided
    notes: tuple[str, ...]

    @property
    def gate(self) -> str | None:
        """The answer over all cases: "fail" if one fails, "pass" if all pass; None where there is no gate."""
        if self.max_regression is None:
            return None
        if not self.cases:
            return INCONCLUSIVE
        found = {case.gate for case in self.cases} | {INCONCLUSIVE for one in self.apart if one.matters}
        return next((one for one in (FAIL, INCONCLUSIVE) if one in found), PASS)

    def insist(self) -> None:
        """Returns when there is no gate or it passes.

        Raises:
            GateFailed: a case is slower than allowed beyond doubt.
            GateUndecided: of a case nobody can say whether it is.
        """
        if self.max_regression is None or self.gate == PASS:
            return
        limit, wanted = f"{100 * self.max_regression:g} %", self.gate
        found = [f"{case.name} ({change(case.ratio)})" for case in self.cases if case.gate == wanted]
        if wanted == FAIL:
            raise GateFailed(f"Slower by more than {limit} beyond doubt: {', '.join(found)}.",
                             hint="`edgetl gate` measures both side by side, and does not mistake what changed on the "
                                  "machine in between.")
        found += [f"{one.name} ({one.reason})" for one in self.apart if one.matters]
        raise GateUndecided(f"Nobody can say whether these are slower by more than {limit}: {', '.join(found)}.",
                            hint="Measure with more --rounds, or use `edgetl gate`, which measures until it is clear.")


def change(ratio: Interval) -> str:
    """A ratio of times in words: `+5.2 %, 95 % interval +3.0 to +7.1`."""
    value, low, high = (100 * (one - 1) for one in (ratio.value, *ratio.ends()))
    return f"{value:+.1f} %, {100 * ratio.confidence:g} % interval {low:+.1f} to {high:+.1f}"


def to_json(found: Comparison) -> dict[str, Any]:
    """Plain JSON values; `gate` stands beside the cases that it follows from."""
    return {"schema": found.schema, "gate": found.gate, **dataclasses.asdict(found)}
