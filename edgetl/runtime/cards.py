"""Whether this machine may have a card, found out in microseconds. Whether it can be used, a backend's probe says.

To import what a probe needs takes longer than to open a graph on the processor, so a machine without any such file is
not asked.
"""

from __future__ import annotations

import os
import sys

# What NVIDIA's kernel drivers make: those of PCs and servers, of Jetson, and of Windows' Linux (which is any maker's).
DEVICES = ("/dev/nvidiactl", "/dev/nvgpu", "/dev/nvhost-gpu", "/dev/nvhost-ctrl-gpu", "/dev/dxg")
LIBRARY = "nvcuda.dll"  # Windows has no such files; its driver puts this beside the system's libraries


def nvidia() -> bool:
    """Whether the driver of an NVIDIA card seems to be there."""
    if sys.platform == "win32":
        return os.path.exists(os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", LIBRARY))
    return any(os.path.exists(device) for device in DEVICES)
