"""When a case counts as warm, on latencies made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.bench import warmup


def source(latency_s):
    """A case whose n-th call takes `latency_s(n)`, and how many it was asked for at a time."""
    made, asked = [], []

    def measure(count):
        asked.append(count)
        made.extend(latency_s(number) for number in range(len(made), len(made) + count))
        return made[-count:]

    return measure, asked


def noisy(level, seed=0, spread=0.05):
    generator = np.random.default_rng(seed)
    return lambda number: float(level(number) * (1 + generator.exponential(spread)))


def test_a_case_that_is_stable_at_once_takes_two_windows():
    measure, asked = source(noisy(lambda number: 1e-3))
    assert warmup.warm_up(measure, first_s=1e-3, limit_s=10.0).reason is None
    assert asked == [20, 20]


def test_a_case_that_gets_faster_is_waited_for():
    measure, asked = source(noisy(lambda number: 1e-3 * (1 + 2 * np.exp(-number / 60))))
    found = warmup.warm_up(measure, first_s=3e-3, limit_s=10.0)
    assert found.reason is None and 140 <= found.calls <= 400  # at 140 calls a fifth is still to come
    assert found.calls == sum(asked) and found.seconds == pytest.approx(found.calls * 1.3e-3, rel=0.4)


def test_a_late_step_in_the_two_windows_is_seen():
    slow, fast = [1.2e-3 + 1e-6 * (n % 7) for n in range(20)], [1e-3 + 1e-6 * (n % 7) for n in range(20)]
    assert not warmup.stable(slow, fast) and not warmup.stable(fast, slow)
    assert warmup.stable(fast, fast) and warmup.stable(fast, [one * 1.01 for one in fast])


def test_a_case_that_never_comes_to_rest_is_given_up_and_told():
    measure, _ = source(lambda number: 1e-3 * 1.01 ** number)
    found = warmup.warm_up(measure, first_s=1e-3, limit_s=0.5)
    assert found.seconds >= 0.5 and found.calls < 300
    assert found.reason.startswith(f"it did not become stable within {found.calls} calls and 0.")
    assert "medians of the last two windows of 20 calls are" in found.reason
    measure, _ = source(lambda number: 1e-9 * 1.01 ** number)
    assert warmup.warm_up(measure, first_s=1e-9, limit_s=1e9).calls == warmup.MOST_CALLS


def test_slow_cases_and_slow_clocks_have_small_windows():
    measure, asked = source(lambda number: 4.0)
    assert warmup.warm_up(measure, first_s=4.0, limit_s=10.0).calls == 5 and asked == [5]
    measure, asked = source(lambda number: 0.2)
    assert warmup.warm_up(measure, first_s=30.0, limit_s=10.0).calls == 5 + 12  # the first call said too much
    measure, asked = source(lambda number: 1e-3)
    found = warmup.warm_up(measure, first_s=1e-3, limit_s=10.0, interval_s=0.5)
    assert (asked, found.seconds, found.reason) == ([5, 5], 5.0, None)


def test_false_unrest_is_rare():
    generator = np.random.default_rng(0)
    windows = generator.lognormal(0, 0.3, (400, 2, 20))
    unstable = sum(not warmup.stable(*pair) for pair in windows)
    assert unstable <= 32  # 5 % of 400 are 20; more than 32 has a chance below 1 %


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-9, 1e3), min_size=5, max_size=25), st.floats(1e-6, 1e3))
def test_a_warm_up_ends_whatever_the_latencies_are(latencies, limit_s):
    measure, asked = source(lambda number: latencies[number % len(latencies)])
    found = warmup.warm_up(measure, first_s=latencies[0], limit_s=limit_s)
    assert found.calls == sum(asked) <= warmup.MOST_CALLS + warmup.WINDOW
