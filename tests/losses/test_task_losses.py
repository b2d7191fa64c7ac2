"""Losses of labels and values with a teacher: closed forms, numpy beside them, gradients; heads each by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import losses
from edgetl.errors import EdgetlError
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Asked, Head
from edgetl.losses import Answer, Given
from edgetl.losses.binary_kd import binary_kd_loss
from edgetl.losses.imitation import imitation_loss
from edgetl.losses.kd import kd_loss
from edgetl.train import mixing, task_losses
from edgetl.train.aim import PerHead

HEADS = (Head("a", CLASSIFY, ("x", "y")), Head("b", CLASSIFY, ("p", "q", "r")))
LABELS = (Head("l", MULTILABEL, ("x", "y")),)
VALUES = (Head("v", REGRESS, ("mm",)),)
NAN = math.nan


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_label_is_a_question_of_two_classes() -> None:
    ours, theirs = drawn(6, 1), drawn(6, 1, seed=1)
    pairs = [torch.cat([one, torch.zeros_like(one)], 1) for one in (ours, theirs)]
    for temperature in (1.0, 4.0):
        assert binary_kd_loss(ours, theirs, temperature).item() == pytest.approx(kd_loss(*pairs, temperature).item())


def test_binary_kd_of_a_hand_computed_case() -> None:
    # The teacher says 3 : 1, the student does not know: 3/4 log(3/2) + 1/4 log(1/2); the other label is agreed on.
    logits = torch.tensor([[0.0, 2.0]]), torch.tensor([[math.log(3.0), 2.0]])
    assert binary_kd_loss(*logits, 1.0).item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2)
    assert binary_kd_loss(logits[1], logits[1], 3.0).item() == 0
    sure = binary_kd_loss(torch.tensor([[-200.0]]), torch.tensor([[200.0]]), 1.0)
    assert sure.item() == pytest.approx(200) and math.isfinite(sure.item())


def test_a_mixture_of_labels_and_teacher_is_a_soft_target() -> None:
    """At T = 1 the gradient of w bce + (1 - w) binary-kd is that of bce with the mixture as its target."""
    logits, theirs, targets = drawn(5, 3).requires_grad_(), drawn(5, 3, seed=1), drawn(5, 3, seed=2).sign().clamp_min(0)
    bce = losses.parse(("bce",))[0].loss
    mixture = 0.1 * targets + 0.9 * theirs.sigmoid()
    both = 0.1 * bce(Answer(logits), None, Given(targets)) + 0.9 * binary_kd_loss(logits, theirs, 1.0)
    (first,) = torch.autograd.grad(both, logits)
    (second,) = torch.autograd.grad(bce(Answer(logits), None, Given(mixture)), logits)
    assert torch.allclose(first, second)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 6), st.floats(0.5, 8), st.integers(0, 99))
def test_both_are_what_numpy_says(images: int, outputs: int, option: float, seed: int) -> None:
    ours, theirs = 3 * drawn(images, outputs, seed=seed), 3 * drawn(images, outputs, seed=seed + 100)
    s, t = (1 / (1 + np.exp(-one.numpy() / option)) for one in (ours, theirs))
    divergence = t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s))
    assert binary_kd_loss(ours, theirs, option).item() == pytest.approx(option**2 * divergence.mean(), rel=1e-6)
    error = np.abs(ours.numpy() - theirs.numpy())
    near = np.where(error < option, error**2 / (2 * option), error - option / 2)
    assert imitation_loss(ours, theirs, option).item() == pytest.approx(near.mean(), rel=1e-9)


def test_gradients_are_those_of_the_formula_and_none_reach_the_teacher() -> None:
    ours, theirs = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    for loss in (lambda one: binary_kd_loss(one, theirs, 2.0), lambda one: imitation_loss(one, theirs, 0.7)):
        assert torch.autograd.gradcheck(loss, (ours,))
        assert not torch.autograd.grad(loss(ours), theirs, allow_unused=True)[0]
    for text in ("binary-kd;temperature=0", "imitation;beta=0"):
        with pytest.raises(EdgetlError, match="expected a number above 0"):
            losses.parse((text,))


@pytest.mark.parametrize("text", ["kd;temperature=2", "dist", "logit-standardization", "imitation"])
def test_the_teacher_is_matched_head_by_head_also_where_no_label_is_known(text: str) -> None:
    ours, theirs = drawn(4, 5).float(), drawn(4, 5, seed=1).float()
    (term,) = task_losses.of_task((text,), HEADS)
    loss = losses.parse((text,))[0].loss
    expected = (loss(Answer(ours[:, :2]), Answer(theirs[:, :2]), Given(ours[:, :2]))
                + loss(Answer(ours[:, 2:]), Answer(theirs[:, 2:]), Given(ours[:, 2:]))) / 2  # fmt: skip
    for targets in (torch.full((4, 5), NAN), torch.zeros(4, 5)):
        found = term.loss(Answer(ours), Answer(theirs), Given(targets, torch.arange(4)))
        assert found.item() == pytest.approx(expected.item())
    assert term.loss.compares_images == (text == "dist") and not term.loss.needs_labels and term.loss.needs_teacher


def test_a_loss_on_teacher_and_class_counts_the_known_images_of_each_head() -> None:
    ours, theirs, targets = drawn(3, 5).float(), drawn(3, 5, seed=1).float(), torch.zeros(3, 5)
    targets[:, 0], targets[:, 4] = 1, 1
    targets[2, 2:] = NAN
    (term,) = task_losses.of_task(("dkd",), HEADS)
    loss = losses.parse(("dkd",))[0].loss
    first = loss(Answer(ours[:, :2]), Answer(theirs[:, :2]), Given(targets[:, :2]))
    second = loss(Answer(ours[:2, 2:]), Answer(theirs[:2, 2:]), Given(targets[:2, 2:])) * 2 / 3
    assert isinstance(term.loss, PerHead) and term.loss.needs_labels
    assert term.loss(Answer(ours), Answer(theirs), Given(targets)).item() == pytest.approx((first + second).item() / 2)


def test_names_mean_the_tasks_own_and_features_serve_all() -> None:
    found = {term.name: term.loss for term in task_losses.of_task(("labels,kd:2;temperature=3", "sp"), LABELS)}
    assert [type(one).__module__.rpartition(".")[2] for one in found.values()] == ["bce", "binary_kd", "sp"]
    assert found["kd"].temperature == 3
    assert isinstance(task_losses.of_task(("sp",), HEADS)[0].loss, type(found["sp"]))  # not taken apart by heads
    for asked, fits, not_for in (
        (Asked(REGRESS), "imitation,fitnet,mse", "kd"),
        (Asked(MULTILABEL), "kd,at,bce", "dkd"),
        (Asked(CLASSIFY, ("a",)), "dkd,dist,focal,imitation,rkd", "binary-kd"),
    ):
        task_losses.require((fits,), asked, taught=True)
        with pytest.raises(EdgetlError, match=f"'{not_for}', which is no loss for --task {asked.task}") as problem:
            task_losses.require((not_for,), asked, taught=True)
        assert "labels" in str(problem.value.hint) and "crd" not in str(problem.value.hint)
    with pytest.raises(EdgetlError) as problem:
        task_losses.require(("focal",), Asked(REGRESS), taught=False)
    assert str(problem.value.hint) == "Give one or several of labels, mse, smooth-l1."


def test_confidence_is_told_of_each_head_and_of_each_label() -> None:
    said = torch.stack([drawn(4, 5), drawn(4, 5, seed=1)])
    targets = torch.zeros(4, 5, dtype=torch.float64)
    targets[:, 1], targets[:, 2] = 1, 1
    targets[1, 2:] = NAN
    targets[3] = 0  # of an image without a label
    found = mixing.confidences_of(HEADS, said, targets, 3)
    assert torch.allclose(found.sum(0), torch.ones(4, 5, dtype=torch.float64))
    assert torch.allclose(found[:, 0, :2], mixing.confidences(said[:, :1, :2], targets[:1, :2]).expand(2, 2))
    unknown = mixing.confidences(said[:, 1:2, 2:], torch.zeros(1, 3))
    assert torch.allclose(found[:, 1, 2:], unknown.expand(2, 3))
    # The first teacher says yes where the answer is yes, the second does not know: the surer one counts for more.
    yes = torch.tensor([[[5.0, 0.0]], [[0.0, 5.0]]])
    shares = mixing.confidences_of(LABELS, yes, torch.tensor([[1.0, NAN]]), 1)
    assert shares[0, 0, 0] > 0.6 and shares[1, 0, 1] > 0.6 and torch.allclose(shares.sum(0), torch.ones(1, 2))
    wrong = mixing.confidences_of(LABELS, yes, torch.tensor([[0.0, 0.0]]), 1)
    assert wrong[0, 0, 0] < 0.4
    assert torch.allclose(mixing.confidences_of(LABELS, yes, torch.zeros(1, 2), 0)[0, 0, :1], shares[1, 0, 1:])
