"""The target's calibration methods, in their order: which range of each activation its 8 bits cover.

All come from the same histograms, see `compress.ranges`.
"""

from __future__ import annotations

from edgetl.export.ladder import Attempt, Ladder, Plan


def climb(ladder: Ladder) -> Attempt | None:
    """The first method within the limits."""
    for method in ladder.methods:
        attempt = ladder.attempt(Plan(ladder.source, method, told=method))
        if attempt.passed:
            return attempt
    return None
