"""The early-stopping estimate and the verdicts of MLPerf's method, on numbers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from edgetl.bench import mlperf, report
from edgetl.errors import EdgetlError
from tests.bench.hand_made import make_report


def odds(in_time: int, late: int, percentile: float) -> float:
    """LoadGen's own words: BetaRegularized[p, h, 1 + t]."""
    return float(special.betainc(in_time, late + 1, percentile))


@pytest.mark.parametrize(("percentile", "needed"), [(0.90, 64), (0.99, 662), (0.999, 6636)])
def test_the_least_counts_are_those_that_loadgen_prints(percentile, needed):
    assert mlperf.queries_needed(percentile) == needed
    assert mlperf.overlatency_allowed(needed, percentile) == 1
    assert mlperf.overlatency_allowed(needed - 1, percentile) == 0


@settings(deadline=None, max_examples=60)
@given(queries=st.integers(1, 1_000_000), percentile=st.sampled_from([0.9, 0.95, 0.99, 0.999]))
def test_one_late_query_more_would_not_show_the_percentile(queries, percentile):
    allowed = mlperf.overlatency_allowed(queries, percentile)
    if allowed >= 0:
        assert odds(queries - allowed, allowed, percentile) < 1 - mlperf.CONFIDENCE
    assert odds(queries - allowed - 1, allowed + 1, percentile) >= 1 - mlperf.CONFIDENCE


def test_the_estimate_is_the_greatest_latency_that_is_left():
    latencies = np.random.default_rng(0).permutation(np.arange(1, 1001))
    assert mlperf.early_stopping(latencies, 0.90) == (1000 - 77, 77)  # 77 of 1000, as LoadGen says
    assert mlperf.early_stopping(latencies[:63], 0.90) is None


def test_the_estimate_bounds_the_true_percentile_in_99_of_100_runs():
    generator, truth = np.random.default_rng(1), -np.log(0.1)  # of an exponential
    runs = [mlperf.early_stopping((generator.exponential(size=500) * 1e9).astype(np.int64), 0.90)[0] / 1e9 < truth
            for _ in range(2000)]
    # 20 misses are expected at most; 36 are less likely than 1 in 1000.
    assert 1 <= sum(runs) <= 36


def run(**changes):
    return {"latencies_ns": [1_000_000] * 700, "samples": 700, "duration_s": 600.1, "inputs": "made up", **changes}


def test_a_run_is_valid_when_it_was_long_enough_had_enough_queries_and_has_an_estimate():
    good = mlperf.judge("single-stream", run(), min_duration_s=600.0, images=None)
    assert good.valid and good.full_length and good.estimate_s == 1e-3
    short = mlperf.judge("single-stream", run(duration_s=599.9), min_duration_s=600.0, images=None)
    assert not short.valid and not short.duration_satisfied and short.queries_satisfied
    few = mlperf.judge("single-stream", run(latencies_ns=[1] * 70, samples=70), min_duration_s=600.0, images=None)
    assert not few.valid and not few.queries_satisfied and few.early_stopping_satisfied
    none = mlperf.judge("single-stream", run(latencies_ns=[1] * 63, samples=63), min_duration_s=600.0, images=None)
    assert none.estimate_s is None and none.early_stopping_needs == 64 and not none.early_stopping_satisfied
    assert not mlperf.judge("single-stream", run(), min_duration_s=1.0, images=None).full_length


def test_offline_asks_for_no_more_samples_than_the_data_has():
    offline = run(latencies_ns=[], samples=24_575, duration_s=700.0)
    made_up = mlperf.judge("offline", offline, min_duration_s=600.0, images=None)
    assert made_up.queries == 1 and not made_up.queries_satisfied and made_up.samples_per_s == 24_575 / 700
    assert mlperf.judge("offline", offline, min_duration_s=600.0, images=5_000).valid
    assert mlperf.least_samples("offline", 100_000) == 24_576
    assert mlperf.least_samples("multi-stream", 5) == 662 * 8


def test_an_offline_query_is_long_enough_for_the_rate_that_is_expected():
    assert mlperf.offline_samples(600.0, 100.0, 24_576) == 66_000
    assert mlperf.offline_samples(600.0, 1.0, 24_576) == 24_576


def test_a_failed_scenario_is_never_valid():
    found = mlperf.failed("offline", "the worker was ended by SIGKILL", min_duration_s=0.0)
    assert not found.valid and found.samples_per_s is None and found.queries == 0


def test_a_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        mlperf.plain_percentile([], 0.9)


def test_a_report_keeps_scenarios_with_their_verdicts_and_says_what_they_are_not():
    scenarios = (mlperf.judge("single-stream", run(), min_duration_s=600.0, images=None),
                 mlperf.failed("offline", "out of memory", min_duration_s=600.0))
    made = make_report()
    made = dataclasses.replace(made, rows=(dataclasses.replace(made.rows[0], mlperf=scenarios), *made.rows[1:]))
    values = json.loads(report.dumps(made))
    first = values["rows"][0]["mlperf"][0]
    assert first["valid"] is True and "not an MLPerf result" in first["note"]
    assert report.from_json(values, where="memory").rows == made.rows
    first["valid"] = 1
    with pytest.raises(EdgetlError, match=r"rows\[0\].mlperf\[0\].valid.*expected true or false"):
        report.from_json(values, where="memory")
