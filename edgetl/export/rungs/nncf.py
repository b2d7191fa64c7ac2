"""NNCF in place of the other rungs, where it is asked for: as it comes, then with channels aligned."""

from __future__ import annotations

from edgetl.compress import by_nncf
from edgetl.export.ladder import Attempt, Ladder, Plan

TOLD = {False: "nncf", True: "nncf, channels aligned"}


def climb(ladder: Ladder) -> Attempt | None:
    """The first of the two that is within the limits."""
    for align, told in TOLD.items():
        made = by_nncf.write(ladder.subject.graph, ladder.scheme, ladder.reader, align=align)
        attempt = ladder.judge(Plan(ladder.source, by_nncf.NAME, told), made)
        if attempt.passed:
            return attempt
    return None
