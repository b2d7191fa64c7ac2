"""A graph's latency as a share of another one's, measured in turn on a backend of this machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl import timing
from edgetl.runtime.session import GraphSpec, Session, open_session

if TYPE_CHECKING:
    from edgetl.models import Network

ROUNDS = 7
BLOCK = 40  # calls of each graph in a round; the first 10 are dropped

Graph = tuple[bytes, GraphSpec]


class Shares:
    """Measures how long a cut network takes beside the one that it was cut out of, whose graph is made only once.

    Args:
        graph_of: makes the ONNX graph of a network with these labels.
    """

    def __init__(self, graph_of: Callable[[Network, Sequence[str]], Graph]) -> None:
        self._graph_of = graph_of
        self._whole: tuple[Any, Graph] | None = None

    def __call__(self, cut: Network, whole: Network, backend: str, labels: tuple[str, ...]) -> float:
        """The share, see `share`.

        Raises:
            UnknownName, BackendUnavailable: the backend does not exist, or cannot run here.
        """
        if self._whole is None or self._whole[0] is not whole.module:
            self._whole = whole.module, self._graph_of(whole, labels)
        return share(self._graph_of(cut, labels), self._whole[1], backend)


def share(ours: Graph, theirs: Graph, backend: str) -> float:
    """Median latency of one graph as a share of another's: host to host, one image, one thread, back to back.

    They take turns, so that what slows the machine down slows both; the median over the rounds is taken of the shares
    of the rounds' medians.
    """
    sessions = [open_session(backend, graph, spec, threads=1) for graph, spec in (ours, theirs)]
    try:
        calls = [_call(session, spec) for session, (_, spec) in zip(sessions, (ours, theirs), strict=True)]
        medians = [[statistics.median(timing.block(call, BLOCK).seconds) for call in calls] for _ in range(ROUNDS)]
        return statistics.median(mine / other for mine, other in medians)
    finally:
        for session in sessions:
            session.close()


def _call(session: Session, spec: GraphSpec) -> Callable[[int], Any]:
    """One inference of one image of noise."""
    image = spec.inputs[0]
    shape = [one if isinstance(one, int) else 1 for one in image.shape]
    feeds = {image.name: np.random.default_rng(0).standard_normal(shape).astype(image.dtype)}
    return lambda number: session.run(feeds)
