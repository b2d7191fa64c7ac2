"""The place on a device where its bundle is exchanged: at any moment, whatever happens, a whole one is there.

    slot = edgetl.runtime.Slot("/var/lib/app/model")
    slot.swap("download/new.edgetl")     # copied in, checked with the golden images, and only then the current one
    classifier = slot.load()

    ROOT/current          SHA-256 of the current bundle's manifest, and on the next line of the one before it
    ROOT/<sha256>/        the bundles, as `edgetl export` wrote them
    ROOT/.lock            held by whoever changes anything; who loads needs no lock and no right to write
    ROOT/.incoming/       a bundle that is being copied or checked; left behind by a kill, removed by the next swap

`current` is replaced in one step, and everything that it names is on the disk before (see `edgetl.runtime.durable`).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgetl.errors import BundleError, EdgetlError
from edgetl.runtime import durable
from edgetl.runtime.bundle import Bundle, PublicKey, open_bundle, read_limited
from edgetl.runtime.choice import AUTO
from edgetl.runtime.classifier import Classifier, load
from edgetl.runtime.limits import MANIFEST_BYTES
from edgetl.runtime.manifest import MANIFEST
from edgetl.runtime.storage import Folder, open_regular
from edgetl.runtime.verifying import verify

CURRENT, LOCK, INCOMING, OUTGOING = "current", ".lock", ".incoming", ".outgoing"
DIGEST = re.compile("[0-9a-f]{64}")
CURRENT_BYTES = 1 << 10
KEPT = 2  # the current bundle, and the one to go back to
LOCK_POLL_S = 0.05
SWAP_FIRST = "Put a bundle in with Slot.swap()."


class Slot:
    """A folder that holds the current bundle of a device and the one before it.

    Any number of processes may load from it, swap and roll back at once; those that change it wait for one another.
    """

    def __init__(self, root: str | os.PathLike[str], *, public_key: PublicKey = None) -> None:
        """A slot in `root`, which is made by the first swap.

        Args:
            root: the folder.
            public_key: every bundle must be signed by it, as `edgetl.runtime.load` takes it.
        """
        self.root = Path(root)
        self._public_key = public_key

    def current(self) -> Path | None:
        """Folder of the current bundle; None before the first swap.

        Raises:
            BundleError: the file `current` is damaged.
        """
        history = self._history()
        return self.root / history[0] if history else None

    def load(self, **options: Any) -> Classifier:
        """The classifier of the current bundle.

        Args:
            options: `backend`, `variant`, `threads` and whatever else `edgetl.runtime.load` takes.

        Raises:
            BundleError: there is none yet, or it is damaged; and what `edgetl.runtime.load` raises.
        """
        while True:
            with self._watched() as changed:
                folder = self.current()
                if folder is None:
                    raise BundleError(f"{self.root} holds no bundle yet.", hint=SWAP_FIRST)
                try:
                    _check_name(folder)
                    return load(folder, public_key=self._public_key, **options)
                except BundleError:
                    # Two swaps while this one was loading take its files away, and a third may have brought it back.
                    if not changed():
                        raise

    def swap(self, bundle: str | os.PathLike[str], *, backend: str = AUTO, threads: int = 0,
             wait_s: float = 60.0) -> Path:
        """Makes a bundle the current one, once its copy in the slot has answered as training did; returns its folder.

        Where it is refused, or the process ends on the way, the current bundle stays what it was. A bundle that is
        already there is checked too, and files of it that were damaged are replaced.

        Args:
            bundle: the folder or packed file; it is no longer needed afterwards.
            backend: what the golden images are checked on, as `edgetl.runtime.verify` takes it.
            threads: 0 takes what the machine allows.
            wait_s: how long to wait for another process that is changing the slot, in seconds.

        Raises:
            BundleError: the bundle is incomplete or altered, has no golden images, or is not signed as it should be.
            GateFailed: it answers otherwise than in training.
            BackendUnavailable: none of its variants can run here.
            OutputError: the slot cannot be written; DiskFull where there is no room.
            EdgetlError: another process has been changing the slot for longer than `wait_s`.
        """
        source = open_bundle(bundle, self._public_key)
        durable.make_folder(self.root)
        with self._locked(wait_s):
            history = self._history_or_folders()
            self._sweep(history)
            folder = self.root / source.digest
            place = folder if folder.is_dir() else self.root / INCOMING
            try:
                _fill(place, source)
                verify(place, backend=backend, threads=threads, public_key=self._public_key)
            except EdgetlError:
                self._sweep(history)
                raise
            if place != folder:
                durable.rename(place, folder)
            self._point([source.digest, *(one for one in history if one != source.digest)])
        return folder

    def rollback(self, *, wait_s: float = 60.0) -> Path:
        """Makes the bundle before the current one current again, and removes the latter; returns the folder.

        Raises:
            BundleError: there is none before, or it is damaged.
            EdgetlError: another process has been changing the slot for longer than `wait_s`.
        """
        with self._locked(wait_s):
            history = self._history()
            if len(history) < 2:
                raise BundleError(f"{self.root} holds no bundle to go back to.", hint=SWAP_FIRST)
            folder = self.root / history[1]
            _check_name(folder)
            for _ in open_bundle(folder, self._public_key).parts():
                pass  # every file is read and compared
            self._point(history[1:])
        return folder

    @contextmanager
    def _watched(self) -> Iterator[Callable[[], bool]]:
        """Tells whether anything was swapped in since: while the file `current` is open, no other has its number."""
        path = self.root / CURRENT
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # there is none, or it cannot be read, which current() says
            yield lambda: True
            return
        try:
            yield lambda: not os.path.samestat(os.fstat(handle), path.stat())
        finally:
            os.close(handle)

    def _history(self) -> list[str]:
        """Digests of the current bundle and of those before it."""
        path = self.root / CURRENT
        if not path.exists():
            return []
        with open_regular(path, str(path), hint=SWAP_FIRST) as (opened, _):
            lines = opened.read(CURRENT_BYTES).decode(errors="replace").split("\n")
        if len(lines) < 2 or lines.pop() or not all(map(DIGEST.fullmatch, lines)):
            raise BundleError(f"{path} is damaged; expected a SHA-256 a line.", hint=SWAP_FIRST)
        return lines

    def _history_or_folders(self) -> list[str]:
        """The history; where it is damaged, the bundles that are there, so that a swap mends it and loses none."""
        try:
            return self._history()
        except BundleError:
            return [folder.name for folder in self._folders()]

    def _folders(self) -> list[Path]:
        """The bundles that are there, the latest first."""
        found = [one for one in self.root.iterdir() if DIGEST.fullmatch(one.name)]
        return sorted(found, key=lambda one: (-one.stat().st_mtime, one.name))

    def _point(self, history: list[str]) -> None:
        """The one step that decides which bundle is current; those that are no longer named go."""
        kept = history[:KEPT]
        durable.write(self.root / CURRENT, "".join(f"{digest}\n" for digest in kept).encode())
        self._sweep(kept)

    def _sweep(self, history: list[str]) -> None:
        """Removes what no history names, once it is sure that the disk has that history."""
        durable.settle(self.root)
        outgoing = self.root / OUTGOING
        for leftover in (self.root / INCOMING, outgoing):
            if leftover.is_dir():
                durable.remove(leftover)
        for folder in self._folders():
            if folder.name not in history:
                durable.rename(folder, outgoing)  # so that a folder with a digest for a name is always whole
                durable.remove(outgoing)

    @contextmanager
    def _locked(self, wait_s: float) -> Iterator[None]:
        """Keeps others from changing the slot; the lock ends with the process, however that ends."""
        import fcntl

        until = time.monotonic() + wait_s
        with (self.root / LOCK).open("a") as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as problem:
                    if time.monotonic() >= until:
                        raise EdgetlError(f"Another process has been changing {self.root} for {wait_s:g} s.",
                                          hint="Try again when it has finished.") from problem
                    time.sleep(LOCK_POLL_S)
            yield


def _check_name(folder: Path) -> None:
    """Raises BundleError where a bundle's manifest is not the one that its folder is named after."""
    found = hashlib.sha256(read_limited(Folder(str(folder)), MANIFEST, MANIFEST_BYTES)).hexdigest()
    if found != folder.name:
        raise BundleError(f"{folder / MANIFEST} was altered: its SHA-256 is not the folder's name.",
                          hint="Swap in the same bundle again to mend it, or go back with Slot.rollback().")


def _fill(folder: Path, source: Bundle) -> None:
    """Copies into a folder what is not yet there; each file that is there is whole."""
    durable.make_folder(folder)
    there = Folder(str(folder))
    for file, data in source.parts():
        try:
            same = there.read(file, len(data)) == data
        except BundleError:
            same = False  # missing or damaged: that is what is mended here
        if not same:
            durable.make_folder((folder / file).parent)
            durable.write(folder / file, data)
