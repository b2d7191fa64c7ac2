"""Figures of labels and values, against closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import head_metrics as hm
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Head
from edgetl.scorecard import Figure, Interval

NAN = math.nan
ONE = np.ones((1, 4))


def test_average_precision_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert hm.average_precision(scores, np.array([True, False, True, False]))[0] == pytest.approx((1 + 2 / 3) / 2)
    assert hm.average_precision(scores, np.array([False, False, False, True]))[0] == pytest.approx(1 / 4)
    assert hm.average_precision(np.zeros(4), np.array([True, False, False, False]))[0] == pytest.approx(1 / 4)  # tied
    assert math.isnan(hm.average_precision(scores, np.zeros(4, bool))[0])


@given(st.integers(0, 2**31), st.integers(2, 40))
def test_average_precision_is_scikit_learns_with_weights_and_ties(seed: int, n: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    scores, has = rng.integers(0, 6, n).astype(float), rng.random(n) < 0.4
    has[0] = True
    weights = rng.integers(0, 3, (2, n)).astype(float)
    weights[:, 0] = 1
    expected = [sklearn.average_precision_score(has, scores, sample_weight=row) for row in weights]
    assert hm.average_precision(scores, has, weights) == pytest.approx(np.array(expected))


def test_map_leaves_out_what_is_not_known_and_labels_that_nobody_has() -> None:
    scores = np.array([[3.0, 0, 0], [2, 9, 0], [1, 0, 0]])
    truth = np.array([[1.0, 1, 0], [NAN, NAN, 0], [0, 0, NAN]])
    assert hm.mean_average_precision(scores, truth)[0] == pytest.approx((1 + 1 / 2) / 2)
    assert math.isnan(hm.mean_average_precision(scores, np.zeros((3, 3)))[0])


def test_the_card_of_labels_by_hand() -> None:
    logits = np.array([[2.0, -1], [1, 1], [-1, 2], [-2, -2]])
    truth = np.array([[1.0, 0], [0, 1], [1, 1], [0, NAN]])
    found = hm.card([Head("labels", MULTILABEL, ("sea", "sky"))], {"val": logits}, {"val": truth})["val"]
    assert found["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))  # three hits, one missed, one false
    assert found["macro_f1"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["exact_match"] == pytest.approx(1 / 3)  # the last image is not known whole
    assert found["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    sea, sky = found["labels"]
    assert (sea["n"], sea["with_label"], sea["precision"], sea["recall"]) == (4, 2, 0.5, 0.5)
    assert (sky["n"], sky["f1"], sky["ap"]) == (3, 1.0, 1.0)
    assert 0 <= found["map_low"] <= found["map"] <= found["map_high"] <= 1
    assert found["sentence"].startswith("mAP 0.917 on 4 images")


def test_the_card_of_values_by_hand() -> None:
    values, truth = np.array([[1.0, 5], [2, 5], [4, 5]]), np.array([[1.0, 5], [3, 5], [5, NAN]])
    found = hm.card([Head("values", REGRESS, ("mm", "g"))], {"test": values}, {"test": truth})["test"]
    mm, g = found["columns"]
    assert mm["mae"] == pytest.approx(2 / 3) and mm["rmse"] == pytest.approx(math.sqrt(2 / 3))
    assert mm["r2"] == pytest.approx(1 - 2 / 8) == found["r2"]  # the values of g do not differ
    assert (g["n"], g["mae"], g["r2"], g["r2_low"]) == (2, 0.0, None, None)


@given(st.integers(0, 2**31))
def test_r2_is_scikit_learns(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    truth, values = rng.normal(1000, 3, 30), rng.normal(1000, 3, 30)
    weights = rng.integers(0, 3, (1, 30)).astype(float)
    found = hm.value_errors(values, truth, weights)["r2"][0]
    assert found == pytest.approx(sklearn.r2_score(truth, values, sample_weight=weights[0]), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=6, unique=True), st.integers(0, 5))
def test_a_draw_of_one_image_again_and_again_has_no_r2(truth: list[float], place: int) -> None:
    known, weights = np.array(truth), np.zeros((1, len(truth)))
    weights[0, place % len(truth)] = len(truth)
    assert np.isnan(hm.value_errors(known + 0.3, known, weights)["r2"]).all()


def test_each_head_has_the_figures_of_one_class_and_its_own_images() -> None:
    asked = [Head("shape", CLASSIFY, ("a", "b")), Head("colour", CLASSIFY, ("c", "d", "e"))]
    truth = np.array([[1, 0, NAN, NAN, NAN], [0, 1, 1, 0, 0], [1, 0, 0, 0, 1], [0, 1, 0, 1, 0]], float)
    logits = np.array([[2, 0, 0, 0, 9], [2, 0, 3, 0, 0], [2, 0, 0, 0, 1], [0, 1, 5, 0, 0]], float)
    found = hm.card(asked, {"val": logits}, {"val": truth})
    shape, colour = found["val"]["heads"].values()
    assert (shape["n"], shape["accuracy"]) == (4, 0.75) and (colour["n"], colour["accuracy"]) == (3, 2 / 3)
    assert colour["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert found["val"]["mean_accuracy"] == pytest.approx((0.75 + 2 / 3) / 2)
    assert set(found["temperatures"]) == {"shape", "colour"}


def test_draws_that_do_not_differ_bound_nothing() -> None:
    def never(weights: np.ndarray) -> np.ndarray:
        return np.full(len(weights), 0.5)

    found = hm.drawn(5, never)
    assert isinstance(found, Figure) and not isinstance(found, Interval) and found.value == 0.5
    assert hm.drawn(5, lambda weights: np.full(len(weights), NAN)) is None


def test_an_interval_of_the_mean_holds_what_theory_says() -> None:
    values = np.arange(400.0)
    found = hm.drawn(400, lambda weights: weights @ values / weights.sum(axis=1), draws=2000)
    assert isinstance(found, Interval)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(found.value - half, rel=0.02)
    assert found.high == pytest.approx(found.value + half, rel=0.02)
