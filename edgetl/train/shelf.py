"""A shelf of the cache: folders that processes share, of which the least recently used go first when room is needed.

Whoever uses a folder holds a shared lock on its file `.lock`, which ends with the process, however that ends; who wants
to remove it must have the lock alone. So nothing is removed under a running process, and nothing stays locked by a dead
one. A folder is renamed before it is removed, and what is written beside its place is renamed when it is whole: nobody
ever finds a part of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK = ".lock"
GONE = ".gone-"  # what is being removed; a killed process leaves it, and the next one that makes room sweeps it
SOFT_LABELS_BYTES = 8 << 30  # of all stores of them; 1.3 million images with 8 views of 1000 classes take 4 GB
BEGUN = ".begun-"  # what is being written; the same


class Held:
    """A folder in use, until this object or the process ends."""

    def __init__(self, folder: Path, *, make: bool = True) -> None:
        """Makes the folder where it is not there, and waits while another process removes it.

        Args:
            folder: which.
            make: whether it is made.

        Raises:
            OSError: it cannot be made or locked; FileNotFoundError where it is not there and shall not be made.
        """
        while True:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            try:
                handle = _opened(folder / LOCK)
            except FileNotFoundError:
                if make:  # removed since
                    continue
                raise
            fcntl.flock(handle, fcntl.LOCK_SH)
            if _is_still(handle, folder / LOCK):
                break
            os.close(handle)
        with contextlib.suppress(OSError):  # a cache that may only be read serves all the same
            os.utime(folder / LOCK)
        self.release = weakref.finalize(self, os.close, handle)


def found(folder: Path) -> Held | None:
    """A folder in use; None where it is not there, or in a cache that may only be read, where nobody removes it."""
    try:
        return Held(folder, make=False)
    except OSError:
        return None


@contextlib.contextmanager
def beginning(folder: Path) -> Iterator[tuple[Path, Held]]:
    """A place beside a folder to write into, and that it is in use, which goes with it where it is renamed.

    Raises:
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{BEGUN}{folder.name}-", dir=folder.parent))
    try:
        yield temporary, Held(temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hold_while_mapped(mapping: Any, held: Held | None) -> None:
    """Keeps a folder in use as long as a file in it is mapped: as the `mmap` object lives."""
    weakref.finalize(mapping, _let_go, held)


def _let_go(held: Held | None) -> None:
    if held is not None:
        held.release()


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # in a cache that may only be read


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    total = 0
    with contextlib.suppress(FileNotFoundError):  # another process has just removed it
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # or put another in its place
                total += path.stat().st_size if path.is_file() else 0
    return total


def size_below(root: Path) -> int:
    """Bytes of the files in a folder and in those within it."""
    inside = (Path(folder) for folder, _, _ in os.walk(root))
    return sum(size_of(one) for one in inside)


def make_room(root: Path, limit_bytes: int) -> int:
    """Removes folders that nobody uses, the least recently used first, until at most `limit_bytes` are left.

    Returns:
        The bytes that are left, which are more where what is left is in use.

    Raises:
        OSError: a folder cannot be looked at or removed.
    """
    for leftover in root.glob(f"{GONE}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in root.glob(f"{BEGUN}*"):
        _remove(leftover)
    folders = {one: size_of(one) for one in root.iterdir() if one.is_dir() and not one.name.startswith(".")}
    total = sum(folders.values())
    for folder in sorted(folders, key=_used_ns):
        if total <= limit_bytes:
            break
        if _remove(folder):
            total -= folders[folder]
    return total


def _used_ns(folder: Path) -> int:
    for path in (folder / LOCK, folder):
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime_ns
    return 0


def _remove(folder: Path) -> bool:
    """Removes a folder; False where it is in use or another user's, or another process was faster."""
    try:
        handle = _opened(folder / LOCK)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_still(handle, folder / LOCK):
            return False
        gone = folder.with_name(f"{GONE}{folder.name.lstrip('.')}-{os.getpid()}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    except (BlockingIOError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True
