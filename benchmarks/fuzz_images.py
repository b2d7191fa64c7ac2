"""Image files as nobody would write them: always pixels or an EdgetlError, never a crash, a hang or a burst of memory.

    python benchmarks/fuzz_images.py [--cases 100000] [--seed 0] [--only FORMAT] [--case FORMAT:NUMBER [--write FILE]]
                                     [--files FOLDER] [--out benchmarks/results/fuzz_images.json]

Small valid files of every format that the runtime reads are made (several kinds of each: gray, palette, alpha, 16 bits,
animated, progressive, tiled, compressed in every way Pillow can), then changed: bits and bytes, lengths, numbers of the
header, sizes written large, parts left out, doubled, exchanged or taken from another file, and the chunks of PNG (with
right checksums), JPEG, RIFF and ISO files by their structure. Each goes through decoding and resizing, exactly or
fast, with one of several preprocessings. A case takes at most 2 s of processor time and 1 GB; out of memory is a
failure. Warnings are errors while they run. The same seed gives the same cases with the same Pillow. With --files the
files of a folder are the cases, each in both ways: those that once were the worst are in tests/runtime/corpus.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_harness
from PIL import Image, features

from edgetl import rundir, timing
from edgetl.errors import EdgetlError
from edgetl.runtime.preprocess import Preprocess, prepare_pixels

Random = np.random.Generator
Change = Callable[[Random, bytes], bytes]

SHARES = {"JPEG": 0.22, "PNG": 0.16, "TIFF": 0.16, "WEBP": 0.12, "GIF": 0.1, "JPEG2000": 0.08, "BMP": 0.06, "PPM": 0.05,
          "AVIF": 0.05}
WANTS = (
    Preprocess(size_hw=(8, 8)),
    Preprocess(size_hw=(7, 9), resize_mode="letterbox", interpolation="bilinear", color="bgr"),
    Preprocess(size_hw=(6, 6), resize_mode="squash", interpolation="lanczos", color="gray", mean=(0.5,), std=(0.5,)),
    Preprocess(size_hw=(5, 5), crop_fraction=1.0, interpolation="nearest", exif=False),
)
NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 511, 4095, 4096, 7000, 16383, 32767, 32768,
           65535, 65536, 100_000, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
SIZES = (0, 1, 2, 100, 1000, 3000, 6500, 7000, 7100, 10_000, 16_383, 16_384, 30_000, 65_500, 65_535, 10**6, 2**31 - 1)
WIDTH, HEIGHT = 56, 40


# ------------------------------------------------------------------------------------------------------------- seeds


def picture(mode: str) -> Image.Image:
    """A small picture in that mode, always the same."""
    rng = np.random.default_rng(1)
    blocks = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = blocks.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return smooth.convert("L").convert("F")
    if mode in ("RGBA", "LA"):
        smooth.putalpha(Image.linear_gradient("L").resize(smooth.size))
    return smooth.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else smooth.convert(mode)


def encoded(mode: str, kind: str, **options: Any) -> bytes:
    """The file of a small picture; `frames` makes it an animation."""
    buffer, first = io.BytesIO(), picture(mode)
    frames = [first.rotate(90 * turn) for turn in range(1, options.pop("frames", 1))]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a comment"
    if options.pop("exif", False):
        options["exif"] = exif
    first.save(buffer, kind, **options, **({"save_all": True, "append_images": frames} if frames else {}))
    return buffer.getvalue()


def netpbm() -> list[bytes]:
    """PPM and its kin as text and as bytes, which Pillow writes in part only."""
    pixels = np.asarray(picture("RGB"))
    gray = pixels[:, :, 0]
    size = f"{WIDTH} {HEIGHT}\n"
    text = " ".join(map(str, pixels.ravel()))
    return [
        f"P1\n{size}{' '.join(map(str, (gray > 99).astype(int).ravel()))}\n".encode(),
        f"P2\n# a comment\n{size}255\n{' '.join(map(str, gray.ravel()))}\n".encode(),
        f"P3\n{size}255\n{text}\n".encode(), f"P3\n{size}999\n{text}\n".encode(),
        f"P4\n{size}".encode() + np.packbits(gray > 99, axis=1).tobytes(), f"P5\n{size}255\n".encode() + gray.tobytes(),
        f"P5\n{size}65535\n".encode() + (gray.astype(">u2") * 257).tobytes(),
        f"P6\n{size}255\n".encode() + pixels.tobytes(), f"P6\n{size}100\n".encode() + (pixels // 3).tobytes(),
        f"Pf\n{size}-1.0\n".encode() + gray.astype("<f4").tobytes(),
    ]


def packed_bmp() -> list[bytes]:
    """BMP files with run lengths of 8 and 4 bits, which Pillow reads but does not write."""
    plain = encoded("P", "BMP")
    begin = struct.unpack("<L", plain[10:14])[0]
    indices = np.frombuffer(plain[begin:], np.uint8).reshape(HEIGHT, -1)[:, :WIDTH]
    rows = b"".join(b"".join(bytes((1, int(one))) for one in row) + b"\0\0" for row in indices) + b"\0\1"
    absolute = b"".join(bytes((0, WIDTH)) + row.tobytes() + b"\0\0" for row in indices) + b"\0\1"
    delta = bytes((0, 2, 5, 3)) + rows
    return [plain[:28] + struct.pack("<HL", bits, way) + plain[34:begin] + body
            for bits, way, body in ((8, 1, rows), (8, 1, absolute), (8, 1, delta), (4, 2, rows))]


@functools.cache
def seeds(kind: str) -> tuple[bytes, ...]:
    """Valid files of a format, as different as Pillow can write them."""
    if kind == "JPEG":
        made = [encoded(mode, "JPEG", **options) for mode, options in (
            ("RGB", {"exif": True}), ("RGB", {"progressive": True, "quality": 60}), ("L", {}),
            ("L", {"progressive": True}), ("CMYK", {"quality": 90}), ("CMYK", {"progressive": True}),
            ("RGB", {"subsampling": 0, "restart_marker_blocks": 2}), ("RGB", {"keep_rgb": True}),
            ("RGB", {"optimize": True, "comment": b"a comment", "dpi": (72, 72)}))]
        return (*made, encoded("RGB", "MPO", frames=3))
    if kind == "PNG":
        modes = [encoded(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
        return (*modes, encoded("RGB", "PNG", frames=3), encoded("RGBA", "PNG", frames=2, exif=True),
                encoded("P", "PNG", transparency=3), encoded("RGB", "PNG", transparency=(1, 2, 3)),
                encoded("RGB", "PNG", icc_profile=b"no profile" * 9))
    if kind == "TIFF":
        ways = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd", "raw")
        colour = [encoded("RGB", "TIFF", compression=way) for way in ways]
        modes = ("L", "RGBA", "CMYK", "P", "I;16", "F", "LAB", "YCbCr")
        other = [encoded(mode, "TIFF", compression=way) for mode in modes for way in (None, "tiff_lzw")]
        fax = [encoded("1", "TIFF", compression=way) for way in ("group3", "group4", "tiff_ccitt")]
        return (*colour, *other, *fax, encoded("RGB", "TIFF", frames=3, exif=True), encoded("L", "TIFF", big_tiff=True))
    if kind == "WEBP":
        return tuple(encoded(mode, "WEBP", **options) for mode in ("RGB", "RGBA") for options in (
            {"quality": 60}, {"lossless": True}, {"exif": True}, {"frames": 3}, {"frames": 2, "lossless": True}))
    if kind == "GIF":
        return tuple(encoded(mode, "GIF", **options) for mode in ("P", "L", "1") for options in (
            {}, {"frames": 3}, {"transparency": 2}, {"interlace": 0, "comment": b"a comment"}))
    if kind == "JPEG2000":
        return tuple(encoded(mode, "JPEG2000", **options) for mode in ("RGB", "L", "RGBA", "I;16") for options in (
            {}, {"no_jp2": True}, {"tile_size": (16, 16)}, {"irreversible": True, "num_resolutions": 2}))
    if kind == "BMP":
        return (*(encoded(mode, "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")), *packed_bmp())
    if kind == "PPM":
        return tuple(netpbm())
    return (encoded("RGB", "AVIF", quality=50), encoded("RGBA", "AVIF", quality=50), encoded("L", "AVIF", quality=30),
            encoded("RGB", "AVIF", frames=2, quality=30), encoded("RGB", "AVIF", exif=True, quality=40))


# ----------------------------------------------------------------------------------------------------------- changes


def place(rng: Random, data: bytes) -> int:
    """Somewhere, as often as not in the header."""
    return int(rng.integers(0, max(1, min(len(data), 96 if rng.random() < 0.5 else len(data)))))


def flip_bits(rng: Random, data: bytes) -> bytes:
    """Up to eight bits turned."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9)) if data else 0):
        changed[place(rng, data)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def set_bytes(rng: Random, data: bytes) -> bytes:
    """A few bytes in a row replaced by random or telling ones."""
    at, count = place(rng, data), int(rng.integers(1, 9))
    new = rng.bytes(count) if rng.random() < 0.5 else bytes([int(rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF)))]) * count
    return data[:at] + new + data[at + count:]


def set_number(rng: Random, data: bytes) -> bytes:
    """A number of one to eight bytes replaced, in either order of bytes."""
    at, form = place(rng, data), str(rng.choice(list("BHHLLQ")))
    width = struct.calcsize(f"<{form}")
    value = int(rng.choice(NUMBERS)) % (1 << 8 * width)
    return data[:at] + struct.pack(str(rng.choice(("<", ">"))) + form, value) + data[at + width:]


def set_size(rng: Random, data: bytes) -> bytes:
    """The width and the height, wherever the file has them, replaced: the whole point of a decompression bomb."""
    new = [int(rng.choice(SIZES)) for _ in range(2)]
    lossless = struct.pack("<L", WIDTH - 1 | HEIGHT - 1 << 14)  # how WebP writes them there
    data = data.replace(lossless, struct.pack("<L", new[0] - 1 & 0x3FFF | (new[1] - 1 & 0x3FFF) << 14), 1)
    for old, side in zip((WIDTH, HEIGHT), new, strict=True):
        ways = [(struct.pack(form, old), struct.pack(form, min(side, 0xFFFF if form[1] == "H" else side)))
                for form in (">L", "<L", ">H", "<H")]
        ways += [(str(old).encode(), str(side).encode()),
                 ((old - 1).to_bytes(3, "little"), (side - 1 & 0xFFFFFF).to_bytes(3, "little"))]
        there = [way for way in ways if way[0] in data[:400]]
        if there and rng.random() < 0.8:
            data = data.replace(*there[0 if rng.random() < 0.7 else int(rng.integers(len(there)))], 1)
    return data


def cut(rng: Random, data: bytes) -> bytes:
    """The end left out."""
    return data[:int(rng.integers(0, len(data) + 1))]


def remove(rng: Random, data: bytes) -> bytes:
    """A part left out."""
    at = place(rng, data)
    return data[:at] + data[at + int(rng.integers(1, 40)):]


def double(rng: Random, data: bytes) -> bytes:
    """A part repeated, once or many times."""
    at, count = place(rng, data), int(rng.integers(1, 200))
    return data[:at] + data[at:at + count] * int(rng.choice((2, 2, 3, 50))) + data[at + count:]


def splice(rng: Random, data: bytes) -> bytes:
    """The beginning of this file and the end of another, of any format."""
    kind = str(rng.choice(sorted(available())))
    other = seeds(kind)[int(rng.integers(len(seeds(kind))))]
    return data[:place(rng, data)] + other[place(rng, other):]


def rearrange(rng: Random, parts: list[bytes]) -> list[bytes]:
    """Parts left out, doubled, exchanged or moved."""
    for _ in range(int(rng.integers(1, 4))):
        if not parts:
            break
        one, other = (int(rng.integers(len(parts))) for _ in range(2))
        way = rng.integers(5)
        if way == 0:
            del parts[one]
        elif way == 1:
            parts[one:one] = [parts[other]] * int(rng.choice((1, 1, 2, 60)))
        elif way == 2:
            parts[one], parts[other] = parts[other], parts[one]
        elif way == 3:
            parts.insert(one, parts.pop(other))
        else:
            parts[one] = flip_bits(rng, parts[one]) if rng.random() < 0.5 else set_number(rng, parts[one])
    return parts


def png_chunks(rng: Random, data: bytes) -> bytes:
    """The chunks of a PNG file rearranged and changed, with right lengths and checksums."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = struct.unpack(">L", data[at:at + 4])[0]
        chunks.append(data[at + 4:at + 8 + length])
        at += 12 + length
    body = b"".join(struct.pack(">L", max(0, len(one) - 4)) + one + struct.pack(">L", zlib.crc32(one))
                    for one in rearrange(rng, chunks))
    return data[:8] + body


def png_pixels(rng: Random, data: bytes) -> bytes:
    """Changed pixels of a PNG file, compressed again."""
    begin, end = data.find(b"IDAT"), data.rfind(b"IEND")
    if begin < 4 or end < begin:
        return data
    length = struct.unpack(">L", data[begin - 4:begin])[0]
    try:
        rows = zlib.decompress(data[begin + 4:begin + 4 + length])
    except zlib.error:
        return data
    one = b"IDAT" + zlib.compress(set_bytes(rng, rows) if rng.random() < 0.7 else double(rng, rows))
    whole = struct.pack(">L", len(one) - 4) + one + struct.pack(">L", zlib.crc32(one))
    return data[:begin - 4] + whole + data[end - 4:]


def png_checksums(data: bytes) -> bytes:
    """A PNG file with right checksums, as far as its chunks can be followed."""
    changed, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + struct.unpack(">L", data[at:at + 4])[0]
        if end + 4 <= len(data):
            changed[end:end + 4] = struct.pack(">L", zlib.crc32(data[at + 4:end]))
        at = end + 4
    return bytes(changed)


def jpeg_segments(rng: Random, data: bytes) -> bytes:
    """The segments of a JPEG file rearranged and changed; a scan comes with its data."""
    inside = (0, 0xFF, *range(0xD0, 0xD8))  # what follows 0xFF within the data of a scan
    marks = [at for at in range(len(data) - 1) if data[at] == 0xFF and data[at + 1] not in inside]
    parts = [data[at:end] for at, end in itertools.pairwise([*marks, len(data)])]
    return b"".join(parts[:1] + rearrange(rng, parts[1:]))


def riff_chunks(rng: Random, data: bytes) -> bytes:
    """The chunks of a RIFF file rearranged and changed, with right lengths."""
    chunks, at = [], 12
    while at + 8 <= len(data):
        length = struct.unpack("<L", data[at + 4:at + 8])[0]
        chunks.append(data[at:at + 4] + data[at + 8:at + 8 + length])
        at += 8 + length + length % 2
    body = b"".join(one[:4] + struct.pack("<L", max(0, len(one) - 4)) + one[4:] + b"\0" * (len(one) % 2)
                    for one in rearrange(rng, chunks))
    return b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body


def iso_boxes(rng: Random, data: bytes) -> bytes:
    """The boxes of an ISO file (AVIF, JP2) rearranged and changed, with right lengths."""
    boxes, at = [], 0
    while at + 8 <= len(data):
        length = struct.unpack(">L", data[at:at + 4])[0]
        length = len(data) - at if length < 8 else length
        boxes.append(data[at + 4:at + length])
        at += length
    return b"".join(struct.pack(">L", len(one) + 4) + one for one in rearrange(rng, boxes))


def tiff_entries(rng: Random, data: bytes) -> bytes:
    """Entries of the first directory of a TIFF file changed: tag, type, count or value."""
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 10:
        return data
    at = struct.unpack(f"{order}L", data[4:8])[0]
    if at + 2 > len(data):
        return data
    entries = struct.unpack(f"{order}H", data[at:at + 2])[0]
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        entry = at + 2 + 12 * int(rng.integers(max(1, entries)))
        offset, form = ((0, "H"), (2, "H"), (4, "L"), (8, "L"), (8, "H"))[int(rng.integers(5))]
        width = struct.calcsize(f"<{form}")
        if entry + offset + width > len(changed):
            continue
        tag = int(rng.integers(254, 348)) if offset == 0 else int(rng.choice(NUMBERS)) % (1 << 8 * width)
        changed[entry + offset:entry + offset + width] = struct.pack(order + form, tag)
    return bytes(changed)


ANYWHERE: tuple[Change, ...] = (flip_bits, flip_bits, set_bytes, set_bytes, set_number, set_number, set_size, cut,
                                remove, double, splice)
OWN: dict[str, tuple[Change, ...]] = {
    "PNG": (png_chunks, png_pixels) * 4, "JPEG": (jpeg_segments, jpeg_segments), "WEBP": (riff_chunks,) * 2,
    "TIFF": (tiff_entries,) * 4, "AVIF": (iso_boxes,) * 2, "JPEG2000": (iso_boxes,)}


# ------------------------------------------------------------------------------------------------------------- cases


def available() -> set[str]:
    """The formats that this Pillow can write."""
    return set(SHARES) - ({"AVIF"} if not features.check("avif") else set()) - (
        {"JPEG2000"} if not features.check("jpg_2000") else set()) - ({"WEBP"} if not features.check("webp") else set())


def changed(kind: str, seed: int, number: int) -> tuple[bytes, Preprocess, str]:
    """The file of a case, what it is prepared for, and how it is decoded."""
    rng = np.random.default_rng([seed, sorted(SHARES).index(kind), number])
    data = seeds(kind)[int(rng.integers(len(seeds(kind))))]
    ways = ANYWHERE + OWN.get(kind, ()) * 2
    for _ in range(int(rng.choice((1, 1, 1, 2, 3, 6)))):
        data = ways[int(rng.integers(len(ways)))](rng, data)
    data = png_checksums(data) if kind == "PNG" and rng.random() < 0.8 else data
    return data, WANTS[int(rng.integers(len(WANTS)))], str(rng.choice(("exact", "fast")))


def prepare(kind: str, seed: int) -> fuzz_harness.Case:
    """What does the cases of a format, after what only the first one would pay for."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # the libraries below Pillow complain of every damaged file
    for one in seeds(kind):
        with contextlib.suppress(EdgetlError):  # floating-point pixels are refused
            decoded(one, WANTS[0], "fast")
    return lambda number: decoded(*changed(kind, seed, number))


def prepare_files(files: list[Path]) -> fuzz_harness.Case:
    """What does two cases of each file, exactly and fast."""
    prepare("JPEG", 0)
    return lambda number: decoded(files[number // 2].read_bytes(), WANTS[0], ("exact", "fast")[number % 2])


def decoded(data: bytes, wants: Preprocess, way: str) -> None:
    """Raises an EdgetlError, or an AssertionError for what must not be."""
    try:
        pixels = prepare_pixels(data, wants, decode=way)
    except EdgetlError as problem:
        assert not isinstance(problem.__cause__, MemoryError), "out of memory"
        raise
    assert pixels.dtype == np.uint8 and pixels.shape == (*wants.size_hw, wants.channels), pixels.shape


def main() -> int:
    """Exit code 0 if every case was a result or an EdgetlError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(SHARES))
    parser.add_argument("--case", help="do one case in this process, e.g. PNG:17")
    parser.add_argument("--write", type=Path, help="with --case: write its file here, too")
    parser.add_argument("--files", type=Path, help="a folder of files to take instead")
    parser.add_argument("--slow-s", type=float, default=fuzz_harness.SLOW_S,
                        help="processor time from which on a case counts as hanging (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    fuzz_harness.GIVEN_UP_S *= options.slow_s / fuzz_harness.SLOW_S
    fuzz_harness.SLOW_S = options.slow_s
    if options.case:
        kind, number = options.case.split(":")
        if options.write is not None:
            options.write.write_bytes(changed(kind, options.seed, int(number))[0])
        prepare(kind, options.seed)(int(number))
        return 0
    jobs = {kind: (functools.partial(prepare, kind, options.seed), round(options.cases * share))
            for kind, share in SHARES.items() if kind in available()}
    if options.only:
        jobs = {options.only: (jobs[options.only][0], options.cases)}
    if options.files is not None:
        files = sorted(options.files.iterdir())
        jobs = {"files": (functools.partial(prepare_files, files), 2 * len(files))}
    found = {}
    for kind, (work, count) in jobs.items():
        begin = timing.now_s()
        tally = found[kind] = fuzz_harness.run(work, count)
        print(f"{kind}: {tally.cases} cases in {timing.now_s() - begin:.0f} s, {tally.failures} failures, slowest "
              f"{tally.slowest_s:.2f} s ({tally.slowest_case}), {dict(tally.outcomes)}", flush=True)
    failures = sum(tally.failures for tally in found.values())
    if options.out is not None:
        rundir.write_json(options.out, {
            "seed": options.seed, "failures": failures, "cases": sum(tally.cases for tally in found.values()),
            "formats": {kind: tally.to_json() for kind, tally in found.items()},
            "environment": rundir.environment()})
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
