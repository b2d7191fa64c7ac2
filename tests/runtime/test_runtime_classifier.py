"""Loading a bundle and predicting: right answers, and every way a bundle can be wrong."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from tiny_bundle import LABELS, PREPROCESS, edit_manifest, encode, make_bundle, make_photo, reference_logits

from edgetl.errors import BackendUnavailable, BundleError, EdgetlError, InputError
from edgetl.runtime import Prediction, load
from edgetl.runtime.classifier import softmax
from edgetl.runtime.preprocess import prepare


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", second={"backends": ("openvino",)})


@pytest.fixture
def copy(bundle, tmp_path):
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture(scope="module")
def classifier(bundle):
    with load(bundle, threads=1) as loaded:
        yield loaded


def chances(pixels):
    logits = reference_logits(prepare(pixels, PREPROCESS)[None])[0]
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def test_a_prediction_is_the_references(classifier):
    pixels = make_photo(2)
    expected = chances(pixels)
    found = classifier.predict(pixels, top=2)
    order = np.argsort(-expected)
    assert isinstance(found, Prediction)
    assert (found.index, found.label) == (order[0], LABELS[order[0]])
    assert found.score == pytest.approx(expected[order[0]], abs=1e-5)
    assert [label for label, _ in found.top] == [LABELS[index] for index in order[:2]]
    assert [score for _, score in found.top] == pytest.approx(expected[order[:2]], abs=1e-5)


def test_path_text_bytes_picture_and_array_agree(classifier, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encode(make_photo(3)))
    expected = classifier.predict(path)
    for source in (str(path), path.read_bytes(), Image.open(path), make_photo(3)):
        assert classifier.predict(source) == expected


def test_top_holds_no_more_than_there_are_labels(classifier):
    found = classifier.predict(make_photo(0))
    assert len(found.top) == 3
    assert sum(score for _, score in found.top) == pytest.approx(1)
    assert found.top[0] == (found.label, found.score)


def test_a_batch_is_its_images_one_by_one(classifier):
    photos = [make_photo(seed, height=20 + seed) for seed in range(7)]
    whole = classifier.predict_batch(iter(photos), batch_size=3)
    single = [classifier.predict(photo) for photo in photos]
    assert [one.label for one in whole] == [one.label for one in single]
    assert [one.score for one in whole] == pytest.approx([one.score for one in single], abs=1e-5)


def test_nothing_in_nothing_out(classifier):
    assert classifier.predict_batch([]) == []
    assert classifier.logits([]).shape == (0, 3)
    assert classifier.logits(np.empty((0, 3, 16, 16), np.float32)).shape == (0, 3)


def test_logits_of_images_and_of_a_prepared_array(classifier):
    photos = [make_photo(seed) for seed in range(3)]
    prepared = np.stack([prepare(photo, PREPROCESS) for photo in photos])
    expected = reference_logits(prepared)
    assert np.abs(classifier.logits(prepared) - expected).max() < 1e-4
    assert np.abs(classifier.logits(photos, batch_size=2) - expected).max() < 1e-4


def test_a_prepared_array_is_predicted_as_it_is(classifier):
    photo = make_photo(4)
    prepared = prepare(photo, PREPROCESS)
    expected = classifier.predict(photo)
    assert classifier.predict(prepared) == classifier.predict(prepared[None]) == expected
    assert classifier.predict(np.asfortranarray(prepared)) == expected
    assert classifier.predict_batch([prepared, photo])[0].score == pytest.approx(expected.score, abs=1e-6)


def test_a_prediction_is_few_calls_around_the_graph(classifier):
    """A clock on a shared machine cannot hold 20 microseconds; what they are made of, calls, can be counted."""
    prepared, seen = prepare(make_photo(4), PREPROCESS), []
    classifier.predict(prepared)
    sys.setprofile(lambda frame, event, _: seen.append(event))
    try:
        classifier.predict(prepared)
    finally:
        sys.setprofile(None)
    assert 20 < len([event for event in seen if event in ("call", "c_call")]) < 65


@pytest.mark.parametrize("shape", [(16, 16, 3), (2, 3, 16, 16), (3, 16, 15), (3, 16), ()])
def test_a_prepared_array_of_another_shape(classifier, shape):
    with pytest.raises(InputError, match=r"expected \[3, 16, 16\] or \[1, 3, 16, 16\]") as caught:
        classifier.predict(np.zeros(shape, np.float32))
    assert "logits()" in caught.value.hint


def test_an_image_is_no_prepared_array(classifier):
    with pytest.raises(InputError, match="float64"):
        classifier.predict(np.zeros((3, 16, 16)))
    with pytest.raises(InputError, match="uint8; expected float32"):
        classifier.logits(np.zeros((1, 3, 16, 16), np.uint8))


def test_one_image_where_a_list_is_expected(classifier):
    for one in ("photo.jpg", b"bytes", Path("photo.jpg"), make_photo(0)):
        with pytest.raises(InputError, match="expected a list"):
            classifier.predict_batch(one)


def test_a_bad_image_in_a_batch_is_named(classifier, tmp_path):
    with pytest.raises(InputError, match="Image 1 of the batch"):
        classifier.predict_batch([make_photo(0), b"junk"])
    with pytest.raises(InputError, match=r"gone\.png"):
        classifier.predict_batch([make_photo(0), tmp_path / "gone.png"])
    with pytest.raises(InputError, match="batch_size is 0"):
        classifier.predict_batch([make_photo(0)], batch_size=0)


def test_many_threads_agree(classifier):
    photos = [make_photo(seed) for seed in range(16)]
    serial = [classifier.predict(photo) for photo in photos]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(classifier.predict, photos)) == serial


def test_info_tells_what_runs_and_why(bundle):
    with load(bundle, threads=1) as loaded:
        told = loaded.info()
    assert (told["variant"], told["backend"], told["session"]["backend"]) == ("fp32", "cpu", "cpu")
    assert told["session"]["threads"] == 1
    assert "order" in told["why"]
    json.dumps(told)
    with load(bundle, variant="other") as loaded:
        assert (loaded.info()["variant"], loaded.info()["backend"]) == ("other", "openvino")


def test_warmup_runs_and_closed_is_closed(bundle):
    loaded = load(bundle)
    loaded.warmup(2)
    loaded.close()
    loaded.close()
    with pytest.raises(BackendUnavailable, match="closed"):
        loaded.predict(make_photo(0))


def test_options_and_cache_reach_the_backend(bundle, tmp_path):
    with pytest.raises(EdgetlError, match="no option 'speed'"):
        load(bundle, options={"speed": "high"})
    with load(bundle, backend="openvino", cache_dir=tmp_path) as loaded:
        loaded.warmup(1)
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("file, variant", [("fp32.onnx", "fp32"), ("other.onnx", "other")])
def test_a_flipped_byte_is_refused(copy, file, variant):
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    with pytest.raises(BundleError, match=f"{file} was altered"):
        load(copy, variant=variant)


def test_a_longer_and_a_missing_file(copy):
    path = copy / "fp32.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"838 bytes; the manifest says 837"):
        load(copy)
    path.unlink()
    with pytest.raises(BundleError, match=r"fp32\.onnx is missing"):
        load(copy)
    path.mkdir()
    with pytest.raises(BundleError, match="is a folder; expected a regular file"):
        load(copy)


def test_a_link_that_leaves_the_bundle(copy, tmp_path):
    outside = tmp_path / "outside.onnx"
    (copy / "fp32.onnx").rename(outside)
    (copy / "fp32.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="link that leaves the bundle"):
        load(copy)


def test_links_inside_and_to_the_bundle_are_fine(copy, tmp_path):
    (copy / "fp32.onnx").rename(copy / "real.onnx")
    (copy / "fp32.onnx").symlink_to("real.onnx")
    (tmp_path / "link").symlink_to(copy)
    load(tmp_path / "link").close()


@pytest.mark.parametrize("path", ["../x.onnx", "/etc/hostname"])
def test_a_path_that_leaves_the_bundle(copy, path):
    edit_manifest(copy, "variants", 0, "file", value=path)
    with pytest.raises(BundleError, match="leaves the bundle"):
        load(copy)


def test_a_manifest_from_the_future(copy):
    edit_manifest(copy, "schema", value=7)
    with pytest.raises(BundleError, match="newer"):
        load(copy)


def test_a_manifest_that_is_no_text(copy):
    (copy / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="not a text file"):
        load(copy)


def test_what_is_no_bundle(tmp_path, bundle):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.jpg").touch()
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / "absent", "does not exist"),
        (bundle / "fp32.onnx", "is a file"),
        (tmp_path / "empty", "is an empty folder"),
        (other, "has no manifest.json"),
        (run, r"is a RUN \(a trained model\)"),
    ]
    for path, says in cases:
        with pytest.raises(BundleError, match=says):
            load(path)
    with pytest.raises(BundleError) as caught:
        load(run)
    assert caught.value.hint.startswith("Make a bundle of it: edgetl export")


def test_a_manifest_of_another_graph(copy):
    edit_manifest(copy, "variants", 0, "inputs", 0, "name", value="pixels")
    with pytest.raises(BundleError, match=r"expected .'pixels'."):
        load(copy)


def test_softmax_of_large_logits():
    scores = softmax(np.array([[1000.0, 1000.0, -1000.0]], np.float32))
    assert scores[0].tolist() == [0.5, 0.5, 0.0]


@settings(deadline=None, max_examples=60)
@given(
    pixels=st.one_of(
        arrays(np.uint8, st.tuples(st.integers(0, 30), st.integers(0, 30))),
        arrays(np.uint8, st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 6))),
        arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(0, 4))),
        arrays(np.uint8, st.tuples(st.integers(0, 4))),
    )
)
def test_any_array_is_a_prediction_or_a_sentence(classifier, pixels):
    try:
        found = classifier.predict(pixels)
    except InputError:
        return
    assert found.label in LABELS
    assert 0 < found.score <= 1
