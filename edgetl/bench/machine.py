"""What the machine is, from the files of Linux that tell it; elsewhere, and in what they do not tell, None.

Every function takes the folder that stands for `/`, so that tests read recorded trees.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetl.bench.sysfs import number, text

ROOT = Path("/")
CPUS = Path("sys/devices/system/cpu")
DMI = Path("sys/class/dmi/id")
# What the makers of virtual machines write into the firmware's table, as in systemd's src/basic/virt.c.
VENDORS = {"KVM": "kvm", "KubeVirt": "kvm", "OpenStack": "kvm", "Amazon EC2": "amazon", "QEMU": "qemu",
           "VMware": "vmware", "VMW": "vmware", "innotek GmbH": "oracle", "VirtualBox": "oracle", "Xen": "xen",
           "Bochs": "bochs", "Parallels": "parallels", "BHYVE": "bhyve", "Hyper-V": "microsoft",
           "Virtual Machine": "microsoft", "Apple Virtualization": "apple", "Google Compute Engine": "google",
           "DigitalOcean": "kvm", "Hetzner": "kvm"}


def topology(root: Path = ROOT) -> dict[str, Any]:
    """Sockets, cores, threads a core and which kind of cores; None each where the kernel does not tell."""
    folders = sorted((root / CPUS).glob("cpu[0-9]*/topology"))
    places = [(number(folder / "physical_package_id"), number(folder / "core_id")) for folder in folders]
    if not places or any(core is None for _, core in places):
        return {"sockets": None, "cores": None, "threads_per_core": None, "core_capacities": None}
    capacities = {number(folder.parent / "cpu_capacity") for folder in folders} - {None}
    cores = _cores(folders)
    return {"sockets": len({socket for socket, _ in places}), "cores": cores, "threads_per_core": len(places) / cores,
            # Big and little cores of one processor; x86 and machines of equal cores state one or none.
            "core_capacities": sorted(one for one in capacities if one is not None) if len(capacities) > 1 else None}


def _cores(folders: list[Path]) -> int:
    """Sets of threads that share a core: core_id alone repeats in every cluster of an arm processor."""
    siblings = [text(folder / "thread_siblings_list") or folder.parent.name for folder in folders]
    return len(set(siblings))


def frequency(root: Path = ROOT) -> dict[str, Any]:
    """Governor, driver, limits in kHz and turbo as they are now."""
    first = root / CPUS / "cpu0/cpufreq"
    return {"governor": text(first / "scaling_governor"), "frequency_driver": text(first / "scaling_driver"),
            "frequency_khz": number(first / "scaling_cur_freq"),
            "frequency_max_khz": number(first / "cpuinfo_max_freq"), "turbo": turbo(root)}


def turbo(root: Path = ROOT) -> str | None:
    """Whether the processor may exceed its nominal frequency: "on", "off", or None where nobody says."""
    disabled = number(root / CPUS / "intel_pstate/no_turbo")
    boost = number(root / CPUS / "cpufreq/boost")
    if disabled is None and boost is None:
        return None
    return "on" if disabled == 0 or boost == 1 else "off"


def board(root: Path = ROOT) -> str | None:
    """Maker and name of the machine, from the firmware's table or, on arm boards, the device tree."""
    names = [text(root / DMI / name) for name in ("sys_vendor", "product_name")]
    return " ".join(name for name in names if name) or text(root / "proc/device-tree/model")


def virtualization(flags: frozenset[str], root: Path = ROOT) -> str | None:
    """The hypervisor under this system, "unnamed" where it hides, "none" on bare metal, None where nobody tells.

    Args:
        flags: of the processor, in the words of /proc/cpuinfo.
        root: stands for `/`.
    """
    if (root / "sys/hypervisor").is_dir() and text(root / "sys/hypervisor/type"):
        return text(root / "sys/hypervisor/type")
    told = [text(root / DMI / name) or "" for name in
            ("product_name", "sys_vendor", "board_vendor", "bios_vendor", "product_version")]
    named = next((VENDORS[vendor] for one in told for vendor in VENDORS if one.startswith(vendor)), None)
    tree = text(root / "proc/device-tree/hypervisor/compatible")
    if named or tree:
        return named or (tree or "").split(",")[-1]
    if "hypervisor" in flags:
        return "unnamed"
    # Processors of x86 have a flag for it, boards with a device tree a node; others cannot be told apart.
    bare = "fpu" in flags or text(root / "proc/device-tree/model") is not None
    return "none" if bare else None


def container(root: Path = ROOT, variables: Mapping[str, str] = os.environ) -> str | None:
    """The kind of container that this process runs in; None where there is no sign of one."""
    if "KUBERNETES_SERVICE_HOST" in variables:
        return "kubernetes"
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    if named := text(root / "run/systemd/container"):
        return named
    return "wsl" if "microsoft" in (text(root / "proc/sys/kernel/osrelease") or "").lower() else None


def machine_id(root: Path = ROOT, variables: Mapping[str, str] = os.environ) -> str | None:
    """A number of this installation, made of /etc/machine-id; None in containers, whose file is the image's.

    The keyed digest that machine-id(5) asks for: "this ID uniquely identifies the host. It should be considered
    confidential".
    """
    found = None if container(root, variables) else text(root / "etc/machine-id")
    return None if found is None else hmac.digest(found.encode(), b"edgetl bench", hashlib.sha256).hex()[:16]


def gpus(root: Path = ROOT) -> list[str]:
    """Names of the NVIDIA cards that the kernel's driver tells, without any library."""
    lines = [line for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
             for line in (text(file) or "").splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """What the cgroup of this process allows, where it stands at the root as in a container; None is no limit."""
    limits = [number(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory/memory.limit_in_bytes")]
    # Version 1 writes "no limit" as the largest number of whole pages.
    return next((one for one in limits if one is not None and one < 1 << 60), None)
