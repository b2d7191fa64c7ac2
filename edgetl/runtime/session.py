"""What an opened graph can do, whichever backend opened it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl import plugins
from edgetl.errors import BackendUnavailable


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    role: str  # "image" | "logits" | "probabilities" | "features"
    dtype: str  # "float32" | "uint8" | "int64"
    shape: tuple[int | str, ...]  # "N" stands for the batch
    layout: str | None = None  # "NCHW" | "NHWC" | "NC" | None


@dataclass(frozen=True)
class GraphSpec:
    """Names, dtypes and shapes that a session must honour."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str = "fp32"
    extra: Mapping[str, Any] = field(default_factory=dict)  # what one backend alone needs, e.g. torch's run.json


class Session(Protocol):
    """An opened graph: arrays in, arrays out, finished on return. Safe to call from several threads."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Outputs by name for inputs by name, in host memory and finished.

        Raises:
            InputError: a name, dtype or shape differs from the spec; says which, found and expected.
            BackendUnavailable: the session is closed, or the device ran out of memory.
        """
        ...

    def close(self) -> None:
        """Releases the session; a second call does nothing."""
        ...

    def info(self) -> Mapping[str, Any]:
        """What really runs: backend, provider, precision, threads, versions."""
        ...


def open_session(backend: str, graph: bytes, spec: GraphSpec, *, threads: int = 0, cache_dir: Any = None,
                 options: Mapping[str, str] | None = None) -> Session:
    """A session of the named backend; `threads=0` takes what the cgroup quota and the affinity allow.

    Raises:
        UnknownName: no such backend.
        BackendUnavailable: it cannot run here; carries the reason and the fix.
    """
    module = plugins.load("backends", backend)
    available = module.probe()
    if not available.usable:
        raise BackendUnavailable(f"The backend '{backend}' cannot run here: {available.reason}", hint=available.fix)
    session: Session = module.open(graph, spec, threads=threads or usable_threads(), cache_dir=cache_dir,
                                   options=dict(options or {}))
    return session


def usable_threads() -> int:
    """Processors this process may use: the smaller of affinity and cgroup quota, at least 1."""
    raise NotImplementedError  # written with the backends


def check_feeds(feeds: Mapping[str, NDArray[Any]], spec: GraphSpec) -> None:
    """Compares names, dtypes and shapes of `feeds` with the spec; every backend calls it first."""
    raise NotImplementedError


__all__ = ["GraphSpec", "Session", "TensorSpec", "check_feeds", "open_session", "usable_threads"]
_ = np
