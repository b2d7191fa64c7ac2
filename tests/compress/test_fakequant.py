"""Rounding that can be trained: what comes out, and the gradients of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.compress.fakequant import gain_of, rounded


def paper(values: torch.Tensor, step: float, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations 3 and 5 of Esser et al., value by value: the gradients of the step, and of the value."""
    of_step, of_value = [], []
    for value in values.reshape(-1).tolist():
        ratio = value / step
        if ratio <= low:
            of_step.append(float(low))
        elif ratio >= high:
            of_step.append(float(high))
        else:
            of_step.append(-ratio + float(np.rint(ratio)))
        of_value.append(float(low < ratio < high))
    shape = values.shape
    return (torch.tensor(of_step, dtype=values.dtype).reshape(shape),
            torch.tensor(of_value, dtype=values.dtype).reshape(shape))


@settings(max_examples=60)
@given(st.lists(st.floats(-40, 40), min_size=1, max_size=12), st.floats(0.05, 3), st.integers(-9, 0),
       st.integers(1, 9))
def test_the_gradients_are_those_of_the_paper(numbers, size, low, high):
    values = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    step = torch.tensor(size, dtype=torch.float64, requires_grad=True)
    weights = torch.linspace(-1, 2, len(numbers), dtype=torch.float64)
    (rounded(values, step, low, high, gain=0.25) * weights).sum().backward()
    of_step, of_value = paper(values.detach(), size, low, high)
    assert torch.allclose(values.grad, weights * of_value)
    assert step.grad.item() == pytest.approx(0.25 * float((weights * of_step).sum()), abs=1e-9)


def test_they_are_those_of_a_rounding_whose_error_is_taken_as_constant():
    """The straight-through estimator written with automatic differentiation, in which nothing is derived by hand."""
    chance = np.random.default_rng(0)
    values = torch.tensor(chance.normal(0, 6, (5, 3, 4)), requires_grad=True)
    steps = torch.tensor(chance.uniform(0.2, 2, (1, 3, 1)), requires_grad=True)
    scaled = values / steps
    inside = scaled.clamp(-4, 7)
    ours = rounded(values, steps, -4, 7)
    other = (inside + (inside.round() - inside).detach()) * steps
    assert torch.allclose(ours, other)
    wanted = torch.autograd.grad(other.square().sum(), (values, steps))
    found = torch.autograd.grad(ours.square().sum(), (values, steps))
    assert all(torch.allclose(one, two) for one, two in zip(found, wanted, strict=True))
    assert found[1].shape == steps.shape


def test_beyond_the_ends_the_gradient_of_the_step_is_that_of_the_function_itself():
    step = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    beyond = torch.tensor([-9.0, 12.0, 80.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda one: rounded(beyond, one, -3, 5), (step,))


def test_halves_go_to_the_even_step_as_in_onnx():
    values = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 9.0, -9.0])
    assert rounded(values, torch.tensor(1.0), -3, 4).tolist() == [-2, -2, 0, 0, 2, 2, 4, -3]


def test_the_gain_is_that_of_section_2_2():
    assert gain_of(100, -128, 127) == pytest.approx(1 / math.sqrt(100 * 128))
    assert gain_of(9, 0, 255) == pytest.approx(1 / math.sqrt(9 * 255)) and gain_of(0, 0, 1) == 1.0
