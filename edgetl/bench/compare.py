"""Two reports against each other, case by case: faster, slower, the same, or nobody knows.

What a report knows of noise is what changed from round to round while it was measured. What was particular to its
processes (where memory lay) and what changed between the two reports (an update, another neighbour, the weather) looks
like a difference of the cases; `edgetl gate`, which measures both side by side in fresh processes, does not have this
weakness.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgetl import extras, rundir
from edgetl.bench import compare_words, environment, machines, report, stats
from edgetl.bench.comparison import (
    FAIL,
    FALSE_ALARMS,
    FASTER,
    INCONCLUSIVE,
    PASS,
    SAME,
    SCHEMA,
    SIGNIFICANCE,
    SLOWER,
    Apart,
    Case,
    Comparison,
    change,
)
from edgetl.bench.machines import Factor
from edgetl.bench.report import Report, Row
from edgetl.bench.stats import Interval, Samples
from edgetl.errors import EdgetlError
from edgetl.recipe_compare import Compare
from edgetl.recipe_gate import margin

SEED = 0


def compare(options: Compare) -> Comparison:
    """The comparison that `options` describe, also written to --out; nothing is measured.

    Raises:
        EdgetlError: a report cannot be read, they are of different machines, or no case is in both.
        OutputError: `options.out` exists or cannot be written.
    """
    extras.require("scipy", extra="cli", purpose="A comparison")
    if options.out is not None:
        rundir.claim(Path(options.out), resume=None, overwrite=options.overwrite)
    base, new = (report.read(Path(one)) for one in (options.base, options.new))
    found = of_reports(base, new, names=(options.base, options.new), least_effect=margin(options.least_effect),
                       max_regression=None if options.max_regression is None else margin(options.max_regression),
                       across_machines=options.across_machines)
    if options.out is not None:
        compare_words.write(found, Path(options.out), overwrite=options.overwrite)
    return found


def of_reports(base: Report, new: Report, *, names: tuple[str, str] = ("BASE", "NEW"), least_effect: float = 0.03,
               max_regression: float | None = None, across_machines: bool = False) -> Comparison:
    """Two reports against each other.

    Args:
        base: what was.
        new: what is now.
        names: how sentences call the two.
        least_effect: share of change that counts.
        max_regression: share by which a case may be slower; None asks for no gate.
        across_machines: whether the reports may be of different machines.

    Raises:
        EdgetlError: of different machines, without a case in common, or with damaged latencies.
    """
    differing = environment.differences(base.environment, new.environment)
    if differing and not across_machines:
        told = "; ".join(f"{name}: {base.environment.get(name)} and {new.environment.get(name)}" for name in differing)
        raise EdgetlError(f"{names[0]} and {names[1]} were measured on different machines: {told}.",
                          hint="Measure both on one machine; --across-machines compares them roughly, by a kernel.")
    factor = machines.between(base, new, names) if differing else machines.NONE
    pairs, apart = _matched(base, new, names)
    cases = [_compared(*pair, factor, least_effect, names, _accuracy_reason(base, new)) for pair in pairs]
    if max_regression is not None:
        cases = _gated(cases, pairs, factor, max_regression)
    notes = [*_notes(base, new, names), *([] if differing else _drift(base, new, least_effect)),
             *_too_few(pairs, max_regression is not None)]
    return Comparison(SCHEMA, *names, least_effect, max_regression, tuple(cases), tuple(apart), differing, factor,
                      tuple(notes))


# ------------------------------------------------------------------------------------------------------ which cases


def _matched(base: Report, new: Report, names: tuple[str, str]) -> tuple[list[tuple[Row, Row]], list[Apart]]:
    first, second = ({row.case: row for row in one.rows} for one in (base, new))
    common = [name for name in first if name in second]
    if not common:
        raise EdgetlError(f"{names[0]} and {names[1]} have no case in common; the one has {_some(list(first))}, the "
                          f"other {_some(list(second))}.",
                          hint="Cases are matched by name, which begins with the name of the bundle's folder.")
    pairs, apart = [], []
    for name in common:
        reason = _unlike(first[name], second[name], names)
        if reason is None:
            pairs.append((first[name], second[name]))
        else:
            apart.append(Apart(name, reason, first[name].measured))
    apart += [Apart(name, f"only in {names[0]}", first[name].measured) for name in first if name not in second]
    apart += [Apart(name, f"only in {names[1]}", False) for name in second if name not in first]
    return pairs, apart


def _some(found: list[str]) -> str:
    return ", ".join(f"'{one}'" for one in found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "") or "none"


def _unlike(base: Row, new: Row, names: tuple[str, str]) -> str | None:
    """Why two rows of one name say nothing about each other; None where they do."""
    for row, where in ((base, names[0]), (new, names[1])):
        if not row.measured:
            return f"not measured in {where}: {row.measurement.reason or row.measurement.status}"
    sides = [{"arrival": row.measurement.arrival, "threads": row.threads, "batch": row.batch, "backend": row.backend,
              "threads in use": row.session.get("threads"), "cores": row.affinity or None} for row in (base, new)]
    differing = [f"{name} {before} and {sides[1][name]}" for name, before in sides[0].items()
                 if before != sides[1][name] and None not in (before, sides[1][name])]
    return f"measured differently: {', '.join(differing)}" if differing else None


def _rounds(row: Row, where: str) -> Samples:
    """Latencies [rounds, calls] of a row.

    Raises:
        EdgetlError: they do not divide into rounds, or are no durations.
    """
    found = row.measurement
    if found.rounds < 1 or not found.seconds or len(found.seconds) % found.rounds:
        raise EdgetlError(f"{where}: '{row.case}' has {len(found.seconds)} latencies for {found.rounds} rounds.",
                          hint="The file was changed or cut; measure again.")
    if not all(math.isfinite(second) and second > 0 for second in found.seconds):
        raise EdgetlError(f"{where}: '{row.case}' has a latency that is no duration above 0.",
                          hint="The file was changed or cut; measure again.")
    return found.by_round()


# --------------------------------------------------------------------------------------------------------- one case


def _compared(base: Row, new: Row, factor: Factor, least_effect: float, names: tuple[str, str],
              accuracy_reason: str | None) -> Case:
    first, second = _rounds(base, names[0]), _rounds(new, names[1])
    raw = stats.ratio(first, second, seed=SEED)
    low, high = raw.ends()
    ratio = Interval(raw.value / factor.value, low / factor.high, high / factor.low, raw.confidence)
    p_value = min(1.0, 2 * min(slower_by_chance(first, second, factor.high),
                               slower_by_chance(second, first, 1 / factor.low)))
    points, reason = _accuracy(base, new) if accuracy_reason is None else (None, accuracy_reason)
    return Case(base.case, float(np.median(first)), float(np.median(second)), ratio, p_value,
                verdict(ratio, p_value, least_effect), accuracy_points=points, accuracy_reason=reason,
                base_bytes=base.size_bytes, new_bytes=new.size_bytes)


def slower_by_chance(base: Samples, new: Samples, allowed: float) -> float:
    """One-sided p-value of the rank test that the rounds of `new` take more than `allowed` times those of `base`."""
    return stats.rank_test(np.median(new, axis=1), allowed * np.median(base, axis=1), "greater")


def verdict(ratio: Interval, p_value: float, least_effect: float) -> str:
    """What a ratio new / base with its interval and the p-value of the rank test amount to.

    "faster" and "slower" need an effect of at least `least_effect`, an interval that leaves out 1, and a rank test
    that is significant; "same" needs an interval that stays within the effect on either side. Everything else is
    "inconclusive", and is no word for "same".
    """
    (low, high), limit = ratio.ends(), 1 + least_effect
    if ratio.value >= limit and low > 1 and p_value <= SIGNIFICANCE:
        return SLOWER
    if ratio.value <= 1 / limit and high < 1 and p_value <= SIGNIFICANCE:
        return FASTER
    return SAME if 1 / limit <= low and high <= limit else INCONCLUSIVE


def _gated(cases: list[Case], pairs: list[tuple[Row, Row]], factor: Factor, max_regression: float) -> list[Case]:
    """The cases with the gate's answers.

    A case fails where its interval lies above the limit and the rank test against the limit says so too, after Holm's
    correction: twenty cases do not make twenty times the false alarms. It passes where its interval lies below the
    limit; that all pass needs no correction (R. L. Berger, Technometrics 24 (1982) 295-300, intersection-union test).
    """
    limit = 1 + max_regression
    chance = stats.holm([slower_by_chance(base.measurement.by_round(), new.measurement.by_round(), limit * factor.high)
                         for base, new in pairs])
    return [dataclasses.replace(case, gate=_gate(case.ratio, one, limit), gate_p_value=one)
            for case, one in zip(cases, chance, strict=True)]


def _gate(ratio: Interval, p_value: float, limit: float) -> str:
    low, high = ratio.ends()
    if low > limit and p_value <= FALSE_ALARMS:
        return FAIL
    return PASS if high <= limit else INCONCLUSIVE


def _accuracy_reason(base: Report, new: Report) -> str | None:
    """Why no accuracy of the two reports can be compared; None where they can."""
    if base.data is None or new.data is None:
        return "not measured in both"
    same = (base.data.fingerprint, base.data.n) == (new.data.fingerprint, new.data.n)
    return None if same else "measured on different images"


def _accuracy(before: Row, after: Row) -> tuple[Interval | None, str | None]:
    """Points by which `new` is more often right, with the interval of two independent shares.

    A report does not keep the answer to every image, so the images cannot be paired: wider than need be, never too
    narrow. R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10, from the two Wilson intervals.
    """
    base, new = before.accuracy, after.accuracy
    if before.score is not None and after.score is not None:
        return None, f"{after.score.name} is no mean over images; edgetl gate --data pairs it"
    if base is None or new is None:
        return None, "not measured in both"
    down = math.hypot(new.accuracy - new.accuracy_low, base.accuracy_high - base.accuracy)
    up = math.hypot(new.accuracy_high - new.accuracy, base.accuracy - base.accuracy_low)
    found = new.accuracy - base.accuracy
    return Interval(100 * found, 100 * (found - down), 100 * (found + up), 0.95), None


# ------------------------------------------------------------------------------------------------------------- notes


def _notes(base: Report, new: Report, names: tuple[str, str]) -> list[str]:
    notes = [f"{name} was broken off; it holds the rounds until then." for one, name in zip((base, new), names,
             strict=True) if one.status == report.PARTIAL]
    changed = environment.changed_conditions(base.environment, new.environment)
    if changed:
        notes.append(f"Between the two these have changed: {', '.join(_told(name, base, new) for name in changed)}.")
    return notes


def _too_few(pairs: list[tuple[Row, Row]], gated: bool) -> list[str]:
    """What the rank test cannot say of so few rounds, whatever was measured."""
    rounds = min((row.measurement.rounds for pair in pairs for row in pair), default=LEAST_ROUNDS)
    told = []
    if rounds < LEAST_ROUNDS:
        told.append(f"With {rounds} rounds a rank test cannot say faster or slower; it takes {LEAST_ROUNDS}.")
    if gated and pairs and rounds < (needed := least_rounds(FALSE_ALARMS / len(pairs))):
        told.append(f"With {rounds} rounds the gate cannot say no to one of {len(pairs)} cases; it takes {needed}.")
    return told


def least_rounds(level: float) -> int:
    """Rounds a side whose orders are so many that the extreme one has at most this probability."""
    return next(n for n in itertools.count(1) if 1 / math.comb(2 * n, n) <= level)


LEAST_ROUNDS = least_rounds(SIGNIFICANCE / 2)  # of a two-sided test


def _told(name: str, base: Report, new: Report) -> str:
    before, after = base.environment[name], new.environment[name]
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        parts = [f"{one} {before.get(one, 'none')} to {after.get(one, 'none')}" for one in sorted({*before, *after})
                 if before.get(one) != after.get(one)]
        return f"{name} ({', '.join(parts)})"
    return f"{name} ({before} to {after})"


def _drift(base: Report, new: Report, least_effect: float) -> list[str]:
    """A sentence for each part of the kernel that took longer, or less, in NEW: the machine itself has changed."""
    if base.calibration is None or new.calibration is None or base.calibration.kernel != new.calibration.kernel:
        return []
    if min(len(base.calibration.blocks), len(new.calibration.blocks)) < machines.LEAST_BLOCKS:
        return []
    parts = machines.factor(base.calibration, new.calibration).parts
    return [f"The machine itself was not the same: the kernel's {name.removesuffix('_s')} took {change(ratio)}."
            for name, ratio in parts.items() if _differs(ratio, least_effect)]


def _differs(ratio: Interval, least_effect: float) -> bool:
    low, high = ratio.ends()
    return not low <= 1 <= high and abs(math.log(ratio.value)) > math.log1p(least_effect)
