"""Which TensorRT is installed: TensorRT 11 or 10, or TensorRT for RTX, under whichever name its module has.

The wheels come in two, the bindings and the libraries, and only the package above both has the plain module name; so
the bindings are looked for as well. Nothing here asks for a driver: importing TensorRT and building with TensorRT for
RTX need none.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.errors import BackendUnavailable, UnknownName

FLAVORS = ("tensorrt", "rtx")
AUTO = "auto"
NAMES = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
# By flavor the modules, and the distributions that bring them; the first that is there is taken.
MODULES = {"tensorrt": ("tensorrt", "tensorrt_bindings"), "rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
LIBRARIES = {"tensorrt": "tensorrt_libs", "rtx": "tensorrt_rtx_libs"}
DISTRIBUTIONS = {
    "tensorrt": ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings", "tensorrt-bindings", "tensorrt-cu13",
                 "tensorrt-cu12", "tensorrt"),
    "rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx-bindings", "tensorrt-rtx-cu13",
            "tensorrt-rtx-cu12", "tensorrt-rtx"),
}
FIXES = {"tensorrt": "pip install tensorrt (on a Jetson: the python3-libnvinfer of JetPack)",
         "rtx": "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs"}
MISSING_LIBRARY = re.compile(r"([\w+-]+\.so[.\d]*): cannot open shared object file")
MOST_LIBRARIES = 8  # that one import may lack; TensorRT's bindings need three and the CUDA runtime


@dataclass(frozen=True)
class Flavor:
    """A TensorRT that can be imported."""

    name: str  # "tensorrt" (11 or 10) | "rtx"
    module: Any
    version: str  # "1.7.1.116"
    package: str  # the distribution that is installed; the module's name where no package manager of Python knows it

    @property
    def title(self) -> str:
        """Its name and version for people: `TensorRT for RTX 1.7`."""
        return f"{NAMES[self.name]} {'.'.join(self.version.split('.')[:2])}"

    @property
    def major(self) -> int:
        """The first number of the version; TensorRT for RTX counts from 1."""
        return int(self.version.partition(".")[0])


def find(wanted: str = AUTO) -> Flavor:
    """The flavor that was asked for; "auto" prefers TensorRT to TensorRT for RTX.

    Raises:
        UnknownName: `wanted` is no flavor.
        BackendUnavailable: it cannot be imported; carries the reason and the fix.
    """
    if wanted not in (AUTO, *FLAVORS):
        raise UnknownName("flavor of TensorRT", wanted, (AUTO, *FLAVORS))
    reasons, fixes = [], []
    for name in FLAVORS if wanted == AUTO else (wanted,):
        found = look(name)
        if isinstance(found, Flavor):
            return found
        reasons.append(found.reason)
        fixes.append(found.fix)
    raise BackendUnavailable(" ".join(reasons), hint="; or ".join(dict.fromkeys(fixes)))


def installed() -> tuple[Flavor, ...]:
    """Every flavor that can be imported, in the order of FLAVORS."""
    return tuple(found for found in map(look, FLAVORS) if isinstance(found, Flavor))


@dataclass(frozen=True)
class Absent:
    """Why a flavor cannot be used, and what to do about it."""

    reason: str
    fix: str


def look(name: str) -> Flavor | Absent:
    """The flavor of that name, or why it cannot be imported."""
    present = [module for module in MODULES[name] if importlib.util.find_spec(module) is not None]
    if not present:
        return Absent(f"{NAMES[name]} is not installed (no module {' or '.join(MODULES[name])}).",
                      f"Install it: {FIXES[name]}")
    problems = []
    for module in present:
        try:
            made = _imported(module, LIBRARIES[name])
        except (ImportError, OSError, RuntimeError) as problem:  # what its __init__ and its bindings raise
            problems.append(_absent(name, module, problem))
            continue
        if not hasattr(made, "Builder"):  # a folder of that name, or the package without its bindings
            problems.append(Absent(f"{NAMES[name]} is installed without its bindings: the module {module} has no "
                                   "Builder.", f"Install it again: {FIXES[name]}"))
            continue
        return Flavor(name, made, str(made.__version__), _package(name, module))
    return problems[0]


def _imported(module: str, libraries: str) -> Any:
    """The module; where the loader does not find a library that some wheel brought, it is loaded from there first."""
    tried: set[str] = set()
    while True:
        try:
            return importlib.import_module(module)
        except ImportError as problem:
            missing = MISSING_LIBRARY.search(str(problem))
            if missing is None or missing[1] in tried or len(tried) == MOST_LIBRARIES:
                raise
            tried.add(missing[1])
            if not _preload(missing[1], libraries):
                raise


def _preload(library: str, package: str) -> bool:
    """Whether the library was found in the wheels and is loaded now, for everyone who asks for it by name."""
    for folder in _folders(package):
        path = folder / library
        if path.is_file():
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as problem:
                deeper = MISSING_LIBRARY.search(str(problem))
                if deeper is None or deeper[1] == library or not _preload(deeper[1], package):
                    raise ImportError(str(problem)) from problem
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return True
    return False


def _folders(package: str) -> list[Path]:
    """Where wheels put libraries: TensorRT's own, and NVIDIA's for CUDA (nvidia/cu13/lib, nvidia/cuda_runtime/lib)."""
    roots = [Path(root) for name in (package, "nvidia") if (spec := importlib.util.find_spec(name)) is not None
             for root in spec.submodule_search_locations or ()]
    return [folder for root in roots for folder in (root, *sorted(root.glob("*/lib")))]


def _absent(name: str, module: str, problem: Exception) -> Absent:
    text = (str(problem).strip() or type(problem).__name__).splitlines()[0][:300]
    missing = MISSING_LIBRARY.search(text)
    if missing is None:
        return Absent(f"{NAMES[name]} is installed, but its module {module} cannot be imported: {text}.",
                      f"Install it again for this Python: {FIXES[name]}")
    library = missing[1]
    if library.startswith(("libcuda.", "libnvidia-")):
        fix = "Install NVIDIA's driver; in a container, start it with the GPU (docker run --gpus all)"
    elif library.startswith("libcud"):
        fix = "Install the CUDA runtime: pip install nvidia-cuda-runtime"
    else:
        fix = f"Install its libraries in the version of its bindings: {FIXES[name]}"
    return Absent(f"{NAMES[name]} is installed, but its module {module} does not find {library}.", fix)


def _package(name: str, module: str) -> str:
    import importlib.metadata  # here: it takes its time

    for distribution in DISTRIBUTIONS[name]:
        try:
            return f"{importlib.metadata.distribution(distribution).metadata['Name']}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return module
