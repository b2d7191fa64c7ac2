"""Changes to a folder that survive a power cut: each is whole on the disk before the next one begins.

A file's bytes are forced to the disk before the file gets its name, and the folder that holds the name after it; see
"All File Systems Are Not Created Equal" (Pillai et al., OSDI 2014) for what happens otherwise.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetl.errors import DiskFull, OutputError

UNFINISHED = ".tmp"  # ending of files that are being written; a killed process leaves them
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, also where there is one of that name; its folder must be there.

    Raises:
        DiskFull: there is no room.
        OutputError: it cannot be written there.
    """
    temporary = path.with_name(f".{path.name}{UNFINISHED}")
    with _explained(path):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view):]
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
        _sync(path.parent)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, where they are not there yet; raises what `write` raises."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with _explained(path):
        path.mkdir(exist_ok=True)  # another process or thread may have been faster
        _sync(path.parent)


def rename(path: Path, new: Path) -> None:
    """Renames a file or folder within its folder; `new` must not be there; raises what `write` raises."""
    with _explained(new):
        path.rename(new)
        _sync(new.parent)


def remove(folder: Path) -> None:
    """Removes a folder and all in it; a kill leaves a part of it; raises what `write` raises."""
    with _explained(folder):
        _remove(folder)


def settle(folder: Path) -> None:
    """Forces to the disk which names a folder holds now, whoever changed them; raises what `write` raises."""
    with _explained(folder):
        _sync(folder)


def _remove(folder: Path) -> None:
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            _remove(path)
        else:
            path.unlink()
    folder.rmdir()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # a file system that has no such thing; there is nothing more to be done
            raise
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        if problem.errno in NO_ROOM:
            raise DiskFull(f"{path} could not be written: {problem.strerror}.", hint="Make room, then try again."
                           ) from problem
        raise OutputError(f"{path} cannot be written: {problem.strerror}.",
                          hint="Choose a folder that this user may write to.") from problem
