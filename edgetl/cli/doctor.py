"""`edgetl doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.cli.options import Json
from edgetl.errors import EdgetlError

if TYPE_CHECKING:
    from edgetl.runtime.nvidia import Found
    from edgetl.runtime.tuned import Entry
    from edgetl.targets import Target

EXAMPLE = "edgetl doctor --json"

GIB = 2**30
LITTLE_SPACE_BYTES = 5 * GIB
FAST = ("int8", "bf16", "fp16")


def doctor(as_json: Json = False) -> None:
    """Say what works on this machine and what to do."""
    from edgetl.cli import present

    found = examine()
    if as_json:
        present.document(found)
    else:
        _show(found)
    if found["errors"]:
        raise EdgetlError(" ".join(found["errors"]), hint=" ".join(one["fix"] for one in found["findings"]
                                                                   if one["error"]))


def _show(found: dict[str, Any]) -> None:
    from edgetl.cli import present

    machine, cpu = found["environment"], found["processor"]
    fast = ", ".join(f"{precision} by {feature}" for precision, feature in found["fast"].items())
    present.pairs({"python": machine["python"], "platform": machine["platform"],
                   "processor": f"{cpu['model']} ({cpu['architecture']})",
                   "processors": f"{found['threads']} of {machine['cpus']} usable",
                   "features": f"{', '.join(found['features']) or 'none known'} (told by {cpu['source']})",
                   "fast": fast or "none known", "NVIDIA": _cards(found["nvidia"]),
                   "Jetson": found["jetson"], "allocator": found["allocator"]["allocator"],
                   "free disk": f"{found['disk_free_bytes'] / GIB:.1f} GiB", "cache": _cached(found["cache"])})
    print()
    present.table(("package", "version"), sorted(machine["versions"].items()))
    print()
    present.table(("backend", "usable", "version", "device or reason"),
                  [(name, "yes" if one["usable"] else "no", one["version"] or "-", one["device"] or one["reason"] or "")
                   for name, one in found["backends"].items()], wrap=True)
    print()
    present.table(("variant", "runs here", "because"),
                  [(one["variant"], "yes" if one["runs"] else "no", one["because"]) for one in found["variants"]],
                  wrap=True)
    if found["tuned"]:
        print()
        present.table(("tuned bundle", "when", "runs", "state"),
                      [(one["bundle"], one["tuned_at"], one["runs"], one["state"]) for one in found["tuned"]],
                      wrap=True)
    if found["advice"]:
        print()
    for advice in found["advice"]:
        present.item(advice)


def _cards(found: dict[str, Any]) -> str:
    """Driver and cards in one line."""
    driver = found["driver"]
    if driver is None:
        return f"none: {found['reason']}"
    named = f"driver {driver['version'] or '(its version is not told)'}, CUDA {driver['cuda'][0]}.{driver['cuda'][1]}"
    cards = ", ".join(f"{one['name']} ({one['compute_capability']}, {one['total_bytes'] / GIB:.0f} GiB)"
                      for one in found["cards"])
    return f"{named}: {cards or found['reason']}"


def _cached(found: dict[str, Any]) -> str:
    """Where the cache is, and what is in it, in one line."""
    if found["folder"] is None:
        return f"none: {found['reason']}"
    sizes = [f"{name} {size / 1e9:.2f} GB" + (f" of {found['limits'][name] / 1e9:g}" if name in found["limits"] else "")
             for name, size in found["bytes"].items()]
    return f"{found['folder']}: {', '.join(sizes) or 'empty'}"


def examine() -> dict[str, Any]:
    """What the machine has and what should be done about it, as plain JSON."""
    import dataclasses
    import shutil

    from edgetl import diagnosis, rundir
    from edgetl.allocator import set_allocator
    from edgetl.runtime import processor
    from edgetl.runtime.session import usable_threads

    backends = _backends()
    environment = rundir.environment()
    facts = diagnosis.look(environment["versions"])
    findings = diagnosis.findings(facts)
    free = shutil.disk_usage(Path.cwd()).free
    features = list(processor.features())
    cpu = processor.read()._asdict()
    del cpu["flags"]  # a hundred words, of which `features` are those that matter
    advice = diagnosis.advice(facts, backends)
    if free < LITTLE_SPACE_BYTES:
        advice.append(f"Only {free / GIB:.1f} GiB of disk are free here; training may need more.")
    return {"environment": environment, "processor": cpu, "threads": usable_threads(), "features": features,
            "fast": {one: feature for one in FAST if (feature := processor.accelerates(one)) is not None},
            "nvidia": _plain(facts.cards), "jetson": facts.jetson,
            "allocator": dict(set_allocator()), "disk_free_bytes": free, "cache": _cache(), "backends": backends,
            "variants": _variants(backends), "tuned": _tuned(backends),
            "findings": [dataclasses.asdict(one) for one in findings],
            "errors": [one.text for one in findings if one.error], "advice": advice}


def _cache() -> dict[str, Any]:
    """The folder of the cache, the bytes of each part of it, and the limits of those that have one."""
    from edgetl import plugins
    from edgetl.runtime.tuned import cache_root
    from edgetl.train import image_room, shelf

    engines = plugins.load("backends", "tensorrt")
    try:
        root = cache_root()
        limits = {image_room.FOLDER: image_room.limit_bytes(), "softlabels": shelf.SOFT_LABELS_BYTES,
                  engines.FOLDER: engines.LIMIT_BYTES}
    except EdgetlError as problem:
        return {"folder": None, "reason": problem.message}
    parts = sorted(one for one in root.iterdir() if one.is_dir()) if root.is_dir() else []
    return {"folder": str(root), "bytes": {one.name: shelf.size_below(one) for one in parts}, "limits": limits}


def _plain(cards: Found) -> dict[str, Any]:
    return {**cards._asdict(), "driver": cards.driver and cards.driver._asdict(),
            "cards": [one._asdict() for one in cards.cards]}


def _backends() -> dict[str, dict[str, Any]]:
    import dataclasses

    from edgetl import plugins

    return {name: dataclasses.asdict(plugins.load("backends", name).probe()) for name in plugins.names("backends")}


def _variants(backends: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The variants that a bundle can have, whether this machine may run them, and why."""
    from edgetl import plugins

    found = []
    for name in plugins.names("targets"):
        target = plugins.load("targets", name).TARGET
        for precision in target.precisions:
            objection, because = _because(target, precision, backends)
            found.append({"variant": f"{target.name}.{precision}", "runs": objection is None,
                          "because": objection or because})
    return found


def _because(target: Target, precision: str, backends: dict[str, dict[str, Any]]) -> tuple[str | None, str]:
    """Why a variant does not run here, or None, and why it does."""
    from edgetl import diagnosis
    from edgetl.runtime import processor

    needs = target.requires.get(precision, ())
    if lacking := processor.missing(needs):
        return f"this processor has no {', '.join(lacking)}", ""
    if not any(backends[name]["usable"] for name in target.backends if name in backends):
        return f"{' and '.join(target.backends)} cannot run here", ""
    because = f"this processor has {', '.join(needs)}" if needs else "it needs no feature"
    fast = None if set(target.backends) <= set(diagnosis.ON_CARDS) else processor.accelerates(precision)
    return None, because + (f", and {fast} makes {precision} fast" if fast and fast not in needs else "")


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
