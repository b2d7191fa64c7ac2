"""What runs a model of benchmarks/gpu.py: PyTorch eager or compiled, and the backends; host to host, all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from gpu_models import network, opened
from gpu_plan import Plan
from numpy.typing import NDArray

from edgetl.errors import BackendUnavailable, EdgetlError
from edgetl.runtime.session import open_session

TORCH = ("torch", "torch-compile")
BACKENDS = {"cuda-graph": "cuda"}  # where an engine's name is not its backend's
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEVICE_EVENTS = 20  # calls whose device time is the median


class Runner(Protocol):
    """A model that is ready for batches of one size."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]: ...

    def close(self) -> None: ...


class TorchRunner:
    """A torch module on a device, in one precision, compiled for one batch size or not."""

    def __init__(self, module: torch.nn.Module, device: str, precision: str, *, compiled: bool) -> None:
        self.device, self.dtype = device, DTYPES[precision]
        # fp32 is fp32 here, as in the engines: the factors of a convolution are not rounded to TF32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.module = module.to(device=device, dtype=self.dtype, memory_format=torch.channels_last)
        if compiled:
            # CUDA graphs are its answer to launch times; on the processor there is nothing to replay.
            self.module.compile(mode="reduce-overhead" if device != "cpu" else None, dynamic=False)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Logits by name for images [N, C, H, W]; a copy to the host waits for the device."""
        with torch.inference_mode():
            return {"logits": self.module(self.placed(feeds)).float().cpu().numpy()}

    def placed(self, feeds: Mapping[str, NDArray[Any]]) -> torch.Tensor:
        """The images on the device."""
        images = torch.from_numpy(feeds["image"])
        return images.to(device=self.device, dtype=self.dtype, memory_format=torch.channels_last)

    def device_s(self, feeds: Mapping[str, NDArray[Any]]) -> float:
        """Seconds between two events around the module alone, its images on the card already."""
        if self.device == "cpu":
            raise BackendUnavailable("The processor has no events.")
        with torch.inference_mode():
            images = self.placed(feeds)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            self.module(images)
            end.record()
            torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def close(self) -> None:
        """Lets go of the module."""
        del self.module


def open_runner(plan: Plan, name: str, engine: str, precision: str, batch: int | None = None) -> Runner:
    """A model of the panel, opened; `batch` is the only one that is going to be asked for, None any.

    Raises:
        EdgetlError: it cannot run here, or there is no such graph.
    """
    if engine in TORCH:
        if precision not in DTYPES:
            raise EdgetlError(f"PyTorch is not measured in {precision}.")
        if precision == "fp16" and plan.device == "cpu":
            raise EdgetlError("PyTorch is measured in fp16 on a card only.")
        return TorchRunner(network(plan, name)[0].module, plan.device, precision, compiled=engine == "torch-compile")
    graph, spec, _ = opened(plan, name, precision)
    return open_session(BACKENDS.get(engine, engine), graph, spec, cache_dir=plan.folder / "caches",
                        options=options(engine, batch, plan))


def options(engine: str, batch: int | None, plan: Plan) -> dict[str, str]:
    """Those of the backend: an engine of TensorRT is made for the batch that is timed, as it is for a known load.

    ONNX Runtime is run as it comes, and with CUDA graphs, which TensorRT's sessions use by themselves.
    """
    if engine == "cuda-graph":
        return {"cuda_graph": "on"}
    if engine != "tensorrt":
        return {}
    greatest = max(plan.batches)
    return {"batches": str(batch) if batch else f"1:{min(8, greatest)}:{greatest}"}


@contextlib.contextmanager
def closing(runners: Mapping[str, Runner]) -> Iterator[None]:
    """Closes all of them at the end, whatever happens."""
    try:
        yield
    finally:
        for one in runners.values():
            one.close()
        torch.compiler.reset()  # what was compiled, and only here: it is that of all runners
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def device_s(runner: Runner, feeds: Mapping[str, NDArray[Any]]) -> float | None:
    """Median seconds that the device itself works on a call; None where the runner cannot tell."""
    timed = getattr(runner, "device_s", None)
    if timed is None or (isinstance(runner, TorchRunner) and runner.device == "cpu"):
        return None
    return float(np.median([timed(feeds) for _ in range(DEVICE_EVENTS)]))
