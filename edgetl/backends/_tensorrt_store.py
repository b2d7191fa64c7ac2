"""Engines that were built on this machine, kept so that the next start need not build them again.

    FOLDER/KEY.engine        a plan; KEY stands for its fingerprint
    FOLDER/KEY.engine.json   its sidecar, see `edgetl.backends._tensorrt_sidecar`
    FOLDER/KEY.kernels       what TensorRT for RTX compiled when the engine was opened
    FOLDER/timing-*.cache    what a builder learned about kernels, by flavor, version, compute capability and card
    FOLDER/.lock             held by whoever builds or writes; who reads needs neither the lock nor a right to write

One process builds at a time: a builder times kernels on the card, and two would disturb one another. The others wait,
and read what it made. The lock ends with the process that holds it, however that ends. Where the folder cannot be used
(full, read-only, no place for it), engines are built and used, not kept, and `Stored.note` says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgetl.backends._tensorrt_sidecar import (
    HINT,
    Fingerprint,
    Place,
    Read,
    Sidecar,
    difference,
    fingerprint,
    key_of,
    read_engine,
    read_plan,
    read_sidecar,
    sidecar_of,
    sidecar_path,
    write_engine,
)
from edgetl.errors import BundleError, EdgetlError, OutputError
from edgetl.runtime import durable
from edgetl.runtime.storage import open_regular, read_at_most
from edgetl.runtime.tuned import cache_root

if TYPE_CHECKING:
    from edgetl.backends._tensorrt_build import Engine

FOLDER = "engines"  # of the cache
LIMIT_BYTES = 4 << 30  # a ResNet-50 takes 50 MB, a ViT-L 600 MB
KERNELS = ".kernels"
LOCK = ".lock"
LOCK_POLL_S = 0.05
PROOF_PATIENCE_S = 2.0  # a proof that is not recorded is given again at the next start
PATIENCE_S = 3600.0  # the largest networks take half an hour to build
LEARNED_BYTES = 256 << 20  # of a timing cache, or of compiled kernels; thousands of layers take a few MB
DIGEST = 65  # characters before them: SHA-256 and the end of the line
OURS = re.compile(r"(?:([0-9a-f]{32})\.(?:engine|engine\.json|kernels)|(timing-[\w.-]+)\.cache)")


@dataclass(frozen=True)
class Stored:
    """An engine, from the store or built just now."""

    plan: bytes
    built: bool  # by this call
    sidecar: Sidecar
    why: str = ""  # why it was built: a clause
    note: str = ""  # why it was not kept: a clause; empty where it was
    notes: tuple[str, ...] = ()  # what the builder said, a sentence each


class _Group(NamedTuple):
    """Files that stay or go together."""

    used_ns: int
    size_bytes: int
    paths: tuple[Path, ...]


class EngineStore:
    """A bounded folder of engines that any number of processes may use at once."""

    def __init__(self, folder: Path | None, limit_bytes: int = LIMIT_BYTES, *, patience_s: float = PATIENCE_S) -> None:
        """A store in `folder`, which is made when the first engine is kept.

        Args:
            folder: None is the cache of this user; see `edgetl.runtime.tuned.cache_root`.
            limit_bytes: of all files; the least recently used engines go first.
            patience_s: how long to wait for another process that is building, in seconds.
        """
        self._nowhere = ""
        self.limit_bytes = limit_bytes
        self._patience_s = patience_s
        try:
            self.folder = cache_root() / FOLDER if folder is None else folder
        except EdgetlError as problem:  # a user without a home
            self.folder = Path(os.devnull)
            self._nowhere = f"{problem.message.rstrip('.')} ({problem.hint})"

    def get(self, wanted: Fingerprint, make: Callable[[], Engine]) -> Stored:
        """The engine of a fingerprint: what is kept, where nothing about it differs, else what `make` builds now.

        Args:
            wanted: of `fingerprint`.
            make: builds the engine; called at most once, and by one process at a time where the folder can be locked.

        Raises:
            Exception: what `make` raises; then nothing is kept.
        """
        found = self._look(wanted)
        if found.plan is not None and found.sidecar is not None:
            return Stored(found.plan, False, found.sidecar)
        with contextlib.ExitStack() as stack:
            note = self._nowhere or self._entered(stack)
            found = self._look(wanted)  # another process may have built it while this one waited
            if found.plan is not None and found.sidecar is not None:
                return Stored(found.plan, False, found.sidecar)
            engine = make()
            sidecar = sidecar_of(engine, wanted)
            note = note or self._keep(engine, sidecar)
            lost = "" if note else self._keep_timing(engine, sidecar)
        notes = (*engine.notes, *([f"The timing cache is not kept: {lost}."] if lost else []))
        return Stored(engine.plan, True, sidecar, found.reason, note, notes)

    def discard(self, wanted: Fingerprint) -> str:
        """Removes an engine; returns why it could not be removed, as a clause, empty where it is gone.

        It needs no lock: a plan without a sidecar is none, and who reads has read both.
        """
        if self._nowhere:
            return ""
        try:
            self._remove(wanted)
        except OSError as problem:
            return _clause(problem)
        return ""

    def prove(self, wanted: Fingerprint, sidecar: Sidecar, proof: str) -> str:
        """Records that an engine was shown to be right; returns why that could not be recorded, empty where it was.

        Args:
            wanted: its fingerprint. For an engine that lies elsewhere this store keeps the sidecar alone.
            sidecar: what was read or made of it; where another one has taken its place, nothing is recorded.
            proof: what was shown.
        """
        plan = self._plan(wanted)
        path = sidecar_path(plan)
        if self._nowhere:
            return self._nowhere
        try:
            with self._locked(PROOF_PATIENCE_S):
                now = self._current(path, dataclasses.replace(sidecar, fingerprint=wanted))
                if now is None:
                    return "another engine has taken its place"
                data = now.proven(proof).encoded()
                self._make_room(len(data), {path}, {plan})
                durable.write(path, data)
        except (EdgetlError, OSError) as problem:
            return _clause(problem)
        return ""

    def proofs(self, wanted: Fingerprint, plan_sha256: str) -> tuple[str, ...]:
        """What was recorded of an engine, whose plan may lie elsewhere; nothing where another plan is meant."""
        try:
            sidecar = read_sidecar(sidecar_path(self._plan(wanted)))
        except BundleError:  # nothing is recorded, or nothing that can be read: then it is to be shown again
            return ()
        same = sidecar.plan_sha256 == plan_sha256 and not difference(sidecar.fingerprint, wanted)
        return sidecar.proofs if same else ()

    def timing_cache(self, wanted: Fingerprint) -> bytes | None:
        """What builders of this flavor, version, compute capability and card have learned; None where nothing is."""
        return _learned(self._timing(wanted))

    def kernels(self, wanted: Fingerprint) -> bytes | None:
        """What `keep_kernels` was given for an engine last; None where there is nothing."""
        return _learned(self._plan(wanted).with_suffix(KERNELS))

    def keep_kernels(self, wanted: Fingerprint, compiled: bytes) -> str:
        """Keeps what was compiled for an engine, with which it goes again; returns why not, empty where it does.

        It is only kept where something is known of the engine: where that was kept itself, or a proof of it.
        """
        plan = self._plan(wanted)
        if self._nowhere or not os.path.lexists(sidecar_path(plan)):
            return self._nowhere or "its engine is not kept"
        try:
            with self._locked(PROOF_PATIENCE_S):
                return self._learn(plan.with_suffix(KERNELS), compiled, {plan, sidecar_path(plan)})
        except (EdgetlError, OSError) as problem:
            return _clause(problem)

    # ------------------------------------------------------------------------------------------------- reading

    def _plan(self, wanted: Fingerprint) -> Path:
        return self.folder / f"{key_of(wanted)}.engine"

    def _timing(self, wanted: Fingerprint) -> Path:
        words = [wanted["flavor"], wanted["version"], *wanted["compute_capabilities"], wanted["device"] or "no-card"]
        return self.folder / f"timing-{re.sub(r'[^0-9A-Za-z.]+', '_', '-'.join(words))}.cache"

    def _look(self, wanted: Fingerprint) -> Read:
        """What is kept of a fingerprint, or why there is nothing to be used."""
        plan = self._plan(wanted)
        if self._nowhere or (not os.path.lexists(plan) and not os.path.lexists(sidecar_path(plan))):
            return Read(None, None, "it was not built here yet")
        try:
            for path in (plan, sidecar_path(plan)):
                _insist_on_owner(path)
            sidecar = read_sidecar(sidecar_path(plan))
            reason = difference(sidecar.fingerprint, wanted)
            if reason:
                return Read(None, sidecar, reason)
            found = Read(read_plan(plan, sidecar), sidecar)
        except BundleError as problem:
            return Read(None, None, problem.message.rstrip("."))
        with contextlib.suppress(OSError):  # a folder that may only be read: its engines serve all the same
            os.utime(sidecar_path(plan))
        return found

    def _current(self, path: Path, sidecar: Sidecar) -> Sidecar | None:
        """What stands in a sidecar now, with what others have proven meanwhile; None where it is another engine's."""
        try:
            now = read_sidecar(path)
        except BundleError:  # it is about to be replaced
            return sidecar
        if difference(now.fingerprint, sidecar.fingerprint):  # it is damaged
            return sidecar
        return now if now.plan_sha256 == sidecar.plan_sha256 else None

    # ------------------------------------------------------------------------------------------------- writing

    def _keep(self, engine: Engine, sidecar: Sidecar) -> str:
        """Writes an engine and what its builder learned; returns why it is not kept. The lock is held."""
        plan = self._plan(sidecar.fingerprint)
        written = [sidecar.encoded(), engine.plan]
        size = sum(map(len, written))
        if size > self.limit_bytes:
            return f"it has {size} bytes, and {self.folder} is limited to {self.limit_bytes}"
        try:
            self._sweep()
            self._make_room(size, {plan, sidecar_path(plan)})
            # The plan first: killed between the two, it has no sidecar, or an old one with another SHA-256.
            durable.write(plan, engine.plan)
            durable.write(sidecar_path(plan), sidecar.encoded())
        except (OutputError, OSError) as problem:
            return self._undone(sidecar.fingerprint, problem)
        return ""

    def _keep_timing(self, engine: Engine, sidecar: Sidecar) -> str:
        """Writes what the builder learned of kernels; returns why it is not kept. The lock is held."""
        if engine.timing_cache is None:
            return ""
        plan = self._plan(sidecar.fingerprint)
        return self._learn(self._timing(sidecar.fingerprint), engine.timing_cache, {plan, sidecar_path(plan)})

    def _learn(self, path: Path, learned: bytes, beside: set[Path]) -> str:
        """Writes what was learned where it fits beside an engine; returns why it does not. The lock is held."""
        size = len(learned) + DIGEST
        room = min(LEARNED_BYTES, self.limit_bytes - sum(one.stat().st_size for one in beside if one.is_file()))
        if size > room:
            return f"it has {size} bytes, and {self.folder} has room for {room}"
        try:
            self._make_room(size, {path}, beside)
            durable.write(path, _digest_line(learned) + learned)
        except (OutputError, OSError) as problem:
            with contextlib.suppress(OSError):  # the sentence says already what is the matter with the folder
                self._sweep()
            return _clause(problem)
        return ""

    def _undone(self, wanted: Fingerprint, problem: Exception) -> str:
        """Removes what was written of an engine before the folder refused; returns why it did."""
        with contextlib.suppress(OSError):  # the sentence says already what is the matter with the folder
            self._sweep()
            self._remove(wanted)
        return _clause(problem)

    def _remove(self, wanted: Fingerprint) -> None:
        plan = self._plan(wanted)
        for path in (sidecar_path(plan), plan, plan.with_suffix(KERNELS)):
            path.unlink(missing_ok=True)

    def _make_room(self, size_bytes: int, replaced: Collection[Path], kept: Collection[Path] = ()) -> None:
        """Removes what was least recently used until `size_bytes` more fit. The lock is held.

        Args:
            size_bytes: of what is about to be written.
            replaced: files in whose place it is written; they no longer count.
            kept: files that stay, however long ago they were used.
        """
        groups = self._groups()
        total = sum(path.stat().st_size for one in groups for path in one.paths if path not in replaced)
        for one in sorted(groups):
            if total + size_bytes <= self.limit_bytes:
                return
            if not {*replaced, *kept}.isdisjoint(one.paths):
                continue
            for path in sorted(one.paths, reverse=True):  # the sidecar before its plan
                path.unlink(missing_ok=True)
            total -= one.size_bytes

    def _groups(self) -> list[_Group]:
        """What the folder holds, of ours."""
        found: dict[str, list[Path]] = {}
        for path in self.folder.iterdir():
            if (named := OURS.fullmatch(path.name)) is not None and path.is_file():
                found.setdefault(named[1] or named[2], []).append(path)
        stats = {name: [path.stat() for path in paths] for name, paths in found.items()}
        return [_Group(max(one.st_mtime_ns for one in stats[name]), sum(one.st_size for one in stats[name]),
                       tuple(paths)) for name, paths in found.items()]

    def _sweep(self) -> None:
        """Removes what a writer left unfinished. The lock is held, so nobody is writing."""
        for path in self.folder.iterdir():
            name = path.name.removeprefix(".").removesuffix(durable.UNFINISHED)
            if path.name == f".{name}{durable.UNFINISHED}" and OURS.fullmatch(name):
                path.unlink(missing_ok=True)

    def _entered(self, stack: contextlib.ExitStack) -> str:
        """Takes the lock until the stack ends; returns why it cannot be had."""
        try:
            stack.enter_context(self._locked(self._patience_s))
        except (EdgetlError, OSError) as problem:
            return _clause(problem)
        return ""

    @contextlib.contextmanager
    def _locked(self, patience_s: float) -> Iterator[None]:
        """Keeps others from building and writing; the lock ends with the process."""
        import fcntl

        durable.make_folder(self.folder)
        until = time.monotonic() + patience_s
        handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while not _taken(fcntl, handle):
                if time.monotonic() >= until:
                    raise EdgetlError(f"another process has been building in {self.folder} for {patience_s:g} s")
                time.sleep(LOCK_POLL_S)
            try:
                yield
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)  # a child that was forked meanwhile has the handle, too
        finally:
            os.close(handle)


def _taken(fcntl: Any, handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _insist_on_owner(path: Path) -> None:
    """Refuses what another user wrote: a plan holds code that runs on the card, and its SHA-256 is no signature."""
    try:
        owner = path.stat().st_uid
    except OSError as problem:
        raise BundleError(f"{path} cannot be read: {problem.strerror}.", hint=HINT) from problem
    if owner not in (os.geteuid(), 0):
        raise BundleError(f"{path} belongs to the user {owner}; expected {os.geteuid()} or root.", hint=HINT)


def _clause(problem: Exception) -> str:
    if isinstance(problem, EdgetlError):
        return problem.message.rstrip(".")
    if isinstance(problem, OSError):
        return f"{problem.filename or 'the cache'} cannot be used: {problem.strerror or problem}"
    return str(problem)


def _learned(path: Path) -> bytes | None:
    """What stands behind its own SHA-256 in a file."""
    most = LEARNED_BYTES + DIGEST
    try:
        _insist_on_owner(path)
        with open_regular(path, str(path)) as (opened, size):
            data = read_at_most(opened, most, min(size, most), str(path))
    except BundleError:  # nothing was learned yet, or it cannot be read: it is only a help
        return None
    return data[DIGEST:] if data[:DIGEST] == _digest_line(data[DIGEST:]) else None


def _digest_line(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode() + b"\n"


__all__ = ["EngineStore", "Place", "Read", "Sidecar", "Stored", "fingerprint", "read_engine", "write_engine"]
