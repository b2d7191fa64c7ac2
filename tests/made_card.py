"""A made-up card: TensorRT's builder and session replaced by ONNX Runtime on the processor, the rest as it is.

A plan is a line of text and the graph itself, so that what was built, kept and opened can be told, and answers rightly.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgetl.backends import _cuda, _tensorrt_flavor, _tensorrt_session, tensorrt
from edgetl.backends._cuda import Card
from edgetl.backends._tensorrt_build import Engine, How
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.errors import BackendUnavailable, BundleError
from edgetl.runtime.session import GraphSpec, open_session

HEAD = b"made-up plan\n"
CARD = Card("Made Up 9", "8.9", "580.65", 24 << 30, 20 << 30)
FLAVOR = Flavor("tensorrt", SimpleNamespace(), "11.4.0.1", "tensorrt-cu13-bindings")


class MadeCard:
    """What the made-up TensorRT does; tests change its fields.

    Use it as `MadeCard().install(monkeypatch)`.
    """

    def __init__(self) -> None:
        self.card = CARD
        self.flavor = FLAVOR
        self.builds: list[How] = []
        self.timing_caches: list[bytes | None] = []
        self.opened = 0
        self.closed = 0
        self.off_by = 0.0  # of every logit that engines give
        self.refuses = False  # every plan, as TensorRT does by giving None
        self.calls: list[int] = []  # batches
        self.least = 1
        self.cuda_graphs: list[bool] = []

    def install(self, monkeypatch: Any) -> MadeCard:
        """Puts it in the place of the card and of TensorRT."""
        # With a memory of its own, which ends with the test.
        monkeypatch.setattr(tensorrt, "_probed", functools.cache(tensorrt._probed.__wrapped__))
        monkeypatch.setattr(_tensorrt_flavor, "find", lambda wanted="auto": self.flavor)
        monkeypatch.setattr(_cuda, "find", lambda: SimpleNamespace(card=lambda: self.card, name="made up"))
        monkeypatch.setattr(tensorrt, "build", self._build)
        monkeypatch.setattr(_tensorrt_session, "TensorrtSession", self._open)
        return self

    def _build(self, graph: bytes, spec: GraphSpec, flavor: Flavor, how: How, *,
               timing_cache: bytes | None = None) -> Engine:
        self.builds.append(how)
        self.timing_caches.append(timing_cache)
        return Engine(HEAD + graph, {spec.precision: 1.0}, 12.5, b"learned")

    def _open(self, plan: bytes, flavor: Flavor, cuda: Any, spec: GraphSpec, **options: Any) -> MadeSession:
        if self.refuses or not plan.startswith(HEAD):
            raise BundleError("TensorRT 11.4 cannot open the engine: the magic tag does not match.")
        self.opened += 1
        self.cuda_graphs.append(options["cuda_graph"])
        return MadeSession(self, plan[len(HEAD):], spec, options["threads"])


class MadeSession:
    """A session of the made-up card."""

    def __init__(self, made: MadeCard, graph: bytes, spec: GraphSpec, threads: int) -> None:
        self._made, self._spec, self._threads = made, spec, threads
        self._real = open_session("cpu", graph, dataclasses.replace(spec, precision="fp32"), threads=1)
        self._closed = False

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""
        if self._closed:
            raise BackendUnavailable("The session of the backend 'tensorrt' is closed.")
        self._made.calls.append(len(next(iter(feeds.values()))))
        return {name: value + np.float32(self._made.off_by) for name, value in self._real.run(feeds).items()}

    def device_s(self, feeds: Mapping[str, np.ndarray]) -> float:
        """Seconds."""
        return 0.001

    def kernels(self) -> None:
        """TensorRT's engines hold their kernels."""

    def profiled(self) -> MadeSession:
        """Itself."""
        return self

    def close(self) -> None:
        """Closes it."""
        if not self._closed:
            self._closed = True
            self._made.closed += 1
            self._real.close()

    def info(self) -> dict[str, Any]:
        """What the real one tells."""
        return {"backend": "tensorrt", "provider": "TensorRT 11.4", "device": self._made.card.name,
                "precision": self._spec.precision, "threads": self._threads, "batches": [self._made.least, 1, 32],
                "versions": {"tensorrt": "11.4.0.1"}}
