"""Images that lie loose in folders, without labels: which files they are, and digests of their contents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from edgetl.datasets import IMAGE_ENDINGS, DataSet, Item, read_file
from edgetl.errors import DataError
from edgetl.splits import content_digests

NO_LABEL = -1


def paths(folders: Sequence[str]) -> dict[str, Path]:
    """Files of all images below folders, by a key that is unique beside a data set's; sorted folder by folder.

    Raises:
        DataError: a folder that is not there, cannot be read or holds no image.
    """
    return {
        f"unlabeled:{place}:{key}": path
        for place, folder in enumerate(folders)
        for key, path in _images(folder).items()
    }


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of the bytes of files, by key.

    Raises:
        DataError: one cannot be read.
    """
    items = tuple(Item(key=key, label=NO_LABEL) for key in files)
    return content_digests(DataSet("", (), items, lambda item: read_file(files[item.key])))


def fingerprint(contents_by_key: Mapping[str, str]) -> str:
    """SHA-256 over keys and digests, in their order."""
    whole = hashlib.sha256()
    for key, digest in contents_by_key.items():
        whole.update(f"{key}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def contents(folders: Sequence[str]) -> str:
    """SHA-256 over names and contents of all images below folders; errors as in `paths` and `digests`."""
    return fingerprint(digests(paths(folders)))


def _images(folder: str) -> dict[str, Path]:
    """The images below a folder, by their path relative to it, in that order; hidden files are left out."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"--unlabeled {folder}: it {found}.", hint="Give a folder of images.")
    images: dict[str, Path] = {}
    for parent, inner, names in os.walk(root, onerror=_unreadable):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in IMAGE_ENDINGS:
                images[path.relative_to(root).as_posix()] = path
    if not images:
        endings = ", ".join(sorted(IMAGE_ENDINGS))
        raise DataError(f"--unlabeled {folder}: it holds no images.", hint=f"Known endings: {endings}.")
    return dict(sorted(images.items()))


def _unreadable(problem: OSError) -> NoReturn:
    raise DataError(
        f"The folder {problem.filename} cannot be read: {problem.strerror}.", hint="Check its permissions."
    ) from problem
