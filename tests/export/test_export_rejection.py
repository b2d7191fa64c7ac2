"""The score to reject below: what it promises holds for images that nobody has seen, and false promises are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgetl import evaluate, metrics
from edgetl.export import rejection

DRAWN = 40_000


def answers(n: int, seed: int, *, overconfident: float = 1.0) -> evaluate.Evaluation:
    """A classifier of two classes whose answer is right with its score's probability, raised to `overconfident`."""
    chance = np.random.default_rng(seed)
    score = 0.5 + 0.5 * chance.beta(1.5, 0.3, n)
    right = chance.random(n) < score**overconfident
    logits = np.zeros((n, 2), np.float32)
    logits[:, 0] = np.log(score / np.maximum(1 - score, 1e-7))
    return evaluate.summarize(logits, np.where(right, 0, 1), tuple(map(str, range(n))))


def known(right: list[bool], scores: list[float]) -> evaluate.Evaluation:
    """Answers of class 0 with these scores."""
    logits = np.zeros((len(right), 2), np.float32)
    logits[:, 0] = np.log(np.array(scores) / (1 - np.array(scores)))
    return evaluate.summarize(logits, np.where(right, 0, 1), tuple(map(str, range(len(right)))))


@pytest.mark.parametrize("correct, n", [(0, 5), (1, 1), (59, 59), (90, 100), (9_500, 10_000), (3, 400)])
@pytest.mark.parametrize("confidence", [0.95, 0.9975])
def test_the_bound_is_clopper_and_pearsons(correct: int, n: int, confidence: float) -> None:
    """By their definition: were the bound the truth, so many right or more would be seen with 1 - confidence."""
    share = metrics.lower_bound(correct, n, confidence)
    if correct == 0:
        assert share == 0
        return
    terms = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(share)
             + (n - k) * math.log1p(-share) for k in range(correct, n + 1))
    assert math.fsum(map(math.exp, terms)) == pytest.approx(1 - confidence, rel=1e-6)


@pytest.mark.parametrize("correct, n", [(1, 0), (5, 4), (-1, 3)])
def test_no_bound_of_what_is_no_share(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        metrics.lower_bound(correct, n)


@pytest.mark.parametrize("target, overconfident", [(0.95, 1.0), (0.9, 1.6)])
def test_the_promise_is_kept_on_images_that_nobody_has_seen(target: float, overconfident: float) -> None:
    """Broken in at most 5 % of exports, whatever the data: here the truth is known from very many images."""
    truth = answers(DRAWN, 10_000, overconfident=overconfident)
    found = broken = 0
    for seed in range(50):
        val = answers(300, seed, overconfident=overconfident)
        threshold = rejection.search(val, target, variant="fp32").reject_below
        if threshold is not None:
            real = rejection.acceptance(truth, threshold)
            found += 1
            broken += real.correct < target * real.accepted
    assert found >= 25  # a search that never finds anything would keep every promise
    assert broken <= 7  # of 50 with a rate of 0.05, eight or more have a probability below 0.01; it is lower


def test_a_naive_threshold_would_break_it() -> None:
    """The same test with the share itself in place of its bound: the test above can fail."""
    truth, broken = answers(DRAWN, 10_000), 0
    for seed in range(30):
        val = answers(300, seed)
        held = [threshold for threshold in rejection._thresholds(val)
                if (one := rejection.acceptance(val, threshold)).accepted and one.correct >= 0.95 * one.accepted]
        real = rejection.acceptance(truth, min(held))
        broken += real.correct < 0.95 * real.accepted
    assert broken > 7


def test_the_threshold_is_the_smallest_and_lies_above_what_it_leaves_out() -> None:
    scores = np.linspace(0.6, 0.999, 200)
    right = [score > 0.7 for score in scores]
    val = known(right, scores.tolist())
    found = rejection.search(val, 0.9, variant="fp32")
    assert found.reject_below is not None and found.refusal is None
    one = rejection.acceptance(val, found.reject_below)
    assert one.accepted % 10 == 0 and one.correct / one.accepted > 0.93
    more = [rejection.acceptance(val, threshold, 1 - 0.05 / 20) for threshold in rejection._thresholds(val)]
    assert not any(other.reaches(0.9) for other in more if other.accepted > one.accepted)
    assert found.record is not None and found.record["n"] == 200 and found.record["split"] == "val"


def test_where_everything_is_right_nothing_is_rejected() -> None:
    val = known([True] * 300, np.linspace(0.5, 0.99, 300).tolist())
    found = rejection.search(val, 0.95, variant="fp32")
    assert found.reject_below == 0.0 and rejection.acceptance(val, 0.0).accepted == 300


def test_equal_scores_are_accepted_or_left_out_together() -> None:
    val = known([True] * 150 + [False] * 50, [0.99] * 150 + [0.6] * 50)
    found = rejection.search(val, 0.95, variant="fp32")
    assert found.reject_below is not None and 0.6 + 5e-7 < found.reject_below < 0.61
    assert rejection.acceptance(val, found.reject_below).accepted == 150
    saturated = known([True] * 60 + [False] * 40, [1 - 1e-12] * 100)
    assert rejection.search(saturated, 0.95, variant="fp32").reject_below is None


def test_what_cannot_be_shown_is_refused_in_one_sentence() -> None:
    few = rejection.search(known([True] * 9, [0.9] * 9), 0.95, variant="x86-vnni.int8")
    assert few.reject_below is None and few.record is None
    assert few.refusal == ("No score was found above which 95 % of the answers of x86-vnni.int8 are right: of 9 "
                           "validation images, 9 of the 9 surest are, which shows 51.4 % (with 95 % confidence over 20 "
                           "thresholds)")
    wrong = rejection.search(known([False] * 100, np.linspace(0.5, 0.9, 100).tolist()), 0.5, variant="fp32")
    assert wrong.refusal is not None and "which shows 0.0 %" in wrong.refusal


def test_the_record_tells_what_the_threshold_does_elsewhere() -> None:
    good, worse = answers(600, 1), answers(600, 2, overconfident=3.0)
    found = rejection.search(good, 0.9, variant="a")
    record = rejection.checked(found, [("a", "val", good), ("b", "val", worse), ("a", "test", worse)])
    assert record is not None
    first, other, test = record["checks"]
    assert (first["holds"], other["holds"], test["holds"]) == (True, False, None)
    assert first["coverage"] == first["accepted"] / 600 and first["accuracy_low"] <= first["accuracy"]
    nothing = rejection.acceptance(known([True], [0.6]), 0.9).to_json()
    assert nothing == {"n": 1, "accepted": 0, "coverage": 0.0, "accuracy": None, "accuracy_low": None}
    assert rejection.checked(rejection.Threshold(0.9, None, refusal="no"), []) is None
