"""The worker's part of `--profile-layers`: a session of its own, whose profiler is on, beside the one that is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.runtime import layers
from edgetl.runtime.layers import Layer
from edgetl.runtime.session import GraphSpec
from edgetl.timing import DROPPED, block


def profile(backend: str, graph: bytes, spec: GraphSpec, feeds: Sequence[Mapping[str, NDArray[Any]]], *, threads: int,
            calls: int, options: Mapping[str, str]) -> dict[str, Any]:
    """Median seconds of each layer, of what they add up to, and of a whole call, as plain JSON values.

    Args:
        backend: name of the backend.
        graph: its bytes.
        spec: inputs and outputs.
        feeds: different inputs, used in turn.
        threads: 0 takes what the machine allows.
        calls: how many, those counted that are dropped at the start.
        options: of the backend.

    Raises:
        EdgetlError: see `edgetl.runtime.layers.open_profiled`.
    """
    session = layers.open_profiled(backend, graph, spec, threads=threads, options=options)
    try:
        found = block(lambda call: session.run(feeds[call % len(feeds)]), calls, dropped=DROPPED)
        told = session.layers(DROPPED)
    finally:
        session.close()
    return {"layers": [_plain(one) for one in told], "profiled_s": float(np.median(found.seconds)),
            "layers_s": float(np.median(np.sum([one.seconds for one in told], axis=0))) if told else 0.0}


def _plain(layer: Layer) -> dict[str, Any]:
    return {"name": layer.name, "op": layer.op, "executed_as": layer.executed_as, "kind": layer.kind,
            "median_s": float(np.median(layer.seconds))}
