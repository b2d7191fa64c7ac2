"""The layers that lose most go back to float, as few of them as will do, see `compress.mixed`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgetl.compress import mixed
from edgetl.export.ladder import Attempt, Ladder, Plan

NAME = "mixed"
MOST_FLOAT = 0.5  # share of the layers that may stay in float: with more, little is left to gain


def climb(ladder: Ladder) -> Attempt | None:
    """The attempt with the fewest layers in float that passes; None where even `MOST_FLOAT` of them do not."""
    plan = ladder.best().plan
    ranking = mixed.ranked(plan.source, ladder.scheme, plan.method, ladder.answers, known=plan.known)
    return fewest(ladder, plan, [one.node for one in ranking])


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


def _in_float(plan: Plan, names: Sequence[str]) -> Plan:
    return dataclasses.replace(plan, floats=tuple(names),
                               told=f"{NAME} ({plan.told}, {len(names)} layers in float)")
