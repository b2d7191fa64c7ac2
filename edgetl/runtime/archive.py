"""The packed form of a bundle: one `.edgetl` file, a zip whose members are stored as they are, read where they lie.

The file is what `unzip` unpacks into the folder. It is read without unpacking, by a reader that takes only what `pack`
writes: members from the first byte on without a gap, each described in the same words at its place and in the table at
the end, nothing compressed or encrypted, nothing before or after. So two readers cannot see different things in one
file, no member can hide or lie within another, none unpacks to more than it is, and a download that was cut off or
glued together is seen. This is why the standard library's reader, which must take all zip files, is not used.

Format: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (table) and 4.3.16 (end of the table).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from edgetl.errors import BundleError
from edgetl.runtime.bundle import Bundle
from edgetl.runtime.fields import stays_inside
from edgetl.runtime.limits import MANIFEST_BYTES
from edgetl.runtime.storage import COPY_AGAIN, open_regular, read_at_most, require_memory

SUFFIX = ".edgetl"
PACK_AGAIN = "Pack the bundle again with `edgetl pack`, or unpack the file with unzip and give the folder."

MAX_MEMBERS = 256
MAX_TABLE_BYTES = 256 << 10
MAX_BYTES = (1 << 31) - 1  # beyond, zip needs its 64-bit form, and an ONNX graph cannot have more either
DAY = (1980, 1, 1, 0, 0, 0)  # the first day zip knows: the same bundle gives the same bytes
MODE = 0o100644

LOCAL = struct.Struct("<4s5H3L2H")
ENTRY = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
LOCAL_MARK, ENTRY_MARK, END_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
UTF8 = 0x800  # the one flag that a member may have


class Member(NamedTuple):
    """Where the bytes of a file lie."""

    offset: int
    size: int
    crc: int


@dataclass(frozen=True)
class Archive:
    """A bundle that is one file."""

    path: str
    members: dict[str, Member]

    @classmethod
    def open(cls, path: str) -> Archive:
        """The packed bundle in a file, whose table was read and checked.

        Raises:
            BundleError: no regular file, no packed bundle, or one that was damaged or made by something else.
        """
        with open_regular(path, path) as (opened, size):
            return cls(path, read_table(opened, size, path))

    def where(self, file: str) -> str:
        """The path of the packed file, and the name in it."""
        return f"{self.path}: {file}"

    def has(self, file: str) -> bool:
        """Whether there is a member of that name."""
        return file in self.members

    def place(self, file: str) -> tuple[str, int | None]:
        """See `storage.Store.place`."""
        return self.path, self._member(file).offset

    def _member(self, file: str) -> Member:
        if file not in self.members:
            raise BundleError(f"{self.where(file)} is missing.", hint=COPY_AGAIN)
        return self.members[file]

    def read(self, file: str, most: int) -> bytes:
        """See `storage.Store.read`."""
        where, member = self.where(file), self._member(file)
        count = min(member.size, most + 1)
        require_memory(count, where)
        with open_regular(self.path, where) as (opened, _):
            opened.seek(member.offset)
            data = read_at_most(opened, count, count, where)
        # What the manifest has no digest of, first of all itself, is small; the rest is compared by SHA-256 anyway.
        if len(data) == member.size <= MANIFEST_BYTES and zlib.crc32(data) != member.crc:
            raise BundleError(f"{where} was altered: its CRC-32 is not the table's.", hint=COPY_AGAIN)
        return data


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a zip does; raises BundleError when it cannot be read."""
    with open_regular(path, str(path)) as (opened, _):
        return opened.read(len(LOCAL_MARK)) == LOCAL_MARK


def write(bundle: Bundle, stream: BinaryIO) -> None:
    """Writes the packed form of a bundle, every file checked; the same bundle always gives the same bytes.

    Raises:
        BundleError: a file is missing or altered, or all of them are more than MAX_BYTES.
    """
    import zipfile

    try:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=False) as packed:
            for name, data in bundle.parts():
                member = zipfile.ZipInfo(name, DAY)
                member.create_system, member.external_attr = 3, MODE << 16
                packed.writestr(member, data)
    except zipfile.LargeZipFile as problem:
        raise BundleError(f"{bundle.path} has more than {MAX_BYTES} bytes, the most that can be packed.",
                          hint="Leave out variants, or keep it a folder.") from problem


def read_table(opened: BinaryIO, size: int, where: str) -> dict[str, Member]:
    """The members of a packed file of `size` bytes, by name.

    Raises:
        BundleError: the file is not of the form that `write` gives it; says what was found.
    """
    if size > MAX_BYTES:
        raise _refused(where, f"it has {size} bytes, of which at most {MAX_BYTES} are read")
    try:
        start, table = _table(opened, size, where)
        return dict(_members(opened, table, start, where))
    except struct.error as problem:
        raise _refused(where, "a header is cut off") from problem


def _refused(where: str, why: str) -> BundleError:
    return BundleError(f"{where} is a file, but no packed bundle as `edgetl pack` writes it: {why}.", hint=PACK_AGAIN)


def _at(opened: BinaryIO, offset: int, size: int) -> bytes:
    opened.seek(offset)
    return opened.read(size)


def _table(opened: BinaryIO, size: int, where: str) -> tuple[int, bytes]:
    """Where the table begins, and its bytes."""
    if _at(opened, 0, 4) != LOCAL_MARK:
        raise _refused(where, "it does not begin as a zip file does")
    tail = _at(opened, max(0, size - END.size), END.size)
    mark, disk, first_disk, here, count, length, start, comment = END.unpack(tail)
    if mark != END_MARK or comment:
        raise _refused(where, "it does not end with the end of a zip file; it was cut off, or something follows")
    if (disk, first_disk) != (0, 0) or here != count or start + length + END.size != size:
        raise _refused(where, "the end of the zip file contradicts its size")
    if count > MAX_MEMBERS or length > MAX_TABLE_BYTES:
        raise _refused(where, f"it has {count} members in a table of {length} bytes, of which at most {MAX_MEMBERS} "
                              f"and {MAX_TABLE_BYTES} are read")
    return start, _at(opened, start, length)


def _members(opened: BinaryIO, table: bytes, start: int, where: str) -> Iterator[tuple[str, Member]]:
    """Every member, once the words at its place were found to be those of the table, and to follow the one before."""
    names: set[str] = set()
    place = position = 0
    while position < len(table):
        (mark, _, needs, flags, method, time, day, crc, packed, size, name_bytes, extra, comment, disk, _, _,
         offset) = ENTRY.unpack_from(table, position)
        raw = table[position + ENTRY.size:position + ENTRY.size + name_bytes]
        position += ENTRY.size + name_bytes
        name = _name(raw, names, where)
        if method or packed != size or flags & ~UTF8:
            raise _refused(where, f"the member {name!r} is compressed, encrypted or of an unknown kind")
        local = LOCAL.pack(LOCAL_MARK, needs, flags, method, time, day, crc, packed, size, name_bytes, 0) + raw
        if mark != ENTRY_MARK or (extra, comment, disk, offset) != (0, 0, 0, place):
            raise _refused(where, f"the member {name!r} does not follow the one before, or carries more than its bytes")
        if place + len(local) + size > start or _at(opened, place, len(local)) != local:
            raise _refused(where, f"the member {name!r} is not where the table says, or is described otherwise there")
        yield name, Member(place + len(local), size, crc)
        place += len(local) + size
    if place != start:
        raise _refused(where, "there is something between the last member and the table")


def _name(raw: bytes, names: set[str], where: str) -> str:
    """The name of a member, added to `names`."""
    try:
        name = raw.decode()
    except UnicodeDecodeError as problem:
        raise _refused(where, f"the name {raw[:60]!r} is no text") from problem
    if not stays_inside(name):
        raise _refused(where, f"the member {name[:60]!r} would leave the bundle")
    parts = name.split("/")
    folders = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    if name in names or folders & names or any(one.startswith(f"{name}/") for one in names):
        raise _refused(where, f"there are two members {name[:60]!r}")
    names.add(name)
    return name
