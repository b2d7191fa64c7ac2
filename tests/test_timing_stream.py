"""Streams of calls on a clock of the test's own."""

from __future__ import annotations

import gc

import pytest

from edgetl import timing


class Clock:
    """A clock that only calls move on."""

    def __init__(self) -> None:
        self.now_ns = 7_000_000_000

    def perf_counter_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(timing, "time", found)
    return found


def stream(clock, latencies_ms, **ends):
    def call(number):
        clock.now_ns += int(latencies_ms[number] * 1_000_000)
        assert not gc.isenabled()

    return timing.stream(call, **ends)


def test_a_stream_lasts_until_its_last_call_began_late_enough(clock):
    found = stream(clock, [100, 200, 300, 400, 500], least_calls=1, least_s=0.6)
    # Calls begin after 0, 100, 300 and 600 ms; the last is the first that begins at 600 or later.
    assert found.latencies_ns.tolist() == [100_000_000, 200_000_000, 300_000_000, 400_000_000]
    assert found.duration_s == 0.6


def test_a_stream_goes_on_until_there_are_enough_calls(clock):
    found = stream(clock, [100] * 10, least_calls=7, least_s=0.1)
    assert len(found.latencies_ns) == 7 and found.duration_s == 0.6
    assert len(stream(clock, [100], least_calls=1, least_s=0.0).latencies_ns) == 1


def test_the_garbage_collector_comes_back_even_after_a_failure(clock):
    with pytest.raises(ZeroDivisionError):
        timing.stream(lambda number: 1 / 0, least_calls=3, least_s=0.0)
    assert gc.isenabled()
