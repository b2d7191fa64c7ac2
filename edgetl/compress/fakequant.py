"""Rounding that can be trained: values are rounded as an integer engine rounds them, gradients pass, steps are learned.

S. K. Esser, J. L. McKinstry, D. Bablani, R. Appuswamy, D. S. Modha, Learned Step Size Quantization, ICLR 2020,
arXiv:1902.08153. A zero point z changes nothing in it: clip(round(v / s) + z, 0, 255) - z is the same as
clip(round(v / s), -z, 255 - z), so that Q_N = z and Q_P = 255 - z.
"""

from __future__ import annotations

import math
from typing import Any

import torch


class _Rounded(torch.autograd.Function):
    """See `rounded`."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, step: torch.Tensor, low: int, high: int, gain: float) -> torch.Tensor:
        scaled = values / step
        kept = scaled.round().clamp_(low, high)  # half to even, as QuantizeLinear does
        ctx.save_for_backward(scaled, kept)
        ctx.low, ctx.high, ctx.gain, ctx.step_shape = low, high, gain, step.shape
        return kept * step

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        (scaled, kept), (grad,) = ctx.saved_tensors, grads
        inside = (scaled > ctx.low) & (scaled < ctx.high)
        # kept is Q_P or -Q_N beyond the ends, and round(v / s) between them: both cases of equation 3.
        moved = grad * torch.where(inside, kept - scaled, kept)
        return grad * inside, moved.sum_to_size(ctx.step_shape) * ctx.gain, None, None, None


def rounded(values: torch.Tensor, step: torch.Tensor, low: int, high: int, *, gain: float = 1.0) -> torch.Tensor:
    """The values on the nearest of the steps `low * step` to `high * step`, those beyond on the ends.

    The gradient of the values is 1 between the ends and 0 beyond (equation 5). That of the step is round(v / s) - v / s
    between them, and `low` or `high` beyond (equation 3), times `gain`.

    Args:
        values: float, of any shape.
        step: above 0; broadcasts against the values.
        low, high: numbers of the outermost steps.
        gain: what the step's gradient is multiplied by, see `gain_of`.
    """
    found: torch.Tensor = _Rounded.apply(values, step, low, high, gain)
    return found


def gain_of(count: int, low: int, high: int) -> float:
    """1 / sqrt(N Q_P): so a step moves, relative to its size, about as much as the values it rounds (section 2.2).

    Args:
        count: weights, or activations of an image, that share the step.
        low, high: numbers of the outermost steps.
    """
    return 1 / math.sqrt(max(count, 1) * max(-low, high))
