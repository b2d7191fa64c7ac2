"""Losses against closed forms, numpy and finite differences; the grammar of --loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import losses
from edgetl.errors import EdgetlError, UnknownName
from edgetl.losses.kd import kd_loss
from edgetl.losses.labels import labels_loss


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def test_labels_of_equal_logits_is_log_of_the_classes() -> None:
    targets = torch.eye(5)[:3]
    assert labels_loss(torch.zeros(3, 5), targets).item() == pytest.approx(math.log(5))


def test_labels_equals_numpy_for_soft_targets() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(7, 4)), softmax(rng.normal(size=(7, 4)))
    expected = -(targets * np.log(softmax(logits))).sum(axis=1).mean()
    assert labels_loss(torch.tensor(logits), torch.tensor(targets)).item() == pytest.approx(expected, rel=1e-12)


def test_kd_is_zero_for_equal_answers_and_for_shifted_ones() -> None:
    logits = torch.randn(6, 3, dtype=torch.float64)
    assert kd_loss(logits, logits, 4.0).item() == pytest.approx(0, abs=1e-12)
    assert kd_loss(logits + 7.0, logits, 4.0).item() == pytest.approx(0, abs=1e-12)  # softmax ignores a constant


def test_kd_by_hand() -> None:
    """Teacher (1/2, 1/2), student (3/4, 1/4) at T = 1: KL = 1/2 ln(2/3) + 1/2 ln 2."""
    student = torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert kd_loss(student, torch.zeros(1, 2), 1.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_equals_numpy(temperature: float) -> None:
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(9, 5)), rng.normal(size=(9, 5))
    soft_student, soft_teacher = softmax(student / temperature), softmax(teacher / temperature)
    expected = temperature**2 * (soft_teacher * np.log(soft_teacher / soft_student)).sum(axis=1).mean()
    assert kd_loss(torch.tensor(student), torch.tensor(teacher), temperature).item() == pytest.approx(
        expected, rel=1e-10
    )


def test_kd_gradient_keeps_its_size_with_temperature() -> None:
    """For T large the gradient tends to (z_s - z_t) / (N K) after centring (Hinton et al., section 2.1)."""
    torch.manual_seed(0)
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 6, dtype=torch.float64)
    kd_loss(student, teacher, 1e4).backward()
    centred = (student - student.mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)).detach()
    torch.testing.assert_close(student.grad, centred / 6 / 4, rtol=1e-3, atol=1e-6)


def test_gradients_by_finite_differences() -> None:
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher, targets = torch.randn(3, 4, dtype=torch.float64), torch.softmax(torch.randn(3, 4, dtype=torch.float64), 1)
    assert torch.autograd.gradcheck(lambda z: kd_loss(z, teacher, 3.0), (student,))
    assert torch.autograd.gradcheck(lambda z: labels_loss(z, targets), (student,))


def test_kd_teaches_no_teacher() -> None:
    teacher = torch.randn(3, 4, requires_grad=True)
    assert not kd_loss(torch.randn(3, 4), teacher, 1.0).requires_grad


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 2**31))
def test_losses_do_not_depend_on_the_order_of_classes(batch: int, classes: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, classes, generator=source) for _ in range(2))
    order = torch.randperm(classes, generator=source)
    torch.testing.assert_close(kd_loss(student, teacher, 2.0), kd_loss(student[:, order], teacher[:, order], 2.0))


def test_the_grammar_of_loss() -> None:
    first, second = losses.parse(["labels:0.1,kd:0.9;temperature=2"])
    assert (first.name, first.weight, second.name, second.weight) == ("labels", 0.1, "kd", 0.9)
    assert second.loss.temperature == 2.0
    assert [term.weight for term in losses.parse(["labels", "kd:0.5"])] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("labels:x", "found 'x', expected a number"),
        ("labels:-1", "at least 0"),
        ("labels:nan", "finite"),
        ("kd:1;temperatur=2", "no option|no loss in it has an option 'temperatur'"),
        ("kd:1;temperature", "expected key=value"),
        ("kd:1;temperature=0", "above 0"),
        ("kd,kd", "twice"),
    ],
)
def test_a_wrong_loss_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(EdgetlError, match=says):
        losses.parse([text])


def test_an_unknown_loss_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'labels'"):
        losses.parse(["label"])
