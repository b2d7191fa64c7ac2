"""`edgetl doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetl.cli.options import Json

EXAMPLE = "edgetl doctor --json"

GIB = 2**30
LITTLE_SPACE_BYTES = 5 * GIB


def doctor(as_json: Json = False) -> None:
    """Say what works on this machine and what to do."""
    from edgetl.cli import present

    found = examine()
    if as_json:
        present.document(found)
        return
    machine = found["environment"]
    present.pairs({"python": machine["python"], "platform": machine["platform"], "processor": machine["cpu"],
                   "processors": f"{found['threads']} of {machine['cpus']} usable",
                   "int8 features": ", ".join(found["features"]) or "none known",
                   "allocator": found["allocator"]["allocator"],
                   "free disk": f"{found['disk_free_bytes'] / GIB:.1f} GiB"})
    print()
    present.table(("package", "version"), sorted(machine["versions"].items()))
    print()
    present.table(("backend", "usable", "version", "device or reason"),
                  [(name, "yes" if one["usable"] else "no", one["version"] or "-", one["device"] or one["reason"] or "")
                   for name, one in found["backends"].items()])
    if found["advice"]:
        print()
    for advice in found["advice"]:
        print(f"- {advice}")


def examine() -> dict[str, Any]:
    """What the machine has and what should be done about it, as plain JSON."""
    import shutil

    from edgetl import rundir
    from edgetl.allocator import set_allocator
    from edgetl.runtime import processor
    from edgetl.runtime.session import usable_threads

    backends = _backends()
    environment = rundir.environment()
    free = shutil.disk_usage(Path.cwd()).free
    features = [name for name in processor.FEATURES if not processor.missing((name,))]
    return {"environment": environment, "threads": usable_threads(), "features": features,
            "allocator": dict(set_allocator()), "disk_free_bytes": free, "backends": backends,
            "advice": _advice(environment, backends, features, free)}


def _backends() -> dict[str, dict[str, Any]]:
    import dataclasses

    from edgetl import plugins

    return {name: dataclasses.asdict(plugins.load("backends", name).probe()) for name in plugins.names("backends")}


def _advice(environment: dict[str, Any], backends: dict[str, dict[str, Any]], features: list[str],
            free_bytes: int) -> list[str]:
    advice = [f"backend {name}: {one['fix']}" for name, one in backends.items() if not one["usable"] and one["fix"]]
    versions = environment["versions"]
    if "onnxruntime" in versions and "onnxruntime-gpu" in versions:
        advice.append("onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
                      "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want.")
    if environment["machine"] in ("x86_64", "AMD64") and "vnni" not in features:
        advice.append("This processor has no VNNI: INT8 made for x86-vnni would lose accuracy; the runtime refuses it.")
    if free_bytes < LITTLE_SPACE_BYTES:
        advice.append(f"Only {free_bytes / GIB:.1f} GiB of disk are free here; training may need more.")
    return advice
