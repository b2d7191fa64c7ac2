"""Made-up engines: what a store keeps, without TensorRT; the plan of a fingerprint is always the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from tiny_bundle import graph_spec

from edgetl.backends._tensorrt_build import Engine, How
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.backends._tensorrt_store import Place, fingerprint
from edgetl.runtime.session import GraphSpec

GRAPH = b"a graph"
FLAVOR = Flavor("rtx", None, "1.7.1.116", "tensorrt-rtx-cu13-bindings")
PLACE = Place(("8.9",), "580.65", "NVIDIA L4")
PLAN_BYTES = 3000


def wanted(graph: bytes = GRAPH, flavor: Flavor = FLAVOR, how: How | None = None,
           place: Place = PLACE, spec: GraphSpec | None = None) -> dict[str, Any]:
    """A fingerprint."""
    return fingerprint(graph, spec or graph_spec(), flavor, how or How(), place)


def plan_of(of: dict[str, Any], size: int = PLAN_BYTES) -> bytes:
    """The plan that the made-up builder makes for a fingerprint: no two are alike."""
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32)).bytes(size)


class Builder:
    """Builds plans and counts how often."""

    def __init__(self, of: dict[str, Any], size: int = PLAN_BYTES, timing_cache: bytes | None = None) -> None:
        self.engine = Engine(plan_of(of, size), {"fp32": 0.25, "fp16": 0.75}, 1.5, timing_cache)
        self.calls = 0

    def __call__(self) -> Engine:
        """The engine."""
        self.calls += 1
        return self.engine
