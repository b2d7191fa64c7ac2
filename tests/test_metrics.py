"""Closed forms, and sklearn's definition where there is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import metrics

LOGITS = np.array([[3.0, 1, 0], [0, 2, 1], [1, 0, 5], [0, 4, 3]])
LABELS = np.array([0, 2, 2, 2])


def test_top1_and_topk():
    assert metrics.top1(LOGITS, LABELS) == 0.5
    assert metrics.topk(LOGITS, LABELS, 1) == 0.5
    assert metrics.topk(LOGITS, LABELS, 2) == 1.0


def test_topk_1_is_top1_for_equal_logits_too():
    equal = np.zeros((3, 4))
    labels = np.array([0, 1, 3])
    assert metrics.topk(equal, labels, 1) == metrics.top1(equal, labels) == 1 / 3
    assert metrics.topk(equal, labels, 4) == 1.0


def test_confusion_has_the_truth_in_rows():
    assert metrics.confusion(np.array([0, 1, 2, 1]), LABELS, 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 2, 1]]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
@settings(deadline=None, max_examples=50)
def test_macro_f1_is_sklearns(pairs):
    from sklearn.metrics import f1_score

    labels, predicted = np.array(pairs).T
    expected = f1_score(labels, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1(metrics.confusion(predicted, labels, 4)) == pytest.approx(expected)


def test_macro_f1_of_nothing_is_refused():
    with pytest.raises(ValueError, match="without samples"):
        metrics.macro_f1(np.zeros((2, 2), np.int64))


def test_agreement_ignores_who_is_right():
    other = LOGITS.copy()
    other[3] = [0, 1, 2]
    assert metrics.agreement(LOGITS, other) == 0.75
    with pytest.raises(ValueError, match="do not belong together"):
        metrics.agreement(LOGITS, other[:2])


def test_softmax_is_finite_sums_to_one_and_knows_temperature():
    big = metrics.softmax(np.array([[1000.0, 0.0], [0.0, math.log(3)]]))
    assert np.allclose(big, [[1, 0], [0.25, 0.75]])
    assert np.allclose(metrics.softmax(np.array([[0.0, 2 * math.log(3)]]), temperature=2), [[0.25, 0.75]])


def test_ece_of_a_known_case():
    # Two sure answers of 0.75, one right: |0.5 - 0.75|; two of 0.5 (ties go to class 0), both right: |1 - 0.5|.
    three = math.log(3)
    logits = np.array([[three, 0.0], [three, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert metrics.ece(logits, np.array([0, 1, 0, 0]), bins=10) == pytest.approx(0.5 * 0.25 + 0.5 * 0.5)
    assert metrics.ece(np.array([[1e4, 0.0]]), np.array([0])) == 0.0


def test_weighted_accuracy():
    assert metrics.weighted_accuracy(np.array([True, False]), np.array([3.0, 1.0])) == 0.75
    with pytest.raises(ValueError, match="one weight"):
        metrics.weighted_accuracy(np.array([True]), np.array([1.0, 2.0]))


def test_wilson_interval_of_published_examples():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    for (correct, n), expected in {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605),
                                   (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}.items():
        assert metrics.wilson_interval(correct, n) == pytest.approx(expected, abs=5e-5)
    with pytest.raises(ValueError, match="not a share"):
        metrics.wilson_interval(2, 1)


def test_mcnemar_is_the_binomial_test():
    for b, c in [(0, 0), (4, 4), (1, 7), (12, 2), (0, 5), (900, 1000)]:
        tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))  # whole numbers: exact for any count
        assert metrics.mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail / (1 << (b + c))))
    assert metrics.mcnemar(0, 5) == 2 / 32


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (0, 0, 372), (4, 4, 372), (0, 7, 40), (30, 10, 40)])
def test_paired_interval_ends_where_the_score_test_rejects(b, c, n):
    """Against the definition: the most likely pair of cell probabilities is searched, not solved for."""
    from scipy.optimize import minimize_scalar

    def score(difference):
        floor, ceiling = max(0.0, -difference), (1 - difference) / 2

        def loss(q):
            cells = [(b, q + difference), (c, q), (n - b - c, 1 - 2 * q - difference)]
            return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

        q = minimize_scalar(loss, bounds=(floor, ceiling), method="bounded", options={"xatol": 1e-12}).x
        return (b - c - n * difference) / math.sqrt(n * (2 * q + difference - difference**2))

    low, high = metrics.paired_interval(b, c, n)
    assert low < (b - c) / n < high or b == c == 0
    assert score(low) == pytest.approx(1.959964, abs=2e-3)
    assert score(high) == pytest.approx(-1.959964, abs=2e-3)


def test_paired_interval_without_a_discordant_pair_is_what_n_can_resolve():
    z2 = 1.959963984540054**2
    assert metrics.paired_interval(0, 0, 372) == pytest.approx((-z2 / (372 + z2), z2 / (372 + z2)))


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 400))
@settings(deadline=None, max_examples=60)
def test_paired_interval_is_antisymmetric_and_holds_the_estimate(b, c, more):
    n = b + c + more
    low, high = metrics.paired_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert metrics.paired_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-9)


def test_shapes_that_do_not_belong_together_are_refused():
    for wrong in (LABELS[:2], np.zeros((4, 1), int)):
        with pytest.raises(ValueError, match=r"not \[N, K\]"):
            metrics.top1(LOGITS, wrong)
    with pytest.raises(ValueError, match="2 predictions"):
        metrics.confusion(np.array([0, 1]), LABELS, 3)


def crossed_by_hand(differences):
    """The half width from an analysis of variance that is written out in loops."""
    from scipy.stats import norm
    from scipy.stats import t as student

    seeds, n = len(differences), len(differences[0])
    mean = sum(map(sum, differences)) / (seeds * n)
    rows = [sum(row) / n for row in differences]
    columns = [sum(row[s] for row in differences) / seeds for s in range(n)]
    a = sum(n * (row - mean) ** 2 for row in rows) / (seeds - 1)
    b = sum(seeds * (column - mean) ** 2 for column in columns) / (n - 1)
    e = sum((differences[k][s] - rows[k] - columns[s] + mean) ** 2 for k in range(seeds) for s in range(n))
    e /= (seeds - 1) * (n - 1)
    parts = student.ppf(0.975, seeds - 1) ** 2 * a + norm.ppf(0.975) ** 2 * (max(b - e, 0) + seeds / (n - 1))
    return mean, math.sqrt(parts / (seeds * n))


@given(st.integers(2, 5), st.integers(40, 80), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_crossed_interval_is_the_analysis_of_variance(seeds, n, seed):
    drawn = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], (seeds, n), p=[0.04, 0.9, 0.06])
    mean, half = crossed_by_hand(drawn.tolist())
    low, high = metrics.crossed_interval(drawn)
    assert (low, high) == pytest.approx((max(-1, mean - half), min(1, mean + half)))
    assert metrics.crossed_interval(-drawn) == pytest.approx((-high, -low))
    assert metrics.crossed_interval(drawn[::-1, ::-1]) == pytest.approx((low, high))


def test_crossed_interval_knows_one_source_without_the_other():
    z = 1.959963984540054
    # Nothing differs: what half a sample of each kind would have been.
    assert metrics.crossed_interval(np.zeros((3, 50))) == pytest.approx((-z / math.sqrt(50 * 49), z / math.sqrt(2450)))
    # Every seed says the same: the samples alone, as if there were one seed.
    alike = np.tile(np.r_[np.ones(6), -np.ones(2), np.zeros(92)], (4, 1))
    half = z * math.sqrt(alike[0].var(ddof=1) / 100 + 1 / (100 * 99))
    assert metrics.crossed_interval(alike) == pytest.approx((0.04 - half, 0.04 + half))
    # Seeds differ and the samples agree: Student's interval of the seeds' means, and the halves.
    apart = np.repeat([[0.0], [0.1], [0.2]], 1000, axis=1)
    low, high = metrics.crossed_interval(apart)
    student = 4.302652729749464 * 0.1 / math.sqrt(3)
    assert (low + high) / 2 == pytest.approx(0.1)
    assert (high - low) / 2 == pytest.approx(math.hypot(student, z / math.sqrt(1000 * 999)), rel=1e-6)


def test_crossed_interval_holds_a_gain_that_varies_from_seed_to_seed():
    random, held, narrow = np.random.default_rng(0), 0, 0
    for _ in range(200):  # two classifiers that are equally good but for what their seeds do
        levels = random.normal(0, 0.3, (2, 3, 1))
        right = (random.normal(1, 1, 150) + levels + random.normal(0, 0.5, (2, 3, 150))) > 0
        difference = right[0].astype(float) - right[1]
        low, high = metrics.crossed_interval(difference)
        held += low <= 0 <= high
        b, c = int((difference[0] > 0).sum()), int((difference[0] < 0).sum())
        first_low, first_high = metrics.paired_interval(b, c, 150)
        narrow += first_low <= 0 <= first_high
    assert held >= 186  # 95 % would be 190
    assert narrow < 160  # one seed, judged by its images alone


def test_crossed_interval_refuses_one_seed_and_says_nothing_of_one_sample():
    with pytest.raises(ValueError, match="two seeds or more"):
        metrics.crossed_interval(np.zeros((1, 10)))
    assert metrics.crossed_interval(np.zeros((3, 1))) == (-1.0, 1.0)


def test_f1_interval_holds_f1_and_ends_where_wilson_does():
    low, high = metrics.f1_interval(30, 5, 10)
    share_low, share_high = metrics.wilson_interval(30, 45)
    assert low < 2 * 30 / (2 * 30 + 5 + 10) < high
    assert low / (2 - low) == pytest.approx(share_low) and high / (2 - high) == pytest.approx(share_high)
    assert metrics.f1_interval(0, 4, 0)[0] == 0 and metrics.f1_interval(7, 0, 0)[1] == pytest.approx(1)
