"""PyTorch as it is (eager, channels_last): what a bundle is compared with.

The graph is the bytes of a run's model.safetensors, and `spec.extra["run"]` the values of its run.json.

Options:
    device: "cpu" (default), "cuda" or "cuda:N".

`threads` sets PyTorch's threads for the whole process, because PyTorch has no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.backends import Availability
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError, install_hint
from edgetl.runtime.handle import Handle
from edgetl.runtime.session import GraphSpec, Session, check_feeds, check_options

if TYPE_CHECKING:
    from edgetl.runtime.layers import ProfiledSession

INSTALL = install_hint("train")


def probe() -> Availability:
    """Whether PyTorch can be imported."""
    try:
        import torch
    except ImportError as problem:
        return Availability(usable=False, reason=f"torch cannot be imported ({problem}).", fix=INSTALL)
    device = "CUDA and CPU" if torch.cuda.is_available() else "CPU"
    return Availability(usable=True, version=str(torch.__version__), device=device)


def open(graph: bytes, spec: GraphSpec, *, threads: int, cache_dir: Path | None, options: Mapping[str, str]) -> Session:
    """A session of PyTorch in eager mode; `cache_dir` is not needed.

    Raises:
        BundleError: `spec` has no run, or more than one input or output, or another precision than fp32.
        BackendUnavailable: the device asked for is not there.
        EdgetlError: the tensors do not fit the architecture.
    """
    import torch

    from edgetl import weights

    check_options("torch", options, {"device": ()})
    record = spec.extra.get("run")
    if not isinstance(record, Mapping):
        raise BundleError("The backend 'torch' opens a RUN, not an ONNX graph.",
                          hint="Give the RUN folder, or choose the backend 'cpu' or 'openvino'.")
    if len(spec.inputs) != 1 or len(spec.outputs) != 1 or spec.precision != "fp32":
        raise BundleError(f"The backend 'torch' runs fp32 with one input and one output; found {spec.precision}, "
                          f"{len(spec.inputs)} and {len(spec.outputs)}.")
    device = find_device(options.get("device", "cpu"))
    torch.set_num_threads(threads)
    module = weights.rebuild(record, graph).module.eval().to(device)
    module = module.to(memory_format=torch.channels_last)
    return TorchSession(module, spec, device)


def open_profiled(graph: bytes, spec: GraphSpec, *, threads: int, options: Mapping[str, str]) -> ProfiledSession:
    """The session of `open` with PyTorch's profiler on.

    Raises:
        BundleError, BackendUnavailable, EdgetlError: see `open`.
    """
    from edgetl.backends import _torch_profile

    session = open(graph, spec, threads=threads, cache_dir=None, options=options)
    assert isinstance(session, TorchSession)
    return _torch_profile.Profiled(session, session.module, cuda=session.device.type == "cuda")


def find_device(name: str) -> Any:
    """The torch device of that name.

    Raises:
        BackendUnavailable: CUDA was asked for and is not there.
        EdgetlError: not a name of a device.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as problem:
        raise EdgetlError(f"Option 'device' of the backend 'torch' is '{name}'; "
                          "expected cpu, cuda or cuda:N.") from problem
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise BackendUnavailable(f"The backend 'torch' was asked for the device '{name}', but there are {count} CUDA "
                                 "devices and the CPU.", hint="Choose device=cpu.")
    return device


class TorchSession:
    """A module in eval mode. `run` may be called from several threads."""

    def __init__(self, module: Any, spec: GraphSpec, device: Any) -> None:
        self._handle = Handle("torch", module)
        self._spec = spec
        self.device = device

    @property
    def module(self) -> Any:
        """The network; None when the session is closed."""
        return self._handle.native

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Outputs by name; see `edgetl.runtime.session.Session.run`."""
        import torch

        module = self._handle.native
        if module is None:
            raise self._handle.error()
        check_feeds(feeds, self._spec)
        images = np.require(feeds[self._spec.inputs[0].name], requirements=("C", "W"))  # torch wants it writable
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(images).to(device=self.device, memory_format=torch.channels_last)
                logits = module(batch).float().cpu()  # a copy to the host waits for the device
        except torch.OutOfMemoryError as problem:
            raise BackendUnavailable(f"PyTorch ran out of memory on {self.device} with a batch of {len(images)}.",
                                     hint="A smaller batch needs less memory.") from problem
        return {self._spec.outputs[0].name: logits.numpy()}

    def close(self) -> None:
        """Releases the session; a second call does nothing."""
        self._handle.close()

    def info(self) -> Mapping[str, Any]:
        """Backend, provider, precision, threads and version; on CUDA also whether convolutions may round to TF32."""
        import torch

        told = {"backend": "torch", "provider": "eager, channels_last", "device": str(self.device),
                "precision": "fp32", "threads": torch.get_num_threads(), "versions": {"torch": str(torch.__version__)}}
        return told | ({"tf32": torch.backends.cudnn.allow_tf32} if self.device.type == "cuda" else {})
