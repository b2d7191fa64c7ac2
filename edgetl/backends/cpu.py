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

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgetl.backends import Availability
from edgetl.errors import BackendUnavailable, BundleError, install_hint
from edgetl.runtime import telemetry
from edgetl.runtime.external import refuse_external_data
from edgetl.runtime.handle import Handle
from edgetl.runtime.session import FeedCheck, GraphSpec, Session, check_graph, check_options

if TYPE_CHECKING:
    from pathlib import Path

    from edgetl.runtime.layers import ProfiledSession

PROVIDER = "CPUExecutionProvider"
OPTIMIZATIONS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC",
                 "off": "ORT_DISABLE_ALL"}
OPTIONS = {"graph_optimization": tuple(OPTIMIZATIONS), "spin": ("on", "off")}
INSTALL = install_hint("cpu")
SURVIVES_DAMAGE = True  # benchmarks/fuzz_bundles.py --graphs 2000: neither an abort nor a hang


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
    native, version = _native(graph, spec, threads, options, None)
    return CpuSession(native, spec, threads, _spins(options), version)


def open_profiled(graph: bytes, spec: GraphSpec, *, threads: int, options: Mapping[str, str]) -> ProfiledSession:
    """The session of `open` with ONNX Runtime's profiler on.

    Raises:
        BundleError, BackendUnavailable: see `open`.
    """
    from edgetl.backends import _onnxruntime_profile

    folder = _onnxruntime_profile.folder()
    try:
        native, version = _native(graph, spec, threads, options, folder.name)
    except BaseException:
        folder.cleanup()
        raise
    session = CpuSession(native, spec, threads, _spins(options), version)
    return _onnxruntime_profile.Profiled(folder, session, native)


def _native(graph: bytes, spec: GraphSpec, threads: int, options: Mapping[str, str],
            trace_folder: str | None) -> tuple[Any, str]:
    """ONNX Runtime's own session and its version; with a folder it writes a trace of its calls there."""
    telemetry.off()
    import onnxruntime

    check_options("cpu", options, OPTIONS)
    refuse_external_data(graph)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if _spins(options) else "0")
    level = OPTIMIZATIONS[options.get("graph_optimization", "all")]
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if trace_folder is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = f"{trace_folder}/trace"
    try:
        # Without the fallback, by which it would tell of a damaged graph on stdout, and try it again.
        session = onnxruntime.InferenceSession(graph, sess_options=settings, providers=[PROVIDER], enable_fallback=0)
        # Here, since names that are no UTF-8 are found out only when they are asked for.
        inputs, outputs = ([one.name for one in ports] for ports in (session.get_inputs(), session.get_outputs()))
    except Exception as problem:  # ONNX Runtime's own exceptions share no base class
        raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot open the graph: {first_line(problem)}",
                          hint="The file is no ONNX graph, is damaged, or needs a newer ONNX Runtime.") from problem
    insist(session.get_providers())
    check_graph("cpu", inputs, outputs, spec)
    return session, str(onnxruntime.__version__)


def _spins(options: Mapping[str, str]) -> bool:
    return options.get("spin", "on") == "on"


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

    def __init__(self, session: Any, spec: GraphSpec, threads: int, spin: bool, version: str) -> None:
        self._handle = Handle("cpu", session)
        self._check = FeedCheck(spec)
        self._outputs = [one.name for one in spec.outputs]
        self._info = {"backend": "cpu", "provider": PROVIDER, "device": "CPU", "precision": spec.precision,
                      "threads": threads, "spin": spin, "versions": {"onnxruntime": version}}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Outputs by name; see `edgetl.runtime.session.Session.run`.

        IO binding would save less than a microsecond of every call on the processor, where inputs are not copied
        anyway (benchmarks/runtime_overhead.py measures it), and a binding serves one thread only: it is not used.
        """
        session = self._handle.native
        if session is None:
            raise self._handle.error()
        ready = self._check(feeds)
        try:
            results = session.run(self._outputs, ready)
        except Exception as problem:
            raise BackendUnavailable(f"ONNX Runtime failed while it ran the graph: {first_line(problem)}",
                                     hint="A smaller batch needs less memory.") from problem
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Releases the session; a second call does nothing."""
        self._handle.close()

    def info(self) -> Mapping[str, Any]:
        """Backend, provider, precision, threads, spinning and version."""
        return self._info
