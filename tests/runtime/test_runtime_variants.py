"""Variants beyond the plain one: pixels in, features out, rejected answers, drift."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from made_card import MadeCard
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import (
    CHANNELS,
    LABELS,
    PREPROCESS,
    SIZE,
    edit_manifest,
    make_bundle,
    make_graph,
    make_photo,
    parameters,
)

from edgetl.errors import BundleError, EdgetlError, GateFailed, InputError, UnknownName
from edgetl.runtime import load, verify
from edgetl.runtime.drift import Drift
from edgetl.runtime.manifest import MANIFEST
from edgetl.runtime.preprocess import normalize, prepare, prepare_pixels
from edgetl.runtime.verifying import pixels_of

PHOTOS = [make_photo(seed, 20 + seed, 30) for seed in range(5)]


def change_graph(folder, change, **fields):
    """The bundle with its graph changed and the manifest's variant made to fit."""
    model = onnx.load_from_string((folder / "fp32.onnx").read_bytes())
    change(model.graph)
    data = model.SerializeToString()
    (folder / "fp32.onnx").write_bytes(data)
    for name, value in {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data), **fields}.items():
        edit_manifest(folder, "variants", 0, name, value=value)
    return folder


def embed_preprocess(graph):
    """uint8 [N, H, W, C] in; casts, transposes and normalises, then the tiny graph."""
    factor = (PREPROCESS.scale / np.array(PREPROCESS.std)).astype(np.float32).reshape(1, 3, 1, 1)
    offset = (-np.array(PREPROCESS.mean) / np.array(PREPROCESS.std)).astype(np.float32).reshape(1, 3, 1, 1)
    graph.initializer.extend([numpy_helper.from_array(factor, "factor"), numpy_helper.from_array(offset, "offset")])
    before = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["turned", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["image"]),
    ]
    nodes = [*before, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIZE, SIZE, 3]))


def tensor(name, role, dtype, shape, layout):
    return {"name": name, "role": role, "dtype": dtype, "shape": shape, "layout": layout}


LOGITS = tensor("logits", "logits", "float32", ["N", 3], "NC")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with load(make_bundle(tmp_path_factory.mktemp("bundles") / "plain"), threads=1) as loaded:
        yield loaded


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "tiny")


@pytest.fixture
def embedded(bundle):
    takes = tensor("pixels", "image", "uint8", ["N", SIZE, SIZE, 3], "NHWC")
    return change_graph(bundle, embed_preprocess, inputs=[takes], embeds_preprocess=True)


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_a_graph_that_embeds_its_preprocessing_is_fed_pixels(embedded, plain, backend):
    expected = plain.logits(PHOTOS)
    with load(embedded, backend, threads=1) as loaded:
        assert loaded.info()["input"] == ["N", SIZE, SIZE, 3]
        assert np.abs(loaded.logits(PHOTOS, batch_size=2) - expected).max() < 1e-4
        pixels = np.stack([prepare_pixels(photo, PREPROCESS) for photo in PHOTOS])
        assert np.abs(loaded.logits(pixels) - expected).max() < 1e-4
        assert [loaded.predict(photo).label for photo in PHOTOS] == [plain.predict(photo).label for photo in PHOTOS]
        assert [one.label for one in loaded.predict_stream(PHOTOS, batch_size=2)] == [
            one.label for one in loaded.predict_batch(PHOTOS)
        ]
        loaded.warmup(1, batch_size=2)
        with pytest.raises(InputError, match="prepares its images itself"):
            loaded.predict(prepare(PHOTOS[0], PREPROCESS))


def test_verify_feeds_it_the_golden_pixels(embedded):
    report = verify(embedded, "cpu", threads=1)
    assert {check.status for check in report.checks} == {"passed"}
    logits = next(check for check in report.checks if check.name == "fp32")
    assert logits.measured < 1e-4


def test_an_engine_of_it_is_shown_the_golden_pixels(embedded, monkeypatch):
    card = MadeCard().install(monkeypatch)
    edit_manifest(embedded, "variants", 0, "backends", value=["tensorrt"])
    with load(embedded, threads=1) as loaded:
        assert len(loaded.info()["session"]["proofs"]) == 1
    card.off_by = 0.5
    edit_manifest(embedded, "variants", 0, "tolerance", value=1e-4)
    with pytest.raises(GateFailed, match="the engine is refused"):
        load(embedded, threads=1)
    assert card.calls == [2, 2]


@pytest.mark.parametrize("changes", [{}, {"layout": "NHWC"}, {"mean": (0.0, 0.0, 0.0), "std": (0.01, 1.0, 3.0)}])
def test_normalised_pixels_are_found_again(changes):
    wants = replace(PREPROCESS, **changes)
    pixels = np.arange(256 * 3, dtype=np.uint16).astype(np.uint8).reshape(1, 16, 16, 3)
    assert np.array_equal(pixels_of(normalize(pixels, wants), wants), pixels)


def test_features_are_a_second_output(bundle, plain):
    def give(graph):
        graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", CHANNELS]))

    features = tensor("flat", "features", "float32", ["N", CHANNELS], "NC")
    change_graph(bundle, give, outputs=[LOGITS, features])
    with load(bundle, threads=1) as loaded:
        found = loaded.features(PHOTOS, batch_size=2)
        assert found.shape == (5, CHANNELS)
        weights = parameters()
        assert np.abs(found @ weights["fc_w"].T + weights["fc_b"] - loaded.logits(PHOTOS)).max() < 1e-4
        prepared = np.stack([prepare(photo, PREPROCESS) for photo in PHOTOS])
        assert np.abs(loaded.features(prepared) - found).max() < 1e-5
        assert loaded.features([]).shape == (0, CHANNELS)
        assert loaded.predict(PHOTOS[0]).label == plain.predict(PHOTOS[0]).label


def test_without_features_there_is_a_sentence(plain):
    with pytest.raises(BundleError, match="gives no features") as caught:
        plain.features(PHOTOS)
    assert "--with-features" in caught.value.hint


def test_answers_below_the_bundles_threshold_are_rejected(bundle, plain):
    scores = [plain.predict(photo).score for photo in PHOTOS]
    threshold = float(np.median(scores))
    edit_manifest(bundle, "reject_below", value=threshold)
    with load(bundle, threads=1) as loaded:
        assert [loaded.predict(photo).rejected for photo in PHOTOS] == [score < threshold for score in scores]
    assert {one.rejected for one in plain.predict_batch(PHOTOS)} == {False}


def test_drift_is_given_every_answer_and_nothing_else(bundle):
    drift = Drift(len(LABELS))
    with load(bundle, threads=1, drift=drift) as loaded:
        loaded.warmup(2)
        loaded.logits(PHOTOS)
        assert drift.snapshot()["count"] == 0
        loaded.predict(PHOTOS[0])
        loaded.predict_batch(PHOTOS)
        list(loaded.predict_stream(PHOTOS))
        loaded.submit(PHOTOS[0]).result(20)
        assert drift.snapshot()["count"] == 1 + 5 + 5 + 1
        assert drift.snapshot()["top"]["mean"] == pytest.approx(
            np.mean([loaded.predict(photo).score for photo in [*PHOTOS, *PHOTOS, PHOTOS[0], PHOTOS[0]]]), abs=1e-5
        )
    with pytest.raises(InputError, match="counts 4 classes; this bundle has 3"):
        load(bundle, drift=Drift(4))


def test_what_load_is_given_reaches_its_place(bundle):
    with pytest.raises(UnknownName, match="'quick'"):
        load(bundle, decode="quick")
    with load(bundle, threads=1, max_megapixels=0.0001) as loaded, pytest.raises(InputError, match="megapixels"):
        loaded.predict(PHOTOS[0])
    with load(bundle, threads=1, options={"spin": "off"}) as loaded:
        assert loaded.info()["session"]["spin"] is False
        json.dumps(loaded.info())


def test_logits_that_are_not_finite_are_an_error_of_the_graph(bundle):
    def break_it(graph):
        (bias,) = (one for one in graph.initializer if one.name == "fc_b")
        bias.CopyFrom(numpy_helper.from_array(np.array([0, np.nan, 0], np.float32), "fc_b"))

    change_graph(bundle, break_it)
    with load(bundle, threads=1) as loaded:
        calls = (loaded.predict, lambda one: loaded.logits([one]), lambda one: loaded.submit(one).result(20))
        for call in calls:
            with pytest.raises(EdgetlError, match="not finite; expected") as caught:
                call(PHOTOS[0])
            assert "edgetl verify" in caught.value.hint
        with pytest.raises(InputError, match="prepared array holds values that are not finite"):
            loaded.predict(np.full((3, SIZE, SIZE), np.inf, np.float32))


def test_tensors_keep_their_names(bundle):
    """The test's own tools: a changed graph has a manifest that fits, an unchanged one is the tiny graph."""
    assert (bundle / "fp32.onnx").read_bytes() == make_graph()
    variant = json.loads((bundle / MANIFEST).read_text())["variants"][0]
    assert variant["outputs"] == [LOGITS]
