"""The one stopwatch: `perf_counter` stands in no other module."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def now_s() -> float:
    """Seconds of a monotonic clock with an arbitrary origin; only differences mean anything."""
    return time.perf_counter()


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Result of `work()` and the seconds it took; `work` must return finished results, host to host."""
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def sleep_until(moment_s: float) -> None:
    """Sleeps until `now_s()` reaches `moment_s`; returns at once if it has passed."""
    remaining = moment_s - time.perf_counter()
    if remaining > 0:
        time.sleep(remaining)
