"""Engine files that are built ahead of time, for the card of this machine or for others, by `edgetl engine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetl.backends import _cuda, _tensorrt_flavor, _tensorrt_timing
from edgetl.backends._tensorrt_build import How, build, check
from edgetl.backends._tensorrt_flavor import AUTO, Flavor
from edgetl.backends._tensorrt_sidecar import Place, fingerprint, write_engine
from edgetl.errors import BackendUnavailable
from edgetl.runtime import durable
from edgetl.runtime.external import refuse_external_data
from edgetl.runtime.session import GraphSpec

NAME_CARDS = "name the cards, for which TensorRT for RTX builds without one: --compute-capability 8.9"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ahead:
    """An engine that lies in a file."""

    flavor: str
    title: str  # "TensorRT for RTX 1.7"
    version: str
    package: str
    compute_capabilities: tuple[str, ...]
    device: str | None  # name of the card that it was built on and for; None where cards were named
    driver: str | None
    precisions: Mapping[str, float]  # shares of the compute layers, the greatest first
    size_bytes: int
    sha256: str
    build_s: float
    timing_cache: str  # "none" of this flavor | "new" | "reused" | "refused" | "not kept": of the file that was named
    notes: tuple[str, ...]


def build_ahead(graph: bytes, spec: GraphSpec, out: Path, *, flavor: str = AUTO, how: How | None = None,
                timing_cache: Path | None = None, progress: Progress | None = None) -> Ahead:
    """The engine of a graph, written to `out` with its sidecar, each whole or not at all.

    Args:
        graph: in ONNX, with its weights inside.
        spec: its inputs and outputs.
        out: FILE.engine; its folder is made.
        flavor: "tensorrt", "rtx", or "auto": TensorRT for RTX where cards are named, else whichever is installed.
        how: for which cards, and under which limits.
        timing_cache: a file to begin from and to add to; it need not be there.
        progress: hears of the phases of the build.

    Raises:
        BundleError, BackendUnavailable, GateFailed, EdgetlError: see `edgetl.backends._tensorrt_build.build`.
        OutputError: a file cannot be written; DiskFull where there is no room.
    """
    how = how or How()
    check(how)
    refuse_external_data(graph)
    chosen = _tensorrt_flavor.find("rtx" if flavor == AUTO and how.compute_capabilities else flavor)
    place = _place(how)
    cache = _tensorrt_timing.CacheFile(timing_cache, chosen) if timing_cache is not None else None
    begun_from = cache.before if cache is not None else None
    engine = build(graph, spec, chosen, how, timing_cache=begun_from, progress=progress)
    durable.make_folder(out.parent)
    sidecar = write_engine(out, engine, fingerprint(graph, spec, chosen, how, place))
    if cache is not None:
        cache.keep(engine.timing_cache)
    return Ahead(chosen.name, chosen.title, chosen.version, chosen.package, place.compute_capabilities, place.device,
                 place.driver, dict(engine.precisions), len(engine.plan), sidecar.plan_sha256, engine.build_s,
                 _told(chosen, cache, engine.notes), engine.notes)


def _place(how: How) -> Place:
    """The cards that were named, or the one that is here."""
    if how.compute_capabilities:
        return Place.ahead(how.compute_capabilities)
    try:
        card = _cuda.find().card()
    except BackendUnavailable as problem:
        raise BackendUnavailable(f"There is no card here to build for: {problem.message}", hint=f"{problem.hint} Or "
                                 f"{NAME_CARDS}") from problem
    return Place((card.compute_capability,), card.driver_version, card.name)


def _told(flavor: Flavor, cache: _tensorrt_timing.CacheFile | None, notes: tuple[str, ...]) -> str:
    if not _tensorrt_timing.kept_by(flavor):
        return "none"
    if cache is None:
        return "not kept"
    if not cache.before:
        return "new"
    return "refused" if any(_tensorrt_timing.COMPLAINT in note for note in notes) else "reused"
