"""How long INT8 graphs take, beside float32 and beside one another, on the backend that they are made for.

All that is compared takes turns. A graph's time hangs on its nodes and the sizes of its tensors and not on what numbers
stand in them, so graphs that differ in those alone are timed once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate
from edgetl.compress.mixed import Gain
from edgetl.runtime.session import GraphSpec, open_session

Calls = Mapping[str, Callable[[], Any]]
Stopwatch = Callable[[Calls], Mapping[str, Sequence[Sequence[float]]]]  # -> seconds of the kept calls of each round

ROUNDS, BLOCK, DROPPED = 5, 20, 5
TOGETHER = 8  # graphs that take turns with the one that they are held against; each is open meanwhile


def stopwatch(calls: Calls) -> dict[str, list[tuple[float, ...]]]:
    """Seconds of each kept call by name and round, see `evaluate.latencies`."""
    kept = BLOCK - DROPPED
    found = evaluate.latencies(calls, rounds=ROUNDS, block=BLOCK, dropped=DROPPED)
    return {name: [seconds[place:place + kept] for place in range(0, len(seconds), kept)]
            for name, seconds in found.items()}


@dataclass(frozen=True)
class Timed:
    """Medians of a call: one image (or what a fixed batch holds), one thread, host to host."""

    latency_s: float
    fp32_latency_s: float


class Pace:
    """Times graphs of one network.

    Args:
        backend: that the graphs are made for.
        fp32: the float32 graph.
        spec: its spec.
        feeds: an image, or as many as the graph takes.
        watch: the stopwatch.
    """

    def __init__(self, backend: str, fp32: bytes, spec: GraphSpec, feeds: Mapping[str, NDArray[Any]], *,
                 watch: Stopwatch = stopwatch) -> None:
        self._backend, self._fp32, self._spec, self._feeds, self._watch = backend, fp32, spec, feeds, watch
        self._known: dict[str, Timed] = {}
        self._gains: dict[str, dict[str, Gain]] = {}

    def beside_fp32(self, graph: bytes) -> Timed:
        """The times of an INT8 graph and of the float32 one, measured in turn."""
        key = structure(graph)
        if key not in self._known:
            rounds = self._timed({"fp32": self._fp32, "int8": graph})
            own, reference = (_median(rounds[name]) for name in ("int8", "fp32"))
            self._known[key] = Timed(own, reference)
        return self._known[key]

    def gains(self, whole: bytes, parts: Sequence[str], without: Callable[[str], bytes]) -> dict[str, Gain]:
        """What each part of an INT8 graph saves by being in INT8.

        Args:
            whole: the graph.
            parts: their names.
            without: the graph with that part in float.
        """
        found = self._gains.setdefault(structure(whole), {})
        parts = [name for name in parts if name not in found]
        for first in range(0, len(parts), TOGETHER):
            these = parts[first:first + TOGETHER]
            rounds = self._timed({"": whole, **{name: without(name) for name in these}})
            found |= {name: gain_of(rounds[name], rounds[""]) for name in these}
        return found

    def _timed(self, graphs: Mapping[str, bytes]) -> Mapping[str, Sequence[Sequence[float]]]:
        with ExitStack() as stack:
            calls = {}
            for name, graph in graphs.items():
                precision = "fp32" if graph is self._fp32 else "int8"
                spec = dataclasses.replace(self._spec, precision=precision)
                session = open_session(self._backend, graph, spec, threads=1)
                stack.callback(session.close)
                calls[name] = lambda session=session: session.run(self._feeds)
            return self._watch(calls)


def _median(rounds: Sequence[Sequence[float]]) -> float:
    return statistics.median(second for one in rounds for second in one)


def gain_of(without: Sequence[Sequence[float]], whole: Sequence[Sequence[float]]) -> Gain:
    """The median over the rounds of how much longer the one takes, and the standard error of that.

    The error is taken from the median of the absolute deviations, which one disturbed round does not move.
    """
    differences = [statistics.median(one) - statistics.median(other)
                   for one, other in zip(without, whole, strict=True)]
    middle = statistics.median(differences)
    spread = 1.4826 * statistics.median(abs(one - middle) for one in differences)
    # The median of n normal values has 1.2533 times the standard error of their mean.
    return Gain(middle, 1.2533 * spread / float(np.sqrt(len(differences))))


def structure(graph: bytes) -> str:
    """The same for two graphs that differ in the numbers of their constants alone."""
    import onnx

    model = onnx.load_from_string(graph)
    told = hashlib.sha256()
    for node in model.graph.node:
        told.update(node.SerializeToString(deterministic=True))
    for tensor in sorted(model.graph.initializer, key=lambda one: str(one.name)):
        told.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)};".encode())
    return told.hexdigest()
