"""Opens the folder of a bundle: a file is read once, and what is used are the very bytes whose digest was checked."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from edgetl.errors import BundleError
from edgetl.runtime.manifest import MANIFEST, Manifest, from_json

COPY_AGAIN = "Copy the bundle again from where it was exported."
EXPORTED = "Give the folder that `edgetl export` wrote."
RUN = "run.json"  # what a RUN folder has in place of a manifest


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read; its other files were not yet."""

    folder: Path
    manifest: Manifest

    def read(self, file: str, sha256: str, size_bytes: int) -> bytes:
        """The bytes of a file of the bundle, after their size and digest were compared with the manifest's.

        Raises:
            BundleError: the file is missing, was altered, or is a link that leaves the bundle.
        """
        path = self.folder / file
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise BundleError(f"{path} is a link that leaves the bundle; expected a file inside it.",
                              hint="Do not use this bundle unless you know who made it.")
        data = _read(path)
        if len(data) != size_bytes:
            raise BundleError(f"{path} has {len(data)} bytes; the manifest says {size_bytes}.", hint=COPY_AGAIN)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BundleError(f"{path} was altered: its SHA-256 is not the manifest's.", hint=COPY_AGAIN)
        return data


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """The bundle in a folder, with its manifest read and checked.

    Raises:
        BundleError: no such folder, no bundle in it, or a manifest that cannot be used.
    """
    folder = Path(path)
    if not folder.exists():
        raise BundleError(f"{folder} does not exist.", hint=EXPORTED)
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file; a bundle is a folder.", hint=EXPORTED)
    if not (folder / MANIFEST).exists():
        raise _no_manifest(folder)
    try:
        text = _read(folder / MANIFEST).decode()
    except UnicodeDecodeError as problem:
        raise BundleError(f"{folder / MANIFEST} is not a text file.", hint=COPY_AGAIN) from problem
    return Bundle(folder, from_json(text, where=str(folder / MANIFEST)))


def _no_manifest(folder: Path) -> BundleError:
    if (folder / RUN).exists():
        return BundleError(f"{folder} is a RUN (a trained model), not a bundle.",
                           hint=f"Make a bundle of it: edgetl export {folder} --out BUNDLE")
    found = "is an empty folder" if not any(folder.iterdir()) else f"has no {MANIFEST}"
    return BundleError(f"{folder} {found}, so it is no bundle.", hint=EXPORTED)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as problem:
        raise BundleError(f"{path} is missing.", hint=COPY_AGAIN) from problem
    except OSError as problem:
        raise BundleError(f"{path} cannot be read: {problem.strerror}.", hint=COPY_AGAIN) from problem
