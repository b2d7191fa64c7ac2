"""What a gate found, in words, and what would help where it could not decide."""

from __future__ import annotations

import math

from edgetl import judging
from edgetl.bench import sequential
from edgetl.bench.gate_cases import Sides
from edgetl.bench.sequential import LEAST_PAIRS, Outcome
from edgetl.bench.stats import Interval
from edgetl.judging import Judged, Judgement, TaskComparison, TaskEvaluation

LONGEST_S = 1800.0  # of a budget that is still worth proposing


# --------------------------------------------------------------------------------------------------------- latency


def latency(found: Outcome, margin: float, budget_s: float) -> str:
    """What the latencies say: the change with its bounds, the limit, how much was measured, and the noise."""
    if found.hopeless == "time":
        return (f"a pair of processes takes {duration(found.pair_s)}, so that too few fit into {duration(budget_s)}: "
                f"at least {LEAST_PAIRS} are needed")
    if found.hopeless == "noise":
        return (f"two processes of BASE differ by {percent(found.noise)} here, too much to tell {percent(margin)} "
                f"within {duration(budget_s)}")
    assert found.ratio is not None  # there was a look
    return (f"{change(found.ratio)}, limit {100 * margin:g} %, {len(found.log_ratios)} pairs in "
            f"{duration(found.elapsed_s)}; noise floor {percent(found.noise)}")


def change(ratio: Interval) -> str:
    """`NEW is 0.4 % faster than BASE (-1.1 to +0.3 %)`: below zero is faster; an end that is not known is left out."""
    how = "as fast as BASE" if f"{100 * abs(ratio.value - 1):.1f}" == "0.0" else f"{_than(ratio.value)} than BASE"
    low, high = ratio.low, ratio.high
    if low is not None and high is not None:
        return f"NEW is {how} ({100 * (low - 1):+.1f} to {100 * (high - 1):+.1f} %)"
    if high is not None:
        return f"NEW is {how} ({'at most' if high > 1 else 'at least'} {_than(high)})"
    return f"NEW is {how}" + ("" if low is None else f" ({'at least' if low > 1 else 'at most'} {_than(low)})")


def _than(ratio: float) -> str:
    return f"{100 * abs(ratio - 1):.1f} % {'slower' if ratio > 1 else 'faster'}"


def what_helps(found: Outcome | None, margin: float, budget_s: float) -> str:
    """What would let an undecided gate decide: a budget where one would, a margin, a quieter machine."""
    if found is None:
        raise ValueError("there is no undecided gate without latencies")
    budget = _budget_that_helps(found, margin, budget_s)
    longer = [f"give a budget of about {duration(budget)}"] if budget <= LONGEST_S else []
    if found.hopeless == "time":
        return _sentence(longer or ["give a longer budget"])
    return _sentence([*longer, "allow a wider margin", "or measure on a quieter machine"])


def _budget_that_helps(found: Outcome, margin: float, budget_s: float) -> float:
    if found.ratio is not None and found.ratio.low is not None and found.ratio.high is not None:
        # The bounds must come as near to one another as the two hypotheses are, and do so with the root of the pairs.
        apart = math.log(found.ratio.high / found.ratio.low)
        zone = math.log1p(margin) - math.log1p(sequential.INNOCENT * margin)
        return _rounded(budget_s * max(1.5, (apart / zone) ** 2))
    needed = sequential.pairs_needed(found.floor, margin)
    return _rounded(max(1.5 * budget_s, (len(found.floor) + 1.5 * needed) * found.pair_s))


def _rounded(seconds: float) -> float:
    """Up, to half minutes."""
    return 30.0 * math.ceil(seconds / 30.0)


def _sentence(parts: list[str]) -> str:
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


# ---------------------------------------------------------------------------------------------- the cheaper conditions


def size(new: int, base: int, limit: str) -> str:
    """NEW's size beside BASE's, and the limit as it was given."""
    return f"NEW's graph has {amount(new)} (BASE's {amount(base)}), limit {limit}"


def accuracy(new: Judged, least: float | None) -> str:
    """NEW's accuracy, or the task's own score, with its interval."""
    if isinstance(new, TaskEvaluation):
        asked = "" if least is None else f", at least {least / 100:g} wanted"
        return f"NEW has {judging.score_words(new)} on {new.n} images{asked}"
    limit = "" if least is None else f", at least {least:g} % wanted"
    return (f"NEW is right on {100 * new.accuracy:.1f} % of {new.n} images ({100 * new.accuracy_low:.1f} to "
            f"{100 * new.accuracy_high:.1f}){limit}")


def drop(pair: Judgement, most: float | None) -> str:
    """NEW against BASE on the same images: points, the paired interval, McNemar's test where there is one class."""
    if isinstance(pair, TaskComparison):
        allowed = "" if most is None else f", {most:g} points allowed"
        return f"NEW against BASE: {pair.sentence()}; a point is a hundredth{allowed}"
    points = f"{abs(pair.drop_points):.2f} points {'below' if pair.drop_points > 0 else 'above'} BASE"
    how = "as right as BASE" if not pair.drop_points else points
    limit = "" if most is None else f", {most:g} points allowed"
    return (f"NEW is {how} ({-pair.drop_high:+.2f} to {-pair.drop_low:+.2f}; {pair.lost} answers lost, {pair.gained} "
            f"gained, McNemar p = {pair.p_value:.2g}){limit}")


def differences(sides: Sides) -> list[str]:
    """What is not alike of the two sides, so that nobody takes the choice of another variant for a regression."""
    base, new = (one.subject for one in sides.both)
    found = []
    if base.variant is not None and new.variant is not None and base.precision != new.precision:
        found.append(f"BASE runs as {base.variant} ({base.precision}), NEW as {new.variant} ({new.precision}), which "
                     "is what the runtime chooses for each; --variant sets one for both.")
    return found


# ------------------------------------------------------------------------------------------------------------ figures


def percent(share: float) -> str:
    """Of a share: `0.6 %`."""
    return f"{100 * share:.1f} %"


def amount(size_bytes: int) -> str:
    """`1.40 MB`, or `3.2 kB` of what is small."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"


def duration(seconds: float) -> str:
    """`0.3 s`, `21 s` or `4.5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:g} min"
