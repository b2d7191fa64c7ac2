"""What is known of the machine that measured, as plain JSON values; what cannot be read is None."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from edgetl import rundir
from edgetl.runtime import processor
from edgetl.runtime.session import usable_threads

CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
# The instruction sets that decide which INT8 kernels run.
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
            "asimddp", "i8mm", "bf16", "sve")
VARIABLES = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_MMAP_MAX_",
             "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def fingerprint() -> dict[str, Any]:
    """Machine, versions, and everything of the system's state that is known to move a latency."""
    return {
        **rundir.environment(),
        "kernel": platform.release(),
        "usable_threads": usable_threads(),
        "affinity_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_features": sorted(processor.flags().intersection(FEATURES)) or None,
        "memory_bytes": memory_bytes(),
        "governor": _text(CPUFREQ / "scaling_governor"),
        "frequency_khz": _number(CPUFREQ / "scaling_cur_freq"),
        "frequency_max_khz": _number(CPUFREQ / "cpuinfo_max_freq"),
        "load_average": load_average(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def memory_bytes() -> int | None:
    """Physical memory."""
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", {})):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def load_average() -> float | None:
    """Mean number of runnable processes over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None  # many machines, and most containers, do not tell


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None
