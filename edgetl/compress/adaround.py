"""AdaRound: which weights of a layer are rounded up and which down, learned from what the layer shall answer.

A layer with weights W, step s and activation f answers f(W x). Its rounded weights are s (floor(W / s) + h(V)), with
one number V a weight and h(V) = clip(sigmoid(V) (ZETA - GAMMA) + GAMMA, 0, 1), the rectified sigmoid. V is found by
Adam as the minimum of

    E || f(W x) - f(W_rounded x') ||^2  /  the same with the nearest steps   +   WEIGHT * mean(1 - |2 h(V) - 1|^beta)

where x' is x as the quantized layers before make it. The second term drives h to 0 or 1; beta falls from 20 to 2 and
lets it move freely at first. M. Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020,
arXiv:2004.10568, equations 21 to 25. Three things are not as there. The division makes one WEIGHT serve layers of any
size of answers. It grows with the steps, since the few steps that are taken here need it to end at 0 or 1, and from the
start it would keep the layers with few inputs from trying anything. And floor(W / s) gives way to the two steps next to
those of `compress.rounding` where these have left the weight's neighbourhood, so that the search can find them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ZETA, GAMMA = 1.1, -0.1
WEIGHT = (0.1, 10.0)  # of the second term, from the end of the warm part to the last step
BETA = (20.0, 2.0)
LEAN = 0.5  # the search begins between the float weights (0) and the steps that are there already (1)
WARM = 0.2  # share of the steps without the second term
RATE = 0.1  # of Adam
MOMENTS = (0.9, 0.999)
BATCH = 256  # samples a step, at most
LEAST_BATCH = 64
SAMPLES_A_WEIGHT = 8  # of an output channel; a depthwise convolution needs fewer samples

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """A layer to round. G groups of convolutions, O / G outputs and D inputs each."""

    weight: Array  # [G, O / G, D]
    scale: Array  # [G, O / G], step of an output channel
    bias: Array  # [G, O / G]
    floats: Array  # [G, n, D], what it meets in the float graph
    rounded: Array  # [G, n, D], the same in the quantized graph
    low: float  # of the activation behind it, a clip from `low` to `high`; infinite ends where there is none
    high: float
    greatest: int  # step of either sign

    def wanted(self) -> Array:
        """What the float layer answers [G, n, O / G]."""
        return self._clipped(self.floats @ self.weight.transpose(0, 2, 1) + self.bias[:, None])

    def error(self, steps: NDArray[np.floating | np.integer], wanted: Array | None = None) -> float:
        """Mean square of what a layer with these steps [G, O / G, D] answers wrongly."""
        wanted = self.wanted() if wanted is None else wanted
        answer = self.rounded @ (steps * self.scale[..., None]).astype(np.float32).transpose(0, 2, 1)
        return float(np.square(self._clipped(answer + self.bias[:, None]) - wanted, dtype=np.float64).mean())

    def _clipped(self, values: Array) -> Array:
        return np.asarray(np.clip(values, np.float32(self.low), np.float32(self.high)))

    def nearest(self) -> NDArray[np.float32]:
        """Each weight at its nearest step."""
        steps = np.rint(self.weight / self.scale[..., None])
        return np.asarray(np.clip(steps, -self.greatest, self.greatest), np.float32)


def solve(problem: Problem, start: NDArray[np.int8], *, steps: int,
          chance: np.random.Generator) -> NDArray[np.int8]:
    """The rounded weights [G, O / G, D].

    Args:
        problem: the layer and samples of its inputs.
        start: steps that are there already.
        steps: of the search.
        chance: draws the samples that each of them looks at.
    """
    scaled = problem.weight / problem.scale[..., None]
    floor = np.where(np.abs(scaled - start) < 1, np.floor(scaled), start - (scaled < start))
    logits = _inverse(LEAN * (start - floor) + (1 - LEAN) * np.clip(scaled - floor, 0.0, 1.0))
    wanted = problem.wanted()
    # Where the nearest steps are perfect, there is nothing to divide by, and nothing to gain.
    unit = max(problem.error(problem.nearest(), wanted), float(np.finfo(np.float32).tiny))
    first: NDArray[Any] = np.zeros_like(logits)
    second: NDArray[Any] = np.zeros_like(logits)
    samples = batch_of(problem)
    for step in range(steps):
        drawn = chance.integers(problem.floats.shape[1], size=samples)
        gradient = _gradient(problem, floor, logits, drawn, wanted, unit, step / steps)
        first = MOMENTS[0] * first + (1 - MOMENTS[0]) * gradient
        second = MOMENTS[1] * second + (1 - MOMENTS[1]) * np.square(gradient)
        unbiased = [1 - decay ** (step + 1) for decay in MOMENTS]
        change = RATE * (first / unbiased[0]) / (np.sqrt(second / unbiased[1]) + 1e-12)
        logits = np.asarray(logits - change, np.float32)
    up = relaxed(logits) >= 0.5
    found: NDArray[np.int8] = np.clip(floor + up, -problem.greatest, problem.greatest).astype(np.int8)
    return found


def batch_of(problem: Problem) -> int:
    """Samples that a step of the search looks at."""
    _, samples, inputs = problem.floats.shape
    return int(min(samples, BATCH, max(LEAST_BATCH, SAMPLES_A_WEIGHT * inputs)))


def relaxed(logits: Array) -> Array:
    """h(V), from 0 (down) to 1 (up)."""
    return np.asarray(np.clip(_sigmoid(logits) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0))


def _inverse(share: Array) -> Array:
    """V with h(V) = share, so that the search begins at the float weights."""
    inner = (np.clip(share, 1e-4, 1 - 1e-4) - GAMMA) / (ZETA - GAMMA)
    return np.asarray(np.log(inner / (1 - inner)), np.float32)


def _sigmoid(values: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))


def _gradient(problem: Problem, floor: Array, logits: Array, drawn: NDArray[np.int64], wanted: Array, unit: float,
              progress: float) -> Array:
    """Of the whole loss with respect to V; times the number of weights, which changes nothing for Adam."""
    share = relaxed(logits)
    level = floor + share
    inside = np.abs(level) < problem.greatest
    weights = np.clip(level, -problem.greatest, problem.greatest) * problem.scale[..., None]
    inputs = problem.rounded[:, drawn]
    answer = inputs @ weights.transpose(0, 2, 1) + problem.bias[:, None]
    moves = (answer > problem.low) & (answer < problem.high)
    wrong = (problem._clipped(answer) - wanted[:, drawn]) * moves
    by_weight = 2 * np.matmul(wrong.transpose(0, 2, 1), inputs) / (wrong.size * unit)
    slope = by_weight * problem.scale[..., None] * inside * floor.size
    if progress >= WARM:
        slope = slope + _pull(share, (progress - WARM) / (1 - WARM))
    soft = _sigmoid(logits)
    free = (share > 0) & (share < 1)
    return np.asarray(slope * free * soft * (1 - soft) * (ZETA - GAMMA), np.float32)


def _pull(share: Array, progress: float) -> Array:
    """Of WEIGHT (1 - |2 h - 1|^beta) with respect to h; beta falls along a cosine."""
    beta = BETA[1] + 0.5 * (BETA[0] - BETA[1]) * (1 + np.cos(np.pi * progress))
    off = 2 * share - 1
    weight = WEIGHT[0] * (WEIGHT[1] / WEIGHT[0]) ** progress
    return np.asarray(-weight * beta * np.abs(off) ** (beta - 1) * 2 * np.sign(off))
