"""Mixed precision: groups of layers go back to float, by what each loses and what it was measured to gain.

The groups stand in an order, see `compress.mixed.by_worth`, and the shortest beginning of it that is within the limits
is searched on the validation images; then the groups that cost most time are given back where the limits allow it.
Where no time can be measured here, the order is that of the sensitivity alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from edgetl.compress import mixed
from edgetl.compress.groups import groups_of
from edgetl.compress.mixed import Gain
from edgetl.export.ladder import Attempt, Ladder, Plan

NAME = "mixed"
QUICKENS = True
MOST_FLOAT = 0.5  # share of the groups that may stay in float: with more, little is left to gain
GIVEN_BACK = 4  # groups that are tried in INT8 again at most


def climb(ladder: Ladder) -> Attempt | None:
    """The fastest mixture found within the limits; None where `MOST_FLOAT` of the groups in float do not suffice.

    Where everything in INT8 is within the limits and too slow, it is that with the groups in float that lose time.
    """
    best = ladder.best()
    return quicker(ladder, best.plan) if best.passed else search(ladder, best.plan)


def search(ladder: Ladder, plan: Plan) -> Attempt | None:
    """The mixture of a plan's graph that `climb` tells of."""
    gains = _gains(ladder, plan)
    ranking = mixed.ranked(plan.source, ladder.scheme_of(plan), plan.method, ladder.answers, known=ladder.known(plan),
                           steps=plan.steps)
    _remember(ladder, gains, {one.node: one.sqnr_db for one in ranking})
    found = fewest(ladder, plan, mixed.by_worth(ranking, gains))
    return found if found is None or gains is None else given_back(ladder, found, gains)


def quicker(ladder: Ladder, plan: Plan) -> Attempt | None:
    """The graph with the groups in float that are faster there; None where none is, or the limits do not allow it."""
    gains = _gains(ladder, plan) or {}
    _remember(ladder, gains, {})
    names = sorted((name for name, gain in gains.items() if gain.is_loss), key=lambda name: gains[name].seconds)
    attempt = ladder.attempt(_in_float(plan, names)) if names else None
    return attempt if attempt is not None and attempt.passed else None


def _gains(ladder: Ladder, plan: Plan) -> dict[str, Gain] | None:
    if ladder.pace is None:
        return None
    names = list(groups_of(plan.source, ladder.scheme_of(plan)))
    ladder.subject.note(f"{ladder.name}: measures what each of {len(names)} groups of layers gains in INT8.")

    def without(name: str) -> bytes:
        return ladder.finished(ladder.written(dataclasses.replace(plan, floats=(name,)))).graph

    return ladder.pace.gains(ladder.finished(ladder.written(plan)).graph, names, without)


def _remember(ladder: Ladder, gains: Mapping[str, Gain] | None, sqnr_db: Mapping[str, float]) -> None:
    """For the manifest: what is known of each group; infinite ratios, where nothing changes, as None."""
    gains = gains or {}
    finite = {name: value for name, value in sqnr_db.items() if abs(value) != float("inf")}
    ladder.record["groups"] = [
        {"layer": name, "sqnr_db": finite.get(name), "gain_s": gains[name].seconds if name in gains else None,
         "gain_noise_s": gains[name].noise_s if name in gains else None} for name in sqnr_db or gains]


def fewest(ladder: Ladder, plan: Plan, names: Sequence[str]) -> Attempt | None:
    """The attempt that passes with the shortest beginning of `names` in float: doubled until it does, then halved."""
    most = int(MOST_FLOAT * len(names))
    failed, count, passed = 0, 1, None
    while count <= most and passed is None:
        attempt = ladder.attempt(_in_float(plan, names[:count]))
        if attempt.passed:
            passed = attempt
        else:
            failed, count = count, max(count + 1, min(2 * count, most))
    while passed is not None and len(passed.plan.floats) - failed > 1:
        middle = (failed + len(passed.plan.floats)) // 2
        attempt = ladder.attempt(_in_float(plan, names[:middle]))
        if attempt.passed:
            passed = attempt
        else:
            failed = middle
    return passed


def given_back(ladder: Ladder, found: Attempt, gains: Mapping[str, Gain]) -> Attempt:
    """The attempt with those groups in INT8 again that cost most time and are not needed in float."""
    costly = [name for name in sorted(found.plan.floats, key=lambda name: -gains[name].seconds)
              if gains[name].seconds > 2 * gains[name].noise_s]
    for name in costly[:GIVEN_BACK]:
        rest = [one for one in found.plan.floats if one != name]
        if not rest:
            break  # all of them in INT8 was tried on another rung
        attempt = ladder.attempt(_in_float(found.plan, rest))
        found = attempt if attempt.passed else found
    return found


def _in_float(plan: Plan, names: Sequence[str]) -> Plan:
    told = plan.told if not plan.floats else plan.told.removeprefix(f"{NAME} (").rpartition(", ")[0]
    return dataclasses.replace(plan, floats=tuple(names), told=f"{NAME} ({told}, {len(names)} layers in float)")
