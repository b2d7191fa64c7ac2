"""What would take long or much memory is refused by its header; what is merely unusual is not."""

import io
import os
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from edgetl.errors import InputError
from edgetl.runtime import headers
from edgetl.runtime.preprocess import Preprocess, prepare_pixels

PLAIN = Preprocess(size_hw=(8, 8))
SQUASH = Preprocess(size_hw=(8, 8), resize_mode="squash")
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def resized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG file whose header tells another size."""
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def with_scans(count: int, width: int, height: int) -> bytes:
    """A progressive JPEG file whose last scan, without its data, comes `count` times more."""
    data = encoded(PHOTO, "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    header = data[last : last + 2 + struct.unpack(">H", data[last + 2 : last + 4])[0]]
    return resized(data[:-2] + header * count + b"\xff\xd9", width, height)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_many_scans_over_a_large_image_are_refused(decode):
    with pytest.raises(InputError, match=r"scans over 49\.0 megapixels"):
        prepare_pixels(with_scans(100, 7000, 7000), PLAIN, decode=decode)
    assert prepare_pixels(with_scans(100, 64, 48), PLAIN, decode=decode).shape == (8, 8, 3)


def test_scans_are_counted_only_where_the_decoder_reads_several():
    data = encoded(PHOTO, "JPEG", quality=95)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 65000) + headers.SCAN * 32500
    assert prepare_pixels(data[:2] + comment + data[2:], PLAIN).shape == (8, 8, 3)
    assert not headers._jpeg_header(data).several_scans
    assert headers._jpeg_header(encoded(PHOTO, "JPEG", progressive=True)).several_scans
    assert headers._jpeg_header(data[:40]).several_scans  # nothing is known


def test_a_sequential_file_with_a_scan_for_each_channel_counts_as_several():
    data = encoded(PHOTO, "JPEG")
    scan = data.find(headers.SCAN)
    single = data[: scan + 4] + b"\x01" + data[scan + 5 :]  # one component in the first scan, of three
    assert headers._jpeg_header(single).several_scans


def test_much_metadata_is_refused_and_a_usual_amount_is_not():
    data = encoded(PHOTO, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", 65002) + b"x" * 65000
    with pytest.raises(InputError, match=r"MB of metadata"):
        prepare_pixels(data[:2] + segment * 300 + data[2:], PLAIN)
    with pytest.raises(InputError, match=r"in 4097 parts"):
        prepare_pixels(data[:2] + b"\xff\xfe\x00\x02" * 5000 + data[2:], PLAIN)
    with pytest.raises(InputError, match=r"metadata"):  # Pillow reads on over what stands between two segments
        prepare_pixels(data[:2] + (segment + b"junk") * 300 + data[2:], PLAIN)
    assert prepare_pixels(data[:2] + segment * 30 + data[2:], PLAIN).shape == (8, 8, 3)


def test_formats_that_take_long_have_a_lower_limit():
    text = b"P3\n1200 1000\n255\n"
    with pytest.raises(InputError, match="1200 x 1000 pixels as PPM as text"):
        prepare_pixels(text, PLAIN)
    with pytest.raises(InputError, match="not enough image data"):  # now it is decoded
        prepare_pixels(text, PLAIN, max_megapixels=100)
    codestream = encoded(PHOTO, "JPEG2000", no_jp2=True)
    at = codestream.find(struct.pack(">LL", 64, 48))
    with pytest.raises(InputError, match="4000 x 4000 pixels as JPEG 2000"):
        prepare_pixels(codestream[:at] + struct.pack(">LL", 4000, 4000) + codestream[at + 8 :], PLAIN)
    gray = encoded(PHOTO.convert("L"), "BMP")
    packed = gray[:18] + struct.pack("<LL", 2000, 2000) + gray[26:30] + struct.pack("<L", 1) + gray[34:]
    with pytest.raises(InputError, match="2000 x 2000 pixels as BMP with run lengths"):
        prepare_pixels(packed, PLAIN)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"])
def test_the_limit_holds_for_every_format(kind):
    if kind == "AVIF" and "AVIF" not in Image.registered_extensions().values():
        pytest.skip("Pillow without AVIF")
    data = encoded(PHOTO, kind)
    with pytest.raises(InputError, match=r"64 x 48 pixels.* limit"):
        prepare_pixels(data, PLAIN, max_megapixels=0.0004)
    assert prepare_pixels(data, PLAIN, max_megapixels=0.2).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_many_frames_only_the_first_counts(kind):
    frames = [PHOTO, *(PHOTO.rotate(one) for one in range(1, 9))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    found = prepare_pixels(data, PLAIN, max_megapixels=64 * 48 / 1e6)
    assert np.abs(found.astype(int) - prepare_pixels(PHOTO, PLAIN)).mean() < 20  # GIF and WebP lose something


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}])
def test_the_canvas_of_webp_is_known_before_it_is_allocated(options):
    data = encoded(PHOTO, "WEBP", **options)
    assert headers._webp_size(data) == (64, 48)
    assert headers._webp_size(data[:20]) is None
    large = bytearray(data)
    if data[12:16] == b"VP8X":
        large[24:30] = b"\xff\x3f\x00" * 2
        with pytest.raises(InputError, match="16384 x 16384"):
            prepare_pixels(bytes(large), PLAIN)


def tiled(width: int, height: int, side: int, tile: bytes) -> bytes:
    """A gray TIFF file of one compressed tile."""
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 0, 325: len(tile)}
    tags[324] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + tile


def test_large_tiles_of_a_small_tiff_are_refused():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    right = tiled(16, 16, 16, zlib.compress(pixels.tobytes()))
    assert np.array_equal(prepare_pixels(right, SQUASH), prepare_pixels(pixels, SQUASH))
    with pytest.raises(InputError, match="tiles of 20000 x 20000"):
        prepare_pixels(tiled(16, 16, 20000, zlib.compress(bytes(9))), SQUASH)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(InputError, match=r"large\.jpg has more than 417 MB"):
        prepare_pixels(path, PLAIN)
    with pytest.raises(InputError, match="more than 18 MB"):
        prepare_pixels(path, PLAIN, max_megapixels=0.1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_read_to_its_end_and_no_further_than_the_limit(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = encoded(PHOTO, "PNG")
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    assert np.array_equal(prepare_pixels(pipe, PLAIN), prepare_pixels(data, PLAIN))
    writer.join()
    with pytest.raises(InputError, match="more than 18 MB"):
        prepare_pixels("/dev/zero", PLAIN, max_megapixels=0.1)


MEMORY = """
import resource, sys
from PIL import Image
import numpy as np
from edgetl.runtime.preprocess import Preprocess, prepare_pixels
prepare_pixels(np.zeros((9, 9, 3), np.uint8), Preprocess(size_hw=(8, 8)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
picture = Image.new(sys.argv[1], (3000, 3000), 7)
prepare_pixels(picture, Preprocess(size_hw=(8, 8)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("mode, most", [("I;16", 80), ("RGBA", 120), ("LA", 120)])
def test_flattening_takes_little_more_than_the_picture(mode, most):
    """9 megapixels are 18 MB of 16 bits or 36 MB of colours; whole-image arithmetic took 200 MB and more."""
    told = subprocess.run([sys.executable, "-c", MEMORY, mode], capture_output=True, text=True, check=True).stdout
    assert float(told) < most
