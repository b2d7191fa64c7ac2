"""Reads files that may come from anybody: regular ones only, without waiting, and never more than is expected."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, Protocol

from edgetl.errors import BundleError

COPY_AGAIN = "Copy the bundle again from where it was exported."
WHO_MADE_IT = "Do not use this bundle unless you know who made it."

MEMINFO = "/proc/meminfo"
CGROUP_MEMORY = "/sys/fs/cgroup"  # inside a container its own limits stand at the root
ASKED_ABOUT_MEMORY = 64 << 20  # bytes from which on the free memory is looked at; below, the look costs too much

# Without O_NONBLOCK, opening a pipe waits until somebody writes to it.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


class Store(Protocol):
    """Where the files of a bundle lie: a folder, or one packed file."""

    @property
    def path(self) -> str:
        """The folder, or the packed file."""
        ...

    def where(self, file: str) -> str:
        """What sentences call a file of the bundle."""
        ...

    def has(self, file: str) -> bool:
        """Whether there is anything of that name."""
        ...

    def place(self, file: str) -> tuple[str, int | None]:
        """The file on the disk that holds the bytes of a file, and where in it they begin; None where it is all of it.

        Raises:
            BundleError: there is no such file.
        """
        ...

    def read(self, file: str, most: int) -> bytes:
        """The bytes of a file; one byte more than `most` where it has more, and no more than that.

        Raises:
            BundleError: it is missing, is no regular file, leaves the bundle, or cannot be read.
        """
        ...


class Folder(NamedTuple):
    """A bundle that is a folder. Links are followed as long as they stay inside."""

    path: str

    def where(self, file: str) -> str:
        """The file's path."""
        return os.path.join(self.path, file)

    def has(self, file: str) -> bool:
        """Whether there is anything of that name; a link counts, wherever it leads."""
        return os.path.lexists(self.where(file))

    def place(self, file: str) -> tuple[str, int | None]:
        """See `Store.place`."""
        return self.where(file), None

    def read(self, file: str, most: int) -> bytes:
        """See `Store.read`."""
        where = real = self.where(file)
        if "/" in file or os.path.islink(where):  # else it is in the folder itself, and many looks are saved
            real = os.path.realpath(where)
            if not real.startswith(os.path.join(os.path.realpath(self.path), "")):
                raise BundleError(f"{where} is a link that leaves the bundle; expected a file inside it.",
                                  hint=WHO_MADE_IT)
        with open_regular(real, where) as (opened, size):
            require_memory(min(size, most + 1), where)
            return read_at_most(opened, most + 1, size, where)


@contextmanager
def open_regular(path: str | os.PathLike[str], where: str, *,
                 hint: str = COPY_AGAIN) -> Iterator[tuple[BinaryIO, int]]:
    """The opened file and the size in bytes it has now; sentences call it `where`, and end in `hint`.

    Raises:
        BundleError: missing, not a regular file (a pipe or a device could give bytes for ever, or none), unreadable.
    """
    try:
        with os.fdopen(_open(path, where), "rb") as opened:
            yield opened, os.fstat(opened.fileno()).st_size
    except FileNotFoundError as problem:
        raise BundleError(f"{where} is missing.", hint=hint) from problem
    except (OSError, ValueError) as problem:  # a ValueError is a path that no file can have
        told = getattr(problem, "strerror", None) or problem
        raise BundleError(f"{where} cannot be read: {told}.", hint=hint) from problem


def _open(path: str | os.PathLike[str], where: str) -> int:
    handle = os.open(path, _FLAGS)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise BundleError(f"{where} is {_kind(mode)}; expected a regular file.", hint=WHO_MADE_IT)
    return handle


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
             (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))
    return next((name for test, name in kinds if test(mode)), "something else")


def read_at_most(opened: BinaryIO, most: int, size: int, where: str) -> bytes:
    """The next bytes of an opened file, at most `most`.

    Args:
        opened: read from where it stands.
        most: how many; more is never read, also when the file grows meanwhile.
        size: how many are expected. Only those are asked for at once, since memory is taken before they are there.
        where: what sentences call the file.

    Raises:
        BundleError: there is no memory for them.
    """
    try:
        data = opened.read(min(most, size))
        if len(data) < most:  # some files (in /proc) tell no size, and any may have grown
            data += opened.read(min(most - len(data), 1 << 20))
    except MemoryError as problem:
        raise BundleError(f"{where} has {size} bytes; there is no memory for them.",
                          hint="Use a smaller variant, or a machine with more memory.") from problem
    return data


def require_memory(size_bytes: int, where: str) -> None:
    """Returns where so many bytes fit into the memory that is free now.

    Raises:
        BundleError: they do not; Linux would grant them and end the process while they are read.
    """
    if size_bytes < ASKED_ABOUT_MEMORY:
        return
    free = free_memory_bytes()
    if free is not None and size_bytes > free:
        raise BundleError(f"{where} has {size_bytes} bytes; only {free} bytes of memory are free.",
                          hint="Use a smaller variant, or a machine with more memory.")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file of the system; raises OSError."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def free_memory_bytes(meminfo: str | os.PathLike[str] = MEMINFO,
                      cgroup: str | os.PathLike[str] = CGROUP_MEMORY) -> int | None:
    """Memory that can still be had, in bytes: the smaller of the machine's and the container's; None is not known."""
    found = []
    if os.path.exists(meminfo):
        found.append(1024 * _figures(meminfo).get("MemAvailable:", 0))
    limit = os.path.join(cgroup, "memory.max")
    if os.path.exists(limit) and (most := read_text(limit).strip()) != "max":
        # Pages of files count as used there, although the kernel gives them up when memory is asked for.
        pages = _figures(os.path.join(cgroup, "memory.stat"))
        given_up = pages.get("active_file", 0) + pages.get("inactive_file", 0)
        held = int(read_text(os.path.join(cgroup, "memory.current"))) - given_up
        found.append(max(0, int(most) - held))
    return min(found, default=None)


def _figures(path: str | os.PathLike[str]) -> dict[str, int]:
    """Lines of a name and a whole number."""
    return {words[0]: int(words[1]) for words in map(str.split, read_text(path).splitlines()) if len(words) > 1}
