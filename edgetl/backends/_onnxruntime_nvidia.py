"""What ONNX Runtime's providers for NVIDIA cards need: libraries, a driver that is new enough, and a card."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

from edgetl.backends import Availability
from edgetl.runtime import nvidia, telemetry

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS = (CUDA, TENSORRT)
TENSORRT_LIBRARY = "capi/libonnxruntime_providers_tensorrt.so"  # in onnxruntime's folder; it names what it needs


def check(found: Availability, provider: str) -> Availability:
    """The same, with the cards as its device; or not usable, with the library, the driver or the card that is missing.

    Args:
        found: of an ONNX Runtime that was built with the provider.
        provider: one of `PROVIDERS`.
    """
    cuda = built_for()
    seen = nvidia.look()
    if seen.driver is None:  # the libraries are hundreds of megabytes, and no use without it
        return _unusable(found, seen.reason, seen.fix)
    if missing := nvidia.load_all(libraries(provider, cuda)):
        return _unusable(found, *nvidia.advise(missing, cuda[0]))
    if old := nvidia.too_old(seen.driver, cuda):
        return _unusable(found, old, nvidia.UPDATE)
    if not seen.cards:
        return _unusable(found, seen.reason, seen.fix)
    return dataclasses.replace(found, device=", ".join(f"{one.name} ({one.compute_capability})" for one in seen.cards))


def _unusable(found: Availability, reason: str | None, fix: str | None) -> Availability:
    return dataclasses.replace(found, usable=False, reason=f"{reason}.", fix=fix)


def built_for() -> tuple[int, int]:
    """The CUDA that the installed ONNX Runtime was built for."""
    telemetry.off()
    import onnxruntime

    return nvidia.parse(getattr(onnxruntime, "cuda_version", "")) or (12, 0)


def libraries(provider: str, cuda: tuple[int, int], tensorrt: int | None = None) -> tuple[str, ...]:
    """What a provider needs beside the driver, each file after those that it needs; nothing where files are not .so.

    From CUDA 13 on cuFFT is loaded only where a graph has Fourier transforms in it.

    Args:
        provider: one of `PROVIDERS`.
        cuda: what ONNX Runtime was built for.
        tensorrt: major version that its provider asks for; None looks into the provider.
    """
    if sys.platform != "linux":
        return ()
    major = cuda[0]
    fourier = ("libcufft.so.11",) if major < 13 else ()
    needed = (f"libcudart.so.{major}", f"libnvrtc.so.{major}", f"libcublasLt.so.{major}", f"libcublas.so.{major}",
              "libcurand.so.10", *fourier, "libcudnn.so.9")
    if provider != TENSORRT:
        return needed
    version = tensorrt or _tensorrt_of()
    return (*needed, f"libnvinfer.so.{version}", f"libnvonnxparser.so.{version}")


def _tensorrt_of() -> int:
    """The major version of TensorRT that the installed provider was linked to."""
    telemetry.off()
    import onnxruntime

    path = Path(onnxruntime.__file__).parent / TENSORRT_LIBRARY
    named = re.search(rb"libnvinfer\.so\.(\d+)", path.read_bytes()) if path.is_file() else None
    return int(named[1]) if named else 10


def load(provider: str) -> None:
    """Loads everything that the provider will ask for, out of wheels where they are there."""
    telemetry.off()
    import onnxruntime

    if not nvidia.load_all(libraries(provider, built_for())):
        onnxruntime.preload_dlls()  # all is there, so it prints nothing; it registers the provider where that is apart


def why_not(available: Availability) -> tuple[str, str] | None:
    """Reason and fix of a probe that says no, without the full stop."""
    return None if available.usable else ((available.reason or "").rstrip("."), available.fix or "")


__all__ = ["CUDA", "PROVIDERS", "TENSORRT", "built_for", "check", "libraries", "load", "why_not"]
