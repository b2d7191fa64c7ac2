"""ONNX Runtime on an NVIDIA card: its CUDAExecutionProvider, for CUDA 13 (onnxruntime-gpu 1.31) or older.

Options:
    device_id: number of the card, 0 by default, of those that CUDA_VISIBLE_DEVICES leaves.
    cudnn_conv_algo_search: "heuristic" (default), "exhaustive" or "default": how cuDNN's algorithm for a convolution is
        found. ONNX Runtime's own default is the exhaustive search, which times all of them in the first call of every
        new shape: seconds of start-up, and not always the same choice. The heuristic one asks cuDNN, in no time.
    tf32: "off" (default) or "on": whether fp32 factors may be rounded to 10 bits of mantissa. ONNX Runtime's own
        default is on, by which "fp32" is not what runs.
    cuda_graph: "off" (default) or "on": the kernels of a call are recorded once for every batch size and then started
        all at once, which helps small networks. Calls then take turns, and the graph must be whole on the card.
    io: "plain" (default) or "bound": whether inputs and outputs get fixed memory on the card; a CUDA graph needs it.
    memory_limit_mib: MiB that the arena on the card may have; by default as much as there is. cuDNN's own come to it.
    graph_optimization, spin, partial: see the backends `cpu` and `ort`.

Libraries of CUDA and cuDNN are taken from NVIDIA's wheels, or PyTorch's, where these are installed, else from the
system.
onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.backends import Availability, _onnxruntime, _onnxruntime_bound, _onnxruntime_nvidia
from edgetl.errors import EdgetlError
from edgetl.runtime.session import GraphSpec, Session, check_options

if TYPE_CHECKING:
    from edgetl.runtime.layers import ProfiledSession

PROVIDER = _onnxruntime_nvidia.CUDA
SEARCHES = ("heuristic", "exhaustive", "default")
ON_OFF = ("off", "on")
OPTIONS = _onnxruntime.OPTIONS | {
    "device_id": (), "cudnn_conv_algo_search": SEARCHES, "tf32": ON_OFF, "cuda_graph": ON_OFF, "io": ("plain", "bound"),
    "memory_limit_mib": (), "partial": ("refuse", "allow")}
INSTALL = "pip uninstall -y onnxruntime, then pip install onnxruntime-gpu: each overwrites files of the other."
COMPUTES_ON_THREADS = False
MOST_GRAPHS = 8  # batch sizes with a recording of their own; each keeps its memory on the card
MIB = 2**20


def probe() -> Availability:
    """Whether ONNX Runtime was built for CUDA, and finds its libraries, a driver that is new enough, and a card."""
    found = _onnxruntime.probe(PROVIDER, INSTALL)
    return _onnxruntime_nvidia.check(found, PROVIDER) if found.usable else found


def open(graph: bytes, spec: GraphSpec, *, threads: int, cache_dir: Path | None, options: Mapping[str, str]) -> Session:
    """A session of ONNX Runtime's CUDA provider; `cache_dir` is not needed.

    Args:
        graph: an ONNX graph, fp32, fp16 or INT8; inputs and outputs as `spec` has them.
        spec: its inputs and outputs.
        threads: of the processor, for the few nodes that stay there.
        cache_dir: see above.
        options: see the module.

    Raises:
        BundleError: the graph is damaged, or has other inputs or outputs than `spec`.
        BackendUnavailable: the card would not run the graph, or not its convolutions; says which library is missing.
        EdgetlError: an option that is not there, or no number.
    """
    return _open(graph, spec, threads, options, None)[0]


def open_profiled(graph: bytes, spec: GraphSpec, *, threads: int, options: Mapping[str, str]) -> ProfiledSession:
    """The session of `open` with ONNX Runtime's profiler on.

    Raises:
        BundleError, BackendUnavailable, EdgetlError: see `open`.
    """
    return _onnxruntime.profiled(lambda folder: _open(graph, spec, threads, options, folder))


def _open(graph: bytes, spec: GraphSpec, threads: int, options: Mapping[str, str],
          trace_folder: str | None) -> tuple[Session, Any]:
    check_options("cuda", options, OPTIONS)
    theirs = provider_options(options)
    _onnxruntime_nvidia.load(PROVIDER)
    provider = _onnxruntime.Provider("cuda", PROVIDER, theirs, partial=options.get("partial") == "allow",
                                     install=INSTALL, why=lambda: _onnxruntime_nvidia.why_not(probe()))
    native = _onnxruntime.open_native(graph, spec, provider, threads=threads, options=options,
                                      trace_folder=trace_folder)
    number, graphs = theirs["device_id"], options.get("cuda_graph") == "on"
    about = {"backend": "cuda", "provider": PROVIDER, "device": f"cuda:{number}", "precision": spec.precision,
             "threads": threads, "spin": _onnxruntime.spins(options), "nodes": dict(native.nodes),
             "tf32": options.get("tf32", "off") == "on", "cuda_graph": graphs,
             "io": "bound" if graphs else options.get("io", "plain"),
             "cudnn_conv_algo_search": options.get("cudnn_conv_algo_search", SEARCHES[0]),
             "versions": {"onnxruntime-gpu": native.version}}
    if about["io"] == "bound":
        place = _onnxruntime_bound.Place("cuda", int(number), MOST_GRAPHS if graphs else 0)
        return _onnxruntime_bound.BoundSession(native.session, spec, about, place), native.session
    return _onnxruntime.OnnxruntimeSession(native.session, spec, about), native.session


def provider_options(options: Mapping[str, str]) -> dict[str, str]:
    """The provider's own options for those of the module.

    Raises:
        EdgetlError: a number is none.
    """
    theirs = {"device_id": str(_whole("device_id", options.get("device_id", "0"))),
              "cudnn_conv_algo_search": options.get("cudnn_conv_algo_search", SEARCHES[0]).upper(),
              "use_tf32": "1" if options.get("tf32", "off") == "on" else "0",
              "enable_cuda_graph": "1" if options.get("cuda_graph", "off") == "on" else "0"}
    if "memory_limit_mib" in options:
        theirs["gpu_mem_limit"] = str(_whole("memory_limit_mib", options["memory_limit_mib"], low=1) * MIB)
    return theirs


def _whole(name: str, text: str, low: int = 0) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= low):
        raise EdgetlError(f"Option '{name}' of the backend 'cuda' is '{text}'; expected a whole number of at least "
                          f"{low}.")
    return int(text)


__all__ = ["OPTIONS", "open", "open_profiled", "probe", "provider_options"]
