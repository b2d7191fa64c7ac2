"""What is the matter with a machine's backends as a whole: packages and libraries that do not go together.

What a backend finds by itself, its probe says; here stands what is seen only from above. `look` looks at the machine,
and `findings` judges what it was shown.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from edgetl.runtime import nvidia, processor

# Distributions that all bring the module onnxruntime, each its own.
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn",
                "onnxruntime-migraphx", "onnxruntime-rocm", "onnxruntime-vitisai", "onnxruntime-cann",
                "onnxruntime-training", "onnxruntime-windowsml", "onnxruntime-silicon", "ort-nightly",
                "ort-nightly-gpu")
CUDA_RUNTIMES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu11")
# TensorRT's wheels come in two: bindings, and the libraries that they load.
IN_TWO = {f"{name}-{cuda}": library for name, library in (("tensorrt", "libnvinfer.so"),
                                                          ("tensorrt-rtx", "libtensorrt_rtx.so"))
          for cuda in ("cu11", "cu12", "cu13")}
# docs.nvidia.com/deeplearning/tensorrt-rtx: Turing, Ampere, Ada, Blackwell; no Hopper, nor the data centre's Blackwell.
RTX_CARDS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
ON_CARDS = ("cuda", "tensorrt")  # backends that are of no use without an NVIDIA card
BOTH_RUNTIMES = "onnxruntime and onnxruntime-gpu are both installed, and each overwrites files of the other."
ONE_RUNTIME = "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want."


@dataclass(frozen=True)
class Finding:
    """One thing that is the matter, and what to do."""

    text: str
    fix: str
    error: bool = False  # whether it breaks what is installed, and not only what could be


@dataclass(frozen=True)
class Facts:
    """What findings are judged by."""

    packages: Mapping[str, str]  # versions by distribution, of those that matter here
    cards: nvidia.Found
    jetson: str | None = None  # the release of its Linux
    architecture: str = ""
    features: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)  # by TensorRT's package the library that is not found


def look(versions: Mapping[str, str], load: Callable[[str], Any] = ctypes.CDLL) -> Facts:
    """What this machine has.

    Args:
        versions: of the packages that are known already.
        load: opens a library by its name or path.
    """
    packages = {**_versions((*ONNXRUNTIMES, *CUDA_RUNTIMES, "torch", *_parts())), **versions}
    return Facts(packages, nvidia.look(load), nvidia.jetson(), processor.read().architecture, processor.features(),
                 dict(_missing(packages, load)))


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _parts() -> tuple[str, ...]:
    return tuple(f"{name}-{part}" for name in IN_TWO for part in ("bindings", "libs"))


def _missing(packages: Mapping[str, str], load: Callable[[str], Any]) -> Iterator[tuple[str, str]]:
    """TensorRT's bindings whose library is neither in the wheel for it nor in the system."""
    for name, library in IN_TWO.items():
        version = packages.get(f"{name}-bindings")
        if version is not None and f"{name}-libs" not in packages:
            file = f"{library}.{version.partition('.')[0]}"
            if nvidia.load_all([file], load):
                yield name, file


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Everything that is the matter, what breaks things first."""
    found = [*_runtimes(facts), *_half_installed(facts), *_old_driver(facts), *_cards(facts), *_jetson(facts),
             *_processor(facts)]
    return tuple(sorted(found, key=lambda one: not one.error))


def _runtimes(facts: Facts) -> Iterator[Finding]:
    found = [name for name in ONNXRUNTIMES if name in facts.packages]
    if found == ["onnxruntime", "onnxruntime-gpu"]:
        yield Finding(BOTH_RUNTIMES, ONE_RUNTIME, error=True)
    elif len(found) > 1:
        yield Finding(f"{', '.join(found[:-1])} and {found[-1]} are installed together, and each overwrites files of "
                      "the others.", f"pip uninstall -y {' '.join(found)}, then install the one you want.", error=True)


def _half_installed(facts: Facts) -> Iterator[Finding]:
    for name, file in facts.missing.items():
        version = facts.packages[f"{name}-bindings"]
        yield Finding(f"{name}-bindings is installed without its libraries: {file} is missing.",
                      f"pip install {name}-libs=={version}")


def _old_driver(facts: Facts) -> Iterator[Finding]:
    """Packages of a CUDA that the driver is too old for."""
    driver = facts.cards.driver
    if driver is None:
        return
    newer = [f"{name} {version}" for name, version, cuda in _of_cuda(facts.packages)
             if nvidia.too_old(driver, cuda) is not None]
    if newer:
        most = f"{driver.cuda[0]}.{driver.cuda[1]}"
        yield Finding(f"The NVIDIA driver{f' {driver.version}' if driver.version else ''} runs CUDA {most} at most, "
                      f"which is too old for {', '.join(newer)}.", nvidia.UPDATE)


def _of_cuda(packages: Mapping[str, str]) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Name and version of installed packages, and the CUDA that each is for."""
    for name in CUDA_RUNTIMES:
        cuda = nvidia.parse(packages.get(name, ""))
        if cuda is not None:
            yield name, packages[name], cuda
    version = packages.get("torch", "")
    local = re.search(r"\+cu(\d\d)(\d)$", version)
    if local:
        yield "torch", version, (int(local[1]), int(local[2]))
    for name in IN_TWO:
        if f"{name}-bindings" in packages:
            yield f"{name}-bindings", packages[f"{name}-bindings"], (int(name[-2:]), 0)


def _cards(facts: Facts) -> Iterator[Finding]:
    """Cards that the one installed TensorRT has no kernels for."""
    names = [name for name in IN_TWO if f"{name}-bindings" in facts.packages]
    if not names or not all(name.startswith("tensorrt-rtx") for name in names):
        return
    for card in facts.cards.cards:
        if card.compute_capability not in RTX_CARDS:
            yield Finding(f"TensorRT for RTX does not run on {card.name} (compute capability "
                          f"{card.compute_capability}), only on {', '.join(RTX_CARDS)}.",
                          "Install TensorRT itself: pip install tensorrt")


def _jetson(facts: Facts) -> Iterator[Finding]:
    if facts.jetson is not None and not any(f"{name}-bindings" in facts.packages for name in IN_TWO):
        yield Finding(f"This is a Jetson (Linux {facts.jetson}): its TensorRT 10 is part of JetPack and not to be had "
                      "from pip.", "apt install python3-libnvinfer, and make virtual environments with "
                                   "--system-site-packages.")


def _processor(facts: Facts) -> Iterator[Finding]:
    if facts.architecture == "x86" and "vnni" not in facts.features:
        yield Finding("This processor has no VNNI: INT8 made for x86-vnni would lose accuracy; the runtime refuses it.",
                      "Export for x86-avx2.")


def useful(backend: str, facts: Facts) -> bool:
    """Whether advice on a backend that cannot run helps on this machine."""
    return backend not in ON_CARDS or facts.cards.driver is not None or facts.jetson is not None


def advice(facts: Facts, backends: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What to do, a sentence each: what is the matter as a whole, then backend by backend.

    Args:
        facts: of the machine.
        backends: what each probe said.
    """
    said = [f"backend {name}: {one['fix']}" for name, one in backends.items()
            if not one["usable"] and one["fix"] and useful(name, facts)]
    said += [f"{one.text} {one.fix}" for one in findings(facts) if not one.error]
    left = [name for name, one in backends.items() if not one["usable"] and not useful(name, facts)]
    if left:
        said.append(f"{' and '.join(left)}: only with an NVIDIA card, and here {facts.cards.reason}.")
    return said


__all__ = ["BOTH_RUNTIMES", "ONE_RUNTIME", "Facts", "Finding", "advice", "findings", "look"]
