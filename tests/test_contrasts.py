"""Contrasts in closed form: intervals and p-values of trainings with several seeds, and of folds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import t as student

from edgetl import contrasts, metrics

Values = NDArray[np.float64]


def differences(seeds: int, images: int, first: float, second: float, seed: int = 0) -> Values:
    """[seeds, images]: 1 with probability `first`, -1 with `second`."""
    drawn = np.random.default_rng(seed).random((seeds, images))
    return (drawn < first).astype(float) - (drawn > 1 - second).astype(float)


def test_one_seed_is_tango_and_mcnemar() -> None:
    one = np.array([[1.0] * 9 + [-1.0] * 2 + [0.0] * 30])
    found = contrasts.over_seeds(one)
    assert found.mean == pytest.approx(7 / 41)
    assert (found.low, found.high) == metrics.paired_interval(9, 2, 41)
    assert found.p_value == metrics.mcnemar(9, 2) == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    assert contrasts.share_over_seeds(np.array([[1.0] * 30 + [0.0] * 10])).low == metrics.wilson_interval(30, 40)[0]


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 5), st.integers(20, 200), st.floats(0, 0.3), st.floats(0, 0.3), st.integers(0, 99))
def test_the_p_value_of_seeds_is_where_the_interval_touches_zero(
    seeds: int, images: int, first: float, second: float, seed: int
) -> None:
    drawn = differences(seeds, images, first, second, seed)
    found = contrasts.over_seeds(drawn)
    low, high = metrics.crossed_interval(drawn, 0.95)
    assert (found.low, found.high) == (low, high)
    assert (found.p_value < 0.05) == (low > 0 or high < 0)
    if 1e-9 < found.p_value < 1 - 1e-9:
        touching = metrics.crossed_interval(drawn, 1 - found.p_value)
        assert min(abs(end) for end in touching) == pytest.approx(0, abs=1e-6)


def test_equal_classifiers_cannot_be_told_apart_whatever_they_answer() -> None:
    assert contrasts.over_seeds(np.zeros((3, 50))).p_value == 1.0
    assert contrasts.over_folds([np.zeros(10)] * 4).p_value == 1.0


def test_what_is_always_better_is_significant() -> None:
    assert contrasts.over_seeds(np.ones((3, 50))).p_value < 1e-3
    assert contrasts.over_folds([np.ones(25)] * 4).p_value < 1e-3


def test_the_interval_of_the_folds_is_the_corrected_resampled_t() -> None:
    folds = [np.array([1.0] * up + [0.0] * (10 - up)) for up in (3, 5, 4, 8, 5)]
    means = np.array([0.3, 0.5, 0.4, 0.8, 0.5])
    error = math.sqrt((1 / 5 + 1 / 4) * means.var(ddof=1))
    low, high = contrasts.folds_interval(folds)
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high - 0.5 == pytest.approx(student.ppf(0.975, 4) * error)
    assert contrasts.folds_p_value(folds) == pytest.approx(2 * student.sf(0.5 / error, 4))


def test_of_folds_and_images_the_less_sure_counts() -> None:
    agreeing = [np.array([1.0] + [0.0] * 9)] * 4  # every fold says one image in ten, by chance
    assert contrasts.folds_p_value(agreeing) == 0.0
    found = contrasts.over_folds(agreeing)
    assert found.p_value == metrics.mcnemar(4, 0) == 0.125
    assert (found.low, found.high) == metrics.paired_interval(4, 0, 40)
    torn = [np.ones(50), -np.ones(20), np.ones(50), np.ones(50)]  # one training set turns it all round
    found = contrasts.over_folds(torn)
    assert metrics.mcnemar(150, 20) < 1e-20
    assert found.p_value == contrasts.folds_p_value(torn) > 0.05
    assert found.low < 0 < found.high


def test_the_share_of_folds_stays_a_share() -> None:
    found = contrasts.share_over_folds([np.ones(10), np.ones(10), np.array([1.0] * 5 + [0.0] * 5)])
    assert found.mean == pytest.approx(25 / 30)
    assert found.low < metrics.wilson_interval(25, 30)[0]
    assert found.high == 1.0


def test_one_fold_has_no_other_to_differ_from() -> None:
    with pytest.raises(ValueError, match="1 fold has no other"):
        contrasts.folds_interval([np.ones(3)])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = contrasts.holm(p_values)
    assert all(p <= one <= 1 for p, one in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)
