"""Whatever a camera, a browser or a hostile file hands over: upright 8-bit pixels, or one sentence."""

import io
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from edgetl.errors import EdgetlError, InputError
from edgetl.runtime.preprocess import Preprocess, decode, prepare, prepare_pixels

PLAIN = Preprocess(size_hw=(8, 8))
BLUE = Preprocess(size_hw=(8, 8), alpha_background=(0, 0, 255))
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_path_text_bytes_picture_and_array_give_the_same_pixels(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(path)
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path), PHOTO):
        assert np.array_equal(decode(source, PLAIN), PHOTO)


def test_colour_orders():
    assert np.array_equal(decode(PHOTO, Preprocess(size_hw=(8, 8), color="bgr")), PHOTO[:, :, ::-1])
    gray = decode(PHOTO, Preprocess(size_hw=(8, 8), color="gray"))
    assert gray.shape == (6, 9, 1)
    assert np.array_equal(gray[:, :, 0], np.asarray(Image.fromarray(PHOTO).convert("L")))


def test_gray_arrays_with_and_without_a_channel_axis():
    gray = PHOTO[:, :, 0]
    expected = np.repeat(gray[:, :, None], 3, axis=2)
    assert np.array_equal(decode(gray, PLAIN), expected)
    assert np.array_equal(decode(gray[:, :, None], PLAIN), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_equals_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PHOTO), "PNG", exif=exif)
    assert np.array_equal(decode(data, PLAIN), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert np.array_equal(decode(data, Preprocess(size_hw=(8, 8), exif=False)), PHOTO)


def test_orientation_of_a_jpeg_turns_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(Image.fromarray(PHOTO), "JPEG", exif=exif), PLAIN).shape == (9, 6, 3)


def test_damaged_exif_counts_as_no_rotation():
    data = encoded(Image.fromarray(PHOTO), "JPEG", exif=b"Exif\x00\x00nonsense, but a block")
    assert decode(data, PLAIN).shape == (6, 9, 3)


def test_cmyk_equals_pillow():
    data = encoded(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=95)
    assert np.array_equal(decode(data, PLAIN), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    decoded = decode(encoded(Image.fromarray(values), kind), PLAIN)
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_sixteen_bits_with_one_transparent_value():
    values = np.array([[0, 65535]], np.uint16)
    picture = Image.fromarray(values)
    picture.info["transparency"] = 0
    assert decode(picture, BLUE)[0].tolist() == [[0, 0, 255], [255, 255, 255]]


def test_integers_beyond_sixteen_bits_and_floats_are_refused():
    with pytest.raises(InputError, match="100000"):
        decode(Image.fromarray(np.array([[100000]], np.int32)), PLAIN)
    with pytest.raises(InputError, match="floating-point"):
        decode(Image.fromarray(np.array([[0.5]], np.float32)), PLAIN)


def test_palette_and_one_bit():
    palette = Image.fromarray(PHOTO).quantize(16)
    assert np.array_equal(decode(encoded(palette), PLAIN), np.asarray(palette.convert("RGB")))
    one_bit = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert decode(encoded(one_bit), PLAIN)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_shows_the_background(mode):
    picture = Image.fromarray(np.array([[[200, 200, 200, 255], [200, 200, 200, 0]]], np.uint8))
    for step in {"PA": ("PA",), "RGBa": ("RGBa",), "LA": ("LA",), "La": ("LA", "La")}.get(mode, ()):
        picture = picture.convert(step)
    opaque, clear = decode(picture, BLUE)[0].tolist()
    assert clear == [0, 0, 255]
    assert opaque == [200, 200, 200]


def test_half_transparent_is_mixed():
    picture = Image.fromarray(np.array([[[255, 0, 0, 128]]], np.uint8))
    assert decode(encoded(picture), BLUE)[0, 0].tolist() == [128, 0, 127]


@pytest.mark.parametrize("background", [0, 1, 100, 254, 255])
def test_mixing_rounds_as_pillow_does_for_every_colour_and_alpha(background):
    values = np.zeros((256, 256, 4), np.uint8)
    values[:, :, :3], values[:, :, 3] = np.arange(256)[:, None, None], np.arange(256)
    below = Image.new("RGBA", (256, 256), (background,) * 3 + (255,))
    below.alpha_composite(Image.fromarray(values))
    wants = Preprocess(size_hw=(8, 8), alpha_background=(background,) * 3)
    assert np.array_equal(decode(values, wants), np.asarray(below.convert("RGB")))


@pytest.mark.parametrize("mode, clear", [("P", 1), ("L", 7), ("RGB", (7, 7, 7))])
def test_a_transparent_colour_shows_the_background(mode, clear):
    picture = Image.fromarray(np.array([[[7, 7, 7], [9, 9, 9]]], np.uint8)).convert("L")
    if mode == "P":
        picture = Image.fromarray(np.array([[1, 0]], np.uint8)).convert("P")
        picture.putpalette([9, 9, 9, 7, 7, 7])
    data = encoded(picture.convert(mode), "PNG", transparency=clear)
    assert decode(data, BLUE)[0].tolist() == [[0, 0, 255], [9, 9, 9]]


def test_one_pixel_is_enough():
    assert prepare(np.full((1, 1, 3), 255, np.uint8), PLAIN).shape == (3, 8, 8)
    assert prepare(encoded(Image.new("L", (1, 1))), PLAIN).shape == (3, 8, 8)


def test_of_an_animation_the_first_frame():
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 200)
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert decode(data, PLAIN)[0, 0].tolist() == [10, 10, 10]


def test_a_truncated_jpeg_is_one_sentence_with_the_name(tmp_path):
    photo = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(photo, "JPEG")[:900])
    with pytest.raises(InputError, match=r"cut\.jpg.*truncated"):
        decode(path, PLAIN)


def test_a_text_file_named_jpg(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("hello, I am a text")
    with pytest.raises(InputError, match=r"notes\.jpg is not an image: it begins with b'hello") as caught:
        decode(path, PLAIN)
    assert "JPEG" in caught.value.hint


def test_an_empty_file_a_folder_and_a_missing_file(tmp_path):
    (tmp_path / "empty.png").touch()
    for path, says in (
        (tmp_path / "empty.png", "empty"),
        (tmp_path, "directory"),
        (tmp_path / "no.png", "No such file"),
    ):
        with pytest.raises(InputError, match=says):
            decode(path, PLAIN)


def test_bytes_can_be_given_a_name():
    with pytest.raises(InputError, match=r"^train/cat/7\.png"):
        decode(b"nothing", PLAIN, name="train/cat/7.png")


def test_too_large_is_refused_before_it_is_decoded():
    header = encoded(Image.new("1", (9000, 9000)))[:200]  # the pixels are missing: decoding would complain of that
    with pytest.raises(InputError, match="9000 x 9000"):
        decode(header, PLAIN)
    with pytest.raises(InputError, match=r"limit of 0\.0001 megapixels"):
        decode(np.zeros((20, 20), np.uint8), PLAIN, max_megapixels=0.0001)


def test_a_decompression_bomb_is_refused():
    with pytest.raises(InputError, match="50 megapixels"):
        decode(encoded(Image.new("1", (15000, 15000)))[:200], PLAIN)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(InputError, match=r"array"):
        decode(array, PLAIN)


def test_other_things_are_refused():
    with pytest.raises(InputError, match="is a int"):
        decode(7, PLAIN)


HEADS = [encoded(Image.fromarray(PHOTO), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]


@settings(deadline=None, max_examples=150)
@given(head=st.sampled_from(HEADS), cut=st.integers(0, 300), junk=st.binary(max_size=40))
def test_any_bytes_are_pixels_or_an_expected_error(head, cut, junk):
    try:
        pixels = decode(head[:cut] + junk + head[cut + len(junk) :], PLAIN)
    except EdgetlError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def damaged_exif() -> bytes:
    """A photo whose EXIF block says "turn me" and has a comment that points behind its end."""
    entries = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHLL", 0x010E, 2, 1000, 9999)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)
    return encoded(Image.fromarray(PHOTO), "JPEG", exif=block)


def test_a_warning_of_pillow_stays_a_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode(damaged_exif(), PLAIN).shape == (9, 6, 3)
    assert any("tag 270" in str(one.message) for one in caught)


@pytest.mark.parametrize("way", ["exact", "fast"])
def test_where_warnings_are_errors_the_same_pixels_come_and_the_log_tells(way, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = prepare_pixels(damaged_exif(), PLAIN, decode=way)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        assert np.array_equal(prepare_pixels(damaged_exif(), PLAIN, decode=way, name="a.jpg"), expected)
        assert warnings.filters == before
    assert any(one.name == "edgetl.runtime.decode" and one.message.startswith("a.jpg: ") for one in caplog.records)


def test_what_cannot_be_read_is_an_error_however_warnings_are_treated():
    data = damaged_exif()
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            with pytest.raises(InputError, match="cannot be read"):
                decode(data[:-200], PLAIN)


def test_out_of_memory_is_said_so(monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr("edgetl.runtime.decode.flatten", no_memory)
    with pytest.raises(InputError, match="more memory than there is"):
        decode(PHOTO, PLAIN)


ARRAYS = st.builds(
    lambda shape, dtype, fill: np.full(shape, fill).astype(dtype),
    st.lists(st.integers(0, 7), max_size=5),
    st.sampled_from([*["uint8"] * 5, "int8", "uint16", "int64", "float16", "float32", "float64", "bool", "O"]),
    st.integers(0, 1),
)


@settings(deadline=None, max_examples=200)
@given(array=ARRAYS, way=st.sampled_from(["exact", "fast"]), order=st.sampled_from(["C", "F", "reversed", "strided"]))
def test_any_array_is_pixels_or_an_expected_error(array, way, order):
    if order == "reversed":
        array = np.flip(array) if array.ndim else array
    elif order == "strided":
        array = np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    else:
        array = np.asarray(array, order=order)
    try:
        pixels = prepare_pixels(array, PLAIN, decode=way)
    except InputError:
        assert array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape or array.shape[2:] > (4,)
        return
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
