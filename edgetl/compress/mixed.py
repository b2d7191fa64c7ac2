"""Which layers lose most when they are rounded: the order in which a graph goes back to float.

A layer's sensitivity is the signal-to-quantization-noise ratio of the logits when it alone is rounded, as in
H. Wu et al., Integer Quantization for Deep Learning Inference, 2020, arXiv:2004.09602, section 5.1 (partial
quantization), with the noise in place of the accuracy: a few images suffice for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress import quantize
from edgetl.compress.quantize import Source

Answers = Callable[[bytes], NDArray[Any]]  # graph -> logits [n, K]


@dataclass(frozen=True)
class Sensitivity:
    """What rounding one layer does to the logits."""

    node: str
    sqnr_db: float  # the less, the worse; infinite where nothing changes


def ranked(source: Source, scheme: Mapping[str, Any], method: str, answers: Answers, *,
           known: Mapping[str, tuple[float, int]] | None = None) -> list[Sensitivity]:
    """The layers with weights, the most sensitive first.

    Args:
        source: see `quantize.study`.
        scheme, method, known: as `quantize.write`.
        answers: the logits of a graph on some images.
    """
    layers = quantize.layers_of(source, scheme)
    expected = answers(source.graph)
    found = []
    for node in layers:
        others = [name for name in quantize.nodes_of(source) if name != node]
        graph = quantize.write(source, scheme, method=method, known=known, floats=others).graph
        found.append(Sensitivity(node, sqnr_db(expected, answers(graph))))
    return sorted(found, key=lambda one: one.sqnr_db)


def sqnr_db(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """10 log10 of the power of the expected values over that of the difference, in dB."""
    noise = float(np.square(found - expected, dtype=np.float64).sum())
    signal = float(np.square(expected, dtype=np.float64).sum())
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
