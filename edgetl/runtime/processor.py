"""What this processor can do, as far as the answers of a graph depend on it."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# What a variant may require -> the flags of /proc/cpuinfo of which one must be there. x86 without VNNI adds pairs of
# u8 * s8 products in 16 bits and saturates silently, which costs 1 to 11 points of accuracy.
FEATURES = {
    "avx2": ("avx2",),
    "avx512f": ("avx512f",),
    "avx512_vnni": ("avx512_vnni",),
    "avx_vnni": ("avx_vnni",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "avx512_bf16": ("avx512_bf16",),
    "amx_int8": ("amx_int8",),
    "amx_bf16": ("amx_bf16",),
    "neon": ("neon", "asimd"),
    "asimddp": ("asimddp",),
    "i8mm": ("i8mm",),
}


def flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Flags of the first processor in /proc/cpuinfo ("flags" on x86, "Features" on arm); none without that file."""
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text(errors="replace").splitlines():
        key, _, values = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(values.split())
    return frozenset()


def missing(requires: tuple[str, ...], cpuinfo: Path = CPUINFO) -> tuple[str, ...]:
    """The requirements that this processor does not meet, or cannot be shown to meet."""
    have = flags(cpuinfo)
    return tuple(one for one in requires if not have.intersection(FEATURES[one]))
