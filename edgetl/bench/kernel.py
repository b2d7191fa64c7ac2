"""A small fixed piece of work that says how fast a machine is, measured between the cases of every round.

Two machines' reports can be set against each other through it, roughly: a network is other work than this. Hence three
parts that stress different things; how far they disagree about two machines says how little a single factor can.

- arithmetic: float32 products of 64 x 64 matrices that stay in the cache. So small that OpenBLAS keeps to one thread
  whatever the environment says (it divides products of more than 2**18 multiplications).
- memory: float32 numbers read from and written to places that this block has not touched yet.
- scalar: whole numbers in the interpreter, one dependent on the other: clock and branches, no vectors.

It depends on numpy, its BLAS and Python, on nothing of edgetl and on no bundle; what it does must never change without
`VERSION`, by which two reports know that they mean the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.timing import timed

VERSION = 1
PASSES = 7
DROPPED = 2  # passes at the start: the process slept, so its core may be slow and its caches are another's
_SIDE, _PRODUCTS = 64, 64
_WINDOW = 2**19  # float32 numbers: 2 MiB read and 2 MiB written a pass
_STEPS = 10_000


@dataclass(frozen=True)
class Block:
    """Seconds of one pass over each part, medians over the passes that were kept."""

    arithmetic_s: float
    memory_s: float
    scalar_s: float


PARTS = tuple(one.name for one in fields(Block))


@dataclass(frozen=True)
class Calibration:
    """What the kernel took in the process that led a benchmark, one block a round."""

    kernel: int  # VERSION of the kernel
    blocks: tuple[Block, ...]


def block() -> Block:
    """One measurement of the kernel, 5 to 20 ms on machines of today; the parts take turns in every pass."""
    work = _parts()
    seconds = np.array([[timed(functools.partial(part, turn))[1] for part in work] for turn in range(PASSES)])
    return Block(*(float(one) for one in np.median(seconds[DROPPED:], axis=0)))


@functools.cache
def _parts() -> tuple[Callable[[int], Any], ...]:
    """The three parts over memory that is allocated once and was written to, so that no block pays for its pages."""
    generator = np.random.default_rng(0)
    left, right = generator.standard_normal((2, _PRODUCTS, _SIDE, _SIDE), dtype=np.float32)
    product = np.empty(left.shape, dtype=np.float32)
    source = generator.random((PASSES, _WINDOW), dtype=np.float32)
    target = np.ones(source.shape, dtype=np.float32)

    def arithmetic(_: int) -> NDArray[np.float32]:
        np.matmul(left, right, out=product)
        return product

    def memory(turn: int) -> NDArray[np.float32]:
        place: NDArray[np.float32] = target[turn]
        np.multiply(source[turn], np.float32(0.5), out=place)
        return place

    return arithmetic, memory, lambda _: scalar(_STEPS)


def scalar(steps: int) -> int:
    """State of a linear congruential generator after so many steps from 1.

    D. E. Knuth, The Art of Computer Programming, vol. 2, 3rd ed., section 3.3.4, line 26 (MMIX).
    """
    state = 1
    for _ in range(steps):
        state = (6364136223846793005 * state + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
    return state
