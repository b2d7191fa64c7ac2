"""What calibration images show of a float graph: histograms of its activations and moments of its layers' inputs.

One pass over the images, a batch at a time, serves every calibration method and both kinds of rounding; memory does not
grow with the number of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress import rounding
from edgetl.compress.calibrate import Reader
from edgetl.compress.histogram import Histogram
from edgetl.compress.ranges import Range, choose
from edgetl.compress.surgery import cut
from edgetl.errors import EdgetlError
from edgetl.runtime import telemetry


@dataclass(frozen=True)
class Observed:
    """What was seen."""

    histograms: Mapping[str, Histogram]  # by activation
    moments: Mapping[str, NDArray[np.float64]]  # by weight, see `rounding.moment_of`
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by activation, in the last call
    images: int = 0  # of the last call
    means: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # by weight, E[x] [G, D] of what it meets
    _chosen: dict[tuple[str, bool], Mapping[str, Range]] = field(default_factory=dict, repr=False, compare=False)

    def ranges(self, method: str, *, symmetric: bool = False) -> Mapping[str, Range]:
        """The range of each activation by a method, see `compress.ranges`; chosen once, for a ladder asks often.

        Raises:
            RecipeError: no such method.
        """
        if (method, symmetric) not in self._chosen:
            self._chosen[method, symmetric] = {name: choose(one, method, symmetric=symmetric)
                                               for name, one in self.histograms.items()}
        return self._chosen[method, symmetric]


def observe(model: Any, reader: Reader, activations: Sequence[str]) -> Observed:
    """Runs a float graph on all calibration images.

    Args:
        model: with the types of its activations.
        reader: training images; from the first one on.
        activations: names of float values that are to be seen, graph inputs among them.

    Raises:
        EdgetlError: an activation has values that are no numbers.
    """
    layers = rounding.find_layers(model)
    inputs = {one.name for one in model.graph.input}
    names = sorted({*activations, *(layer.source for layer in layers)} - inputs)
    session = opened(model, names)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    histograms = {name: Histogram() for name in activations}
    moments: dict[str, NDArray[np.float64]] = {}
    sums: dict[str, NDArray[np.float64]] = {}
    counts: Counter[str] = Counter()
    seen: dict[str, tuple[int, ...]] = {}
    images = 0
    chance = np.random.default_rng(0)
    reader.set_range(0, len(reader))
    while (batch := reader.get_next()) is not None:
        values = {**batch, **dict(zip(names, session.run(names, batch), strict=True))}
        seen, images = {name: values[name].shape for name in histograms}, len(next(iter(batch.values())))
        for name, histogram in histograms.items():
            _count(histogram, values[name], name)
        for layer in layers:
            met = rounding.sampled(values[layer.source], shapes[layer.weight], layer, chance)
            moments[layer.weight] = rounding.moment_of(met) + moments.get(layer.weight, 0.0)
            sums[layer.weight] = met.sum(axis=1, dtype=np.float64) + sums.get(layer.weight, 0.0)
            counts[layer.weight] += met.shape[1]
    means = {name: one / counts[name] for name, one in sums.items()}
    return Observed(histograms, moments, seen, images, means)


def channel_ranges(model: Any, reader: Reader,
                   names: Sequence[str]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The least and the greatest value of each channel [C], by the name of an activation [n, C, ...].

    Args:
        model: a float graph.
        reader: training images; from the first one on.
        names: of values that nodes compute.
    """
    found: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    if not names:
        return found
    session = opened(model, names)
    reader.set_range(0, len(reader))
    while (batch := reader.get_next()) is not None:
        for name, values in zip(names, session.run(list(names), batch), strict=True):
            others = (0, *range(2, values.ndim))
            low, high = (end(axis=others).astype(np.float64) for end in (values.min, values.max))
            before = found.get(name, (low, high))
            found[name] = np.minimum(low, before[0]), np.maximum(high, before[1])
    return found


def _count(histogram: Histogram, values: NDArray[Any], name: str) -> None:
    try:
        histogram.add(values)
    except EdgetlError as problem:
        raise EdgetlError(f"'{name}': {problem.message}", hint=problem.hint) from problem


def opened(model: Any, names: Sequence[str]) -> Any:
    """ONNX Runtime's session of a graph, its nodes in the order of computation, whose outputs are these values."""
    telemetry.off()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(cut(model, names).SerializeToString(), options,
                                        providers=["CPUExecutionProvider"])
