"""`edgetl doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.cli.options import Json
from edgetl.errors import EdgetlError

if TYPE_CHECKING:
    from edgetl.runtime.tuned import Entry

EXAMPLE = "edgetl doctor --json"

GIB = 2**30
LITTLE_SPACE_BYTES = 5 * GIB
BOTH_RUNTIMES = "onnxruntime and onnxruntime-gpu are both installed, and each overwrites files of the other."
ONE_RUNTIME = "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want."


def doctor(as_json: Json = False) -> None:
    """Say what works on this machine and what to do."""
    from edgetl.cli import present

    found = examine()
    if as_json:
        present.document(found)
    else:
        _show(found)
    if found["errors"]:
        raise EdgetlError(" ".join(found["errors"]), hint=ONE_RUNTIME)


def _show(found: dict[str, Any]) -> None:
    from edgetl.cli import present

    machine, cpu = found["environment"], found["processor"]
    present.pairs({"python": machine["python"], "platform": machine["platform"],
                   "processor": f"{cpu['model']} ({cpu['architecture']})",
                   "processors": f"{found['threads']} of {machine['cpus']} usable",
                   "features": f"{', '.join(found['features']) or 'none known'} (told by {cpu['source']})",
                   "allocator": found["allocator"]["allocator"],
                   "free disk": f"{found['disk_free_bytes'] / GIB:.1f} GiB"})
    print()
    present.table(("package", "version"), sorted(machine["versions"].items()))
    print()
    present.table(("backend", "usable", "version", "device or reason"),
                  [(name, "yes" if one["usable"] else "no", one["version"] or "-", one["device"] or one["reason"] or "")
                   for name, one in found["backends"].items()])
    print()
    present.table(("variant", "runs here", "because"),
                  [(one["variant"], "yes" if one["runs"] else "no", one["because"]) for one in found["variants"]])
    if found["tuned"]:
        print()
        present.table(("tuned bundle", "when", "runs", "state"),
                      [(one["bundle"], one["tuned_at"], one["runs"], one["state"]) for one in found["tuned"]])
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
    features = list(processor.features())
    cpu = processor.read()._asdict()
    del cpu["flags"]  # a hundred words, of which `features` are those that matter
    return {"environment": environment, "processor": cpu, "threads": usable_threads(), "features": features,
            "allocator": dict(set_allocator()), "disk_free_bytes": free, "backends": backends,
            "variants": _variants(), "tuned": _tuned(backends), "errors": _errors(environment["versions"]),
            "advice": _advice(environment, backends, features, free)}


def _backends() -> dict[str, dict[str, Any]]:
    import dataclasses

    from edgetl import plugins

    return {name: dataclasses.asdict(plugins.load("backends", name).probe()) for name in plugins.names("backends")}


def _variants() -> list[dict[str, Any]]:
    """The variants that a bundle can have, whether this processor may run them, and why."""
    from edgetl import plugins
    from edgetl.runtime import processor

    found = []
    for name in plugins.names("targets"):
        target = plugins.load("targets", name).TARGET
        for precision in target.precisions:
            needs = target.requires.get(precision, ())
            lacking, fast = processor.missing(needs), processor.accelerates(precision)
            because = f"this processor has no {', '.join(lacking)}" if lacking else "it needs no feature"
            if needs and not lacking:
                because = f"this processor has {', '.join(needs)}"
            if not lacking and fast and fast not in needs:
                because += f", and {fast} makes {precision} fast"
            found.append({"variant": f"{target.name}.{precision}", "runs": not lacking, "because": because})
    return found


def _tuned(backends: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What `edgetl tune` has left in the cache, and whether it counts."""
    from edgetl.runtime import tuned

    try:
        files = tuned.files()
    except EdgetlError:
        return []  # no home, no cache; `edgetl tune` says so
    found = []
    for path in files:
        row = {"path": str(path), "bundle": path.name, "tuned_at": "-", "runs": "-"}
        try:
            entry = tuned.read(path)
        except EdgetlError as problem:
            found.append({**row, "state": f"passed by: {problem.message}"})
            continue
        best = entry.answer("auto", "auto")
        runs = f"{best.variant} on {best.backend}, {best.threads} threads" if best else "-"
        found.append({**row, "bundle": entry.bundle, "tuned_at": entry.tuned_at, "runs": runs,
                      "state": _state(entry, backends)})
    return found


def _state(entry: Entry, backends: dict[str, dict[str, Any]]) -> str:
    """Whether an entry counts here; unlike at load, every backend's version is looked at."""
    from edgetl.runtime import tuned

    if entry.machine != tuned.machine():
        return f"of another machine: {entry.machine.model}, {entry.machine.usable_threads} threads"
    changed = [f"{name} was {version} and is {backends[name]['version']}" for name, version in entry.versions.items()
               if name in backends and backends[name]["version"] != version]
    return f"{'; '.join(changed)}; tune again" if changed else "counts"


def _errors(versions: dict[str, str]) -> list[str]:
    return [BOTH_RUNTIMES] if {"onnxruntime", "onnxruntime-gpu"} <= set(versions) else []


def _advice(environment: dict[str, Any], backends: dict[str, dict[str, Any]], features: list[str],
            free_bytes: int) -> list[str]:
    advice = [f"backend {name}: {one['fix']}" for name, one in backends.items() if not one["usable"] and one["fix"]]
    if environment["machine"] in ("x86_64", "AMD64") and "vnni" not in features:
        advice.append("This processor has no VNNI: INT8 made for x86-vnni would lose accuracy; the runtime refuses it.")
    if free_bytes < LITTLE_SPACE_BYTES:
        advice.append(f"Only {free_bytes / GIB:.1f} GiB of disk are free here; training may need more.")
    return advice
