"""Pairs of fresh processes of two cases, measured block by block beside one another: the gate's unit of data.

Two processes of the very same bundle can differ by several percent for as long as they live: memory layout, page
colours, the core they settle on. No number of calls in them tells that from a regression, so both sides are started
anew for every pair, and a pair counts once.
T. Mytkowicz et al., Producing Wrong Data Without Doing Anything Obviously Wrong!, ASPLOS 2009; T. Kalibera, R. Jones,
Rigorous Benchmarking in Reasonable Time, ISMM 2013 (repeat at the level that varies).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import recipe
from edgetl.bench import affinity
from edgetl.bench.cases import Case
from edgetl.bench.process import WorkerFailed
from edgetl.bench.trial import Trial
from edgetl.errors import EdgetlError
from edgetl.timing import now_s

MOST_BLOCKS, LEAST_BLOCKS = 12, 2  # of each side that are kept, in a pair; even numbers
PAIR_S = 1.0  # how long all kept calls of a pair take, where that leaves enough blocks
KEPT_S, LEAST_KEPT, MOST_KEPT = 0.02, 3, 30  # of a block: how long its kept calls take, and how many they are
DROPPED_S, LEAST_DROPPED, MOST_DROPPED = 0.004, 1, 5  # the same of the calls before them, which refill the caches
PROBE = 10  # calls from which the length of a block is found; the first 3 are not looked at
LOWER = 0.25  # see `log_ratio`


@dataclass(frozen=True)
class Pattern:
    """How many calls a block has; the same for both sides and all pairs."""

    kept: int
    dropped: int
    blocks: int  # of each side that are kept; one more warms the fresh process up

    @property
    def calls(self) -> int:
        """Of a block, the dropped ones counted."""
        return self.kept + self.dropped


@dataclass(frozen=True)
class Pair:
    """What two fresh processes took, side by side."""

    seconds: NDArray[np.float64]  # [2, blocks, kept calls]: BASE, NEW
    begun_s: float  # since the measuring began
    elapsed_s: float  # starts and all
    started_first: int  # which of the two
    turns: tuple[int, ...]  # which side's block came when
    cores: tuple[int, ...] = ()  # that both sides were tied to; () is none

    @property
    def log_ratio(self) -> float:
        """See `log_ratio`."""
        return log_ratio(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; latencies to the nanosecond."""
        return {"seconds": np.round(self.seconds, 9).tolist(), "begun_s": self.begun_s, "elapsed_s": self.elapsed_s,
                "started_first": self.started_first, "turns": list(self.turns), "cores": list(self.cores)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Pair:
        """The pair that `to_json` made plain."""
        return Pair(np.asarray(values["seconds"], dtype=np.float64), values["begun_s"], values["elapsed_s"],
                    values["started_first"], tuple(values["turns"]), tuple(values.get("cores", ())))


def log_ratio(seconds: NDArray[Any], share: float = LOWER) -> float:
    """Logarithm of NEW's latency over BASE's, where latency is what a quarter of the calls stay below.

    Other work on a machine can only make a call longer, never shorter, and on a busy one it does so with every second
    call: a median is then the neighbour's figure, while the lower quartile still is the graph's own. It moves with
    whatever slows down at least three quarters of the calls.
    J. Chen, J. Revels, Robust benchmarking in noisy environments, 2016, arXiv:1608.04295 (low order statistics).

    Args:
        seconds: [2, blocks, calls].
        share: of the calls.
    """
    base, new = np.quantile(seconds.reshape(2, -1), share, axis=1)
    return float(np.log(new / base))


def probe(sides: Sequence[Case], options: recipe.Bench, *, from_pixels: bool = False) -> Pattern:
    """The pattern that suits the slowest of the cases, from a few calls of each in a process of its own.

    Raises:
        EdgetlError: a case cannot be measured.
    """
    return pattern(max(_call_s(Trial(case, options, from_pixels=from_pixels)) for case in sides))


def _call_s(trial: Trial) -> float:
    try:
        _start(trial)
        return max(min(_block(trial, PROBE, 3)), trial.interval_s or 0.0)
    finally:
        trial.close(at_once=True)


def pattern(call_s: float) -> Pattern:
    """The pattern for calls that take so long: blocks of some 20 ms, and so many that a pair takes about a second."""
    kept = _within(KEPT_S, call_s, LEAST_KEPT, MOST_KEPT)
    fours = _within(PAIR_S, 4 * kept * call_s, LEAST_BLOCKS // 2, MOST_BLOCKS // 2)
    return Pattern(kept, _within(DROPPED_S, call_s, LEAST_DROPPED, MOST_DROPPED), 2 * fours)


def _within(wanted_s: float, one_s: float, least: int, most: int) -> int:
    """How many of `one_s` make up `wanted_s`, within limits."""
    return most if one_s * most <= wanted_s else max(math.ceil(wanted_s / one_s), least)


def measure(sides: Sequence[Case], options: recipe.Bench, plan: Pattern, order: np.random.Generator, *,
            origin_s: float = 0.0, from_pixels: bool = False) -> Pair:
    """A pair: fresh processes of both sides, blocks in turns, and no process left behind.

    Which side is started first is drawn, and so is who begins each four blocks, ABBA or BAAB: whatever drifts, or
    favours whoever comes second, favours both sides alike. Both are tied to the same cores, drawn anew for every pair
    where `options.pin` names none: a core may be slower than another for minutes, because of who else computes there.

    Args:
        sides: BASE and NEW; the same case twice measures the noise.
        options: the timeout, the interval, and pin and spin are used.
        plan: calls and blocks.
        order: the source of the draws.
        origin_s: when the measuring began, on the clock of `timing.now_s`.
        from_pixels: see `Trial`.

    Raises:
        EdgetlError: a worker died, hung or could not open its case: there is nothing to compare.
    """
    begun_s = now_s()
    first = int(order.integers(2))
    turns = _turns(plan.blocks, order)
    tied = _cores(sides, options, order)
    if tied:
        options = dataclasses.replace(options, pin=",".join(map(str, tied)))
    trials = [Trial(case, options, from_pixels=from_pixels) for case in sides]
    try:
        for side in (first, 1 - first):
            _start(trials[side])
        for side in (first, 1 - first):
            _block(trials[side], plan.calls, plan.dropped)
        found: tuple[list[Any], list[Any]] = ([], [])
        for side in turns:
            found[side].append(_block(trials[side], plan.calls, plan.dropped))
    finally:
        for trial in trials:
            trial.close(at_once=True)  # what it was there for is done; an orderly end would only take longer
    seconds = np.asarray(found, dtype=np.float64)
    if not seconds.min() > 0:
        raise EdgetlError(f"Calls of {sides[0].name} take less than the clock can tell, so there is no ratio.")
    return Pair(seconds, begun_s - origin_s, now_s() - begun_s, first, turns, tied)


def _cores(sides: Sequence[Case], options: recipe.Bench, order: np.random.Generator) -> tuple[int, ...]:
    """As many cores of this process as the sides have threads; () where they use all, or were told theirs."""
    own, threads = affinity.allowed(), max(case.threads for case in sides)
    if options.pin is not None or min(case.threads for case in sides) == 0 or threads >= len(own):
        return ()
    return tuple(sorted(map(int, order.choice(own, size=threads, replace=False))))


def _turns(blocks: int, order: np.random.Generator) -> tuple[int, ...]:
    """0 and 1 in groups 0110 or 1001, so many of each."""
    return tuple(int(begins) ^ side for begins in order.integers(2, size=blocks // 2) for side in (0, 1, 1, 0))


def _start(trial: Trial) -> None:
    trial.start(keep=True)
    if not trial.alive:
        raise _gone(trial, trial.reason)


def _block(trial: Trial, calls: int, dropped: int) -> list[float]:
    """Seconds of the kept calls of one block."""
    assert trial.process is not None  # started
    # Not Trial.block(): the lengths here follow the latency, so that a pair of a slow model does not take a minute.
    request = {"do": "block", "n": calls, "interval_s": trial.interval_s, "drop": dropped}
    try:
        found: list[float] = trial.process.ask(request, extra_s=calls * (trial.interval_s or 0.0))["seconds"]
    except WorkerFailed as problem:
        raise _gone(trial, problem.message) from problem
    return found


def _gone(trial: Trial, reason: str | None) -> EdgetlError:
    return EdgetlError(f"{trial.case.name} cannot be measured, so nothing can be compared: {reason}.",
                       hint="`edgetl bench` on it alone shows whether it runs here.")
