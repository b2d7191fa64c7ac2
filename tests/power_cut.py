"""What a disk may hold after a power cut, worked out from the system calls of a run.

The model is that of "All File Systems Are Not Created Equal" (Pillai et al., OSDI 2014), at its most forgetful: bytes
are on the disk for certain once their file was fsynced, names once the folder that holds them was. Everything later may
be there in part: of the pending changes of names any prefix, any one alone, or all but one; of the pending bytes none,
half or all.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR


class Killed(BaseException):
    """The process is dead; nothing that it does afterwards counts."""


@dataclass(eq=False)
class File:
    """Bytes: those in the cache, and those on the disk."""

    cached: bytes = b""
    stored: bytes = b""


@dataclass(eq=False)
class Folder:
    """Names: those in the cache, and those on the disk."""

    cached: dict[str, File | Folder] = field(default_factory=dict)
    stored: dict[str, File | Folder] = field(default_factory=dict)


Change = list[tuple[Folder, str, File | Folder | None]]  # names set or removed in one step


class Disk:
    """The folder `root` as it is now, all of it on the disk, and what happens to it from now on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = _taken(root)
        self.pending: list[Change] = []
        self.dirty: list[File] = []

    def _at(self, path: Path) -> File | Folder:
        found: File | Folder = self.top
        for name in path.relative_to(self.root).parts:
            assert isinstance(found, Folder)
            found = found.cached[name]
        return found

    def change(self, *changes: tuple[Path, File | Folder | None]) -> None:
        """Sets or removes names in one step."""
        made: Change = []
        for path, what in changes:
            folder = self._at(path.parent)
            assert isinstance(folder, Folder)
            made.append((folder, path.name, what))
        _apply(made, lambda folder: folder.cached)
        self.pending.append(made)

    def created(self, path: Path) -> File:
        """A file that was opened to be written from its beginning."""
        folder = self._at(path.parent)
        assert isinstance(folder, Folder)
        file = folder.cached.get(path.name)
        if not isinstance(file, File):
            file = File()
            self.change((path, file))
        file.cached = b""
        self.dirty.append(file)
        return file

    def synced(self, what: File | Folder) -> None:
        """fsync: of a file its bytes, of a folder its names."""
        if isinstance(what, File):
            what.stored = what.cached
            self.dirty = [one for one in self.dirty if one is not what]
            return
        settled = [one for one in self.pending if any(folder is what for folder, _, _ in one)]
        for one in settled:
            _apply(one, lambda folder: folder.stored)
        self.pending = [one for one in self.pending if one not in settled]

    def after_a_cut(self) -> Iterator[dict[str, bytes | None]]:
        """Every content that the disk may have now: bytes by path, None for a folder."""
        whole = range(len(self.pending))
        chosen = {(), *((one,) for one in whole), *(tuple(range(count)) for count in range(len(whole) + 1)),
                  *(tuple(other for other in whole if other != one) for one in whole)}
        for changes, kept in itertools.product(sorted(chosen), (0, 1, 2)):
            names: dict[Folder, dict[str, File | Folder]] = {}
            for number in changes:
                _apply(self.pending[number], lambda folder, names=names: names.setdefault(folder, dict(folder.stored)))
            yield dict(self._listed(self.top, "", names, kept))

    def _listed(self, folder: Folder, before: str, names: dict[Folder, dict[str, File | Folder]],
                kept: int) -> Iterator[tuple[str, bytes | None]]:
        for name, what in sorted(names.get(folder, folder.stored).items()):
            if isinstance(what, Folder):
                yield before + name, None
                yield from self._listed(what, f"{before}{name}/", names, kept)
            elif any(what is one for one in self.dirty):
                yield before + name, (what.stored, what.cached[:len(what.cached) // 2], what.cached)[kept]
            else:
                yield before + name, what.stored


def _taken(root: Path) -> Folder:
    found: dict[str, File | Folder] = {}
    for path in root.iterdir() if root.exists() else ():
        content = None if path.is_dir() else path.read_bytes()
        found[path.name] = _taken(path) if content is None else File(content, content)
    return Folder(dict(found), dict(found))


def _apply(change: Change, names) -> None:
    for folder, name, what in change:
        if what is None:
            names(folder).pop(name, None)
        else:
            names(folder)[name] = what


def write(content: dict[str, bytes | None], root: Path) -> Path:
    """Makes a real folder of such a content."""
    root.mkdir(parents=True)
    for name, data in content.items():
        if data is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).write_bytes(data)
    return root


class Watch:
    """Stands before the system calls that change files below `root`.

    Args:
        root: the folder.
        dies_at: number of the change before which the process is killed; a write of that number is half done. None
            lets it live.
    """

    CALLS = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "unlink", "rmdir")

    def __init__(self, root: Path, dies_at: int | None = None) -> None:
        self.root, self.dies_at = root, dies_at
        self.disk = Disk(root)
        self.steps = 0
        self.states: list[dict[str, bytes | None]] = []  # every content that a cut could have left, each once
        self._seen: set[int] = set()
        self._handles: dict[int, File | Folder] = {}
        self._real = {name: getattr(os, name) for name in self.CALLS}

    def __enter__(self) -> Watch:
        for name in self.CALLS:
            setattr(os, name, getattr(self, f"_{name}"))
        self._cut()
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)

    def _below(self, path: object) -> bool:
        return Path(os.fspath(path)).is_relative_to(self.root)  # type: ignore[call-overload]

    def _step(self, data: bytes | None = None, handle: int | None = None) -> None:
        """One change is about to be made."""
        if self.dies_at is not None and self.steps >= self.dies_at:
            if data is not None and handle is not None and self.steps == self.dies_at:
                self._real["write"](handle, data[:len(data) // 2])
            self.steps += 1
            raise Killed
        self.steps += 1

    def _cut(self) -> None:
        for content in self.disk.after_a_cut():
            key = hash(tuple(content.items()))
            if key not in self._seen:
                self._seen.add(key)
                self.states.append(content)

    def _open(self, path, flags, mode=0o777, **more):
        if not self._below(path):
            return self._real["open"](path, flags, mode, **more)
        if flags & WRITING:
            self._step()
        handle = self._real["open"](path, flags, mode, **more)
        if flags & WRITING:
            self._handles[handle] = self.disk.created(Path(path))
            self._cut()
        elif Path(path).is_dir():
            self._handles[handle] = self.disk._at(Path(path))
        return handle

    def _write(self, handle, data):
        file = self._handles.get(handle)
        if isinstance(file, File):
            self._step(bytes(data), handle)
        written = self._real["write"](handle, data)
        if isinstance(file, File):
            file.cached += bytes(data[:written])
            self._cut()
        return written

    def _fsync(self, handle):
        self._step()
        if handle in self._handles:
            self.disk.synced(self._handles[handle])
            self._cut()

    def _close(self, handle):
        self._handles.pop(handle, None)
        return self._real["close"](handle)

    def _renamed(self, call, path, new, **more):
        self._step()
        what = self.disk._at(Path(path))
        self._real[call](path, new, **more)
        self.disk.change((Path(path), None), (Path(new), what))
        self._cut()

    def _replace(self, path, new, **more):
        self._renamed("replace", path, new, **more)

    def _rename(self, path, new, **more):
        self._renamed("rename", path, new, **more)

    def _mkdir(self, path, mode=0o777, **more):
        self._step()
        self._real["mkdir"](path, mode, **more)
        self.disk.change((Path(path), Folder()))
        self._cut()

    def _unlink(self, path, **more):
        self._step()
        self._real["unlink"](path, **more)
        self.disk.change((Path(path), None))
        self._cut()

    def _rmdir(self, path, **more):
        self._step()
        self._real["rmdir"](path, **more)
        self.disk.change((Path(path), None))
        self._cut()
