"""What is known of the machine that measured, as plain JSON values; what cannot be read is None."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetl import rundir
from edgetl.bench import machine, sysfs
from edgetl.runtime import processor
from edgetl.runtime.session import cgroup_quota, usable_threads

# The instruction sets that decide which INT8 kernels run.
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
            "asimddp", "i8mm", "bf16", "sve")
VARIABLES = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_MMAP_MAX_",
             "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")

# Fields of `fingerprint()` that say which machine it is: `differences` holds two reports against each other by them.
IDENTIFYING = (
    "machine_id",  # the installation, where it is known: two boards of one model are two machines
    "machine", "board", "cpu", "cpu_features",  # the hardware
    "cpus", "sockets", "cores", "threads_per_core", "memory_bytes", "gpus",
    "virtualization", "usable_threads",  # and the share of it that the process gets
)
# Fields that may differ from run to run of one machine and move its latencies: a reader wants to be told.
CONDITIONS = ("kernel", "governor", "frequency_driver", "frequency_max_khz", "turbo", "container", "affinity",
              "cgroup_cpus", "memory_limit_bytes", "variables", "allocator", "gpu_driver", "python", "versions")
MEMORY_TOLERANCE = 0.02  # kernels keep some of it back, not always the same


def fingerprint(root: Path = machine.ROOT) -> dict[str, Any]:
    """Machine, versions, and everything of the system's state that is known to move a latency.

    Args:
        root: stands for `/` wherever a file of the system is read.
    """
    flags = processor.flags()
    return {
        **rundir.environment(),
        "board": machine.board(root),
        "machine_id": machine.machine_id(root),
        **machine.topology(root),
        "usable_threads": usable_threads(),
        "affinity_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "affinity": affinity(),
        "cgroup_cpus": cgroup_quota(),
        "cpu_features": sorted(flags.intersection(FEATURES)) or None,
        "memory_bytes": memory_bytes(),
        "memory_limit_bytes": machine.memory_limit_bytes(root),
        "gpus": machine.gpus(root),
        "gpu_driver": sysfs.text(root / "sys/module/nvidia/version"),
        "virtualization": machine.virtualization(flags, root),
        "container": machine.container(root),
        "kernel": platform.release(),
        **machine.frequency(root),
        "load_average": load_average(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def differences(base: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """The identifying fields in which two fingerprints differ; none means that one machine measured both.

    A field that one of them does not tell, because it could not be read or an older edgetl wrote it, decides nothing.
    """
    return tuple(name for name in IDENTIFYING if not _alike(name, base.get(name), new.get(name)))


def changed_conditions(base: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """The conditions that both fingerprints tell and that differ: governor, kernel, versions and the like.

    Here None tells something: no quota, no container.
    """
    return tuple(name for name in CONDITIONS if name in base and name in new and base[name] != new[name])


def _alike(name: str, base: Any, new: Any) -> bool:
    if base is None or new is None:
        return True
    if name == "memory_bytes":
        return bool(abs(base - new) <= MEMORY_TOLERANCE * max(base, new))
    return bool(base == new)


def affinity() -> str | None:
    """The processors that this process may run on, e.g. `0-3,8`."""
    return sysfs.ranges(list(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def memory_bytes() -> int | None:
    """Physical memory."""
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", {})):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def load_average() -> float | None:
    """Mean number of runnable processes over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
