"""From logits to labels: against the plain definition, ties and rejected answers included."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgetl.errors import InputError
from edgetl.runtime.drift import Drift
from edgetl.runtime.prediction import Answers, softmax

LABELS = ("cat", "dog", "fox", "owl")
# A few values only, so that ties are common.
ROWS = arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([-3.0, 0.0, 0.5, 2.0, 88.0, -1e30]))


def by_definition(logits):
    powers = np.exp(logits.astype(np.float64) - logits.astype(np.float64).max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@settings(deadline=None, max_examples=200)
@given(row=ROWS, top=st.integers(-1, 50))
def test_the_best_are_what_a_stable_sort_puts_first_and_scores_are_the_softmax(row, top):
    labels = tuple(f"l{place}" for place in range(len(row)))
    before = row.copy()
    (found,) = Answers(labels)(row[None], [top])
    expected = by_definition(row[None])[0]
    best = sorted(range(len(row)), key=lambda place: -row[place])[:max(1, top)]
    assert [int(label[1:]) for label, _ in found.top] == best
    assert np.array_equal(row, before)
    assert found.index == int(row.argmax())
    assert (found.label, found.score) == found.top[0] == (labels[found.index], found.score)
    assert [score for _, score in found.top] == pytest.approx([expected[int(label[1:])] for label, _ in found.top])
    assert type(found.score) is float
    assert type(found.index) is int


def test_softmax_is_the_definition_and_does_not_overflow():
    logits = np.random.default_rng(0).normal(0, 200, (5, 7)).astype(np.float32)
    assert np.allclose(softmax(logits), by_definition(logits), rtol=1e-12, atol=0)
    assert softmax(logits).dtype == np.float64


def test_rows_are_answered_in_order():
    logits = np.eye(4, dtype=np.float32)[[2, 0, 3]] * 9
    assert [one.label for one in Answers(LABELS)(logits, [1] * len(logits))] == ["fox", "cat", "owl"]


def test_below_the_threshold_is_rejected():
    logits = np.array([[2, 0, 0, 0], [9, 0, 0, 0]], np.float32)
    unsure, sure = softmax(logits).max(axis=1)
    assert [one.rejected for one in Answers(LABELS)(logits, [1] * len(logits))] == [False, False]
    assert [one.rejected for one in Answers(LABELS, (unsure + sure) / 2)(logits, [1, 1])] == [True, False]
    assert [one.rejected for one in Answers(LABELS, float(unsure))(logits, [1, 1])] == [False, False]


def test_a_prediction_is_small_and_cannot_be_changed():
    (found,) = Answers(LABELS)(np.eye(4, dtype=np.float32)[:1], [2])
    assert not hasattr(found, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.label = "dog"
    assert dataclasses.asdict(found)["rejected"] is False


def test_drift_gets_the_scores_of_every_answer():
    drift = Drift(4)
    answers = Answers(LABELS, None, drift)
    logits = np.random.default_rng(1).normal(0, 3, (6, 4)).astype(np.float32)
    answers(logits[:5], [1] * 5)
    answers(logits[5:], [3])
    told = drift.snapshot()
    assert told["count"] == 6
    assert told["top"]["mean"] == pytest.approx(by_definition(logits).max(axis=1).mean())
    with pytest.raises(InputError, match="counts 3 classes; this bundle has 4"):
        Answers(LABELS, None, Drift(3))


@pytest.mark.parametrize("wrong", [[np.nan, 1], [np.inf, 1], [-np.inf, 1], [np.inf, -np.inf], [np.nan, np.inf]])
def test_rows_that_are_not_finite_have_no_answer_and_others_do(wrong):
    drift = Drift(4)
    logits = np.zeros((3, 4), np.float32)
    logits[1, 1:3] = wrong
    assert [one is None for one in Answers(LABELS, None, drift)(logits, [1] * 3)] == [False, True, False]
    assert drift.snapshot()["count"] == 2


def test_the_greatest_numbers_are_finite():
    logits = np.full((1, 4), np.finfo(np.float32).max)
    assert Answers(LABELS)(logits, [1])[0].score == 0.25
