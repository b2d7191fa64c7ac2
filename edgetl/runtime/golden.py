"""The golden images of a bundle, read as if they came from anybody.

golden.npz holds encoded images `source_000`, ... (uint8), what training's evaluation made of them (`tensor`, float32
[G, C, H, W]) and what the model in torch said to them: `logits` (float32 [G, K]) and, where the bundle gives them,
`features` (float32 [G, D]). numpy's own reader is not used: it takes the memory that an array's header asks for before
it looks whether there is as much data, and it unpacks what is compressed, however large.
"""

from __future__ import annotations

import io
import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BundleError
from edgetl.runtime.bundle import Bundle
from edgetl.runtime.storage import COPY_AGAIN

DTYPES: dict[bytes, np.dtype[Any]] = {b"<f4": np.dtype("<f4"), b"|u1": np.dtype(np.uint8)}
# The head of a .npy file, NEP 1: magic, version 1.0, the length of the header, and a Python literal padded with spaces.
HEADER = re.compile(rb"\x93NUMPY\x01\x00..\{'descr': '(<f4|\|u1)', 'fortran_order': False, "
                    rb"'shape': \(((?:[0-9]{1,12}, ?)*[0-9]{0,12})\), \} *\n", re.DOTALL)
WIDTHS = {"tensor": 4, "logits": 2, "features": 2}  # axes
OPTIONAL = ("features",)

END = struct.Struct("<4s4H2LH")  # the end of a zip file, APPNOTE.TXT 4.3.16
END_MARK, END64_MARK = b"PK\x05\x06", b"PK\x06\x07"
MEMBER_BYTES = 256  # of the table for one member; np.savez takes about 100


@dataclass(frozen=True)
class Golden:
    """The content of golden.npz."""

    sources: tuple[bytes, ...]
    tensor: NDArray[np.float32]  # [G, C, H, W]
    logits: NDArray[np.float32]  # [G, K]
    features: NDArray[np.float32] | None = None  # [G, D]


def read_golden(bundle: Bundle) -> Golden:
    """The golden file of a bundle, its digest compared first.

    Raises:
        BundleError: there is none, it was altered, or it does not hold what it should.
    """
    entry = bundle.manifest.golden
    if not entry:
        raise BundleError(f"{bundle.path} has no golden file, so it cannot be verified.",
                          hint="Export the bundle again with `edgetl export`.")
    where = bundle.where(entry["file"])
    data = bundle.read(entry["file"], entry["sha256"], entry["size_bytes"])
    sources = [f"source_{index:03d}" for index in range(entry["count"])]
    found = _arrays(data, [*sources, *WIDTHS], where)
    for name in WIDTHS.keys() & found:
        one, width = found[name], WIDTHS[name]
        if one.dtype != np.float32 or one.ndim != width or len(one) != len(sources):
            raise BundleError(f"{where}: '{name}' is {one.dtype} {list(one.shape)}; expected float32 with {width} axes "
                              f"and {len(sources)} images.", hint=COPY_AGAIN)
        if not np.isfinite(one).all():
            raise BundleError(f"{where}: '{name}' holds numbers that are not finite.", hint=COPY_AGAIN)
    labels = len(bundle.manifest.labels)
    if found["logits"].shape[1] != labels:
        raise BundleError(f"{where}: 'logits' has {found['logits'].shape[1]} columns, but there are {labels} labels.",
                          hint=COPY_AGAIN)
    return Golden(tuple(found[name].tobytes() for name in sources), found["tensor"], found["logits"],
                  found.get("features"))


def _arrays(data: bytes, names: list[str], where: str) -> dict[str, NDArray[Any]]:
    """The arrays of an uncompressed .npz, which must be of exactly these names, of which OPTIONAL may be absent."""
    import zipfile

    try:
        _check_end(data, len(names))
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            members = packed.infolist()
            held = [one.filename.removesuffix(".npy") for one in members]
            if sorted({*held, *OPTIONAL}) != sorted(names) or len(set(held)) < len(held):
                raise BundleError(f"{where} holds {held[:20]}; expected {names[:20]}.", hint=COPY_AGAIN)
            # Members that lie on top of one another could each be as large as the file.
            if any(one.compress_type or one.compress_size != one.file_size for one in members) or (
                    sum(one.file_size for one in members) > len(data)):
                raise ValueError("its members are compressed, or larger than the file")
            return {name: _array(packed.read(one)) for name, one in zip(held, members, strict=True)}
    except (ValueError, TypeError, OSError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile) as problem:
        told = str(problem)[:200]  # zipfile may quote as much as a header says
        raise BundleError(f"{where} is not a file of plain arrays: {told}.", hint=COPY_AGAIN) from problem


def _check_end(data: bytes, count: int) -> None:
    """Raises ValueError where the file does not end as np.savez ends it: zipfile reads a table of any length."""
    mark, *_, length, _, comment = END.unpack(data[-END.size:].rjust(END.size, b"\0"))
    if mark != END_MARK or comment or length > MEMBER_BYTES * count or data[-42:-38] == END64_MARK:
        raise ValueError("it does not end as a file of arrays ends")


def _array(data: bytes) -> NDArray[Any]:
    """A view of the array in the bytes of a .npy file as np.savez writes it; raises ValueError for anything else."""
    found = HEADER.match(data)
    if found is None or found.end() != 10 + int.from_bytes(data[8:10], "little"):
        raise ValueError(f"an array begins with {data[10:70]!r}, expected float32 or uint8 in C order")
    dtype = DTYPES[found[1]]
    shape = [int(size) for size in found[2].split(b",") if size.strip()]
    if math.prod(shape) * dtype.itemsize != len(data) - found.end():
        raise ValueError(f"an array of shape {shape[:8]} and {dtype} has {len(data) - found.end()} bytes")
    array: NDArray[Any] = np.frombuffer(data, dtype, offset=found.end())
    return array.reshape(shape)
