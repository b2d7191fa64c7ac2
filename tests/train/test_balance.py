"""Balancing of classes and the focal loss against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.datasets import Item
from edgetl.errors import EdgetlError
from edgetl.losses import Answer, Given, parse
from edgetl.losses.focal import focal_loss
from edgetl.train import balance
from edgetl.train.probe import logistic_regression

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 4.0, 0.0]])
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.1, 0.7, 0.2]])
COUNTS = np.array([60, 30, 10])


def loss_of(how: str, texts: tuple[str, ...] = ("labels",)) -> float:
    (term,) = balance.balanced(parse(texts), how, COUNTS)
    return float(term.loss(Answer(LOGITS), None, Given(TARGETS)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(0, 9))
def test_the_sampler_shows_classes_and_the_images_of_each_equally_often(labels: list[int], seed: int) -> None:
    known = np.array(labels)
    rows = balance.balanced_rows(known, np.random.default_rng(seed))
    assert len(rows) == len(labels)
    shown = np.bincount(known[rows], minlength=5)[np.unique(known)]
    assert shown.max() - shown.min() <= 1
    for one in np.unique(known):
        times = np.bincount(rows[known[rows] == one], minlength=len(labels))[known == one]
        assert times.max() - times.min() <= 1


def test_the_sampler_draws_the_same_of_the_same_seed_alone() -> None:
    labels = np.repeat([0, 1, 2], [50, 20, 3])
    one, two, other = (balance.balanced_rows(labels, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_weights_are_those_of_inverse_frequency_and_one_in_the_mean_over_images() -> None:
    weights = balance.class_weights(COUNTS)
    assert weights.tolist() == pytest.approx([100 / 180, 100 / 90, 100 / 30])
    assert float((weights * torch.from_numpy(COUNTS)).sum()) / 100 == pytest.approx(1)


def test_a_class_without_images_gives_finite_weights_and_priors() -> None:
    counts = np.array([5, 0, 15])
    weights = balance.class_weights(counts)
    assert weights[[0, 2]].tolist() == pytest.approx([20 / 10, 20 / 30])
    assert torch.isfinite(weights).all() and torch.isfinite(balance.log_prior(counts)).all()


def test_loss_weighs_each_image_by_its_class() -> None:
    each = -(TARGETS * F.log_softmax(LOGITS, 1)).sum(1)
    weight = TARGETS @ balance.class_weights(COUNTS)
    assert loss_of("loss") == pytest.approx(float((weight * each).mean()))


def test_loss_weighs_one_hot_labels_as_torch_does_but_for_its_norm() -> None:
    labels, weights = torch.tensor([0, 2, 1]), balance.class_weights(COUNTS)
    (term,) = balance.balanced(parse(["labels"]), "loss", COUNTS)
    found = term.loss(Answer(LOGITS), None, Given(F.one_hot(labels, 3).float()))
    theirs = F.cross_entropy(LOGITS, labels, weight=weights, reduction="sum") / 3
    assert float(found) == pytest.approx(float(theirs))


def test_logit_adjustment_adds_the_prior_and_its_best_answer_is_that_of_equal_classes() -> None:
    prior = torch.from_numpy(COUNTS / 100).float().log()
    assert loss_of("logit-adjust") == pytest.approx(float(F.cross_entropy(LOGITS + prior, TARGETS)))
    # Images that look alike, with classes as common as the prior: the best logits are equal.
    logits = torch.zeros(1, 3, requires_grad=True)
    (term,) = balance.balanced(parse(["labels"]), "logit-adjust", COUNTS)
    term.loss(Answer(logits), None, Given(torch.from_numpy(COUNTS / 100).float()[None])).backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-7


def test_a_probe_of_weighted_classes_is_that_of_repeated_images() -> None:
    features, labels = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0] * 9 + [1] * 3)
    given = balance.of_probe("sampler", np.array([9, 3]))
    found = logistic_regression(features, labels, 2, 0.1, **given)
    rows = torch.tensor([*range(9), *(3 * [9, 10, 11])])
    repeated = logistic_regression(features[rows], labels[rows], 2, 0.1)
    for one, two in zip(found, repeated, strict=True):
        assert torch.allclose(one, two, atol=1e-3)


def test_a_probe_with_a_prior_has_learned_it_apart_from_its_bias() -> None:
    labels = torch.tensor([0] * 9 + [1] * 3)
    given = balance.of_probe("logit-adjust", np.array([9, 3]))
    weight, bias = logistic_regression(torch.zeros(12, 2), labels, 2, 0.1, **given)
    assert float((bias[0] - bias[1]).abs()) < 1e-4 and float(weight.abs().max()) < 1e-6
    _, plain = logistic_regression(torch.zeros(12, 2), labels, 2, 0.1)
    assert float(plain[0] - plain[1]) == pytest.approx(float(np.log(3)), abs=1e-3)
    assert balance.of_probe("none", np.array([9, 3])) == {}


@pytest.mark.parametrize("how", ["none", "sampler"])
def test_what_changes_no_loss_leaves_the_losses_alone(how: str) -> None:
    terms = parse(["labels"])
    assert balance.balanced(terms, how, COUNTS) == terms


def test_only_the_sampler_changes_the_order_of_an_epoch() -> None:
    items = [Item(key=str(place), label=label) for place, label in enumerate([0, 0, 0, 1])]
    assert balance.rows_of("loss", items) is None
    rows = balance.rows_of("sampler", items)
    assert rows is not None and sorted(rows(np.random.default_rng(0)))[-2:] == [3, 3]


def test_focal_is_its_formula_and_cross_entropy_where_gamma_is_zero() -> None:
    p = LOGITS.softmax(1)
    expected = -(TARGETS * (1 - p) ** 2 * p.log()).sum(1).mean()
    assert float(focal_loss(LOGITS, TARGETS, 2.0)) == pytest.approx(float(expected), rel=1e-6)
    assert float(focal_loss(LOGITS, TARGETS, 0.0)) == pytest.approx(float(F.cross_entropy(LOGITS, TARGETS)), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_finite_gradients_where_the_network_is_sure(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), gamma).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_focal_combines_with_weights_and_priors() -> None:
    weight = TARGETS @ balance.class_weights(COUNTS)
    p = LOGITS.softmax(1)
    expected = (weight * -(TARGETS * (1 - p) ** 3 * p.log()).sum(1)).mean()
    assert loss_of("loss", ("focal;gamma=3",)) == pytest.approx(float(expected), rel=1e-6)
    prior = torch.from_numpy(COUNTS / 100).float().log()
    assert loss_of("logit-adjust", ("focal;gamma=3",)) == pytest.approx(
        float(focal_loss(LOGITS + prior, TARGETS, 3.0)), rel=1e-6
    )


def test_a_negative_gamma_is_refused() -> None:
    with pytest.raises(EdgetlError, match="expected a finite number of at least 0"):
        parse(["focal;gamma=-1"])
