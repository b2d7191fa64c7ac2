"""What a graph is fed: shortcuts give what the long way gives, and buffers are never shared."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import PREPROCESS, make_photo, make_variant

from edgetl.errors import BackendUnavailable, InputError, UnknownName
from edgetl.runtime import feeding
from edgetl.runtime.feeding import Feeder, name_of
from edgetl.runtime.preprocess import Preprocess, prepare, prepare_pixels

VARIANT = make_variant("fp32", b"", "fp32.onnx")
PIXELS = replace(VARIANT, embeds_preprocess=True)
KINDS = st.builds(
    Preprocess,
    size_hw=st.sampled_from([(16, 16), (12, 20)]),
    resize_mode=st.sampled_from(["shortest", "squash", "letterbox"]),
    crop_fraction=st.sampled_from([1.0, 0.99, 0.8]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    color=st.sampled_from(["rgb", "bgr"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
)


@settings(deadline=None, max_examples=120)
@given(kind=KINDS, grey=st.booleans(), other=st.sampled_from([0, 0, 3]))
def test_pixels_of_the_very_size_are_what_the_long_way_makes(kind, grey, other):
    if grey:
        kind = replace(kind, color="gray", mean=(0.5,), std=(0.25,))
    height, width = kind.size_hw
    pixels = make_photo(1, height + other, width)
    pixels = pixels[:, :, :1] if grey else pixels
    assert np.array_equal(Feeder(kind, VARIANT).prepare(pixels), prepare_pixels(pixels, kind))


def test_the_shortcut_is_taken_where_it_is_exact_and_only_there():
    pixels = make_photo(0, 16, 16)

    def taken(**changes):
        return Feeder(replace(PREPROCESS, **changes), VARIANT).prepare(pixels) is pixels

    assert taken(crop_fraction=1.0)
    assert taken(resize_mode="squash")
    assert taken(resize_mode="letterbox")
    assert not taken()  # 0.8: enlarged to 20 x 20, then cut
    assert not taken(color="bgr", crop_fraction=1.0)


def test_a_batch_is_the_prepared_images():
    feeder = Feeder(PREPROCESS, VARIANT)
    photos = [make_photo(seed) for seed in range(3)]
    expected = np.stack([prepare(photo, PREPROCESS) for photo in photos])
    mixed = [feeder.prepare(photos[0]), feeder.prepare(expected[1]), feeder.prepare(photos[2])]
    assert np.array_equal(feeder.batch(mixed), expected)
    for photo, one in zip(photos, expected, strict=True):
        assert np.array_equal(feeder.batch([feeder.prepare(photo)]), one[None])


def test_a_prepared_array_is_not_copied():
    feeder, array = Feeder(PREPROCESS, VARIANT), np.zeros((3, 16, 16), np.float32)
    assert np.shares_memory(feeder.batch([feeder.prepare(array)]), array)
    assert np.shares_memory(feeder.batch([feeder.prepare(array[None])]), array)


def test_buffers_are_reused_when_they_were_given_back_and_not_before():
    feeder, image = Feeder(PREPROCESS, VARIANT), [prepare_pixels(make_photo(0), PREPROCESS)]
    first, second = feeder.batch(image), feeder.batch(image)
    assert not np.shares_memory(first, second)
    feeder.give_back(first, image)
    assert feeder.batch(image) is first
    prepared = [np.zeros((3, 16, 16), np.float32)]
    feeder.give_back(feeder.batch(prepared), prepared)
    assert not np.shares_memory(feeder.batch(image), prepared[0])  # the caller's array is never written to


def test_a_graph_that_prepares_takes_pixels():
    feeder, photos = Feeder(PREPROCESS, PIXELS), [make_photo(seed) for seed in range(2)]
    expected = np.stack([prepare_pixels(photo, PREPROCESS) for photo in photos])
    for count in (1, 2):
        found = feeder.batch([feeder.prepare(photo) for photo in photos[:count]])
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected[:count])
    with pytest.raises(InputError, match="prepares its images itself"):
        feeder.prepare(np.zeros((3, 16, 16), np.float32))


def test_without_memory_there_is_a_sentence(monkeypatch):
    def full(*_):
        raise MemoryError

    feeder, image = Feeder(PREPROCESS, VARIANT), prepare_pixels(make_photo(0), PREPROCESS)
    monkeypatch.setattr(feeding.np, "empty", full)
    with pytest.raises(BackendUnavailable, match="no memory for 2 images") as caught:
        feeder.batch([image, image])
    assert "smaller batch" in caught.value.hint


def test_an_unknown_way_to_decode():
    with pytest.raises(UnknownName, match="'quick'"):
        Feeder(PREPROCESS, VARIANT, "quick")


def test_only_nameless_images_are_numbered(tmp_path):
    assert name_of(tmp_path / "a.jpg", 3, "batch") is None
    assert name_of(b"", 3, "batch") == "Image 3 of the batch"
