"""Opens a bundle, a folder or one packed file: a file is read once, and the very bytes that were checked are used.

A bundle may come from anybody. Nothing in it is believed before it was compared with the manifest, and with a public
key configured the manifest's own bytes must be signed by it; see `edgetl.runtime.signature`.
"""

from __future__ import annotations

import _thread
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from edgetl.errors import BundleError
from edgetl.runtime.limits import COMPANION_BYTES, KEY_BYTES, MANIFEST_BYTES
from edgetl.runtime.manifest import MANIFEST, Manifest, from_json
from edgetl.runtime.storage import COPY_AGAIN, Folder, Store

if TYPE_CHECKING:
    from pathlib import Path

    from edgetl.runtime import signature

EXPORTED = "Give the folder that `edgetl export` wrote, or the file that `edgetl pack` made of it."
RUN = "run.json"  # what a RUN folder has in place of a manifest
COMPANIONS = ("README.md", "recipe.toml")  # for people; the runtime reads neither

SIGNATURE = "manifest.json.minisig"  # beside the manifest, where the bundle is signed
VARIABLE = "EDGETL_PUBLIC_KEY"  # of the environment: a public key, or the path of its file
PublicKey = str | os.PathLike[str] | Literal[False] | None

BESIDE_BYTES = 256 << 10  # from which on a digest takes longer than to start a thread for it


class Closable(Protocol):
    """What can be released."""

    def close(self) -> None:
        """Releases it."""
        ...


Made = TypeVar("Made", bound=Closable)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read; its other files were not yet."""

    manifest: Manifest
    digest: str  # SHA-256 of the manifest's bytes, which stands for the whole bundle: they hold every file's digest
    size_bytes: int  # of the manifest
    seal: signature.Seal | None  # who signed it, where a public key was configured
    store: Store

    @property
    def path(self) -> Path:
        """The folder or the packed file."""
        from pathlib import Path  # here: it takes as long to import as half of the runtime

        return Path(self.store.path)

    def where(self, file: str) -> str:
        """What sentences call a file of the bundle."""
        return self.store.where(file)

    def read(self, file: str, sha256: str, size_bytes: int) -> bytes:
        """The bytes of a file of the bundle, after their size and digest were compared with the manifest's.

        Raises:
            BundleError: the file is missing, was altered, is no regular file, leaves the bundle, or is larger than
                the memory that is free.
        """
        data = self._sized(file, size_bytes)
        self._compare(file, _sha256(data), sha256)
        return data

    def open_beside(self, file: str, sha256: str, size_bytes: int, make: Callable[[bytes], Made]) -> Made:
        """What `make` makes of a file's bytes while another thread computes their digest; closed again if it differs.

        For bundles that nobody signed only. There the digest tells damage from soundness, and no friend from a foe:
        whoever can change a graph can change the manifest, too.

        Args:
            file, sha256, size_bytes: as `read`.
            make: must survive damaged bytes; it may raise whatever it likes of them.

        Raises:
            BundleError: as `read`; an altered file is called so, whatever `make` thought of it.
            Exception: what `make` raises of bytes that are as they should be.
        """
        data = self._sized(file, size_bytes)
        wait = _begin_sha256(data) if len(data) >= BESIDE_BYTES else None
        if wait is None:
            self._compare(file, _sha256(data), sha256)
            return make(data)
        try:
            made = make(data)
        except Exception:  # whatever an engine makes of damage
            self._compare(file, wait(), sha256)
            raise
        try:
            self._compare(file, wait(), sha256)
        except BaseException:  # Ctrl-C while it waits, too
            made.close()
            raise
        return made

    def _sized(self, file: str, size_bytes: int) -> bytes:
        data = self.store.read(file, size_bytes)
        if len(data) != size_bytes:
            found = f"at least {len(data)}" if len(data) > size_bytes else len(data)
            raise BundleError(f"{self.where(file)} has {found} bytes; the manifest says {size_bytes}.", hint=COPY_AGAIN)
        return data

    def _compare(self, file: str, found: str, sha256: str) -> None:
        if found != sha256:
            raise BundleError(f"{self.where(file)} was altered: its SHA-256 is not the manifest's.", hint=COPY_AGAIN)

    def manifest_bytes(self) -> bytes:
        """The bytes that `manifest` was made of; raises what `read` raises when they are no longer there."""
        return self.read(MANIFEST, self.digest, self.size_bytes)

    def parts(self) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of all that belongs to the bundle, sorted, each checked as `read` does when its turn comes.

        The manifest, the graphs, the golden images, and where they are there the signature, README.md and recipe.toml;
        nothing else that may lie in the folder.
        """
        described = {MANIFEST: (self.digest, self.size_bytes)}
        described |= {one.file: (one.sha256, one.size_bytes) for one in self.manifest.variants}
        if golden := self.manifest.golden:
            described[golden["file"]] = (golden["sha256"], golden["size_bytes"])
        others = {file for file in (SIGNATURE, *COMPANIONS) if self.store.has(file)}
        for file in sorted({*described, *others}):
            yield file, (self.read(file, *described[file]) if file in described
                         else read_limited(self.store, file, COMPANION_BYTES))


def open_bundle(path: str | os.PathLike[str], public_key: PublicKey = None) -> Bundle:
    """The bundle in a folder or packed file, with its manifest read and checked.

    Args:
        path: the folder, or a file made by `edgetl pack`.
        public_key: a minisign public key, or the path of its file: the bundle must be signed by it. None takes the one
            of the environment's EDGETL_PUBLIC_KEY, and without that no signature is asked for. False asks for none in
            any case, for those who are about to sign.

    Raises:
        BundleError: no such bundle, a manifest that cannot be used, or not signed by the public key.
        MissingDependency: a public key is configured and the package `cryptography` is absent.
    """
    store = _store(os.fspath(path) or ".")
    key = _key(public_key)
    source = read_limited(store, MANIFEST, MANIFEST_BYTES)
    seal = None if key is None else _seal(source, store, key)
    try:
        text = source.decode()
    except UnicodeDecodeError as problem:
        raise BundleError(f"{store.where(MANIFEST)} is not a text file.", hint=COPY_AGAIN) from problem
    manifest = from_json(text, where=store.where(MANIFEST))
    return Bundle(manifest, _sha256(source), len(source), seal, store)


def _sha256(data: bytes) -> str:
    import hashlib  # here: it brings OpenSSL, for which the import of the runtime would have to wait

    return hashlib.sha256(data).hexdigest()


def _begin_sha256(data: bytes) -> Callable[[], str] | None:
    """Begins to compute a digest in a thread; what is returned waits for it. None where no thread can be had."""
    found: list[str] = []
    done = _thread.allocate_lock()
    done.acquire()

    def work() -> None:
        try:
            found.append(_sha256(data))
        finally:
            done.release()

    def wait() -> str:
        with done:
            return found[0] if found else _sha256(data)

    try:
        # Not threading.Thread, whose start() waits until the thread runs: a third of a millisecond.
        _thread.start_new_thread(work, ())
    except RuntimeError:
        return None
    return wait


def _key(public_key: PublicKey) -> signature.PublicKey | None:
    """What the manifest must be signed by; None where no signature is asked for."""
    if public_key is False or (public_key is None and VARIABLE not in os.environ):
        return None
    from edgetl.runtime import signature  # here: most bundles are loaded without, and what it imports takes its time

    return signature.configured(public_key)


def _seal(manifest: bytes, store: Store, key: signature.PublicKey) -> signature.Seal:
    from edgetl.runtime import signature

    signed = store.has(SIGNATURE)
    return signature.check(manifest, read_limited(store, SIGNATURE, KEY_BYTES) if signed else None, key,
                           where=store.where(SIGNATURE))


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether `path` looks like a bundle: a folder with a manifest, or a file that begins as a packed one does."""
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, MANIFEST))
    from edgetl.runtime import archive

    return os.path.isfile(path) and archive.is_archive(path)


def read_limited(store: Store, file: str, most: int) -> bytes:
    """The bytes of a file that the manifest does not describe.

    Raises:
        BundleError: as `Store.read`; or it has more than `most` bytes.
    """
    data = store.read(file, most)
    if len(data) > most:
        raise BundleError(f"{store.where(file)} has more than {most} bytes, the most that is read of it.",
                          hint="It is not what edgetl writes; do not use this bundle unless you know who made it.")
    return data


def _store(path: str) -> Store:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as problem:
        raise BundleError(f"{path} does not exist.", hint=EXPORTED) from problem
    except (OSError, ValueError) as problem:  # a ValueError is a path that no file can have
        raise BundleError(f"{path} cannot be opened: {getattr(problem, 'strerror', None) or problem}.",
                          hint=EXPORTED) from problem
    if not stat.S_ISDIR(mode):
        from edgetl.runtime.archive import Archive

        return Archive.open(path)
    folder = Folder(path)
    if not folder.has(MANIFEST):
        raise _no_manifest(folder)
    return folder


def _no_manifest(folder: Folder) -> BundleError:
    path = folder.path
    if folder.has(RUN):
        return BundleError(f"{path} is a RUN (a trained model), not a bundle.",
                           hint=f"Make a bundle of it: edgetl export {path} --out BUNDLE")
    try:
        found = f"has no {MANIFEST}" if os.listdir(path) else "is an empty folder"
    except OSError as problem:
        found = f"cannot be listed ({problem.strerror})"
    return BundleError(f"{path} {found}, so it is no bundle.", hint=EXPORTED)
