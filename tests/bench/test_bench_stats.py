"""The statistics against closed forms and against simulations whose truth is known."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgetl.bench import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import percentile_coverage


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


@pytest.mark.parametrize(("percent", "n", "low", "high"), [
    (90.0, 100, 84, 96), (95.0, 200, 184, 197), (90.0, 64, 53, 63), (99.0, 662, 650, 661)])
def test_ranks_of_percentiles_enclose_by_the_binomial_distribution(percent, n, low, high):
    found = stats.percentile_interval(np.arange(1.0, n + 1), percent)
    assert (found.low, found.high) == (low, high)
    share = percent / 100
    at_most = [sum(math.comb(n, k) * share**k * (1 - share)**(n - k) for k in range(upto + 1)) for upto in range(n)]
    assert at_most[low - 1] <= 0.025 < at_most[low]  # so few below the percentile, hence the rank below it
    assert 1 - at_most[high - 1] <= 0.025 < 1 - at_most[high - 2]


def test_no_percentile_has_no_interval():
    assert stats.percentile_interval(np.ones(129), 95.0) is None
    assert stats.percentile_interval(np.ones(130), 95.0) == stats.Interval(1, 1, 1, 0.95)


@pytest.mark.parametrize(("name", "rounds", "calls", "percent"), [
    ("heavy tail", 10, 70, 99.0), ("bimodal", 10, 70, 90.0), ("drift", 10, 70, 50.0), ("drift", 20, 50, 95.0),
    ("slight drift", 10, 70, 90.0), ("autocorrelated", 20, 50, 90.0), ("warming", 5, 50, 50.0),
    ("neighbour", 20, 50, 95.0)])
def test_percentile_intervals_cover_the_truth_at_their_stated_rate(name, rounds, calls, percent):
    found = percentile_coverage.coverage(name, rounds, calls, percent, repetitions=150, seed=3)
    held = round(found["covered"] * 150)
    assert binomtest(held, 150, 0.95, alternative="less").pvalue > 0.01


def test_the_test_of_coverage_sees_intervals_that_are_too_narrow():
    found = percentile_coverage.coverage("drift", 10, 70, 50.0, repetitions=150, seed=3)
    held = round(found["as_if_independent"] * 150)
    assert binomtest(held, 150, 0.95, alternative="less").pvalue < 1e-6


def test_rounds_that_agree_say_nearly_as_much_as_independent_calls():
    generator = np.random.default_rng(4)
    widths = []
    for _ in range(40):
        samples = generator.lognormal(0, 0.1, (40, 50))
        wide, narrow = stats.median_interval(samples), stats.median_interval(samples.ravel())
        assert wide.low <= narrow.low and narrow.high <= wide.high
        widths.append((wide.high - wide.low) / (narrow.high - narrow.low))
    assert 1 <= np.median(widths) < 1.25


def test_the_calls_of_a_single_round_are_judged_by_their_neighbours():
    slow = np.repeat(np.linspace(1, 2, 10), 30)  # rises all the while: 300 calls say little more than 10
    one_round = stats.median_interval(slow[None, :])
    assert one_round.high - one_round.low > 2 * (stats.median_interval(slow).high - stats.median_interval(slow).low)
    assert stats.median_interval([[1.0]]) == stats.Interval(1.0, None, None, 0.95)


@settings(deadline=None, max_examples=40)
@given(rounds=st.integers(1, 7), calls=st.integers(1, 30), seed=st.integers(0, 99), scale=st.sampled_from([0.25, 8.0]))
def test_intervals_scale_with_the_samples_and_hold_their_estimate(rounds, calls, seed, scale):
    samples = np.random.default_rng(seed).lognormal(0, 0.3, (rounds, calls))
    found = stats.median_interval(samples)
    scaled = stats.median_interval(scale * samples)
    for one, other in ((found.low, scaled.low), (found.value, scaled.value), (found.high, scaled.high)):
        assert other == (None if one is None else scale * one)
    for one in (found, stats.percentile_interval(np.tile(samples, 20), 90.0)):
        assert one is None or one.low is None or one.low <= one.value
        assert one is None or one.high is None or one.value <= one.high


@pytest.mark.parametrize("values", [(1, 2, 3, 4, 5), (-1, 2, 3, 4, 5), (0.1, -0.2, 0.3), (1, 1, -1, 2, 2),
                                    (0, 0, 3, -1), (), (-1.0,)])
def test_the_signed_rank_test_counts_every_choice_of_signs(values):
    kept = [one for one in values if one]
    ranks = [np.mean([rank for rank, size in enumerate(sorted(map(abs, kept)), 1) if size == abs(own)]) for own in kept]
    seen = sum(rank for rank, own in zip(ranks, kept, strict=True) if own > 0)
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
            for signs in itertools.product((0, 1), repeat=len(kept))]
    expected = np.mean([total >= seen - 1e-9 for total in sums])
    assert stats.signed_rank(values) == pytest.approx(expected)


@pytest.mark.parametrize(("first", "second"), [((1, 2, 3), (4, 5, 6)), ((1, 5, 3, 9), (2, 4, 8)), ((7, 8), (1, 2, 3))])
def test_the_rank_test_counts_every_division_into_sides(first, second):
    def above(one, other):  # pairs in which the first side is greater
        return sum(a > b for a in one for b in other)

    pooled = set(first + second)
    counts = [above(side, pooled - set(side)) for side in itertools.combinations(pooled, len(first))]
    greater = np.mean([count >= above(first, second) for count in counts])
    less = np.mean([count <= above(first, second) for count in counts])
    sides = np.array(first, dtype=float), np.array(second, dtype=float)
    assert stats.rank_test(*sides, "greater") == pytest.approx(greater)
    assert stats.rank_test(*sides) == pytest.approx(min(1, 2 * min(less, greater)))


def test_the_rank_test_of_equal_rounds_sees_nothing():
    assert stats.rank_test(np.ones(5), np.ones(7)) == 1
    assert stats.rank_test(np.array([1.0, 1, 2]), np.array([1.0, 2, 2])) > 0.3  # ties: by the approximation
    assert stats.rank_test(np.arange(40.0), np.arange(40.0) + 100.5) < 1e-12


def test_holm_multiplies_by_how_many_are_left_and_never_falls():
    # S. Holm 1979: 0.01 * 4, 0.013 * 3 raised to the one before, 0.04 * 2, 0.05 * 1 raised.
    assert stats.holm([0.04, 0.01, 0.05, 0.013]) == pytest.approx([0.08, 0.04, 0.08, 0.04])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_the_ratio_of_exact_samples_is_exact_and_turns_over_with_the_sides():
    found = stats.ratio(np.full((3, 4), 0.002), np.full((5, 2), 0.022), seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((11, 11, 11))
    with pytest.raises(ValueError, match="no ratio"):
        stats.ratio(np.ones((2, 0)), np.ones((2, 3)), seed=0)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), rounds=st.tuples(st.integers(1, 6), st.integers(1, 6)), scale=st.floats(1e-3, 1e3))
def test_ratios_do_not_depend_on_the_unit_and_turn_over_with_the_sides(seed, rounds, scale):
    generator = np.random.default_rng(seed)
    base, new = (generator.lognormal(0, 0.1, (count, 9)) for count in rounds)
    found = stats.ratio(base, new, seed=1, draws=200)
    turned = stats.ratio(new, base, seed=1, draws=200)
    scaled = stats.ratio(scale * base, scale * new, seed=1, draws=200)
    assert (turned.value, turned.low, turned.high) == pytest.approx((1 / found.value, 1 / found.high, 1 / found.low))
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx((found.value, found.low, found.high))


def test_the_ratio_of_runs_at_different_times_covers_the_truth():
    generator = np.random.default_rng(6)
    held = 0
    for number in range(150):
        base, new = (level * generator.lognormal(0, 0.04, (5, 1)) * generator.lognormal(0, 0.03, (5, 20))
                     for level in (1.0, 1.3))
        found = stats.ratio(base, new, seed=number, draws=500)
        held += found.low <= 1.3 <= found.high
    assert binomtest(held, 150, 0.95, alternative="less").pvalue > 0.01
