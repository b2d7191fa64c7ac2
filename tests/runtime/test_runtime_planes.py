"""Images of other channels than colours: arrays, .npy files, alpha that is data, and what is refused."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgetl.errors import BundleError, EdgetlError, InputError
from edgetl.runtime import planes
from edgetl.runtime import preprocess as pre
from edgetl.runtime.decode import read_array
from edgetl.runtime.preprocess import Preprocess, decode, normalize, prepare, prepare_pixels, resize

RGBA = Preprocess(size_hw=(8, 8), color="rgba", mean=(0.5,) * 4, std=(0.25,) * 4)
FIVE = Preprocess(size_hw=(8, 8), color="planes", mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(0.25,) * 5)
RGB = Preprocess(size_hw=(8, 8))
GRAY = Preprocess(size_hw=(8, 8), color="gray", mean=(0.5,), std=(0.5,))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray, **values: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **values)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_channels_follow_from_color_and_mean() -> None:
    assert [one.channels for one in (RGB, GRAY, RGBA, FIVE)] == [3, 1, 4, 5]
    assert FIVE.input_shape == (5, 8, 8)


def test_every_source_of_the_same_pixels_gives_the_same(tmp_path: Path) -> None:
    pixels = noise(20, 30, 4)
    (tmp_path / "one.npy").write_bytes(npy(pixels))
    (tmp_path / "one.png").write_bytes(png(pixels))
    for source in (tmp_path / "one.npy", str(tmp_path / "one.png"), pixels, png(pixels), Image.fromarray(pixels),
                   npy(np.asfortranarray(pixels))):  # fmt: skip
        assert np.array_equal(decode(source, RGBA), pixels)
        assert np.array_equal(prepare_pixels(source, RGBA), resize(pixels, RGBA))
        assert np.array_equal(prepare_pixels(source, RGBA, decode="fast"), resize(pixels, RGBA))


@pytest.mark.parametrize("mode", ["shortest", "squash", "letterbox"])
def test_each_channel_is_resized_as_a_gray_image(mode: str) -> None:
    """Alpha 0 must not blacken the colours, as it does in Pillow's own RGBA."""
    pixels = noise(40, 31, 5)
    pixels[:20, :, 3] = 0
    wants = dataclasses.replace(FIVE, resize_mode=mode)
    found = prepare_pixels(pixels, wants)
    for channel in range(5):
        alone = Preprocess(size_hw=(8, 8), color="gray", mean=FIVE.mean[channel:channel + 1], std=(0.25,),
                           resize_mode=mode)  # fmt: skip
        assert np.array_equal(found[:, :, channel:channel + 1], prepare_pixels(pixels[:, :, channel], alone))
    four = dataclasses.replace(RGBA, mean=FIVE.mean[:4], resize_mode=mode)
    assert np.array_equal(prepare_pixels(png(pixels[:, :, :4].copy()), four), found[:, :, :4])


def test_a_prepared_image_is_normalised_channel_by_channel() -> None:
    pixels = noise(8, 8, 5)
    wants = dataclasses.replace(FIVE, crop_fraction=1.0)
    by_hand = (pixels.transpose(2, 0, 1) / 255 - np.reshape(FIVE.mean, (5, 1, 1))) / 0.25
    np.testing.assert_allclose(prepare(pixels, wants), by_hand, atol=1e-5)
    assert normalize(pixels[None], dataclasses.replace(wants, layout="NHWC")).shape == (1, 8, 8, 5)


def test_arrays_in_files_are_read_as_colors_and_gray_too() -> None:
    assert np.array_equal(decode(npy(noise(9, 7, 3)), RGB), noise(9, 7, 3))
    assert np.array_equal(decode(npy(noise(9, 7)), GRAY), noise(9, 7)[:, :, None])
    assert np.array_equal(decode(npy(noise(9, 7)), RGB), noise(9, 7)[:, :, None].repeat(3, 2))
    assert np.array_equal(prepare_pixels(npy(noise(90, 70, 3)), RGB), prepare_pixels(noise(90, 70, 3), RGB))


def test_exif_turns_what_has_alpha() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(png(noise(6, 9, 4), exif=exif), RGBA).shape == (9, 6, 4)
    assert decode(png(noise(6, 9, 4), exif=exif), dataclasses.replace(RGBA, exif=False)).shape == (6, 9, 4)


def test_other_modes_with_alpha_become_rgba() -> None:
    gray = Image.fromarray(noise(5, 6)).convert("LA")
    gray.putalpha(Image.fromarray(noise(5, 6)[::-1].copy()))
    found = decode(gray, RGBA)
    assert np.array_equal(found[:, :, 0], noise(5, 6))
    assert np.array_equal(found[:, :, 3], noise(5, 6)[::-1])


REFUSED = [
    (RGBA, png(noise(5, 5, 3)), r"no fourth channel \(RGB\)"),
    (RGBA, Image.new("CMYK", (5, 5)), r"no fourth channel \(CMYK\)"),
    (RGBA, noise(5, 5, 3), r"shape \[5, 5, 3\]; this model takes 4 channels"),
    (RGBA, noise(5, 5, 4).astype(np.float64), "dtype float64"),
    (FIVE, png(noise(5, 5, 4)), r"image file \(RGBA\); this model takes arrays of 5"),
    (FIVE, noise(5, 5), r"shape \[5, 5, 1\]"),
    (FIVE, noise(0, 5, 5), "expected at least one"),
    (FIVE, npy(noise(5, 5, 5).astype(np.uint16)), "holds uint16"),
    (FIVE, npy(noise(5, 5, 5))[:-1], "124 bytes of pixels; its shape .* needs 125"),
    (FIVE, npy(noise(5, 5, 5)) + b"more", "129 bytes of pixels"),
    (FIVE, npy(noise(5, 5, 5))[:40], "damaged .npy file"),
    (RGB, npy(noise(5, 5, 5)), "1 to 4 channels"),
    (RGB, b"\x93NUMPY\x09\x00", "version|damaged|holds object"),
    (FIVE, b"nothing", "not an image"),
]


@pytest.mark.parametrize(("wants", "source", "says"), REFUSED)
def test_what_does_not_fit_is_one_sentence(wants: Preprocess, source: object, says: str) -> None:
    for read in (decode, prepare_pixels):
        with pytest.raises(InputError, match=says):
            read(source, wants)


def test_nothing_is_unpickled() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="holds object"):
        decode(buffer.getvalue(), FIVE)


def test_large_arrays_are_refused() -> None:
    for source in (noise(40, 40, 5), npy(noise(40, 40, 5))):
        with pytest.raises(InputError, match="above the limit"):
            decode(source, FIVE, max_megapixels=0.001)


@given(st.binary(max_size=80))
@settings(max_examples=60)
def test_whatever_follows_the_magic_ends_in_a_sentence(rest: bytes) -> None:
    for version in (b"\x01\x00", b"\x02\x00", b""):
        with pytest.raises(EdgetlError):
            decode(b"\x93NUMPY" + version + rest, FIVE)


def test_a_shape_of_negative_or_endless_sides_is_refused() -> None:
    for shape in ("(-1, 5, 5)", "(99999999, 99999999, 5)", "(True, 5, 5)"):
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(25)
        with pytest.raises(InputError):
            decode(data, FIVE)


def test_pictures_to_look_at_are_rgb() -> None:
    assert np.array_equal(planes.colors_of(npy(noise(5, 6, 5)), FIVE), noise(5, 6, 5)[:, :, :3])
    assert np.array_equal(planes.colors_of(npy(noise(5, 6, 1)), FIVE), noise(5, 6, 1).repeat(3, 2))
    assert planes.colors_of(png(noise(5, 6, 4)), RGBA).shape == (5, 6, 3)
    assert planes.colors_of(npy(noise(5, 6, 4)), RGBA).shape == (5, 6, 3)
    assert planes.colors_of(npy(noise(5, 6)), RGB).shape == (5, 6, 3)


def test_the_manifest_says_how_many_channels() -> None:
    for wants in (RGBA, FIVE, GRAY):
        assert pre.from_dict(pre.to_dict(wants), where="here") == wants
    many = {"color": "planes", "mean": [0.5] * 65, "std": [0.5] * 65}
    for wrong, says in (({"mean": [0.5] * 3}, "4 numbers, one a channel of color 'rgba'"),
                        ({"color": "cmyk"}, "expected one of rgb, bgr, gray, rgba, planes"),
                        (many, "at most 64 numbers")):  # fmt: skip
        with pytest.raises(BundleError, match=says):
            pre.from_dict(pre.to_dict(RGBA) | wrong, where="here")


def test_a_file_written_is_a_file_read() -> None:
    assert np.array_equal(read_array(planes.to_file(noise(4, 5, 6)), "it"), noise(4, 5, 6))
