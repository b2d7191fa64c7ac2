"""ONNX Runtime on the processor.

Options:
    graph_optimization: "all" (default), "extended", "basic" or "off": how far ONNX Runtime rewrites the graph.
    spin: "on" (default) or "off": whether the threads wait for the next call in a loop, for tens of milliseconds and
        more. "on" is what ONNX Runtime does by itself, and the quickest on a machine that has nothing else to do;
        "off" leaves the processor to others and to sleep. With one thread there is nothing to wait.

Threads are intra-op threads; the operators of a graph run one after the other. A graph with external data is refused,
because sessions are made from the very bytes whose digest was checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgetl.backends import Availability, _onnxruntime
from edgetl.runtime.session import GraphSpec, Session, check_options

if TYPE_CHECKING:
    from pathlib import Path

    from edgetl.runtime.layers import ProfiledSession

PROVIDER = _onnxruntime.Provider("cpu", _onnxruntime.CPU)
OPTIONS = _onnxruntime.OPTIONS
SURVIVES_DAMAGE = True  # benchmarks/fuzz_bundles.py --graphs 2000: neither an abort nor a hang


def probe() -> Availability:
    """Whether ONNX Runtime can be imported and has its CPU provider."""
    found = _onnxruntime.probe(PROVIDER.name)
    return dataclasses.replace(found, device="CPU") if found.usable else found


def open(graph: bytes, spec: GraphSpec, *, threads: int, cache_dir: Path | None, options: Mapping[str, str]) -> Session:
    """A session of ONNX Runtime's CPU provider; `cache_dir` is not needed.

    Raises:
        BundleError: the graph is damaged, needs a newer ONNX Runtime, or has other inputs or outputs than `spec`.
        BackendUnavailable: another provider than the CPU's would run.
    """
    return _open(graph, spec, threads, options, None)[0]


def open_profiled(graph: bytes, spec: GraphSpec, *, threads: int, options: Mapping[str, str]) -> ProfiledSession:
    """The session of `open` with ONNX Runtime's profiler on.

    Raises:
        BundleError, BackendUnavailable: see `open`.
    """
    return _onnxruntime.profiled(lambda folder: _open(graph, spec, threads, options, folder))


def _open(graph: bytes, spec: GraphSpec, threads: int, options: Mapping[str, str],
          trace_folder: str | None) -> tuple[Session, Any]:
    check_options("cpu", options, OPTIONS)
    native = _onnxruntime.open_native(graph, spec, PROVIDER, threads=threads, options=options,
                                      trace_folder=trace_folder)
    about = {"backend": "cpu", "provider": PROVIDER.name, "device": "CPU", "precision": spec.precision,
             "threads": threads, "spin": _onnxruntime.spins(options), "versions": {"onnxruntime": native.version}}
    return _onnxruntime.OnnxruntimeSession(native.session, spec, about), native.session


def insist(providers: list[str]) -> None:
    """Refuses a session in which another provider than the CPU's comes first.

    Raises:
        BackendUnavailable: names the providers found.
    """
    _onnxruntime.insist(providers, PROVIDER)
