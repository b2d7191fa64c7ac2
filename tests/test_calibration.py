"""Calibration against what it is by definition, written out in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import calibration, metrics


def answers(n=300, classes=6, sharpness=2.5, seed=0):
    """Logits [N, K] of a model that knows all probabilities and tells them `sharpness` times too surely; and labels."""
    generator = np.random.default_rng(seed)
    true = generator.normal(0, 1.5, (n, classes))
    labels = (metrics.softmax(true).cumsum(axis=1) < generator.random((n, 1))).sum(axis=1)
    return (sharpness * true).astype(np.float32), labels


@given(st.integers(1, 30), st.integers(2, 7), st.floats(0.2, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_likelihood_and_brier_score_by_hand(n, classes, temperature, seed):
    logits, labels = answers(n, classes, seed=seed)
    likelihood = squares = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        powers = [math.exp(one / temperature) for one in row]
        shares = [one / sum(powers) for one in powers]
        likelihood -= math.log(shares[label]) / n
        squares += sum((share - (place == label)) ** 2 for place, share in enumerate(shares)) / n
    assert calibration.nll(logits, labels, temperature) == pytest.approx(likelihood)
    assert calibration.brier(logits, labels, temperature) == pytest.approx(squares)


def test_closed_forms():
    even = np.zeros((5, 4))
    assert calibration.nll(even, np.arange(5) % 4) == pytest.approx(math.log(4))
    assert calibration.brier(even, np.arange(5) % 4) == pytest.approx(0.75)
    # Where the probability is too small for a float, its logarithm is not.
    assert calibration.nll(np.array([[2000.0, 0.0]]), np.array([1])) == 2000
    assert calibration.brier(np.array([[2000.0, 0.0]]), np.array([1])) == 2


def test_the_likelihood_is_sklearns():
    from sklearn.metrics import log_loss

    logits, labels = answers()
    expected = log_loss(labels, metrics.softmax(logits), labels=range(6))
    assert calibration.nll(logits, labels) == pytest.approx(expected, rel=1e-6)


def test_the_reliability_diagram_holds_the_ece():
    logits, labels = answers()
    found = calibration.reliability(logits, labels)
    gap = sum(n * abs(right - sure) for n, right, sure in
              zip(found.count, found.accuracy, found.confidence, strict=True) if n)
    assert gap / 300 == pytest.approx(metrics.ece(logits, labels))
    assert sum(found.count) == 300
    one = calibration.reliability(np.array([[math.log(3), 0.0]]), np.array([0]), bins=10)
    assert one.count == (0, 0, 0, 0, 0, 0, 0, 1, 0, 0)
    assert one.confidence[7] == pytest.approx(0.75) and one.accuracy[7] == 1
    assert one.to_json()["accuracy"][0] is None


def test_bins_of_equal_mass_by_hand():
    # Scores of 0.5, 0.6, 0.8 and 0.9, of which the first and the last are right, in two bins.
    logits = np.log([[0.5, 0.5], [0.6, 0.4], [0.2, 0.8], [0.1, 0.9]])
    labels = np.array([0, 1, 0, 1])
    assert calibration.ece_equal_mass(logits, labels, bins=2) == pytest.approx((0.1 + 0.7) / 4)
    # Of fewer images than bins each is a bin, whatever the order.
    expected = (0.5 + 0.6 + 0.8 + 0.1) / 4
    assert calibration.ece_equal_mass(logits[::-1], labels[::-1]) == pytest.approx(expected)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5])
def test_the_temperature_is_where_the_likelihood_is_greatest(sharpness):
    logits, labels = answers(4000, sharpness=sharpness)
    found = calibration.fit_temperature(logits, labels)
    assert found.refusal is None and found.n == 4000 and found.value == found.divisor
    assert found.value == pytest.approx(sharpness, rel=0.1)
    grid = sharpness * np.exp(np.linspace(-0.2, 0.2, 81))
    likelihoods = [calibration.nll(logits, labels, one) for one in grid]
    assert calibration.nll(logits, labels, found.value) <= min(likelihoods) + 1e-12
    assert found.value == pytest.approx(grid[int(np.argmin(likelihoods))], rel=0.006)
    assert calibration.fit_temperature(logits, labels) == found  # to the last bit


@given(st.integers(1, 60), st.integers(2, 5), st.floats(0.1, 10), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_a_temperature_never_lowers_the_likelihood_and_moves_no_answer(n, classes, sharpness, seed):
    logits, labels = answers(n, classes, sharpness, seed)
    found = calibration.fit_temperature(logits, labels)
    if found.value is None:
        assert found.refusal and found.divisor == 1
        return
    assert calibration.nll(logits, labels, found.value) <= calibration.nll(logits, labels) + 1e-9
    assert np.array_equal((logits / found.value).argmax(1), logits.argmax(1))
    # What is scaled already needs no scaling.
    again = calibration.fit_temperature(logits.astype(np.float64) / found.value, labels)
    assert again.value == pytest.approx(1, rel=1e-6)


def test_without_a_greatest_likelihood_there_is_no_temperature_and_a_reason():
    right = np.eye(3)
    assert calibration.fit_temperature(right, np.arange(3)) == calibration.Temperature(None, 3, calibration.ALL_RIGHT)
    assert calibration.fit_temperature(right, np.array([1, 2, 0])).refusal == calibration.NO_BETTER
    # One of two is wrong by a hair, and the sure one is sure of a millionth: the temperature would be next to 0.
    nearly = 1e-6 * np.array([[5.0, 0.0], [0.0, 1e-9]])
    assert calibration.fit_temperature(nearly, np.array([0, 0])).refusal == calibration.TOO_FAR
