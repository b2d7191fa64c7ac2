"""Which groups of layers go back to float: those that lose most for what they gain.

A group's sensitivity is the signal-to-quantization-noise ratio of the logits when it alone is rounded, as in H. Wu et
al., Integer Quantization for Deep Learning Inference, 2020, arXiv:2004.09602, section 5.1 (partial quantization), with
the noise in place of the accuracy: a few images suffice for it. Its gain is how much longer the INT8 graph takes with
this group in float, measured, with the Q/DQ that stand at its borders then.

Noise adds up where errors are independent, and so do times where groups are apart. To leave the least noise for the
time that it costs is then a knapsack problem, whose best solutions, but for one group, take the groups in the order of
noise for time (G. Dantzig, Discrete-Variable Extremum Problems, Operations Research 5, 1957).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress import quantize
from edgetl.compress.groups import groups_of
from edgetl.compress.quantize import Source

Answers = Callable[[bytes], NDArray[Any]]  # graph -> logits [n, K]


@dataclass(frozen=True)
class Sensitivity:
    """What rounding one group does to the logits."""

    node: str  # its layer
    sqnr_db: float  # the less, the worse; infinite where nothing changes

    @property
    def noise(self) -> float:
        """Power of the error as a share of that of the logits."""
        return 10 ** (-self.sqnr_db / 10)


@dataclass(frozen=True)
class Gain:
    """What a group in INT8 saves."""

    seconds: float  # of a call; less than zero where the group is faster in float
    noise_s: float  # standard error of that

    @property
    def is_loss(self) -> bool:
        """Whether the group is faster in float, beyond the noise."""
        return self.seconds < -2 * self.noise_s


def ranked(source: Source, scheme: Mapping[str, Any], method: str, answers: Answers, *,
           known: Mapping[str, tuple[float, int]] | None = None,
           steps: Mapping[str, NDArray[np.int8]] | None = None) -> list[Sensitivity]:
    """The groups, the most sensitive first.

    Args:
        source: see `quantize.study`.
        scheme, method, known, steps: as `quantize.write`.
        answers: the logits of a graph on some images.
    """
    groups = groups_of(source, scheme)
    expected = answers(source.graph)
    every = quantize.nodes_of(source)
    found = []
    for layer, own in groups.items():
        others = [name for name in every if name not in own]
        graph = quantize.write(source, scheme, method=method, known=known, floats=others, steps=steps).graph
        found.append(Sensitivity(layer, sqnr_db(expected, answers(graph))))
    return sorted(found, key=lambda one: one.sqnr_db)


def by_worth(ranking: Sequence[Sensitivity], gains: Mapping[str, Gain] | None) -> list[str]:
    """The layers in the order in which their groups go back to float.

    First come those that are faster there, the most first, then the others by noise for time. A time less than what
    the measurement can tell from zero counts as that much, or the cheapest would come first by chance. Without gains,
    every group costs the same.
    """
    if gains is None:
        return [one.node for one in ranking]
    least = max(float(np.median([one.noise_s for one in gains.values()])), 1e-9)
    free = sorted((one.node for one in ranking if gains[one.node].is_loss), key=lambda name: gains[name].seconds)
    rest = sorted((one for one in ranking if not gains[one.node].is_loss),
                  key=lambda one: -one.noise / max(gains[one.node].seconds, least))
    return [*free, *(one.node for one in rest)]


def sqnr_db(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """10 log10 of the power of the expected values over that of the difference, in dB."""
    noise = float(np.square(found - expected, dtype=np.float64).sum())
    signal = float(np.square(expected, dtype=np.float64).sum())
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
