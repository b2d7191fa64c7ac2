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

    def perf_counter(self) -> float:
        return self.now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9) + 70_000  # wakes up late, as sleep does


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


def paced(clock, latencies_ms, **more):
    def call(number):
        clock.now_ns += int(latencies_ms[number] * 1_000_000)

    return timing.block(call, len(latencies_ms), dropped=1, interval_s=0.01, **more)


def test_the_wait_of_a_call_that_is_due_stands_beside_its_latency(clock):
    found = paced(clock, [1, 2, 35, 2, 2, 2, 2])
    # The third call begins after 20 ms and ends after 55: those of 30, 40 and 50 ms wait for it and for one another.
    assert [round(one * 1000) for one in found.seconds] == [2, 35, 2, 2, 2, 2]
    assert [round(one * 1000) for one in found.waited_s] == [0, 0, 25, 17, 9, 1] and found.late_calls == 4


def test_how_late_sleep_wakes_up_is_no_wait_and_no_latency(clock):
    found = paced(clock, [1] * 5)
    assert found.waited_s == (0.0,) * 4 and found.late_calls == 0
    assert all(one == pytest.approx(0.001) for one in found.seconds)


def test_calls_back_to_back_are_never_due(clock):
    found = timing.block(lambda number: None, 3, dropped=1)
    assert found.waited_s is None and found.late_calls is None
