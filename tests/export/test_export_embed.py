"""A graph that normalises by itself says, to the bit, what it said to images that were normalised for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import write_photos
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import LABELS, PREPROCESS, SIZE, graph_spec, make_graph

import edgetl.runtime
from edgetl import datasets, models, splits, weights
from edgetl.compress import quantize
from edgetl.errors import GateFailed, InputError
from edgetl.events import ignore
from edgetl.export import bundle, embed, variants
from edgetl.recipe import Export, build
from edgetl.runtime import manifest as manifests
from edgetl.runtime import processor
from edgetl.runtime.preprocess import Preprocess, normalize, prepare
from edgetl.runtime.session import open_session
from edgetl.targets.x86_vnni import TARGET

VNNI = not processor.missing(("vnni",))
PIXELS = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
LITE = dataclasses.replace(PREPROCESS, scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3)


class Noise:
    """Calibration images for ONNX Runtime's quantizer, neither black nor white."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.batches = [{"image": normalize(PIXELS.clip(9, 240), preprocess)}]

    def __len__(self) -> int:
        return 1

    def set_range(self, start_index: int, end_index: int) -> None:
        pass

    def get_next(self) -> dict[str, Any] | None:
        return self.batches.pop() if self.batches else None


def int8_graph(preprocess: Preprocess) -> bytes:
    """Calibrated on images without black and white, as photos often are."""
    steps = quantize.pixel_steps(preprocess)
    known = {} if steps is None else {"image": steps}
    scheme = {**TARGET.quantize, "rounding": "nearest"}
    return quantize.quantize(make_graph(), scheme, Noise(preprocess), method="min-max", known=known).graph


def answers(graph: bytes, images: np.ndarray, preprocess: Preprocess, backend: str = "cpu") -> np.ndarray:
    spec = graph_spec()
    spec = embed.spec_of_pixels(spec, preprocess) if images.dtype == np.uint8 else spec
    session = open_session(backend, graph, spec, threads=1)
    try:
        return session.run({"image": images})["logits"]
    finally:
        session.close()


@pytest.mark.parametrize("preprocess", [PREPROCESS, LITE], ids=["imagenet", "lite"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_same_logits_to_the_bit(precision: str, preprocess: Preprocess) -> None:
    graph = make_graph() if precision == "fp32" else int8_graph(preprocess)
    made, collapsed = embed.with_normalization(graph, preprocess, LABELS)
    assert collapsed == (precision == "int8" and preprocess is LITE)
    for count in (1, 3):
        expected = answers(graph, normalize(PIXELS[:count], preprocess), preprocess)
        assert np.array_equal(answers(made, PIXELS[:count], preprocess), expected)
    # The test is able to see a difference: another channel order gives other logits.
    assert not np.array_equal(answers(made, np.ascontiguousarray(PIXELS[:, :, :, ::-1]), preprocess),
                              answers(graph, normalize(PIXELS, preprocess), preprocess))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_openvino_reads_it_too(precision: str) -> None:
    pytest.importorskip("openvino")
    graph = make_graph() if precision == "fp32" else int8_graph(LITE)
    made, _ = embed.with_normalization(graph, LITE, LABELS)
    expected = answers(graph, normalize(PIXELS, LITE), LITE, "openvino")
    assert np.allclose(answers(made, PIXELS, LITE, "openvino"), expected, atol=1e-4 if precision == "fp32" else 0.05)


def test_what_falls_away_and_what_the_graph_says_of_itself() -> None:
    plain, collapsed = (onnx.load_from_string(embed.with_normalization(graph, LITE, LABELS)[0])
                        for graph in (make_graph(), int8_graph(LITE)))
    assert [node.op_type for node in plain.graph.node[:4]] == ["Transpose", "Cast", "Mul", "Add"]
    assert [node.op_type for node in collapsed.graph.node[:2]] == ["Transpose", "DequantizeLinear"]
    for model in (plain, collapsed):
        image = model.graph.input[0].type.tensor_type
        assert image.elem_type == TensorProto.UINT8
        assert [one.dim_param or one.dim_value for one in image.shape.dim] == ["N", SIZE, SIZE, 3]
        told = {one.key: one.value for one in model.metadata_props}
        assert json.loads(told["edgetl.embeds_preprocess"]) is True
        assert json.loads(told["edgetl.labels"]) == list(LABELS)


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, (1 / 128, 127)), ({"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "scale": 1 / 255}, (1.0, 0)),
    ({"mean": (127.5,) * 3}, None), ({"mean": (127.0, 127.0, 126.0)}, None), ({"std": (128.0, 127.0, 128.0)}, None),
    ({"mean": (-1.0,) * 3}, None),
])
def test_when_pixels_can_be_the_steps_of_rounding(changes: dict[str, Any], expected: Any) -> None:
    assert quantize.pixel_steps(dataclasses.replace(LITE, **changes)) == expected


def test_the_first_rounding_stays_where_it_does_anything() -> None:
    """A scale that is a little off, a zero point that is, or signed steps: not the pixels any more."""
    def rounding(scale: float, zero: np.ndarray) -> Any:
        nodes = [helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["rounded"])]
        graph = helper.make_graph(nodes, "one", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N"])], [],
                                  [numpy_helper.from_array(np.float32(scale), "scale"),
                                   numpy_helper.from_array(zero, "zero")])
        return embed._first_rounding(helper.make_model(graph), LITE)

    assert rounding(1 / 128, np.array(127, np.uint8)) is not None
    assert rounding(1 / 127, np.array(127, np.uint8)) is None
    assert rounding(1 / 128, np.array(128, np.uint8)) is None
    assert rounding(1 / 128, np.array(0, np.int8)) is None


def test_a_graph_that_takes_channels_last_is_not_transposed() -> None:
    last = dataclasses.replace(LITE, layout="NHWC")
    nodes = [helper.make_node("ReduceMean", ["image", "axes"], ["logits"], keepdims=0)]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4, 5, 3])
    graph = helper.make_graph(nodes, "mean", [image],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
                              [numpy_helper.from_array(np.array([1, 2]), "axes")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    last = dataclasses.replace(last, size_hw=(4, 5))
    made, _ = embed.with_normalization(model.SerializeToString(), last, LABELS)
    pixels = PIXELS[:, :4, :5]
    spec = embed.spec_of_pixels(dataclasses.replace(graph_spec()), last)
    session = open_session("cpu", made, spec, threads=1)
    assert np.allclose(session.run({"image": np.ascontiguousarray(pixels)})["logits"],
                       normalize(pixels, last).mean(axis=(1, 2)), atol=1e-5)
    session.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RUN whose network has only been told where its classes are not: random weights answer well enough here."""
    photos = write_photos(tmp_path_factory.mktemp("data") / "photos", classes=3, images=12)
    data = datasets.open_data(str(photos))
    parts = splits.resolve(data, options("", ""))
    network = models.create("timm/test_resnet", classes=3, pretrained=False, image_size=32)
    torch.nn.init.normal_(list(network.module.parameters())[-2], std=1.0)
    folder = tmp_path_factory.mktemp("runs") / "student"
    folder.mkdir()
    weights.save(folder, network, {"labels": list(data.labels), "stage": "finetune", "data": {
        "source": str(photos), "name": data.name, "fingerprint": parts.fingerprint, "rule": dict(parts.rule)}})
    return folder


def options(run: Path | str, out: Path | str, **values: Any) -> Export:
    plain = {"run": str(run), "out": str(out), "threads": 1, "calibration_images": 8, "golden": 2,
             "embed_normalize": True, "max_drop": 100.0, "min_agreement": 0.0}
    return build(Export, {**plain, **values}, where="test")


@pytest.fixture(scope="module")
def stock(run: Path) -> variants.Stock:
    precision = ("fp32", "int8") if VNNI else ("fp32",)
    return bundle.prepare(options(run, "unused", precision=precision, with_features=True), weights.load(run), ignore)


@pytest.fixture(scope="module")
def made(stock: variants.Stock, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `bundle.export` writes."""
    out = tmp_path_factory.mktemp("out") / "bundle"
    built = bundle.build(stock, variants.choose_targets(stock.options))
    bundle.write(out, bundle.describe(stock, weights.load(run), built), built.built, stock)
    return out


def test_an_exported_bundle_takes_pixels_and_is_verified_like_any_other(made: Path) -> None:
    manifest = manifests.from_json((made / "manifest.json").read_text(), where="test")
    assert len(manifest.variants) == 1 + VNNI
    for variant in manifest.variants:
        assert variant.embeds_preprocess
        assert [(one.dtype, one.shape, one.layout) for one in variant.inputs] == [("uint8", ("N", 32, 32, 3), "NHWC")]
        assert [row["split"] for row in variant.evaluations] == ["val", "test"]
        assert variant.precision == "fp32" or variant.evaluations[0]["agreement"] is not None
    assert "take the resized pixels, uint8 [N, 32, 32, 3]" in (made / "README.md").read_text()
    checks = edgetl.runtime.verify(made, backend="cpu").checks
    assert all(check.status == "passed" for check in checks)
    assert {variant.name for variant in manifest.variants} <= {check.name for check in checks}


def test_it_predicts_what_the_plain_graph_predicts(stock: variants.Stock, made: Path) -> None:
    items = stock.splits.test[:4]
    sources = [stock.data.read(item) for item in items]
    session = open_session("cpu", stock.exported.graph, stock.exported.spec, threads=1)
    prepared = np.stack([prepare(source, stock.network.preprocess) for source in sources])
    expected = session.run({"image": prepared})
    session.close()
    with edgetl.runtime.load(made, backend="cpu", variant="fp32") as classifier:
        assert np.array_equal(classifier.logits(sources), expected["logits"])
        assert np.array_equal(classifier.features(sources), expected["features"])
        assert classifier.predict(sources[0]).index == expected["logits"][0].argmax()
        with pytest.raises(InputError, match="float32"):
            classifier.logits(prepared)


def test_a_graph_that_answers_otherwise_is_not_handed_out(stock: variants.Stock,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    right = embed.with_normalization

    def wrong(graph: bytes, preprocess: Preprocess, labels: Any, **more: Any) -> tuple[bytes, bool]:
        return right(graph, dataclasses.replace(preprocess, mean=(0.5, 0.4, 0.3)), labels)

    monkeypatch.setattr(embed, "with_normalization", wrong)
    with pytest.raises(GateFailed, match="with the normalisation in it"):
        embed.embedded(stock, [variants.build_fp32(stock)])
