"""What an uncompressed tar file of images and labels holds, and where: one pass that reads every byte once.

Members that share a folder and a name up to its first dot are one sample, as the webdataset library has it:
`a/0001.jpg` and `a/0001.cls`. Names of members are names only; nothing is ever written under them.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgetl.datasets import ARRAY_ENDING, IMAGE_ENDINGS
from edgetl.errors import DataError

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
LABELS = ("cls", "json", "txt")  # members that may hold the label, the first that does counts
MOST_LABEL = 2**20  # bytes of such a member
CHUNK = 2**20
META = re.compile(r"__[^/]*__($|/)")  # what the webdataset library keeps for itself
AGAIN = "Write the shard again."


@dataclass(frozen=True)
class Contents:
    """The labelled images of a shard, in its order."""

    names: list[str]  # of the images' members
    labels: list[str]
    offsets: NDArray[np.int64]  # [N] first byte
    sizes: NDArray[np.int64]  # [N] bytes
    digests: NDArray[np.uint8]  # [N, 32] SHA-256
    left_out: int  # samples without an image


@dataclass
class _Sample:
    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)  # by lower-case ending, without the dot


def contents(file: IO[bytes], where: str, label: str, told: Callable[[int], None]) -> Contents:
    """What a shard holds.

    Args:
        file: opened at its beginning; can be sought.
        where: path or URL, for messages.
        label: the field of a .json member that holds the label.
        told: hears how many images were found.

    Raises:
        DataError: the shard is empty, compressed, truncated or no tar file, or a sample in it has no label, or two, or
            is there twice; names the member.
    """
    _require_tar(file, where)
    names: list[str] = []
    labels: list[str] = []
    places: list[tuple[int, int]] = []
    digests = bytearray()
    left_out = 0
    for sample in _samples(file, where):
        image = _image(sample, where)
        if image is None:
            left_out += 1
            continue
        names.append(image.name.removeprefix("./"))
        labels.append(_label(file, sample, image, where, label))
        places.append((image.offset_data, image.size))
        digests += _digest(file, image, where)
        told(len(names))
    if not names:
        raise DataError(f"The shard {where} holds no images.",
                        hint="Expected members such as 0001.jpg with 0001.cls, 0001.txt or 0001.json beside them.")
    ranges = np.array(places, np.int64)
    kept = np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32)
    return Contents(names, labels, ranges[:, 0].copy(), ranges[:, 1].copy(), kept, left_out)


def _require_tar(file: IO[bytes], where: str) -> None:
    begin = file.read(8)
    file.seek(0)
    if not begin:
        raise DataError(f"The shard {where} is empty (0 bytes).", hint=AGAIN)
    for magic, name in COMPRESSED.items():
        if begin.startswith(magic):
            raise DataError(f"The shard {where} is compressed ({name}); images are read from the middle of a shard, "
                            "which must be plain tar.", hint="Unpack it, e.g. with gunzip; images are small already.")


def _samples(file: IO[bytes], where: str) -> Iterator[_Sample]:
    """Members next to one another that share a key."""
    seen: set[str] = set()
    sample: _Sample | None = None
    for member in _members(file, where):
        folder, slash, base = member.name.rpartition("/")
        stem, dot, ending = base.partition(".")
        if not (stem and dot) or META.match(member.name):
            continue
        key = f"{folder}{slash}{stem}"
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            if key in seen:
                raise DataError(f"{where}: the key '{key}' is there twice ('{member.name}').",
                                hint="Give every sample of a shard a name of its own, its members in one place.")
            seen.add(key)
            sample = _Sample(key)
        if ending.lower() in sample.members:
            raise DataError(f"{where}: the member '{member.name}' is there twice.", hint=AGAIN)
        sample.members[ending.lower()] = member
    if sample is not None:
        yield sample


def _members(file: IO[bytes], where: str) -> Iterator[tarfile.TarInfo]:
    """The files of a tar, to its end mark."""
    last, reached = "", -1
    try:
        with tarfile.open(fileobj=file, mode="r:") as opened:
            while (member := opened.next()) is not None:
                opened.members = []  # type: ignore[attr-defined]  # else the list grows with the shard
                if member.size < 0 or opened.offset <= reached:  # tarfile would go round in a circle
                    raise tarfile.ReadError(f"'{member.name}' has the size {member.size}")
                last, reached = member.name, opened.offset
                if member.isreg() and not member.issparse():
                    yield member
            file.seek(opened.offset)
            ending = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as problem:  # what sizes that lie may raise
        after = f" after '{last}'" if last else ""
        raise DataError(f"The shard {where} is truncated or no tar file{after}: {problem}.", hint=AGAIN) from problem
    if ending != bytes(tarfile.BLOCKSIZE):  # tarfile itself takes any end, and bytes that are no header, for the end
        found = "bytes that are no member" if ending else "the end mark of a tar file is missing"
        raise DataError(f"The shard {where} is truncated or damaged after '{last}': {found}.", hint=AGAIN)


def _image(sample: _Sample, where: str) -> tarfile.TarInfo | None:
    found = [member for ending, member in sample.members.items() if f".{ending}" in IMAGE_ENDINGS]
    # An array beside an image is something that is known of it.
    found = [member for member in found if not member.name.lower().endswith(ARRAY_ENDING)] or found
    if len(found) > 1:
        raise DataError(f"{where}: the sample '{sample.key}' has two images, '{found[0].name}' and '{found[1].name}'.",
                        hint="Keep one of them.")
    return found[0] if found else None


def _label(file: IO[bytes], sample: _Sample, image: tarfile.TarInfo, where: str, label: str) -> str:
    for ending in LABELS:
        member = sample.members.get(ending)
        if member is None:
            continue
        text = _text(file, member, where)
        found = text if ending != "json" else _field(text, member, where, label)
        if found:
            return found
        if found is not None:
            raise DataError(f"{where}: the label in '{member.name}' is empty.", hint=AGAIN)
    beside = ", ".join(f"{sample.key}.{ending}" for ending in LABELS)
    raise DataError(f"{where}: '{image.name}' has no label: expected one of {beside}"
                    f"{f' (with the field {label!r})' if 'json' in sample.members else ''}.",
                    hint="Another field of the .json is named with ;label=FIELD after the shards.")


def _text(file: IO[bytes], member: tarfile.TarInfo, where: str) -> str:
    data = _read(file, member.offset_data, min(member.size, MOST_LABEL), member.name, where)
    try:
        return data.decode().strip()
    except UnicodeDecodeError as problem:
        raise DataError(f"{where}: '{member.name}' is not UTF-8 text.", hint=AGAIN) from problem


def _field(text: str, member: tarfile.TarInfo, where: str, label: str) -> str | None:
    """The label in a .json member; None where it has no such field."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{where}: '{member.name}' is not JSON: {problem}.", hint=AGAIN) from problem
    value = found.get(label) if isinstance(found, dict) else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: the field '{label}' of '{member.name}' is {json.dumps(value)[:40]}, expected a "
                        "class's name or number.", hint="Name the field with ;label=FIELD after the shards.")
    return str(value).strip()


def _digest(file: IO[bytes], member: tarfile.TarInfo, where: str) -> bytes:
    whole = hashlib.sha256()
    for begin in range(0, member.size, CHUNK):
        size = min(CHUNK, member.size - begin)
        whole.update(_read(file, member.offset_data + begin, size, member.name, where))
    return whole.digest()


def _read(file: IO[bytes], offset: int, size: int, name: str, where: str) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise DataError(f"The shard {where} is truncated: it ends within '{name}'.", hint=AGAIN)
    return data
