"""ONNX Runtime on the processor.

Options:
    graph_optimization: "all" (default), "extended", "basic" or "off": how far ONNX Runtime rewrites the graph.

Threads are intra-op threads; the operators of a graph run one after the other. A graph with external data cannot be
opened, because sessions are made from the very bytes whose digest was checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import Availability
from edgetl.errors import BackendUnavailable, BundleError
from edgetl.runtime import telemetry
from edgetl.runtime.session import GraphSpec, Session, check_feeds, check_graph, check_options, closed_error

PROVIDER = "CPUExecutionProvider"
OPTIMIZATIONS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC",
                 "off": "ORT_DISABLE_ALL"}
INSTALL = 'Install it with: pip install "edgetl[cpu]"'


def probe() -> Availability:
    """Whether ONNX Runtime can be imported and has its CPU provider."""
    telemetry.off()
    try:
        import onnxruntime
    except ImportError as problem:
        return Availability(usable=False, reason=f"onnxruntime cannot be imported ({problem}).", fix=INSTALL)
    version = str(onnxruntime.__version__)
    if PROVIDER not in onnxruntime.get_available_providers():
        return Availability(usable=False, version=version, reason=f"this onnxruntime has no {PROVIDER}.", fix=INSTALL)
    return Availability(usable=True, version=version, device="CPU")


def open(graph: bytes, spec: GraphSpec, *, threads: int, cache_dir: Path | None, options: Mapping[str, str]) -> Session:
    """A session of ONNX Runtime's CPU provider; `cache_dir` is not needed.

    Raises:
        BundleError: the graph is damaged, needs a newer ONNX Runtime, or has other inputs or outputs than `spec`.
        BackendUnavailable: another provider than the CPU's would run.
    """
    telemetry.off()
    import onnxruntime

    check_options("cpu", options, {"graph_optimization": tuple(OPTIMIZATIONS)})
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    level = OPTIMIZATIONS[options.get("graph_optimization", "all")]
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    try:
        session = onnxruntime.InferenceSession(graph, sess_options=settings, providers=[PROVIDER])
    except Exception as problem:  # ONNX Runtime's own exceptions share no base class
        raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot open the graph: {first_line(problem)}",
                          hint="The file is no ONNX graph, is damaged, or needs a newer ONNX Runtime.") from problem
    session.disable_fallback()
    insist(session.get_providers())
    check_graph("cpu", [one.name for one in session.get_inputs()], [one.name for one in session.get_outputs()], spec)
    return CpuSession(session, spec, threads, str(onnxruntime.__version__))


def insist(providers: list[str]) -> None:
    """Refuses a session in which another provider than the CPU's comes first.

    Raises:
        BackendUnavailable: names the providers found.
    """
    if providers[:1] != [PROVIDER]:
        found = ", ".join(providers) or "nothing"
        raise BackendUnavailable(f"The backend 'cpu' asked for {PROVIDER}, but {found} would run.", hint=INSTALL)


def first_line(problem: Exception) -> str:
    """The first line of what a library says, without its file names and stack."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:300]


class CpuSession:
    """An opened ONNX Runtime session. `run` may be called from several threads; they share the intra-op threads."""

    def __init__(self, session: Any, spec: GraphSpec, threads: int, version: str) -> None:
        self._session = session
        self._spec = spec
        self._threads = threads
        self._version = version
        self._outputs = [one.name for one in spec.outputs]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Outputs by name; see `edgetl.runtime.session.Session.run`."""
        session = self._session  # a thread that is inside keeps it while another closes
        if session is None:
            raise closed_error("cpu")
        check_feeds(feeds, self._spec)
        try:
            results = session.run(self._outputs, {name: np.ascontiguousarray(value) for name, value in feeds.items()})
        except Exception as problem:
            raise BackendUnavailable(f"ONNX Runtime failed while it ran the graph: {first_line(problem)}",
                                     hint="A smaller batch needs less memory.") from problem
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Releases the session; a second call does nothing."""
        self._session = None

    def info(self) -> Mapping[str, Any]:
        """Backend, provider, precision, threads and version."""
        return {"backend": "cpu", "provider": PROVIDER, "device": "CPU", "precision": self._spec.precision,
                "threads": self._threads, "versions": {"onnxruntime": self._version}}
