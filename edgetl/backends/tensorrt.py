"""TensorRT, or TensorRT for RTX, on an NVIDIA card.

Options:
    flavor: "auto" (default), "tensorrt" or "rtx": which of the two; "auto" takes TensorRT where it is installed.
    engine: a file that `edgetl engine` built ahead of time. Where it is not for this graph, card, driver and version,
        an engine is built from the graph instead, and `info()["engine"]` says why.
    cuda_graph: "on" (default) or "off": whether a call is launched as a whole where its batch comes again.
    batches: LEAST,BEST,GREATEST, or one number for all three; 1,1,32 by default. Colons do as well as commas.
    workspace_mib: the most memory that a layer may use while it computes; all of the card's by default.
    optimization_level: 0 (built soon) to 5 (searched long); TensorRT's own is 3.
    version_compatible: "off" (default) or "on": whether later versions of the same major number may open the engine.
    hardware_compatible: "none" (default), "ampere-plus" or "same-compute-capability": which other cards may.
    cache_mib: the most that all engines of the cache take, 4096 by default.

An engine is built from the graph when it is opened for the first time, which takes seconds to half an hour, and is
kept in `cache_dir`, else in the cache of this user (`edgetl.backends._tensorrt_store`). It belongs to one version of
TensorRT, card and driver; whatever differs or is damaged means that it is built again. What the engine of a bundle has
to show before it is believed stands in `edgetl.runtime.proving`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgetl.backends import Availability, _cuda, _tensorrt_flavor, _tensorrt_precision
from edgetl.backends._tensorrt_ahead import build_ahead as build_ahead  # for `edgetl engine`
from edgetl.backends._tensorrt_build import COMPATIBLE, Engine, How, build, check, known_cards
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.backends._tensorrt_store import FOLDER as FOLDER
from edgetl.backends._tensorrt_store import LIMIT_BYTES as LIMIT_BYTES
from edgetl.backends._tensorrt_store import (
    EngineStore,
    Place,
    Sidecar,
    Stored,
    fingerprint,
    read_engine,
)
from edgetl.errors import BackendUnavailable, BundleError, EdgetlError
from edgetl.runtime.external import refuse_external_data
from edgetl.runtime.session import GraphSpec, Session, check_options

if TYPE_CHECKING:
    from edgetl.backends._tensorrt_session import TensorrtSession
    from edgetl.runtime.layers import ProfiledSession

SWITCH = ("on", "off")
OPTIONS: dict[str, tuple[str, ...]] = {
    "flavor": (_tensorrt_flavor.AUTO, *_tensorrt_flavor.FLAVORS), "engine": (), "cuda_graph": SWITCH, "batches": (),
    "workspace_mib": (), "optimization_level": ("0", "1", "2", "3", "4", "5"), "version_compatible": SWITCH,
    "hardware_compatible": COMPATIBLE, "cache_mib": ()}
# The options that are flags of a build, and their names in `How`.
FLAGS = {"batches": "batches", "workspace_mib": "workspace_bytes", "optimization_level": "optimization_level",
         "version_compatible": "version_compatible", "hardware_compatible": "hardware_compatible"}
COMPUTES_ON_THREADS = False
MIB = 1 << 20
# A session of a plan, from its sidecar and the fingerprint that the store knows it by.
Opens = Callable[[bytes, Sidecar, Mapping[str, Any]], "TensorrtSession"]
NO_BUNDLE = "it was opened without the golden images of a bundle"


def probe() -> Availability:
    """Whether a TensorRT, a driver and a card that it knows are here; looked for once a process."""
    return _probed()


@functools.cache
def _probed() -> Availability:
    version = None
    try:
        # Where nothing is installed, nothing is imported; and without a driver no CUDA library is.
        flavor = _tensorrt_flavor.find()
        version = flavor.version
        card = _cuda.find().card()
        _insist_on(flavor, card)
    except BackendUnavailable as problem:
        return Availability(usable=False, version=version, reason=problem.message, fix=problem.hint)
    return Availability(usable=True, version=version, device=f"{card.name} ({flavor.title})")


def _insist_on(flavor: Flavor, card: _cuda.Card) -> None:
    """Refuses a card that the flavor has no kernels for.

    Raises:
        BackendUnavailable: names the cards that it knows.
    """
    known = known_cards(flavor)
    if known and card.compute_capability not in known:
        raise BackendUnavailable(f"{flavor.title} runs on cards of compute capability {', '.join(known)}; {card.name} "
                                 f"has {card.compute_capability}.",
                                 hint=f"Use TensorRT itself: {_tensorrt_flavor.FIXES['tensorrt']}")


def open(graph: bytes, spec: GraphSpec, *, threads: int, cache_dir: Path | None, options: Mapping[str, str]) -> Session:
    """A session of an engine that was built for this very machine, or is built now.

    Args:
        graph: an ONNX graph.
        spec: its inputs and outputs.
        threads: what `info()` tells; the processor's threads do not compute.
        cache_dir: where engines are kept; None is the cache of this user.
        options: see the module.

    Raises:
        BundleError: the graph is damaged, has other inputs or outputs than `spec`, or cannot be parsed.
        BackendUnavailable: no driver, no card, no TensorRT for it, or no memory.
        GateFailed: the precision of `spec` is not the engine's.
        EdgetlError: an option is unknown, or its value.
    """
    return _open(graph, spec, threads, cache_dir, options)


def open_profiled(graph: bytes, spec: GraphSpec, *, threads: int, options: Mapping[str, str]) -> ProfiledSession:
    """The session of `open` with TensorRT's profiler on, without CUDA graphs, in which layers cannot be told apart.

    Raises:
        BundleError, BackendUnavailable, GateFailed, EdgetlError: see `open`.
    """
    return _open(graph, spec, threads, None, {**options, "cuda_graph": "off"}).profiled()


def _open(graph: bytes, spec: GraphSpec, threads: int, cache_dir: Path | None,
          options: Mapping[str, str]) -> EngineSession:
    check_options("tensorrt", options, OPTIONS)
    how = how_of(options)
    store = EngineStore(cache_dir, _whole(options, "cache_mib", LIMIT_BYTES // MIB) * MIB)
    refuse_external_data(graph)
    flavor = _tensorrt_flavor.find(options.get("flavor", _tensorrt_flavor.AUTO))
    cuda = _cuda.find()
    card = cuda.card()
    _insist_on(flavor, card)
    place = Place((card.compute_capability,), card.driver_version, card.name)
    wanted = fingerprint(graph, spec, flavor, how, place)

    def opened(plan: bytes, sidecar: Sidecar, known: Mapping[str, Any]) -> TensorrtSession:
        from edgetl.backends._tensorrt_session import TensorrtSession

        _tensorrt_precision.insist(spec.precision, sidecar.precisions, "the engine")
        return TensorrtSession(plan, flavor, cuda, spec, threads=threads, facts={}, kernels=store.kernels(known),
                               cuda_graph=options.get("cuda_graph", "on") == "on",
                               host_code=known["flags"].get("version_compatible") is True)

    def built() -> Engine:
        return build(graph, spec, flavor, how, timing_cache=store.timing_cache(wanted))

    passed_by = ""
    if "engine" in options:
        from_file = _from_file(options, wanted, store, opened)
        if isinstance(from_file, EngineSession):
            return from_file
        passed_by = from_file
    return _from_store(wanted, store, built, opened, passed_by)


def how_of(options: Mapping[str, str]) -> How:
    """The flags of a build from the options of a session.

    Raises:
        EdgetlError: a value cannot be read, or is outside its limits.
    """
    given: dict[str, Any] = {}
    if "batches" in options:
        given["batches"] = _batches(options["batches"])
    if "workspace_mib" in options:
        given["workspace_bytes"] = _whole(options, "workspace_mib", 0) * MIB
    if "optimization_level" in options:
        given["optimization_level"] = int(options["optimization_level"])
    how = How(**given, version_compatible=options.get("version_compatible") == "on",
              hardware_compatible=options.get("hardware_compatible", COMPATIBLE[0]))
    check(how)
    return how


def _batches(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"\d{1,6}([:,]\d{1,6}[:,]\d{1,6})?", text, re.ASCII):
        raise EdgetlError(f"Option 'batches' of the backend 'tensorrt' is '{text}'; expected LEAST,BEST,GREATEST, e.g. "
                          "1,8,32, or one number.")
    numbers = [int(part) for part in re.split("[:,]", text)]
    return (numbers[0], numbers[len(numbers) // 2], numbers[-1])


def _whole(options: Mapping[str, str], name: str, default: int) -> int:
    text = options.get(name, str(default))
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise EdgetlError(f"Option '{name}' of the backend 'tensorrt' is '{text}'; expected a whole number of MiB.")
    return int(text)


def _from_file(options: Mapping[str, str], wanted: Mapping[str, Any], store: EngineStore,
               opened: Opens) -> EngineSession | str:
    """A session of the engine that the user named, or why it does not serve here, as a clause."""
    path = options["engine"]
    found = read_engine(path, wanted, [FLAGS[name] for name in FLAGS if name in options])
    if found.plan is None or found.sidecar is None:
        return found.reason
    # What is shown of it is kept apart from the engine that this machine would build by itself.
    known = {**wanted, "flags": found.sidecar.fingerprint["flags"], "file_sha256": found.sidecar.plan_sha256}
    try:
        session = opened(found.plan, found.sidecar, known)
    except BundleError as problem:  # it looks right, and TensorRT does not take it
        return problem.message.rstrip(".")
    proofs = store.proofs(known, found.sidecar.plan_sha256)
    return EngineSession(session, Source(store, known, found.sidecar, proofs, {"file": path, "built": False}))


def _from_store(wanted: Mapping[str, Any], store: EngineStore, built: Callable[[], Engine], opened: Opens,
                passed_by: str) -> EngineSession:
    """A session of the engine that is kept, else of one that is built now."""
    stored = store.get(wanted, built)
    refused = ""
    if not stored.built:
        try:
            return EngineSession(opened(stored.plan, stored.sidecar, wanted),
                                 _source(store, stored, wanted, passed_by, ""))
        except BundleError as problem:
            # Its bytes are those that were written, and TensorRT does not take them: once more, from the graph.
            refused = problem.message.rstrip(".")
            store.discard(wanted)
            stored = store.get(wanted, built)
    try:
        return EngineSession(opened(stored.plan, stored.sidecar, wanted),
                             _source(store, stored, wanted, passed_by, refused))
    except BundleError as problem:
        store.discard(wanted)
        raise BackendUnavailable(f"An engine was built here just now, and cannot be opened: {problem.message}",
                                 hint="Check that TensorRT's bindings and libraries are of one version "
                                      "(edgetl doctor).") from problem


def _source(store: EngineStore, stored: Stored, wanted: Mapping[str, Any], passed_by: str, refused: str) -> Source:
    facts: dict[str, Any] = {"built": stored.built, "kept": not stored.note}
    facts |= {"why_built": refused or stored.why} if stored.built else {}
    facts |= {"why_not_kept": stored.note} if stored.note else {}
    facts |= {"file_passed_by": passed_by} if passed_by else {}
    facts |= {"notes": list(stored.notes)} if stored.notes else {}
    return Source(store, wanted, stored.sidecar, stored.sidecar.proofs, facts)


@dataclass(frozen=True)
class Source:
    """Where an engine comes from, and what is known of it."""

    store: EngineStore
    fingerprint: Mapping[str, Any]  # under which the store knows it
    sidecar: Sidecar
    proofs: tuple[str, ...]
    facts: Mapping[str, Any]  # for `info()["engine"]`


class EngineSession:
    """A session whose engine has to answer the golden images of its bundle once; see `edgetl.runtime.proving`."""

    def __init__(self, session: TensorrtSession, source: Source) -> None:
        self._session, self._source = session, source
        self._proofs, self._unproven = source.proofs, NO_BUNDLE
        self._facts = {**source.facts, "build_s": source.sidecar.build_s, "built_at": source.sidecar.built_at,
                       "size_bytes": source.sidecar.plan_size_bytes, "sha256": source.sidecar.plan_sha256}
        # Bound here, so that a call costs no more than without this class.
        self.run: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]] = session.run
        self.device_s = session.device_s
        self.profiled = session.profiled
        self._kernels = source.store.kernels(source.fingerprint)

    def info(self) -> Mapping[str, Any]:
        """What the engine's session tells; where the engine comes from; and what was shown of it."""
        unproven = {} if self._proofs else {"unproven": self._unproven}
        return {**self._session.info(), "engine": self._facts, "proofs": list(self._proofs), **unproven}

    def prove(self, proof: str) -> None:
        """Notes that the engine was shown to be right, also for the next start where that can be recorded."""
        self._proofs = (*self._proofs, proof)
        if self._facts.get("kept", True):  # else it is built again at the next start, and shown again
            note = self._source.store.prove(self._source.fingerprint, self._source.sidecar, proof)
            self._facts |= {"why_shown_again": note} if note else {}
        self._keep_kernels()

    def close(self) -> None:
        """Releases the session; a second call does nothing."""
        try:
            self._keep_kernels()
        finally:
            self._session.close()

    def _keep_kernels(self) -> None:
        """Leaves to the next start what was compiled in this one; where it cannot be kept, that compiles it again."""
        kernels = self._session.kernels()
        if kernels and kernels != self._kernels:
            self._source.store.keep_kernels(self._source.fingerprint, kernels)
            self._kernels = kernels

    def leave_unproven(self, why: str) -> None:
        """Notes why the engine was not shown to be right."""
        self._unproven = why

    def disprove(self) -> str:
        """Closes the session and removes the engine from the cache; returns what became of it, as a clause."""
        self._session.close()
        if "file" in self._source.facts:
            return f"{self._source.facts['file']} is not used"
        problem = self._source.store.discard(self._source.fingerprint)
        return f"it could not be removed: {problem}" if problem else "it is removed from the cache"
