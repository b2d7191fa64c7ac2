"""Where shards lie: files of this machine, or whatever fsspec reaches by URL (https, s3, gs, memory, ...)."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from edgetl.datasets._braces import expand
from edgetl.errors import DataError, DataGone, EdgetlError, MissingDependency

BLOCK = 4 * 2**20  # bytes that are fetched at once where images are read one after the other
KEPT = 16  # blocks
WAITS_S = (1, 5)  # before a range is asked for again
# What servers call the things that differ after a file was written anew.
STATES = ("size", "ETag", "etag", "Content-MD5", "Digest", "md5Hash", "crc32c", "generation", "Last-Modified",
          "LastModified", "last_modified", "mtime", "created")


class Place(Protocol):
    """A file that can be read anywhere in it."""

    @property
    def where(self) -> str:
        """Absolute path or URL."""

    def state(self) -> str:
        """Differs after the file was written anew: its size and its time or tag."""

    def open(self) -> IO[bytes]:
        """The whole, for one pass."""

    def read(self, offset: int, size: int) -> bytes:
        """A range; safe from several threads.

        Raises:
            DataGone: it cannot be read any more.
        """

    def beside(self, name: str) -> bytes | None:
        """Another file of the same folder, None where there is none."""


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine."""

    path: Path

    @property
    def where(self) -> str:
        """Its absolute path."""
        return str(self.path)

    def state(self) -> str:
        """Size and time of the last change."""
        with explained(self.where):
            found = self.path.stat()
        return json.dumps([found.st_size, found.st_mtime_ns])

    def open(self) -> IO[bytes]:
        """The whole, for one pass."""
        with explained(self.where):
            return self.path.open("rb")

    def read(self, offset: int, size: int) -> bytes:
        """A range."""
        with explained(self.where, DataGone), self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)

    def beside(self, name: str) -> bytes | None:
        """Another file of the same folder, None where there is none."""
        other = self.path.parent / name
        with explained(str(other)):
            return other.read_bytes() if other.is_file() else None


class RemoteFile:
    """A file behind a URL; where its readers go through it in order, it comes in blocks."""

    def __init__(self, url: str, system: Any, path: str, blocks: Blocks) -> None:
        self.where, self._system, self._path, self._blocks = url, system, path, blocks
        self._last: int | None = None  # where the read before began

    def state(self) -> str:
        """Size, and what the server says of the file's version."""
        with explained(self.where):
            self._system.invalidate_cache()  # what it remembers of folders may be old
            found: Mapping[str, Any] = self._system.info(self._path)
        return json.dumps({name: str(found[name]) for name in STATES if name in found})

    def open(self) -> IO[bytes]:
        """The whole, for one pass.

        Raises:
            DataError: it cannot be reached, or its server gives no parts of a file.
        """
        with explained(self.where):
            told = self._system.info(self._path)
            if told.get("size") is None or told.get("partial") is False:
                raise self._whole_only()
            if told["size"] and len(self._system.cat_file(self._path, start=0, end=1)) > 1:
                raise self._whole_only()
            file: IO[bytes] = self._system.open(self._path, "rb", block_size=BLOCK, cache_type="readahead")
            return file

    def read(self, offset: int, size: int) -> bytes:
        """A range: alone where it is far from the one before, else out of whole blocks."""
        near = self._last is not None and abs(offset - self._last) <= BLOCK
        self._last = offset  # of several threads any may have been last: this only chooses how, not what is read
        if not near:
            return self._fetch(offset, offset + size)
        first, last = offset // BLOCK, (offset + size - 1) // BLOCK
        whole = b"".join(self._blocks.get(self, number) for number in range(first, last + 1))
        return whole[offset - first * BLOCK:][:size]

    def block(self, number: int) -> bytes:
        """The bytes of one block; the last is shorter."""
        return self._fetch(number * BLOCK, (number + 1) * BLOCK)

    def _fetch(self, begin: int, end: int) -> bytes:
        for wait_s in WAITS_S:
            try:
                return self._fetch_once(begin, end)
            except DataGone:
                time.sleep(wait_s)  # among thousands of requests some fail for no reason that lasts
        return self._fetch_once(begin, end)

    def _fetch_once(self, begin: int, end: int) -> bytes:
        with explained(self.where, DataGone):
            data: bytes = self._system.cat_file(self._path, start=begin, end=end)
        return data

    def _whole_only(self) -> DataError:
        return DataError(f"The server of {self.where} gives whole files only, and images are read from the middle of a "
                         "shard.", hint="Copy the shards to this machine, or to a server that knows ranges.")

    def beside(self, name: str) -> bytes | None:
        """Another file of the same folder, None where there is none."""
        folder, slash, _ = self._path.partition("?")[0].rpartition("/")
        other = f"{folder}{slash}{name}"
        with explained(f"{name} beside {self.where}"):
            data: bytes | None = self._system.cat_file(other) if self._system.exists(other) else None
        return data


class Blocks:
    """The blocks that were fetched last, of all shards together, so that memory does not grow with them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def get(self, file: RemoteFile, number: int) -> bytes:
        """One block; a second thread that wants it waits for the first."""
        with self._lock:
            key = file.where, number
            if key not in self._kept:
                self._kept[key] = file.block(number)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


def find(pattern: str) -> list[Place]:
    """The files that a path or URL with braces and wildcards stands for; wildcards sort by name.

    Raises:
        DataError: nothing is there, or the place cannot be reached.
        MissingDependency: the package that reads such URLs is not installed.
    """
    blocks, found = Blocks(), list[Place]()
    for name in expand(pattern):
        plain = name.removeprefix("file://")
        found += _remote(plain, blocks) if "://" in plain else _local(plain)
    return found


def _local(name: str) -> Sequence[Place]:
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a file.", hint=f"Write shards:{name.rstrip('/')}/*.tar")
    if path.exists() or not any(sign in name for sign in "*?["):
        if not path.exists():
            raise DataError(f"The file {path} does not exist.",
                            hint=f"Check the path after shards:; relative paths count from {Path.cwd()}.")
        return [LocalFile(path)]
    found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not found:
        raise DataError(f"No file matches {path}.", hint="Check the pattern after shards:.")
    return [LocalFile(one) for one in found]


def _remote(url: str, blocks: Blocks) -> Sequence[Place]:
    system, path = _system_of(url)
    begin = url[: url.index("://") + 3]
    if begin not in ("http://", "https://") and any(sign in path for sign in "*?["):
        with explained(url):
            paths = sorted(str(one) for one in system.glob(path))
        if not paths:
            raise DataError(f"No file matches {url}.", hint="Check the pattern after shards:.")
        return [RemoteFile(begin + one.lstrip("/"), system, one, blocks) for one in paths]
    return [RemoteFile(url, system, path, blocks)]


def _system_of(url: str) -> tuple[Any, str]:
    """The file system of fsspec that a URL names, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as problem:
        raise MissingDependency("fsspec", extra="train", purpose=f"Reading {url}") from problem
    try:
        with explained(url):
            system, path = url_to_fs(url)
    except ImportError as problem:  # fsspec's own words name the package: s3fs, gcsfs, aiohttp
        raise DataError(f"{url} cannot be read: {problem}.", hint="Install the package that is named.") from problem
    except ValueError as problem:
        raise DataError(f"{url} cannot be read: {problem}.",
                        hint="Give a path, or a URL that fsspec knows: https://, s3://, gs://, ...") from problem
    return system, str(path)


@contextlib.contextmanager
def explained(where: str, error: type[EdgetlError] = DataError) -> Iterator[None]:
    """Turns what a system or a server says into one sentence."""
    try:
        yield
    except FileNotFoundError as problem:
        reason = f"cannot be reached: {problem.__cause__}" if problem.__cause__ else "does not exist"  # of https
        raise error(f"The file {where} {reason}.", hint="Check the name after shards:.") from problem
    except _refusals() as problem:
        words = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        raise error(f"{where} cannot be read: {words}.",
                    hint="Check the file and its permissions; of a URL also the network.") from problem


def _refusals() -> tuple[type[Exception], ...]:
    """What reading may raise; aiohttp's own errors, which fsspec passes on, where it is in use at all."""
    client = getattr(sys.modules.get("aiohttp"), "ClientError", None)
    return (OSError,) if client is None else (OSError, client)
