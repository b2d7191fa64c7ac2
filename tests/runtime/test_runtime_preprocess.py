"""Resizing and normalising equal torchvision's, and the record of them is read strictly."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from edgetl.errors import BundleError, InputError
from edgetl.runtime.preprocess import Preprocess, from_dict, normalize, prepare, prepare_pixels, resize, to_dict

MODES = {
    "nearest": transforms.InterpolationMode.NEAREST,
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
    "lanczos": transforms.InterpolationMode.LANCZOS,
}


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Shapes, edges and noise, as in a photo; [H, W, 3] uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + seed), np.cos(y / 5), np.sin((x + y) / 11)], axis=2) * 90 + 128
    waves[height // 4 : height // 2, width // 3 :] = rng.integers(0, 256, 3)
    return np.clip(waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", list(MODES))
@pytest.mark.parametrize(
    "height, width, size, fraction",
    [
        (120, 90, 32, 0.875),
        (90, 121, 32, 0.875),
        (37, 211, 24, 0.95),
        (50, 50, 50, 1.0),
        (20, 31, 64, 0.8),
        (64, 64, 33, 1.0),
    ],
)
def test_shortest_equals_torchvision_to_the_pixel(interpolation, height, width, size, fraction):
    pixels = photo(height, width)
    preprocess = Preprocess(size_hw=(size, size), crop_fraction=fraction, interpolation=interpolation)
    theirs = transforms.Compose(
        [transforms.Resize(round(size / fraction), MODES[interpolation]), transforms.CenterCrop(size)]
    )
    assert np.array_equal(resize(pixels, preprocess), np.asarray(theirs(Image.fromarray(pixels))))


@pytest.mark.parametrize("interpolation", list(MODES))
def test_squash_equals_torchvision_to_the_pixel(interpolation):
    pixels = photo(77, 130)
    preprocess = Preprocess(size_hw=(40, 24), resize_mode="squash", interpolation=interpolation)
    theirs = transforms.Resize((40, 24), MODES[interpolation])
    assert np.array_equal(resize(pixels, preprocess), np.asarray(theirs(Image.fromarray(pixels))))


def test_normalized_equals_torchvision_within_rounding():
    pixels = photo(60, 80)
    preprocess = Preprocess(size_hw=(32, 32))
    theirs = transforms.Compose(
        [
            transforms.Resize(37, MODES["bicubic"]),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    expected = theirs(Image.fromarray(pixels)).numpy()
    assert np.abs(prepare(pixels, preprocess) - expected).max() < 1e-5


def test_a_size_that_is_not_square_keeps_the_aspect_ratio():
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, 50:] = 255
    small = resize(pixels, Preprocess(size_hw=(16, 48), crop_fraction=1.0, interpolation="nearest"))
    assert small.shape == (16, 48, 3)
    assert (small[:, :24] == 0).all()
    assert (small[:, 24:] == 255).all()


def test_letterbox_keeps_everything_and_pads_with_what_becomes_zero():
    preprocess = Preprocess(size_hw=(20, 30), resize_mode="letterbox")
    boxed = resize(np.full((10, 10, 3), 255, np.uint8), preprocess)
    assert (boxed[:, 5:25] == 255).all()
    assert np.abs(normalize(boxed[None], preprocess)[0][:, :, :5]).max() < 0.01


def test_pixels_of_the_right_size_stay_as_they_are():
    pixels = photo(16, 16)
    assert np.array_equal(resize(pixels, Preprocess(size_hw=(16, 16), crop_fraction=1.0)), pixels)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size_h=st.integers(1, 40),
    size_w=st.integers(1, 40),
    mode=st.sampled_from(["shortest", "squash", "letterbox"]),
    fraction=st.floats(0.2, 1),
    color=st.sampled_from(["rgb", "gray"]),
)
def test_any_size_comes_out_as_asked(height, width, size_h, size_w, mode, fraction, color):
    channels = 1 if color == "gray" else 3
    preprocess = Preprocess(
        size_hw=(size_h, size_w),
        resize_mode=mode,
        crop_fraction=fraction,
        color=color,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )
    assert prepare_pixels(photo(height, width), preprocess).shape == (size_h, size_w, channels)


def test_an_image_too_narrow_to_be_enlarged_is_refused():
    with pytest.raises(InputError, match="too narrow"):
        resize(np.zeros((1, 40000, 3), np.uint8), Preprocess(size_hw=(224, 224)))


def test_without_antialias_only_nearest():
    with pytest.raises(InputError, match="antialias"):
        resize(photo(9, 9), Preprocess(size_hw=(4, 4), antialias=False))
    assert resize(photo(9, 9), Preprocess(size_hw=(4, 4), antialias=False, interpolation="nearest")).shape == (4, 4, 3)


def test_normalize_is_the_formula_in_both_layouts():
    stack = photo(8, 10)[None].repeat(2, axis=0)
    preprocess = Preprocess(size_hw=(8, 10), scale=1 / 128, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    expected = (stack.astype(np.float64) / 128 - preprocess.mean) / preprocess.std
    last = dataclasses.replace(preprocess, layout="NHWC")
    assert np.abs(normalize(stack, last) - expected).max() < 1e-6
    assert np.array_equal(normalize(stack, preprocess), normalize(stack, last).transpose(0, 3, 1, 2))
    assert normalize(stack, preprocess).dtype == np.float32


def test_normalize_writes_into_the_array_it_is_given():
    stack, preprocess = photo(4, 4)[None], Preprocess(size_hw=(4, 4))
    out = np.empty((1, 3, 4, 4), np.float32)
    assert normalize(stack, preprocess, out=out) is out
    assert torch.allclose(torch.from_numpy(out), torch.from_numpy(normalize(stack, preprocess)))


def test_the_record_comes_back_equal():
    changed = Preprocess(
        size_hw=(64, 96),
        resize_mode="letterbox",
        interpolation="bilinear",
        color="gray",
        mean=(0.5,),
        std=(0.25,),
        alpha_background=(1, 2, 3),
        exif=False,
        layout="NHWC",
        scale=1.0,
        crop_fraction=1.0,
    )
    for preprocess in (Preprocess(size_hw=(224, 224)), changed):
        assert from_dict({**to_dict(preprocess), "later": 1}, where="here") == preprocess


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("size_hw", [224], "2 whole numbers"),
        ("size_hw", [0, 5], "from 1"),
        ("size_hw", "224", "2 whole"),
        ("kind", "text", "one of image"),
        ("resize_mode", "fit", "one of shortest"),
        ("crop_fraction", 1.5, "at most 1"),
        ("crop_fraction", True, "finite number"),
        ("interpolation", "cubic", "bicubic"),
        ("antialias", 1, "true or false"),
        ("antialias", False, "nearest"),
        ("scale", 0, "above 0"),
        ("scale", float("nan"), "finite"),
        ("mean", [0.5], "3 numbers"),
        ("std", [0.1, 0.0, 0.1], "above 0"),
        ("std", ["a"], "finite"),
        ("color", "RGB", "one of rgb"),
        ("alpha_background", [0, 0, 256], "to 255"),
        ("exif", "yes", "true or false"),
        ("layout", "CHW", "NCHW"),
    ],
)
def test_every_wrong_field_is_named(field, value, says):
    values = {**to_dict(Preprocess(size_hw=(8, 8))), field: value}
    with pytest.raises(BundleError, match=says) as caught:
        from_dict(values, where="manifest.json: preprocess")
    assert f"'{field}'" in caught.value.message
    assert caught.value.message.startswith("manifest.json: preprocess")


@pytest.mark.parametrize("field", list(to_dict(Preprocess(size_hw=(8, 8)))))
def test_every_missing_field_is_named(field):
    values = to_dict(Preprocess(size_hw=(8, 8)))
    del values[field]
    with pytest.raises(BundleError, match=f"'{field}' is missing"):
        from_dict(values, where="here")


def test_a_record_that_is_no_table():
    with pytest.raises(BundleError, match="expected a table"):
        from_dict([1], where="here")
