"""What the machine of benchmarks/gpu.py is, what is installed on it, and what the backends' contract says there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gpu_plan import DONE, FAILED, NOT_RUN, ROOT, Plan, Rows

from edgetl import plugins, rundir, timing
from edgetl.backends import _tensorrt_flavor
from edgetl.errors import BackendUnavailable

QUERIED = ("name", "driver_version", "compute_cap", "memory.total", "pstate", "clocks.sm", "clocks.max.sm",
           "power.limit", "persistence_mode")
COPIED_BYTES = 64 * 2**20


def versions(plan: Plan, rows: Rows) -> None:
    """Rows of the card, of every library, of every backend, and of how fast memory is copied to the card and back."""
    rows.attempt(nvidia_smi, what="nvidia-smi")
    rows.add(DONE, what="environment", **rundir.environment())
    rows.add(DONE, what="torch", version=torch.__version__, cuda=torch.version.cuda,
             cudnn=torch.backends.cudnn.version() if torch.cuda.is_available() else None,
             devices=[torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())])
    rows.attempt(onnxruntime_providers, what="onnxruntime")
    for flavor in _tensorrt_flavor.FLAVORS:
        rows.attempt(lambda flavor=flavor: tensorrt(flavor), what=_tensorrt_flavor.NAMES[flavor])
    for name in plugins.names("backends"):
        found = plugins.load("backends", name).probe()
        rows.add(DONE if found.usable else NOT_RUN, what=f"backend {name}", version=found.version,
                 device=found.device, reason=found.reason)
    for pinned in (False, True):
        rows.attempt(lambda pinned=pinned: copies(plan, pinned), what="copies", pinned=pinned)


def nvidia_smi() -> dict[str, Any]:
    """What nvidia-smi says of the first card, by its own names and in its units.

    Raises:
        BackendUnavailable: there is no nvidia-smi, or it fails.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise BackendUnavailable("nvidia-smi is not installed: there is no NVIDIA driver here.")
    done = subprocess.run([program, f"--query-gpu={','.join(QUERIED)}", "--format=csv,noheader"], capture_output=True,
                          text=True, timeout=60)
    if done.returncode != 0 or not done.stdout.strip():
        raise BackendUnavailable(f"nvidia-smi failed: {(done.stdout + done.stderr).strip()[:200]}")
    return dict(zip(QUERIED, done.stdout.splitlines()[0].split(", "), strict=False))


def onnxruntime_providers() -> dict[str, Any]:
    """The installed ONNX Runtime and its providers."""
    from edgetl.runtime import telemetry

    telemetry.off()
    import onnxruntime

    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def tensorrt(flavor: str) -> dict[str, Any]:
    """The installed TensorRT of that flavor.

    Raises:
        BackendUnavailable: there is none.
    """
    found = _tensorrt_flavor.find(flavor)
    return {"version": found.version, "package": found.package}


def copies(plan: Plan, pinned: bool) -> dict[str, Any]:
    """Bytes a second of a copy to the card and back; without one, of a copy within the host's memory."""
    if plan.device == "cpu":
        if pinned:
            raise BackendUnavailable("Memory is pinned for a card, and there is none.")
        source, target = np.zeros(COPIED_BYTES, np.uint8), np.empty(COPIED_BYTES, np.uint8)
        return {"host_to_host_bytes_per_s": rate(lambda: np.copyto(target, source))}
    host = torch.zeros(COPIED_BYTES, dtype=torch.uint8, pin_memory=pinned)
    card = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=plan.device)

    def finished(to: torch.Tensor, of: torch.Tensor) -> None:
        to.copy_(of, non_blocking=True)
        torch.cuda.synchronize()

    return {"host_to_device_bytes_per_s": rate(lambda: finished(card, host)),
            "device_to_host_bytes_per_s": rate(lambda: finished(host, card))}


def rate(copy: Any) -> float:
    """Bytes a second of the median of some copies."""
    seconds = timing.block(lambda _: copy(), 20).seconds
    return COPIED_BYTES / float(np.median(seconds))


# ----------------------------------------------------------------------------------------------------------- contract


def contract(plan: Plan, rows: Rows) -> None:
    """A row for every contract class that needs a card: how many tests passed, failed or were skipped, and why."""
    file = plan.folder / "contract.xml"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={file}",
               plan.contract]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if not file.exists():
        rows.add(FAILED, contract="pytest", reason=" ".join((done.stdout + done.stderr).split())[-400:])
        return
    found = list(classes(ElementTree.parse(file).getroot()))
    for row in found:
        rows.add(row.pop("status"), **row)
    if not found:
        rows.add(NOT_RUN, contract="none", reason="No contract test is marked gpu.")


def classes(root: ElementTree.Element) -> Iterator[dict[str, Any]]:
    """A row for every test class (or module, for tests outside of one) of pytest's JUnit file."""
    by_class: dict[str, list[ElementTree.Element]] = defaultdict(list)
    for test in root.iter("testcase"):
        by_class[test.get("classname", "").split(".")[-1]].append(test)
    for name, tests in by_class.items():
        bad = [test for test in tests if test.find("failure") is not None or test.find("error") is not None]
        skipped = [found for test in tests if (found := test.find("skipped")) is not None]
        status = FAILED if bad else NOT_RUN if len(skipped) == len(tests) else DONE
        told = {found.get("message", "").removeprefix(f"{name}: ") for found in skipped}
        wrong = {problem.get("message", "").splitlines()[0][:200] for test in bad for problem in test
                 if problem.tag in ("failure", "error")}
        yield {"status": status, "contract": name, "passed": len(tests) - len(bad) - len(skipped),
               "failed": len(bad), "skipped": len(skipped), "failures": sorted(test.get("name", "") for test in bad),
               "reason": " ".join(sorted(told | wrong)) or None}
