"""What a machine has of NVIDIA: the driver, its cards, and the libraries beside the driver with the wheels they are in.

Everything is looked up through the driver's own library and the dynamic linker, without CUDA's runtime, and every
function takes what it looks at, so that it can be shown another machine.
docs.nvidia.com/cuda/cuda-driver-api; docs.nvidia.com/deploy/cuda-compatibility
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from edgetl.runtime.storage import read_text

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
VERSIONS = ("/sys/module/nvidia/version", "/proc/driver/nvidia/version")
TEGRA = "/etc/nv_tegra_release"  # on Jetson alone
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NO_CARD = 100  # CUDA_ERROR_NO_DEVICE
# CUDA's error numbers, as the driver and the libraries print them, in words and with what to do.
UPDATE = "Update the NVIDIA driver, or install packages of an older CUDA."
SEE = "Check that nvidia-smi shows a card, and that CUDA_VISIBLE_DEVICES does not hide it."
INSTALL_DRIVER = ("Install the NVIDIA driver (nvidia-smi must show the card); in a container, start it with the NVIDIA "
                  "container toolkit.")
ERRORS: Mapping[int, tuple[str, str]] = {
    3: ("CUDA could not be started", "See whether nvidia-smi works; a fork of a process that used the card cannot."),
    35: ("the driver is too old for this CUDA", UPDATE),
    NO_CARD: ("there is a driver, but no card that it can use", SEE),
    101: ("there is no card of that number", SEE),
    209: ("the card is of a generation that these libraries were not built for", "Install a build for this card."),
    803: ("the driver was updated while it was loaded", "Restart the machine."),
    804: ("the CUDA compatibility package does not take this card", "Remove the package cuda-compat."),
    999: ("the driver does not answer", "See whether nvidia-smi works; restart the machine if it does not."),
}
WORDS = {"driver version is insufficient": 35, "no cuda-capable device": NO_CARD, "invalid device ordinal": 101,
         "no kernel image": 209, "driver/library version mismatch": 803, "system has unsupported display driver": 803}
# The packages of NVIDIA's libraries, by how their files begin; of CUDA 12 the names end with -cu12, those of CUDA 13
# end with nothing, except where the dagger stands.
WHEELS = {"cublas": "nvidia-cublas", "cudart": "nvidia-cuda-runtime", "cudnn": "nvidia-cudnn†",
          "cufft": "nvidia-cufft", "curand": "nvidia-curand", "cusolver": "nvidia-cusolver",
          "cusparse": "nvidia-cusparse", "nvrtc": "nvidia-cuda-nvrtc", "nvjitlink": "nvidia-nvjitlink",
          "nvinfer": "tensorrt†", "nvonnxparser": "tensorrt†", "tensorrt_rtx": "tensorrt-rtx†",
          "tensorrt_onnxparser_rtx": "tensorrt-rtx†"}
ABSENT = re.compile(r"(lib[\w.+-]*?\.so[.\d]*): cannot open|[\"'](\w+\.dll)[\"'] which is missing|"
                    r"(lib[\w.+-]*?\.so[.\d]*)[\"']? (?:was )?not found")
NUMBERED = re.compile(r"CUDA (?:failure|error)[: ]+(\d+)", re.IGNORECASE)

Load = Callable[[str], Any]


class Gpu(NamedTuple):
    """One card."""

    name: str
    compute_capability: str  # "8.9"
    total_bytes: int


class Driver(NamedTuple):
    """The driver that is loaded."""

    cuda: tuple[int, int]  # the newest CUDA that it runs, (13, 0)
    version: str | None  # "580.65.06", where the system tells it


class Found(NamedTuple):
    """Driver and cards; or what is the matter with them, and what to do."""

    driver: Driver | None
    cards: tuple[Gpu, ...] = ()
    reason: str | None = None
    fix: str | None = None


def look(load: Load | None = None) -> Found:
    """The driver and its cards, those that CUDA_VISIBLE_DEVICES leaves.

    Args:
        load: opens a library by its name, `ctypes.CDLL`.
    """
    import ctypes

    try:
        cuda = (load or ctypes.CDLL)(DRIVER)
    except OSError as problem:
        return Found(None, reason=f"there is no NVIDIA driver ({problem})", fix=INSTALL_DRIVER)
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    driver = Driver((number.value // 1000, number.value % 1000 // 10), version())
    code = int(cuda.cuInit(0))
    count = ctypes.c_int()
    code = code or int(cuda.cuDeviceGetCount(ctypes.byref(count)))
    if code or not count.value:
        reason, fix = ERRORS.get(code or NO_CARD, (f"the driver says CUDA error {code}", SEE))
        return Found(driver, reason=reason, fix=fix)
    return Found(driver, tuple(_card(cuda, place) for place in range(count.value)))


def _card(cuda: Any, place: int) -> Gpu:
    import ctypes

    device, name, total = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), place)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(capability), total.value)


def version(files: Iterable[str] = VERSIONS) -> str | None:
    """The driver's own number, 580.65.06; None where no file tells it."""
    for path in files:
        try:
            told = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", read_text(path))
        except OSError:
            continue  # another system, or a container that hides it
        if told:
            return told.group()
    return None


def jetson(path: str = TEGRA) -> str | None:
    """The release of Jetson Linux, 36.4, on which JetPack 6 stands; None on any other machine."""
    try:
        told = re.match(r"# R(\d+) \(release\), REVISION: (\d+)", read_text(path))
    except OSError:
        return None
    return f"{told[1]}.{told[2]}" if told else "of an unknown release"


def too_old(driver: Driver, cuda: tuple[int, int]) -> str | None:
    """Why the driver cannot run what was made for that CUDA; None where it can.

    Within one major version an older driver does ("minor version compatibility").
    """
    if driver.cuda[0] >= cuda[0]:
        return None
    named = f"NVIDIA driver {driver.version}" if driver.version else "NVIDIA driver"
    return f"the {named} runs CUDA {_dotted(driver.cuda)} at most, and CUDA {_dotted(cuda)} is installed"


def parse(text: str) -> tuple[int, int] | None:
    """(13, 0) of "13.0"; None where no version of CUDA is told."""
    found = re.match(r"(\d+)(?:\.(\d+))?", text or "")
    return (int(found[1]), int(found[2] or 0)) if found else None


def _dotted(cuda: tuple[int, int]) -> str:
    return f"{cuda[0]}.{cuda[1]}"


# -------------------------------------------------------------------------------------------------------- libraries


def folders(paths: Iterable[str] | None = None) -> list[str]:
    """Where wheels keep NVIDIA's libraries: nvidia/*/lib, and what PyTorch carries itself; nothing is imported."""
    found = []
    for root in sys.path if paths is None else paths:
        for package in ("nvidia", "tensorrt_libs", "tensorrt_rtx_libs", "torch"):
            top = os.path.join(root, package)
            if not os.path.isdir(top):
                continue
            inner = (os.path.join(top, one, "lib") for one in sorted(os.listdir(top))) if package == "nvidia" else ()
            found += [one for one in (*inner, os.path.join(top, "lib"), top) if os.path.isdir(one)]
    return found


def load_all(files: Iterable[str], load: Load | None = None, within: Iterable[str] | None = None) -> dict[str, str]:
    """Loads libraries for the whole process, from wheels or from the system; of those that are missing, the words why.

    What is loaded once is found by its name afterwards, whoever needs it.

    Args:
        files: names, each after those that it needs.
        load: opens a library by its name or path, `ctypes.CDLL`.
        within: folders to look into before the system does; None is `folders()`.
    """
    import ctypes

    opens, places, missing = load or ctypes.CDLL, folders() if within is None else list(within), {}
    for file in files:
        path = next((os.path.join(one, file) for one in places if os.path.isfile(os.path.join(one, file))), file)
        try:
            opens(path)
        except OSError as problem:
            missing[file] = str(problem)
    return missing


def wheel(file: str, cuda: int) -> str | None:
    """The package that brings a library to that CUDA, nvidia-cudnn-cu13 for libcudnn.so.9; None where none is known."""
    stem = re.sub(r"^lib|(64)?_\d+\.dll$|\.so[.\d]*$", "", file).lower()
    name = next((WHEELS[one] for one in sorted(WHEELS, key=len, reverse=True) if stem.startswith(one)), None)
    if name is None:
        return None
    suffix = f"-cu{cuda}" if cuda < 13 or name.endswith("†") else ""
    return name.rstrip("†") + suffix


def advise(missing: Iterable[str], cuda: int) -> tuple[str, str]:
    """The reason and the fix for libraries that are not there."""
    files = list(dict.fromkeys(missing))
    if DRIVER in files:
        return f"there is no NVIDIA driver ({DRIVER} is missing)", INSTALL_DRIVER
    wheels = dict.fromkeys(filter(None, (wheel(one, cuda) for one in files)))
    fix = (f"Install what is missing with: pip install {' '.join(wheels)}" if wheels
           else "Install it, and put its folder on LD_LIBRARY_PATH before the start.")
    return f"{', '.join(files)} cannot be found", fix


def explain(text: str, cuda: int) -> tuple[str, str] | None:
    """The reason and the fix in what a library says of CUDA; None where it says nothing that is known.

    Args:
        text: of ONNX Runtime, of the dynamic linker or of CUDA.
        cuda: major version of the CUDA that the library was built for.
    """
    absent = [next(filter(None, one)) for one in ABSENT.findall(text)]
    if absent:
        return advise(absent, cuda)
    number = NUMBERED.search(text)
    code = int(number[1]) if number else next((code for words, code in WORDS.items() if words in text.lower()), None)
    return ERRORS.get(code) if code is not None else None


__all__ = ["Driver", "Found", "Gpu", "advise", "explain", "folders", "jetson", "load_all", "look", "parse", "too_old",
           "version", "wheel"]
