"""What calibration images show of a float graph: histograms of its activations and moments of its layers' inputs.

One pass over the images, a batch at a time, serves every calibration method and both kinds of rounding; memory does not
grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compress import rounding
from edgetl.compress.calibrate import Reader
from edgetl.compress.histogram import Histogram
from edgetl.compress.ranges import Range, choose
from edgetl.errors import EdgetlError
from edgetl.runtime import telemetry


@dataclass(frozen=True)
class Observed:
    """What was seen."""

    histograms: Mapping[str, Histogram]  # by activation
    moments: Mapping[str, NDArray[np.float64]]  # by weight, see `rounding.moment_of`
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by activation, in the last call
    images: int = 0  # of the last call
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
    session = _session(model, names)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    histograms = {name: Histogram() for name in activations}
    moments: dict[str, NDArray[np.float64]] = {}
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
            found = rounding.moment_of(values[layer.source], shapes[layer.weight], layer, chance)
            moments[layer.weight] = found + moments.get(layer.weight, 0.0)
    return Observed(histograms, moments, seen, images)


def _count(histogram: Histogram, values: NDArray[Any], name: str) -> None:
    try:
        histogram.add(values)
    except EdgetlError as problem:
        raise EdgetlError(f"'{name}': {problem.message}", hint=problem.hint) from problem


def _session(model: Any, names: Sequence[str]) -> Any:
    """ONNX Runtime's session of the graph whose outputs are these values."""
    telemetry.off()
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
