"""The CUDA runtime as far as a session needs it: through cuda-python, or through PyTorch where that is what is there.

Two files open it, `_cuda_python.py` and `_cuda_torch.py`; this one says what they must do, and how a refusal reads.
Both work on the first card that the process sees (CUDA_VISIBLE_DEVICES chooses it).
docs.nvidia.com/cuda/cuda-runtime-api, nvidia.github.io/cuda-python
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BackendUnavailable
from edgetl.runtime import nvidia

CARD = 0  # of those that the process sees
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# Where Linux tells the version of the driver that is loaded; the first is the number alone.
MEMORY = "cudaErrorMemoryAllocation"
TOO_OLD = "cudaErrorInsufficientDriver"
INSTALL_DRIVER = ("Install the NVIDIA driver (nvidia-smi must show the card); "
                  "in a container, start it with the NVIDIA container toolkit.")
UPDATE_DRIVER = "Update the NVIDIA driver, or install packages of an older CUDA."
SEE_CARD = "Check that nvidia-smi shows a card, and that CUDA_VISIBLE_DEVICES does not hide it."
SMALLER = "Use a smaller batch or fewer threads, or end what else is on the card (nvidia-smi lists it)."
RESTART = "What is on the card is lost for this process: start it again. If it happens again, it is a defect."
FIXES = {
    TOO_OLD: UPDATE_DRIVER,
    "cudaErrorCallRequiresNewerDriver": UPDATE_DRIVER,
    "cudaErrorUnsupportedPtxVersion": UPDATE_DRIVER,
    "cudaErrorNoDevice": SEE_CARD,
    "cudaErrorInvalidDevice": SEE_CARD,
    "cudaErrorDevicesUnavailable": "Another process has the card for itself: end it, or set the compute mode to "
                                   "Default (nvidia-smi -c 0).",
    "cudaErrorInitializationError": "If this process is a fork of one that used the card, start it by 'spawn' "
                                    "instead; else see whether nvidia-smi works.",
    "cudaErrorSystemNotReady": "Start the services that the card needs (nvidia-fabricmanager).",
    "cudaErrorSystemDriverMismatch": "The driver was updated while it was loaded: restart the machine.",
    "cudaErrorCompatNotSupportedOnDevice": "Remove the CUDA compatibility package: this card does not take it.",
    "cudaErrorNoKernelImageForDevice": "What was built was built for another card: build it for this one.",
    "cudaErrorIllegalAddress": RESTART,
    "cudaErrorLaunchFailure": RESTART,
    "cudaErrorLaunchTimeout": RESTART,
    "cudaErrorECCUncorrectable": "The memory of the card is faulty: see nvidia-smi -q.",
}
OTHERWISE = "See whether nvidia-smi works, and try again with CUDA_LAUNCH_BLOCKING=1 for a nearer place."


@dataclass(frozen=True)
class Card:
    """What a card is, and what is left of it at the moment."""

    name: str
    compute_capability: str  # "8.9"
    driver_version: str  # "580.65.06"; "CUDA 13.0" where the system does not tell the driver's own number
    total_bytes: int
    free_bytes: int


class Memory:
    """A piece of memory on the card, or of the host's that the card reads by itself; kept until `free`."""

    __slots__ = ("_release", "address", "array", "native", "size_bytes")

    def __init__(self, address: int, size_bytes: int, release: Callable[[], None], *,
                 array: NDArray[np.uint8] | None = None, native: Any = None) -> None:
        self.address, self.size_bytes = address, size_bytes
        self.array = array  # [size_bytes] of the host's; None on the card
        self.native = native  # the library's own object
        self._release: Callable[[], None] | None = release

    def free(self) -> None:
        """Gives the memory back; a second call does nothing."""
        release, self._release = self._release, None
        self.array = self.native = None
        if release is not None:
            release()


class Mark(Protocol):
    """A point in the work of a stream."""

    def seconds_since(self, earlier: Mark) -> float:
        """Seconds that the card took from the earlier mark to this one; both must have been reached."""
        ...

    def free(self) -> None:
        """Gives the mark back; a second call does nothing."""
        ...


class Replay(Protocol):
    """Work that was recorded from a stream once, a CUDA graph: launched as a whole."""

    def launch(self) -> None:
        """Queues the whole work on the stream it was recorded from."""
        ...

    def free(self) -> None:
        """Gives the recording back; a second call does nothing."""
        ...


class Stream(Protocol):
    """A queue of work for the card. One thread at a time; nothing is done until `finish` returns."""

    handle: int  # the cudaStream_t, as TensorRT takes it

    def upload(self, into: Memory, source: Memory, size_bytes: int) -> None:
        """Queues a copy of the first bytes of the host's memory to the card."""
        ...

    def download(self, into: Memory, source: Memory, size_bytes: int) -> None:
        """Queues a copy of the first bytes of the card's memory to the host."""
        ...

    def finish(self) -> None:
        """Waits until everything that was queued is done."""
        ...

    def mark(self) -> Mark:
        """A mark behind everything that was queued so far."""
        ...

    def capture(self, work: Callable[[], None]) -> Replay:
        """A recording of what `work` queues on this stream, which is not done by it."""
        ...

    def free(self) -> None:
        """Gives the stream back; a second call does nothing."""
        ...


class Cuda(Protocol):
    """The CUDA runtime on one card. Every call may raise BackendUnavailable: one sentence with the error's name."""

    name: str  # "cuda-python" or "torch"
    versions: Mapping[str, str]  # of the package it is reached through

    def card(self) -> Card:
        """The card and its free memory now."""
        ...

    def on_card(self) -> AbstractContextManager[None]:
        """While it lasts, the card is the current one of this thread; what was current before is so again after."""
        ...

    def device_memory(self, size_bytes: int, purpose: str) -> Memory:
        """Memory on the card; the purpose completes "out of memory: ... is needed for"."""
        ...

    def host_memory(self, size_bytes: int, purpose: str) -> Memory:
        """Page-locked memory of the host, with its bytes as `array`."""
        ...

    def stream(self) -> Stream:
        """A new stream, which waits for no other."""
        ...


def find() -> Cuda:
    """The CUDA runtime of this machine.

    Raises:
        BackendUnavailable: no driver, one too old, no card, or neither cuda-python nor PyTorch; with the fix of each.
    """
    from edgetl.backends import _cuda_python, _cuda_torch

    driver_cuda()  # first: without a driver nothing need be imported
    found = _cuda_python.open() or _cuda_torch.open()
    if found is None:
        raise BackendUnavailable("The card cannot be reached: neither cuda-python nor PyTorch with CUDA is installed.",
                                 hint="Install what is missing with: pip install cuda-python")
    return found


def driver_cuda() -> int:
    """The newest CUDA that the driver supports, 12040 for 12.4.

    Raises:
        BackendUnavailable: there is no driver.
    """
    import ctypes

    version = ctypes.c_int()
    try:
        ctypes.CDLL(DRIVER).cuDriverGetVersion(ctypes.byref(version))
    except OSError as problem:
        raise no_driver(str(problem)) from problem
    return version.value


def no_driver(found: str) -> BackendUnavailable:
    """That there is no driver; `found` is how that was seen."""
    return BackendUnavailable(f"There is no NVIDIA driver: {found}.", hint=INSTALL_DRIVER)


def refusal(error: str, says: str, doing: str) -> BackendUnavailable:
    """An error of CUDA as one sentence.

    Args:
        error: its name, cudaErrorNoDevice.
        says: its text in CUDA's words.
        doing: what was being done, "copying to the card".
    """
    return BackendUnavailable(f"CUDA failed while {doing}: {error} ({says}).", hint=FIXES.get(error, OTHERWISE))


def lacking(says: str, doing: str) -> BackendUnavailable:
    """That the driver lacks a function, in the words of cuda-python before 13: `Function "cuInit" not found`."""
    if "cuInit" in says or "dlopen" in says:  # the one is in every driver, the other looks for it
        return no_driver(f"cuda-python finds none ({says})")
    return BackendUnavailable(f"CUDA failed while {doing}: {says}.", hint=UPDATE_DRIVER)


def driver_too_old(driver: int, runtime: int) -> BackendUnavailable:
    """That the driver is older than the CUDA runtime wants, or that there is none; both numbers as 12040 for 12.4."""
    if driver == 0:
        return no_driver(f"the CUDA {cuda_name(runtime)} runtime finds none ({TOO_OLD})")
    return BackendUnavailable(f"The NVIDIA driver supports CUDA {cuda_name(driver)}, which is too old for the CUDA "
                              f"{cuda_name(runtime)} runtime that is installed ({TOO_OLD}).",
                              hint=f"Update the driver, or install packages of CUDA {driver // 1000}.")


def no_card(error: str = "cudaErrorNoDevice") -> BackendUnavailable:
    """That the driver sees no card."""
    return BackendUnavailable(f"There is an NVIDIA driver, but no card that it can use ({error}).", hint=SEE_CARD)


def out_of_memory(purpose: str, needed: int | None, free: int, total: int) -> BackendUnavailable:
    """That the card has too little memory; `needed` bytes are None where nobody says."""
    wanted = "more" if needed is None else megabytes(needed)
    return BackendUnavailable(f"The card is out of memory: {wanted} is needed for {purpose}, "
                              f"{megabytes(free)} of {megabytes(total)} is free.", hint=SMALLER)


def out_of_host_memory(purpose: str, needed: int) -> BackendUnavailable:
    """That the host has no page-locked memory left."""
    return BackendUnavailable(f"The host has no {megabytes(needed)} of page-locked memory for {purpose}.",
                              hint="Use a smaller batch or fewer threads, or raise the limit of locked memory "
                                   "(ulimit -l).")


def megabytes(size_bytes: int) -> str:
    """A size in words, rounded up to a tenth of a MiB, so that nothing needed reads as none."""
    return f"{-(-size_bytes * 10 // 2**20) / 10:,.1f} MiB"


def cuda_name(number: int) -> str:
    """12.4 for CUDA's own 12040."""
    return f"{number // 1000}.{number % 1000 // 10}"


def driver_version(supported: int) -> str:
    """The version of the driver, 580.65.06; where the system does not tell, the CUDA that it supports."""
    return nvidia.version(nvidia.VERSIONS) or f"CUDA {cuda_name(supported)}"


__all__ = ["Card", "Cuda", "Mark", "Memory", "Replay", "Stream", "driver_cuda", "driver_too_old", "driver_version",
           "find", "lacking", "megabytes", "no_card", "no_driver", "out_of_host_memory", "out_of_memory", "refusal"]
