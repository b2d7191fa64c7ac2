"""OpenVINO on the processor.

Options:
    precision: "fp32", "bf16" or "fp16": what floating-point layers compute in; the default is that of the graph. Left
        alone, OpenVINO chooses bf16 on processors that have it, which halves the time and changes the logits; here it
        must be asked for, by the option or by a graph of that precision.
    hint: "latency" (default), one stream of all threads; or "throughput", as many streams as OpenVINO thinks best, so
        that calls from several threads run side by side.
    pin: "off" (default) or "on": whether OpenVINO binds its threads to cores. Bound, every process takes the same
        cores, and a call waits for what else runs there.

There is no option against threads that wait in a loop, as the backend cpu has one: OpenVINO's rest by themselves, a
millisecond or so after a call.

With one stream calls from several threads queue up. A graph with a free batch is compiled for one image when it is
opened, which runs faster than a free batch, and once more for any batch when the first other one comes.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import Availability
from edgetl.errors import BackendUnavailable, BundleError, install_hint
from edgetl.runtime import processor
from edgetl.runtime.external import refuse_external_data
from edgetl.runtime.handle import Handle
from edgetl.runtime.session import FeedCheck, GraphSpec, Session, check_graph, check_options

if TYPE_CHECKING:
    from edgetl.runtime.layers import Node, ProfiledSession

DEVICE = "CPU"
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
HINTS = {"latency": "LATENCY", "throughput": "THROUGHPUT"}
PINS = {"off": "NO", "on": "YES"}
OPTIONS = {"hint": tuple(HINTS), "precision": tuple(PRECISIONS), "pin": tuple(PINS)}
INSTALL = install_hint("openvino")
_CORES: dict[int, Any] = {}  # by process number


def probe() -> Availability:
    """Whether OpenVINO can be imported and finds the processor."""
    try:
        import openvino
    except ImportError as problem:
        return Availability(usable=False, reason=f"openvino cannot be imported ({problem}).", fix=INSTALL)
    version = str(openvino.__version__).split("-")[0]
    devices = _core().available_devices
    if DEVICE not in devices:
        found = ", ".join(devices) or "none"
        return Availability(usable=False, version=version, reason=f"OpenVINO finds no CPU device (found: {found}).",
                            fix=INSTALL)
    return Availability(usable=True, version=version, device=DEVICE)


def open(graph: bytes, spec: GraphSpec, *, threads: int, cache_dir: Path | None, options: Mapping[str, str]) -> Session:
    """A session of OpenVINO's CPU device.

    Args:
        graph: an ONNX graph.
        spec: its inputs and outputs.
        threads: threads of all streams together.
        cache_dir: where compiled graphs are kept so that the next start is quicker; None keeps none.
        options: see the module.

    Raises:
        BundleError: the graph is damaged, or has other inputs or outputs than `spec`.
        BackendUnavailable: this processor does not compute in the precision asked for.
    """
    return _open(graph, spec, threads, cache_dir, options, {}, _Pool)


def open_profiled(graph: bytes, spec: GraphSpec, *, threads: int, options: Mapping[str, str]) -> ProfiledSession:
    """The session of `open` with OpenVINO's performance counters on.

    Raises:
        BundleError, BackendUnavailable: see `open`.
    """
    from edgetl.backends import _openvino_profile

    calls: list[list[Node]] = []

    class Counted(_Pool):
        def infer(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            request = self._compiled.create_infer_request()
            results = _infer(request, feeds)
            calls.append(_openvino_profile.nodes(request.get_profiling_info()))
            return results

    session = _open(graph, spec, threads, None, options, {"PERF_COUNT": "YES"}, Counted)
    return _openvino_profile.Profiled(session, calls)


def _open(graph: bytes, spec: GraphSpec, threads: int, cache_dir: Path | None, options: Mapping[str, str],
          more: Mapping[str, str], pool: Callable[[Any], _Pool]) -> OpenvinoSession:
    import openvino

    check_options("openvino", options, OPTIONS)
    refuse_external_data(graph)
    core = _core()
    precision = options.get("precision", spec.precision if spec.precision in PRECISIONS else "fp32")
    insist_on_arithmetic(precision, core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))
    config = {**_config(options, precision, threads, cache_dir), **more}

    def compiled_for(batch: int | None) -> Any:
        model = core.read_model(graph)
        if batch is not None:
            model.reshape({port: [batch, *list(port.get_partial_shape())[1:]] for port in model.inputs})
        return core.compile_model(model, DEVICE, config)

    free_batch = all(one.shape[:1] == ("N",) for one in spec.inputs)
    try:
        compiled = compiled_for(1 if free_batch else None)
        # Here, since names that are no UTF-8 are found out only when they are asked for.
        inputs = [_name_of(port, [one.name for one in spec.inputs]) for port in compiled.inputs]
        outputs = [_name_of(port, [one.name for one in spec.outputs]) for port in compiled.outputs]
    except Exception as problem:  # openvino raises RuntimeError, and others from its ONNX reader
        raise BundleError(f"OpenVINO {openvino.__version__} cannot open the graph: {last_line(problem)}",
                          hint="The file is no ONNX graph, is damaged, or needs a newer OpenVINO.") from problem
    check_graph("openvino", inputs, outputs, spec)
    insist(compiled, precision)
    version = str(openvino.__version__).split("-")[0]
    about = {"backend": "openvino", "provider": f"OpenVINO {DEVICE}", "device": DEVICE, "precision": spec.precision,
             "float_precision": precision, "hint": options.get("hint", "latency"),
             "streams": int(compiled.get_property("NUM_STREAMS")), "pin": options.get("pin", "off") == "on",
             "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")), "versions": {"openvino": version}}
    return OpenvinoSession(_Graphs(compiled, compiled_for if free_batch else None, pool), spec, outputs, about)


def _config(options: Mapping[str, str], precision: str, threads: int, cache_dir: Path | None) -> dict[str, str]:
    """OpenVINO's own properties."""
    hint = options.get("hint", "latency")
    config = {"PERFORMANCE_HINT": HINTS[hint], "INFERENCE_NUM_THREADS": str(threads),
              "INFERENCE_PRECISION_HINT": PRECISIONS[precision], "ENABLE_CPU_PINNING": PINS[options.get("pin", "off")]}
    if hint == "latency":
        config["NUM_STREAMS"] = "1"
    if cache_dir is not None:
        config["CACHE_DIR"] = str(cache_dir)
    return config


def insist_on_arithmetic(precision: str, capabilities: Collection[str]) -> None:
    """Refuses a precision in which the processor does not compute: OpenVINO would emulate it, or take fp32.

    Args:
        precision: what floating-point layers shall compute in.
        capabilities: OpenVINO's own list for the processor, e.g. ["FP32", "BF16", "INT8"].

    Raises:
        BackendUnavailable: says what the processor has.
    """
    # Where nothing is known of the processor's features, OpenVINO's word is enough.
    known = processor.features()
    if precision == "fp32" or (precision.upper() in capabilities and (processor.accelerates(precision) or not known)):
        return
    raise BackendUnavailable(f"The backend 'openvino' was asked for {precision}, in which this processor does not "
                             f"compute ({processor.read().model}: {', '.join(known) or 'no feature known'}).",
                             hint="Leave the option 'precision' out, or take a variant of another precision.")


def _core() -> Any:
    """The one Core of this process; a forked child gets its own.

    OpenVINO's CPU plugin gives the thread that loads it a signal stack of its own and unmaps it when it is unloaded. If
    the last session were closed in another thread, that thread would be left with a dangling stack, and the next signal
    (Ctrl-C) would end the process with SIGSEGV. So the plugin stays loaded.
    """
    import openvino

    if os.getpid() not in _CORES:
        _CORES[os.getpid()] = openvino.Core()
    return _CORES[os.getpid()]


def insist(compiled: Any, precision: str) -> None:
    """Refuses a compiled graph that runs on another device or in another precision than was asked for.

    Raises:
        BackendUnavailable: says what would run.
    """
    devices = [str(one) for one in compiled.get_property("EXECUTION_DEVICES")]
    if devices != [DEVICE]:
        raise BackendUnavailable(f"The backend 'openvino' asked for {DEVICE}, but {', '.join(devices)} would run.")
    runs = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if runs != PRECISIONS[precision]:
        raise BackendUnavailable(f"The backend 'openvino' was asked for {precision}, but {runs} would run here.",
                                 hint="Leave the option 'precision' out, or take a variant of another precision.")


def last_line(problem: Exception) -> str:
    """The last line of what OpenVINO says; those before are places in its source."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines or [type(problem).__name__])[-1][:300]


def _name_of(port: Any, wanted: list[str]) -> str:
    """The wanted name among the several that a port may carry, else any of them."""
    names = port.get_names()
    return next((name for name in wanted if name in names), min(names, default=""))


class _Pool:
    """A compiled graph with its idle infer requests, so that several threads may call it."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        results = _infer(request, feeds)
        # The results are copies, so the request may serve another thread now.
        self._idle.put(request)
        return results


def _infer(request: Any, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Copies of the outputs, in the graph's order; what goes in is not copied.

    OpenVINO's own way copies both.
    """
    results = request.infer(feeds, share_inputs=True, share_outputs=True)
    return [np.array(one) for one in results.values()]


class _Graphs:
    """A graph as it was compiled first, and compiled once more for any batch when the first other one comes."""

    def __init__(self, compiled: Any, compiled_for: Callable[[int | None], Any] | None,
                 pool: Callable[[Any], _Pool]) -> None:
        self._pool = pool
        self._first = pool(compiled)
        self._compiled_for = compiled_for  # None where the graph itself fixes the batch
        self._any_batch: _Pool | None = None
        self._growing = threading.Lock()

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if self._compiled_for is None or all(len(value) == 1 for value in feeds.values()):
            return self._first.infer(feeds)
        with self._growing:
            if self._any_batch is None:
                self._any_batch = self._pool(self._compiled_for(None))
        return self._any_batch.infer(feeds)


class OpenvinoSession:
    """A compiled graph with a pool of infer requests, so that `run` may be called from several threads."""

    def __init__(self, graphs: _Graphs, spec: GraphSpec, outputs: list[str], about: Mapping[str, Any]) -> None:
        self._handle = Handle("openvino", graphs)
        self._check = FeedCheck(spec)
        self._outputs = outputs
        self._info = about

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Outputs by name; see `edgetl.runtime.session.Session.run`."""
        graphs: _Graphs | None = self._handle.native
        if graphs is None:
            raise self._handle.error()
        ready = self._check(feeds)
        try:
            results = graphs.infer(ready)
        except RuntimeError as problem:
            raise BackendUnavailable(f"OpenVINO failed while it ran the graph: {last_line(problem)}",
                                     hint="A smaller batch needs less memory.") from problem
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Releases the session; a second call does nothing."""
        self._handle.close()

    def info(self) -> Mapping[str, Any]:
        """Backend, provider, precision (of floating-point layers too), hint, streams, pinning, threads and version."""
        return self._info
