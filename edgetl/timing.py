"""The one stopwatch: `perf_counter` stands in no other module."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")

DROPPED = 10  # calls at the start of a block: they refill the caches that the case before emptied


@dataclass(frozen=True)
class Block:
    """Calls of one case, one after another."""

    seconds: tuple[float, ...]  # of every call but the dropped ones
    late_calls: int | None  # paced only: kept calls that began late because the one before took too long


def now_s() -> float:
    """Seconds of a monotonic clock with an arbitrary origin; only differences mean anything."""
    return time.perf_counter()


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Result of `work()` and the seconds it took; `work` must return finished results, host to host."""
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def block(call: Callable[[int], Any], n: int, *, dropped: int = DROPPED, interval_s: float | None = None) -> Block:
    """Times `n` calls, back to back or paced, with the garbage collector off, and leaves out the first ones.

    Args:
        call: is given the number of the call, from 0; must return finished results, host to host.
        n: how many calls, the dropped ones counted.
        dropped: how many at the start are not kept.
        interval_s: from the begin of a call to the begin of the next; None is back to back.
    """
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        seconds, late = _calls(call, n, interval_s)
    finally:
        if collecting:
            gc.enable()
    return Block(tuple(seconds[dropped:]), None if interval_s is None else sum(late[dropped:]))


def _calls(call: Callable[[int], Any], n: int, interval_s: float | None) -> tuple[list[float], list[bool]]:
    seconds, late = [], []
    start = time.perf_counter()
    for number in range(n):
        if interval_s is not None:
            moment = start + number * interval_s
            late.append(number > 0 and time.perf_counter() > moment)
            sleep_until(moment)
        begin = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - begin)
    return seconds, late


def sleep_until(moment_s: float) -> None:
    """Sleeps until `now_s()` reaches `moment_s`; returns at once if it has passed."""
    remaining = moment_s - time.perf_counter()
    if remaining > 0:
        time.sleep(remaining)
