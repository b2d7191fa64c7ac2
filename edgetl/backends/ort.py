"""ONNX Runtime's own execution providers by name: `ort:xnnpack`, `ort:CoreMLExecutionProvider`.

What follows the colon is the name of a provider that the installed ONNX Runtime was built with, its last two words left
out or not, in capitals or not. It runs the graphs that are made for the backend `cpu`, and those for the backend of its
own kind. If another provider would run the graph, or its convolutions and the like, that is an error.

Options:
    graph_optimization, spin: see the backend `cpu`.
    partial: "refuse" (default) or "allow": whether the provider may leave convolutions and matrix products to the CPU.
    anything else is handed to the provider, whose options are listed at onnxruntime.ai/docs/execution-providers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgetl.backends import Availability, _onnxruntime, _onnxruntime_nvidia
from edgetl.errors import BackendUnavailable, EdgetlError
from edgetl.runtime import telemetry
from edgetl.runtime.session import GraphSpec, Session, check_options

if TYPE_CHECKING:
    from edgetl.runtime.layers import ProfiledSession

ENDING = "executionprovider"
OPTIONS = _onnxruntime.OPTIONS | {"partial": ("refuse", "allow")}
# Of providers that take any option in silence and do not tell which they know.
KNOWN: Mapping[str, tuple[str, ...]] = {"cpu": (), "azure": (), "xnnpack": ("intra_op_num_threads",)}
# The package that brings a provider, where it is not in the plain one of every platform.
PACKAGES = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "openvino": "onnxruntime-openvino",
            "dml": "onnxruntime-directml", "qnn": "onnxruntime-qnn", "migraphx": "onnxruntime-migraphx",
            "coreml": "onnxruntime on macOS", "vitisai": "onnxruntime-vitisai"}
# Backends whose graphs a provider can run: all that is made for ONNX Runtime, and what is made for its own kind.
KINDRED = {"cuda": ("cuda",), "tensorrt": ("cuda", "tensorrt"), "nvtensorrtrtx": ("cuda", "tensorrt"),
           "openvino": ("openvino",)}
NAME_IT = "Name one: ort:"


def probe() -> Availability:
    """Whether ONNX Runtime can be imported, and which providers it was built with."""
    telemetry.off()
    try:
        import onnxruntime
    except ImportError as problem:
        return Availability(usable=False, reason=f"onnxruntime cannot be imported ({problem}).",
                            fix=_onnxruntime.INSTALL)
    found = ", ".join(_short(one) for one in onnxruntime.get_available_providers())
    return Availability(usable=True, version=str(onnxruntime.__version__), device=f"by name: {found}")


def open(graph: bytes, spec: GraphSpec, *, threads: int, cache_dir: Path | None, options: Mapping[str, str]) -> Session:
    """Nothing: which provider is meant must be said.

    Raises:
        EdgetlError: always; lists the providers.
    """
    raise EdgetlError("The backend 'ort' names no execution provider of ONNX Runtime.",
                      hint=f"{NAME_IT}NAME; {probe().device or 'none is there'}.")


def named(provider: str) -> ModuleType:
    """The backend `ort:PROVIDER`; whether there is such a provider, its probe says."""
    return Named(provider)


class Named(ModuleType):
    """One provider as a backend: what a file of this catalogue has, it has."""

    OPTIONS = OPTIONS

    def __init__(self, asked: str) -> None:
        super().__init__(f"{__name__}:{asked}", __doc__)
        self._asked, self._backend = asked, f"ort:{asked}"
        short = _short(asked)
        self.STANDS_FOR = ("cpu", *KINDRED.get(short, ()))

    def probe(self) -> Availability:
        """Whether the installed ONNX Runtime was built with the provider."""
        found = probe()
        if not found.usable:
            return found
        if not self._asked:
            return Availability(usable=False, version=found.version, reason="it names no execution provider.",
                                fix=f"{NAME_IT}NAME; {found.device}.")
        name, objection, fix = resolve(self._asked)
        if objection is not None:
            return Availability(usable=False, version=found.version, reason=objection, fix=fix)
        here = Availability(usable=True, version=found.version, device=name)
        return _onnxruntime_nvidia.check(here, name) if name in _onnxruntime_nvidia.PROVIDERS else here

    def open(self, graph: bytes, spec: GraphSpec, *, threads: int, cache_dir: Path | None,
             options: Mapping[str, str]) -> Session:
        """A session of the provider; `cache_dir` is not needed.

        Raises:
            BundleError: see the backend `cpu`.
            BackendUnavailable: there is no such provider, or another one would run the graph or its heavy part.
            EdgetlError: an option that the provider does not have.
        """
        return self._open(graph, spec, threads, options, None)[0]

    def open_profiled(self, graph: bytes, spec: GraphSpec, *, threads: int,
                      options: Mapping[str, str]) -> ProfiledSession:
        """The session of `open` with ONNX Runtime's profiler on.

        Raises:
            BundleError, BackendUnavailable, EdgetlError: see `open`.
        """
        return _onnxruntime.profiled(lambda folder: self._open(graph, spec, threads, options, folder))

    def _open(self, graph: bytes, spec: GraphSpec, threads: int, options: Mapping[str, str],
              trace_folder: str | None) -> tuple[Session, Any]:
        name, objection, fix = resolve(self._asked)
        if objection is not None:
            raise BackendUnavailable(f"The backend '{self._backend}' cannot run here: {objection}", hint=fix)
        theirs = self._options(_short(name), options, threads)
        if name in _onnxruntime_nvidia.PROVIDERS:
            _onnxruntime_nvidia.load(name)
        provider = _onnxruntime.Provider(self._backend, name, theirs, partial=options.get("partial") == "allow",
                                         why=lambda: _onnxruntime_nvidia.why_not(self.probe()))
        native = _onnxruntime.open_native(graph, spec, provider, threads=threads, options=options,
                                          trace_folder=trace_folder)
        self._insist_on_options(native.session, name, theirs)
        about = {"backend": self._backend, "provider": name, "device": name.removesuffix("ExecutionProvider"),
                 "precision": spec.precision, "threads": threads, "spin": _onnxruntime.spins(options),
                 "nodes": dict(native.nodes), "provider_options": theirs,
                 "versions": {"onnxruntime": native.version}}
        return _onnxruntime.OnnxruntimeSession(native.session, spec, about), native.session

    def _options(self, short: str, options: Mapping[str, str], threads: int) -> dict[str, str]:
        """What is for the provider, checked as far as it is known here what it takes."""
        theirs = {name: value for name, value in options.items() if name not in OPTIONS}
        check_options(self._backend, {name: value for name, value in options.items() if name in OPTIONS}, OPTIONS)
        if short in KNOWN:
            check_options(self._backend, theirs, {**OPTIONS, **dict.fromkeys(KNOWN[short], ())})
        if short == "xnnpack":  # it has threads of its own: one, unless it is told
            theirs.setdefault("intra_op_num_threads", str(threads))
        return theirs

    def _insist_on_options(self, session: Any, name: str, theirs: Mapping[str, str]) -> None:
        """Refuses options that the provider passed over, where it tells which it has."""
        told = session.get_provider_options().get(name)
        if told:
            check_options(self._backend, theirs, {**OPTIONS, **dict.fromkeys(told, ())})


def _short(name: str) -> str:
    """`xnnpack` of XnnpackExecutionProvider, however it is spelt."""
    return name.lower().removesuffix(ENDING)


def resolve(asked: str) -> tuple[str, str | None, str | None]:
    """The provider's own name; or why there is none here, and what to do.

    Args:
        asked: with or without `ExecutionProvider`, in capitals or not.
    """
    telemetry.off()
    import onnxruntime

    built = {_short(one): one for one in onnxruntime.get_available_providers()}
    known = {_short(one): one for one in onnxruntime.get_all_providers()}
    short, choices = _short(asked), f"This one has: {', '.join(built)}."
    if short in built:
        return built[short], None, None
    if short in known:
        package = PACKAGES.get(short)
        where = f"The package with it: {package}." if package else "It comes with a build of one's own."
        return known[short], f"the installed onnxruntime was built without {known[short]}.", f"{where} {choices}"
    near = difflib.get_close_matches(short, [*built, *known], n=1, cutoff=0.5)
    suggestion = f" Did you mean 'ort:{near[0]}'?" if near else ""
    return asked, f"ONNX Runtime has no execution provider named '{asked}'.{suggestion}", choices
