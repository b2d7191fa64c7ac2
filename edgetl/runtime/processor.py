"""What this processor is and can do, as far as the answers of a graph and the choice among variants depend on it.

Linux tells it in /proc/cpuinfo and macOS on arm through sysctl; elsewhere, and where /proc/cpuinfo describes another
processor than the one that this process sees (emulation), numpy's own detection is asked, which knows fewer features.
What nobody tells is not there: a variant that requires it is refused.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterable
from typing import NamedTuple

from edgetl.runtime.storage import read_text

CPUINFO = "/proc/cpuinfo"
BOARD = "/proc/device-tree/model"
MOST_CHARACTERS = 1 << 16  # of /proc/cpuinfo: machines with hundreds of processors repeat themselves for megabytes

# What a variant may require -> the flags of /proc/cpuinfo of which one must be there. x86 without VNNI adds pairs of
# u8 * s8 products in 16 bits and saturates silently, which costs 1 to 11 points of accuracy.
FEATURES = {
    "avx2": ("avx2",),
    "avx512f": ("avx512f",),
    "avx512_vnni": ("avx512_vnni",),
    "avx_vnni": ("avx_vnni",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "avx512_bf16": ("avx512_bf16",),
    "avx512_fp16": ("avx512_fp16",),
    "amx_int8": ("amx_int8",),
    "amx_bf16": ("amx_bf16",),
    "neon": ("neon", "asimd"),
    "asimdhp": ("asimdhp",),
    "asimddp": ("asimddp",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "sve": ("sve",),
    "bf16_arithmetic": ("amx_bf16", "avx512_bf16", "bf16"),
    "fp16_arithmetic": ("avx512_fp16", "asimdhp"),
}

# Architecture and precision -> the features of which one makes arithmetic in that precision faster than in fp32.
ARITHMETIC = {
    ("x86", "int8"): ("vnni", "amx_int8"),
    ("x86", "bf16"): ("amx_bf16", "avx512_bf16"),
    ("x86", "fp16"): ("avx512_fp16",),
    ("arm", "int8"): ("i8mm", "dotprod"),
    ("arm", "bf16"): ("bf16",),
    ("arm", "fp16"): ("asimdhp",),
}

# How numpy and Apple call those flags. Apple: "Determining instruction set characteristics", developer.apple.com.
NUMPY_NAMES = {"AVX2": "avx2", "AVX512F": "avx512f", "AVX512VNNI": "avx512_vnni", "AVX512BF16": "avx512_bf16",
               "AVX512FP16": "avx512_fp16", "NEON": "neon", "ASIMD": "asimd", "ASIMDHP": "asimdhp",
               "ASIMDDP": "asimddp", "SVE": "sve"}
APPLE_NAMES = {"FEAT_FP16": "asimdhp", "FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16"}


class Processor(NamedTuple):
    """What is known of the processor that this process runs on."""

    architecture: str  # "x86" | "arm" | what the system calls another one
    model: str
    flags: frozenset[str]  # in the words of /proc/cpuinfo
    source: str  # who told the flags: "/proc/cpuinfo" | "sysctl" | "numpy" | "unknown"


def architecture(machine: str) -> str:
    """The architecture that a machine's name (`os.uname().machine`, a target's first word) stands for."""
    name = machine.lower()
    if name in ("x86", "x86_64", "amd64", "i386", "i586", "i686"):
        return "x86"
    return "arm" if name.startswith(("arm", "aarch64")) else name


@functools.cache
def read(cpuinfo: str = CPUINFO, machine: str | None = None) -> Processor:
    """The processor; what was read is kept for the life of the process.

    Args:
        cpuinfo: the file that Linux tells it in.
        machine: the architecture that this process runs as; None asks the system.
    """
    here = architecture(machine or _machine())
    told = _parse(_lines(cpuinfo))
    if told.get("architecture") == here:
        return Processor(here, _model(told, here), frozenset(told["flags"].split()), cpuinfo)
    if here == "arm" and sys.platform == "darwin":
        return _apple()
    flags = _numpy_flags()
    return Processor(here, _named(here), flags, "numpy" if flags else "unknown")


def flags(cpuinfo: str = CPUINFO) -> frozenset[str]:
    """Flags of the processor in the words of /proc/cpuinfo ("flags" on x86, "Features" on arm)."""
    return read(cpuinfo).flags


def missing(requires: tuple[str, ...], cpuinfo: str = CPUINFO) -> tuple[str, ...]:
    """The requirements that this processor does not meet, or cannot be shown to meet."""
    have = flags(cpuinfo)
    return tuple(one for one in requires if not have.intersection(FEATURES[one]))


def features() -> tuple[str, ...]:
    """The names in `FEATURES` that this processor has."""
    return tuple(name for name in FEATURES if not missing((name,)))


def accelerates(precision: str) -> str | None:
    """The feature by which this processor computes faster in that precision than in fp32; None where it has none."""
    wanted = ARITHMETIC.get((read().architecture, precision), ())
    return next((name for name in wanted if not missing((name,))), None)


def _machine() -> str:
    if hasattr(os, "uname"):
        return os.uname().machine
    return os.environ.get("PROCESSOR_ARCHITECTURE", "unknown")  # Windows: AMD64 or ARM64, what the process runs as


def _lines(cpuinfo: str) -> Iterable[str]:
    """Lines of the file up to `MOST_CHARACTERS`, read as they are asked for; none where it cannot be read."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            left = MOST_CHARACTERS
            while left > 0 and (line := file.readline(left)):
                left -= len(line)
                yield line
    except OSError:
        return  # no Linux, or a sandbox without /proc


def _parse(lines: Iterable[str]) -> dict[str, str]:
    """What /proc/cpuinfo says: architecture, flags, name and, on arm, the kinds of cores."""
    found: dict[str, str] = {}
    cores: list[str] = []
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if not key and found.get("architecture") == "x86":
            break  # the other processors say the same, and the name is in the first one's part
        if key in ("flags", "Features") and "flags" not in found:
            found |= {"architecture": "x86" if key == "flags" else "arm", "flags": value}
        elif key in ("model name", "Model"):
            found.setdefault(key, value)
        elif key == "CPU implementer":
            cores.append(value)
        elif key == "CPU part" and cores:
            cores[-1] = f"{cores[-1].split()[0]} part {value}"
    return found | ({"cores": ", ".join(sorted(set(cores)))} if cores else {})


def _model(told: dict[str, str], here: str) -> str:
    """A name that tells this processor from another; arm boards state one beside their cores, or not at all."""
    if here == "x86":
        return told.get("model name") or _named(here)
    board = told.get("Model") or _text(BOARD)
    cores = f"implementer {told['cores']}" if "cores" in told else told.get("model name")
    return ", ".join(filter(None, (board, cores))) or _named(here)


def _named(here: str) -> str:
    import platform

    return platform.processor() or here


def _text(path: str) -> str | None:
    try:
        return read_text(path).strip(" \0\n") or None
    except OSError:
        return None  # servers and PCs have no device tree


def _numpy_flags() -> frozenset[str]:
    """What numpy found out for its own use, from the processor itself; nothing where this numpy does not tell."""
    for home in ("numpy._core", "numpy.core"):  # numpy 2, numpy 1
        try:
            found = importlib.import_module(f"{home}._multiarray_umath").__cpu_features__
        except (ImportError, AttributeError):
            continue
        return frozenset(NUMPY_NAMES[name] for name, there in found.items() if there and name in NUMPY_NAMES)
    return frozenset()


def _apple() -> Processor:
    told = {flag for name, flag in APPLE_NAMES.items() if any(_sysctl(f"hw.optional.arm.{name}") or b"")}
    name = (_sysctl("machdep.cpu.brand_string") or b"").decode(errors="replace").rstrip("\0")
    return Processor("arm", name or _named("arm"), frozenset(told | {"asimd"}), "sysctl")


def _sysctl(name: str) -> bytes | None:
    """The value of that name; None where this system has none."""
    import ctypes

    buffer, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else buffer.raw[:size.value]
