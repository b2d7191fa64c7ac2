"""The statistics against closed forms and against simulations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.bench import stats


@pytest.mark.parametrize(("n", "rank"), [(5, 0), (6, 1), (10, 2), (20, 6), (50, 18), (100, 40)])
def test_ranks_of_the_median_interval_are_those_of_the_printed_tables(n, rank):
    # W. J. Conover, Practical Nonparametric Statistics, table of the binomial at 1/2; 95 %.
    found = stats.median_interval(np.arange(1, n + 1))
    assert found.low == (rank or None)
    assert found.high == (n + 1 - rank if rank else None)


def test_median_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    truth = math.exp(0.5)  # median of lognormal(0.5, 1), as skewed as latencies are
    covered = 0
    for _ in range(2000):
        found = stats.median_interval(generator.lognormal(0.5, 1.0, 51))
        covered += found.low <= truth <= found.high
    # Exact coverage at n = 51 is 0.9511 or more (discrete); 4 standard errors of the simulation are 0.019.
    assert 0.94 < covered / 2000 < 0.985


def test_median_interval_stays_finite_for_thousands_of_samples():
    found = stats.median_interval(np.arange(5000.0))
    half = (found.high - found.low) / 2
    assert half == pytest.approx(1.96 * math.sqrt(5000) / 2, rel=0.03)  # the normal approximation


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=80))
def test_median_lies_inside_its_interval(samples):
    found = stats.median_interval(samples)
    assert found.value == np.median(samples)
    if found.low is not None:
        assert min(samples) <= found.low <= found.value <= found.high <= max(samples)


def test_no_samples_have_no_median():
    with pytest.raises(ValueError, match="at least one"):
        stats.median_interval([])


@pytest.mark.parametrize("percent", [90.0, 95.0, 99.0, 99.9])
def test_minima_are_the_least_counts_that_bound_the_percentile(percent):
    tail = 1 - percent / 100

    def risk(n):  # P(at most one of n samples above the percentile)
        return (1 - tail) ** n + n * tail * (1 - tail) ** (n - 1)

    least = stats.PERCENTILE_MINIMA[percent]
    assert risk(least) <= 0.01 < risk(least - 1)


def test_percentile_is_none_and_never_zero_below_its_minimum():
    assert stats.percentile(np.ones(661), 99.0) is None
    assert stats.needs(99.0) == "needs 662 samples"
    assert stats.percentile(np.arange(1, 1001), 99.0) == 990
    assert stats.percentile(np.arange(1, 65), 90.0) == 58


def test_speedup_of_exact_samples_is_exact():
    found = stats.speedup(np.full((3, 4), 0.022), np.full((3, 5), 0.002), seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((11, 11, 11))


def test_speedup_interval_covers_the_truth_despite_drift_between_rounds():
    generator = np.random.default_rng(1)
    covered = 0
    for number in range(150):
        drift = generator.lognormal(0, 0.2, (5, 1))  # a machine that is now slow, now fast: for both alike
        reference = 3.0 * drift * generator.lognormal(0, 0.05, (5, 30))
        case = 1.0 * drift * generator.lognormal(0, 0.05, (5, 30))
        found = stats.speedup(reference, case, seed=number, draws=200)
        covered += found.low <= 3.0 <= found.high
    assert covered / 150 > 0.9


def test_speedup_is_the_same_for_the_same_seed():
    generator = np.random.default_rng(2)
    first, second = generator.random((4, 20)) + 1, generator.random((4, 20)) + 1
    assert stats.speedup(first, second, seed=5) == stats.speedup(first, second, seed=5)


def test_samples_of_different_rounds_are_refused():
    with pytest.raises(ValueError, match="same rounds"):
        stats.speedup(np.ones((2, 3)), np.ones((3, 3)), seed=0)
