"""How the C library hands out memory: by glibc's defaults every large tensor is a fresh mapping full of page faults."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any

# From glibc's malloc.h; the numbers are part of its binary interface.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
WANTED = {"M_MMAP_MAX": (M_MMAP_MAX, 0), "M_TRIM_THRESHOLD": (M_TRIM_THRESHOLD, 2**31 - 1)}


def set_allocator() -> Mapping[str, Any]:
    """A record of what was set: {"allocator": "glibc 2.36", "set": {...}, "reason": why not, or None}.

    Keeps freed memory in the process instead of returning it to the kernel after each large buffer. To be called
    before the first tensor; a second call changes nothing. The record goes into every run and report, because the
    setting moves PyTorch on a CPU by a factor of up to three, and peers deserve the same.
    """
    name = _allocator()
    if not name.startswith("glibc"):
        return {"allocator": name, "set": {}, "reason": f"the settings are glibc's, and this process uses {name}"}
    # CDLL(None) is the process itself, so it is the very malloc that the tensors will use.
    mallopt = ctypes.CDLL(None).mallopt
    done = {key: value for key, (number, value) in WANTED.items() if mallopt(number, value) == 1}
    refused = [key for key in WANTED if key not in done]
    return {"allocator": name, "set": done, "reason": f"glibc refused {', '.join(refused)}" if refused else None}


def _allocator() -> str:
    """Name and version of the allocator that serves this process."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    for other in ("jemalloc", "tcmalloc", "mimalloc"):
        if other in preloaded:
            return other
    return _glibc() or f"the allocator of {sys.platform}"


def _glibc() -> str | None:
    """`glibc 2.36`, or None where the C library is another (musl, macOS, Windows)."""
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return None
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return None  # the system knows the name and not the value: not glibc
