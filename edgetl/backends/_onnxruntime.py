"""ONNX Runtime as the backends cpu, cuda and ort open it: one road to a session, whichever provider runs it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgetl.backends import Availability
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError, install_hint
from edgetl.runtime import telemetry
from edgetl.runtime.external import refuse_external_data
from edgetl.runtime.handle import Handle
from edgetl.runtime.session import FeedCheck, GraphSpec, Session, check_graph

if TYPE_CHECKING:
    from edgetl.runtime.layers import ProfiledSession

CPU = "CPUExecutionProvider"
OPTIMIZATIONS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC",
                 "off": "ORT_DISABLE_ALL"}
OPTIONS = {"graph_optimization": tuple(OPTIMIZATIONS), "spin": ("on", "off")}
# Cast(to=FLOAT16) and Cast(to=BFLOAT16) as protobuf writes that attribute: every graph in half that takes float32 has
# one, and reading it so needs no onnx, which devices do not have.
HALF_CASTS = (b"\n\x02to\x18\x0a", b"\n\x02to\x18\x10")
INSTALL = install_hint("cpu")
PLACEMENT = "session.record_ep_graph_assignment_info"
# What a network spends its time in. A provider that leaves these to the CPU is not what runs the graph; shapes, and
# other small integers, are computed on the CPU by every provider, on purpose.
HEAVY = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "NhwcFusedConv", "Gemm", "QGemm",
                   "FusedGemm", "MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "MatMulNBits", "Einsum",
                   "Attention", "MultiHeadAttention", "LSTM", "GRU", "RNN"})
OUT_OF_MEMORY = re.compile(r"out of memory|failed to allocate memory|bad_alloc|available memory of \d+ is smaller",
                           re.IGNORECASE)
REQUESTED = re.compile(r"requested (?:buffer of size|bytes of) ?(\d+)|smaller than requested bytes of (\d+)")
MIB = 2**20
LOCATION = re.compile(r"^/onnxruntime_src\S+ .*?\) (?=[A-Z])")  # file, line and function of its own source
CUDA_MAJOR = 13  # of the wheels to name where nothing else tells


@dataclass(frozen=True)
class Provider:
    """Which of ONNX Runtime's execution providers shall run a graph, and for which backend."""

    backend: str  # its public name, for sentences
    name: str
    options: Mapping[str, str] = field(default_factory=dict)  # of the provider, in its own words
    partial: bool = False  # whether it may leave convolutions and the like to the CPU
    install: str = INSTALL  # what to do where it does not come up
    why: Callable[[], tuple[str, str] | None] = lambda: None  # reason and fix, asked where it did not come up


@dataclass(frozen=True)
class Native:
    """ONNX Runtime's own session and what is known of it."""

    session: Any
    version: str
    nodes: Mapping[str, int]  # of the graph, by the provider that runs them; empty where that was not asked or told


def probe(provider: str, install: str = INSTALL) -> Availability:
    """Whether ONNX Runtime can be imported and was built with a provider; the device stays to be told."""
    telemetry.off()
    try:
        import onnxruntime
    except ImportError as problem:
        return Availability(usable=False, reason=f"onnxruntime cannot be imported ({problem}).", fix=install)
    version = str(onnxruntime.__version__)
    if provider not in onnxruntime.get_available_providers():
        return Availability(usable=False, version=version, reason=f"this onnxruntime has no {provider}.", fix=install)
    return Availability(usable=True, version=version)


def open_native(graph: bytes, spec: GraphSpec, provider: Provider, *, threads: int, options: Mapping[str, str],
                trace_folder: str | None = None) -> Native:
    """ONNX Runtime's own session of a graph; with a folder it writes a trace of its calls there.

    Args:
        graph: an ONNX graph.
        spec: its inputs and outputs.
        provider: which one shall run it.
        threads: intra-op threads; the operators of a graph run one after the other.
        options: of `OPTIONS`.
        trace_folder: where the trace may lie.

    Raises:
        BundleError: the graph is damaged, needs a newer ONNX Runtime, or has other inputs or outputs than `spec`.
        BackendUnavailable: another provider than the one asked for would run the graph, or the heavy part of it.
    """
    telemetry.off()
    import onnxruntime

    refuse_external_data(graph)
    settings = _settings(onnxruntime, provider, threads, options)
    if trace_folder is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = f"{trace_folder}/trace"
    version = str(onnxruntime.__version__)
    try:
        # Without the fallback, by which it would tell of a damaged graph on stdout, and try it again.
        session = onnxruntime.InferenceSession(graph, sess_options=settings, enable_fallback=0,
                                               providers=[(provider.name, dict(provider.options))],
                                               disabled_optimizers=_harmful(graph))
        # Here, since names that are no UTF-8 are found out only when they are asked for.
        inputs, outputs = ([one.name for one in ports] for ports in (session.get_inputs(), session.get_outputs()))
    except Exception as problem:  # ONNX Runtime's own exceptions share no base class
        raise _refusal(onnxruntime, graph, provider, problem) from problem
    insist(session.get_providers(), provider)
    check_graph(provider.backend, inputs, outputs, spec)
    return Native(session, version, {} if provider.name == CPU else _insist_on_nodes(session, provider))


def _harmful(graph: bytes) -> list[str]:
    """Optimizers that must not see a graph: the one for blocked float32 layouts dies of vision transformers in half.

    ONNX Runtime 1.31 ends the process with signal 11 there; float32 graphs, for which it is made, it serves well.
    """
    return ["NchwcTransformer"] if any(cast in graph for cast in HALF_CASTS) else []


def _settings(onnxruntime: Any, provider: Provider, threads: int, options: Mapping[str, str]) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins(options) else "0")
    level = OPTIMIZATIONS[options.get("graph_optimization", "all")]
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if provider.name != CPU:
        settings.add_session_config_entry(PLACEMENT, "1")
        settings.log_severity_level = 3  # it warns of nodes that others run; `_insist_on_nodes` looks at them itself
    return settings


def _refusal(onnxruntime: Any, graph: bytes, provider: Provider, problem: Exception) -> EdgetlError:
    """What to say of a session that did not come up: is it the graph or the provider?"""
    if provider.name == CPU:
        return _unreadable(onnxruntime, problem)
    quiet = onnxruntime.SessionOptions()
    quiet.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    quiet.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(graph, sess_options=quiet, providers=[CPU], enable_fallback=0)
    except Exception as also:
        raise _unreadable(onnxruntime, also) from also
    from edgetl.runtime import nvidia  # here: the processor's sessions do without it

    reason, fix = provider.why() or nvidia.explain(str(problem), CUDA_MAJOR) or (first_line(problem), provider.install)
    return BackendUnavailable(f"The backend '{provider.backend}' asked for {provider.name}, which refused: {reason}.",
                              hint=fix)


def _unreadable(onnxruntime: Any, problem: Exception) -> BundleError:
    return BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot open the graph: {first_line(problem)}",
                       hint="The file is no ONNX graph, is damaged, or needs a newer ONNX Runtime.")


def insist(providers: list[str], provider: Provider) -> None:
    """Refuses a session in which another provider than the one asked for comes first.

    Raises:
        BackendUnavailable: names the providers found, and the reason where there is one.
    """
    if providers[:1] != [provider.name]:
        found = ", ".join(providers) or "nothing"
        reason, fix = provider.why() or ("", provider.install)
        raise BackendUnavailable(f"The backend '{provider.backend}' asked for {provider.name}, but {found} would run"
                                 + (f": {reason}." if reason else "."), hint=fix)


def _insist_on_nodes(session: Any, provider: Provider) -> Mapping[str, int]:
    """Nodes by provider; ONNX Runtime tells them since 1.24.

    Raises:
        BackendUnavailable: the provider got no node, or left heavy ones to others although `partial` is not set.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    placed = [(part.ep_name, node.op_type) for part in session.get_provider_graph_assignment_info()
              for node in part.get_nodes()]
    nodes = Counter(name for name, _ in placed)
    if placed and not nodes[provider.name]:
        raise BackendUnavailable(f"The backend '{provider.backend}' asked for {provider.name}, but it takes none of "
                                 f"the graph's {len(placed)} nodes: {_listed(nodes)} would run them.",
                                 hint="Choose the backend 'cpu', or a graph that the provider can run.")
    elsewhere = Counter(op for name, op in placed if name != provider.name and op in HEAVY)
    if elsewhere and not provider.partial:
        raise BackendUnavailable(f"The backend '{provider.backend}' asked for {provider.name}, but it leaves "
                                 f"{_listed(elsewhere)} of the graph to others.",
                                 hint="Take a variant that is made for it, or allow it with the option partial=allow.")
    return dict(nodes)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def spins(options: Mapping[str, str]) -> bool:
    """Whether waiting threads keep their cores busy."""
    return options.get("spin", "on") == "on"


def first_line(problem: Exception) -> str:
    """The first line of what a library says, without its file names and stack."""
    return LOCATION.sub("", (str(problem).strip() or type(problem).__name__).splitlines()[0])[:300]


def failed(problem: Exception, device: str, batch: int) -> BackendUnavailable:
    """What to say of a call that ONNX Runtime did not finish.

    Args:
        problem: what it raised.
        device: what it ran on, in words.
        batch: images of the call.
    """
    text = str(problem)
    if not OUT_OF_MEMORY.search(text):
        return BackendUnavailable(f"ONNX Runtime failed while it ran the graph: {first_line(problem)}",
                                  hint="A smaller batch needs less memory.")
    found = REQUESTED.search(text)
    size = int(next(filter(None, found.groups()))) if found else None
    told = f" ({first_line(problem)})" if size is None else f"; {size / MIB:.0f} MiB more were asked for"
    return BackendUnavailable(f"ONNX Runtime failed while it ran the graph: out of memory on {device} with a batch of "
                              f"{batch}{told}.", hint="A smaller batch needs less memory.")


class OnnxruntimeSession:
    """An opened ONNX Runtime session. `run` may be called from several threads; they share the intra-op threads.

    Args:
        native: ONNX Runtime's own session.
        spec: inputs and outputs of the graph.
        about: what `info` tells; `device` and `backend` are in it.
    """

    def __init__(self, native: Any, spec: GraphSpec, about: Mapping[str, Any]) -> None:
        self._handle = Handle(about["backend"], native)
        self._check = FeedCheck(spec)
        self._outputs = [one.name for one in spec.outputs]
        self._info = about

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Outputs by name; see `edgetl.runtime.session.Session.run`.

        IO binding would save less than a microsecond of every call on the processor, where inputs are not copied
        anyway (benchmarks/runtime_overhead.py measures it), and a binding serves one thread only: it is not used there.
        """
        session = self._handle.native
        if session is None:
            raise self._handle.error()
        ready = self._check(feeds)
        try:
            results = self._call(session, ready)
        except Exception as problem:
            raise failed(problem, self._info["device"], len(next(iter(ready.values())))) from problem
        return dict(zip(self._outputs, results, strict=True))

    def _call(self, session: Any, ready: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = session.run(self._outputs, ready)
        return found

    def close(self) -> None:
        """Releases the session; a second call does nothing."""
        self._handle.close()

    def info(self) -> Mapping[str, Any]:
        """Backend, provider, precision, threads, spinning and version; where it was asked, the nodes by provider."""
        return self._info


def profiled(opened: Callable[[str], tuple[Session, Any]]) -> ProfiledSession:
    """A session whose layers ONNX Runtime's profiler tells.

    Args:
        opened: makes a session, and ONNX Runtime's own inside it, which writes its trace to a folder.
    """
    from edgetl.backends import _onnxruntime_profile

    folder = _onnxruntime_profile.folder()
    try:
        session, native = opened(folder.name)
    except BaseException:
        folder.cleanup()
        raise
    return _onnxruntime_profile.Profiled(folder, session, native)


__all__ = ["CPU", "INSTALL", "OPTIONS", "Native", "OnnxruntimeSession", "Provider", "failed", "first_line", "insist",
           "open_native", "probe", "profiled", "spins"]
