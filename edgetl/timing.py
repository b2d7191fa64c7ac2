"""The one stopwatch: `perf_counter` stands in no other module."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")

DROPPED = 10  # calls at the start of a block: they refill the caches that the case before emptied


@dataclass(frozen=True)
class Block:
    """Calls of one case, one after another."""

    seconds: tuple[float, ...]  # of every call but the dropped ones
    late_calls: int | None  # paced only: kept calls that began late because the one before took too long
    waited_s: tuple[float, ...] | None = None  # paced only: how long each kept call was due before that; no part of it


@dataclass(frozen=True)
class Stream:
    """Calls one after another for at least a count and a time, none of them dropped."""

    latencies_ns: array[int]
    duration_s: float  # from the begin of the first call to the begin of the last


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

    A paced call is timed from its own begin. Where the one before made it late, a user waits from the moment that it
    was due: to leave that out of a tail is coordinated omission (G. Tene, How NOT to Measure Latency, 2013), so the
    wait is kept beside the time. How late `sleep` wakes up is the stopwatch's own fault and in neither.

    Args:
        call: is given the number of the call, from 0; must return finished results, host to host.
        n: how many calls, the dropped ones counted.
        dropped: how many at the start are not kept.
        interval_s: from the begin of a call to the begin of the next; None is back to back.
    """
    with _collector_at_rest():
        seconds, waited = _calls(call, n, interval_s)
    kept = tuple(waited[dropped:])
    if interval_s is None:
        return Block(tuple(seconds[dropped:]), None)
    return Block(tuple(seconds[dropped:]), sum(one > 0 for one in kept), kept)


def stream(call: Callable[[int], Any], *, least_calls: int, least_s: float) -> Stream:
    """Times calls back to back, the garbage collector off, until there are enough and one began late enough.

    MLPerf's LoadGen ends a single-stream and a multi-stream run like this (loadgen/issue_query_controller.cc).

    Args:
        call: is given the number of the call, from 0; must return finished results, host to host.
        least_calls: how many at least; above 0.
        least_s: how long after the begin of the first call the last one begins, at least.
    """
    clock = time.perf_counter_ns
    latencies, least_ns = array("q"), least_s * 1e9
    with _collector_at_rest():
        number, passed_ns, start = 0, 0, clock()
        while number < least_calls or passed_ns < least_ns:
            begin = clock()
            call(number)
            latencies.append(clock() - begin)
            passed_ns = begin - start
            number += 1
    return Stream(latencies, passed_ns / 1e9)


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _calls(call: Callable[[int], Any], n: int, interval_s: float | None) -> tuple[list[float], list[float]]:
    """Seconds of each call and, where they are paced, how long it was due when the one before ended."""
    seconds, waited = [], []
    start = time.perf_counter()
    for number in range(n):
        if interval_s is not None:
            moment = start + number * interval_s
            waited.append(max(0.0, time.perf_counter() - moment) if number else 0.0)
            sleep_until(moment)
        begin = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - begin)
    return seconds, waited


def sleep_until(moment_s: float) -> None:
    """Sleeps until `now_s()` reaches `moment_s`; returns at once if it has passed."""
    remaining = moment_s - time.perf_counter()
    if remaining > 0:
        time.sleep(remaining)


def crowd(call: Callable[[int], Any], threads: int, window_s: float) -> float:
    """Calls a second that so many threads finish together, each calling again as soon as it has its answer.

    As many calls are made before, unseen. A call that has begun is finished, and a thread's own rate goes over the
    time that it really took, so that no part of a call is counted.

    Args:
        call: is given the number of the thread; must return finished results, host to host.
        threads: how many.
        window_s: how long each goes on to begin calls.
    """
    from concurrent.futures import ThreadPoolExecutor  # here: whoever only times calls has no use for it

    begin_together = threading.Barrier(threads)

    def rate(thread: int) -> float:
        begin_together.wait()
        done, start = 0, time.perf_counter()
        now = start
        while now - start < window_s:
            call(thread)
            done, now = done + 1, time.perf_counter()
        return done / (now - start)

    with _collector_at_rest(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, range(threads)))
        return sum(pool.map(rate, range(threads)))
