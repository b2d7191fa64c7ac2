"""Variants in half, and variants for devices that are not here: judged, verified, and never the default."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import write_photos
from onnx import numpy_helper
from tiny_run import write_run

import edgetl.runtime
from edgetl import evaluate, plugins, weights
from edgetl.backends import Availability, _tensorrt_build, _tensorrt_flavor
from edgetl.errors import BackendUnavailable, BundleError, DataError, GateFailed, RecipeError
from edgetl.export import bundle, half, halving, reach, variants
from edgetl.export.bundle import export
from edgetl.recipe import Export, build
from edgetl.runtime import manifest as manifests
from edgetl.runtime import processor
from edgetl.runtime.manifest import Manifest
from edgetl.runtime.session import GraphSpec

pytestmark = pytest.mark.usefixtures("written_once")
needs_vnni = pytest.mark.skipif(bool(processor.missing(("vnni",))), reason="this processor has no VNNI")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has seen a few photos."""
    photos = write_photos(tmp_path_factory.mktemp("data") / "photos", classes=3, images=20)
    return write_run(tmp_path_factory.mktemp("runs") / "student", photos, options("", ""), steps=8)


def options(run: Path | str, out: Path | str, **values: Any) -> Export:
    plain = {"run": str(run), "out": str(out), "threads": 1, "calibration_images": 8, "golden": 2, "max_drop": 100.0,
             "min_agreement": 0.0}
    return build(Export, {**plain, **values}, where="test")


def manifest_of(folder: Path) -> Manifest:
    return manifests.from_json((folder / manifests.MANIFEST).read_text(), where=str(folder))


def usable(monkeypatch: pytest.MonkeyPatch, **changes: bool) -> None:
    """Makes backends usable, or not, whatever this machine has; the processor answers for those that are."""
    real: Callable[..., Any] = plugins.load

    def load(package: str, name: str, **more: Any) -> Any:
        module = real(package, name, **more)
        if package != "backends" or name not in changes:
            return module
        said = Availability(usable=changes[name], reason=None if changes[name] else "there is no card.")
        opens = real(package, "cpu").open if changes[name] else module.open
        return type("Said", (), {"probe": staticmethod(lambda: said), "open": staticmethod(opens)})

    monkeypatch.setattr(plugins, "load", load)


@pytest.fixture(scope="module")
def stock(run: Path) -> variants.Stock:
    return bundle.prepare(options(run, "unused", with_features=True), weights.load(run), lambda event: None)


@pytest.fixture(scope="module")
def plain(stock: variants.Stock) -> variants.Built:
    return variants.build_fp32(stock)


def written(stock: variants.Stock, run: Path, out: Path, **values: Any) -> Path:
    """What `bundle.export` writes with these options, with what needs to be done once done once."""
    stock = dataclasses.replace(stock, options=options(run, out, with_features=True, **values))
    built = bundle.build(stock, variants.choose_targets(stock.options))
    assert not built.refusals
    bundle.write(out, bundle.describe(stock, weights.load(run), built), built.built, stock)
    return out


@pytest.fixture(scope="module")
def made(stock: variants.Stock, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything at once, on a machine without a card."""
    with pytest.MonkeyPatch.context() as patch:
        usable(patch, cuda=False, tensorrt=False)
        return written(stock, run, tmp_path_factory.mktemp("out") / "bundle", target=["cuda", "tensorrt", "openvino"],
                       precision=["fp32", "fp16", "bf16"], embed_normalize=True, max_drop=0.5, min_agreement=90.0)


def test_variants_of_devices_that_are_not_here_are_judged_and_not_timed(made: Path) -> None:
    manifest = manifest_of(made)
    found = {one.name: one for one in manifest.variants}
    assert set(found) >= {"fp32", "cuda.fp16", "tensorrt.fp16", "openvino.bf16", "openvino.fp16"}
    for name in ("cuda.fp16", "tensorrt.fp16"):
        one = found[name]
        assert (one.status, one.precision, one.requires) == ("not-measured", "fp16", ())
        assert [(row["split"], row["backend"], row["simulates"], row["latency_s"]) for row in one.evaluations] == [
            ("val", "cpu", list(one.backends), None), ("test", "cpu", list(one.backends), None)]
        assert all(row["accuracy"] > 0 and row["agreement"] >= 0.9 for row in one.evaluations)
        calibration = one.calibration
        assert calibration is not None and calibration["method"] == "cast" and calibration["casts"] >= 2
        model = onnx.load_from_string((made / one.file).read_bytes())
        assert [opset.version for opset in model.opset_import] == [one.opset]
        types = {tensor.data_type for tensor in model.graph.initializer if numpy_helper.to_array(tensor).ndim > 1}
        assert onnx.TensorProto.FLOAT16 in types
        assert 0 < one.tolerance < 1 and one.features_tolerance is not None
    names = [one.name for one in manifest.variants]
    assert names.index("fp32") < names.index("tensorrt.fp16") < names.index("cuda.fp16")
    assert found["fp32"].backends == ("cpu", "openvino", "cuda")  # TensorRT transposes no bytes
    card = (made / "README.md").read_text()
    assert "| tensorrt.fp16 | fp16 | tensorrt |" in card and "not measured" in card
    assert "`cuda.fp16` had no device here: the processor answered for them" in card


def test_what_is_judged_here_verifies_here(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, cuda=False, tensorrt=False)
    checks = {one.name: one for one in edgetl.runtime.verify(made).checks}
    for name in ("cuda.fp16", "tensorrt.fp16"):
        assert checks[name].status == "passed" and "on cpu, in place of" in checks[name].note
        assert checks[f"{name} features"].status == "passed"
    assert checks["openvino.bf16"].status == "passed"
    only = {one.name: one for one in edgetl.runtime.verify(made, backend="openvino").checks}
    assert only["cuda.fp16"].status == "skipped" and only["fp32"].status == "passed"


@pytest.mark.parametrize("name", ["tensorrt.fp16", "cuda.fp16"])
def test_tensorrt_parses_and_builds_what_is_made_for_it(made: Path, name: str) -> None:
    """For a card that need not be there. What is made for CUDA transposes bytes, which TensorRT refuses."""
    try:
        flavor = _tensorrt_flavor.find()
    except BackendUnavailable as problem:
        pytest.skip(problem.message)
    variant = next(one for one in manifest_of(made).variants if one.name == name)
    spec = GraphSpec(variant.inputs, variant.outputs, variant.precision)
    how = _tensorrt_build.How(compute_capabilities=("8.9",), batches=(1, 1, 2))
    graph = (made / variant.file).read_bytes()
    if name == "cuda.fp16":
        with pytest.raises(BundleError, match="Transpose"):
            _tensorrt_build.build(graph, spec, flavor, how)
    else:
        assert _tensorrt_build.build(graph, spec, flavor, how).precisions["fp16"] == 1.0


def test_auto_never_takes_a_card_that_is_not_there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, cuda=False, tensorrt=False, openvino=False)
    with edgetl.runtime.load(made) as classifier:
        assert (classifier.info()["variant"], classifier.info()["backend"]) == ("fp32", "cpu")


@pytest.mark.skipif(bool(processor.missing(("bf16_arithmetic",))), reason="this processor does not compute in bf16")
def test_bf16_on_openvino_is_judged_and_timed_by_openvino(made: Path) -> None:
    one = next(each for each in manifest_of(made).variants if each.name == "openvino.bf16")
    assert one.status == "measured" and one.requires == ("bf16_arithmetic",)
    assert all(row["backend"] == "openvino" and row["latency_s"] > 0 and "simulates" not in row
               for row in one.evaluations)
    with edgetl.runtime.load(made, variant="openvino.bf16") as classifier:
        assert classifier.info()["backend"] == "openvino"


@needs_vnni
def test_int8_for_tensorrt_is_beside_its_fp16(stock: variants.Stock, run: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, cuda=False, tensorrt=False)
    out = written(stock, run, tmp_path / "bundle", target=["cuda", "tensorrt", "x86-vnni"],
                  precision=["fp32", "fp16", "int8"])
    manifest = manifest_of(out)
    names = [one.name for one in manifest.variants]
    assert set(names[:2]) == {"fp32", "x86-vnni.int8"}
    assert names[2:] == ["tensorrt.fp16", "tensorrt.int8", "cuda.fp16"]
    int8 = manifest.variants[3]
    assert manifest.variants[names.index("fp32")].backends == ("cpu", "openvino", "cuda", "tensorrt")
    assert int8.status == "not-measured" and int8.evaluations[0]["simulates"] == ["tensorrt"]
    model = onnx.load_from_string((out / int8.file).read_bytes())
    kinds = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds and int8.opset >= 19
    assert all(one.status == "passed" for one in edgetl.runtime.verify(out).checks)


def test_a_card_that_is_there_judges_and_is_timed(stock: variants.Stock, plain: variants.Built, run: Path,
                                                  tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, cuda=True, tensorrt=False)
    out = written(stock, run, tmp_path / "bundle", target=["cuda"], precision=["fp16"])
    one = next(each for each in manifest_of(out).variants if each.name == "cuda.fp16")
    assert one.status == "measured"
    assert all(row["backend"] == "cuda" and row["latency_s"] > 0 and "simulates" not in row for row in one.evaluations)
    assert "had no device here" not in (out / "README.md").read_text()
    spoiled = dataclasses.replace(plain, graph=b"no graph", variant=one)
    refused = halving.confirmed(stock, spoiled, plain)
    assert isinstance(refused, halving.Rejected) and "cuda.fp16 cannot be judged on cuda" in refused.sentence


def test_a_default_export_has_nothing_for_cards_that_are_not_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, cuda=False, tensorrt=False)
    chosen = [one.name for one in variants.choose_targets(options(run, "unused"))]
    assert not {"cuda", "tensorrt", "openvino"} & set(chosen)
    usable(monkeypatch, cuda=True, tensorrt=True)
    found = [one.name for one in variants.choose_targets(options(run, "unused"))]
    assert found == sorted([*chosen, "cuda", "tensorrt"])
    with pytest.raises(RecipeError, match="expected one of fp16, fp32"):
        variants.choose_targets(options(run, "unused", target=["cuda"], precision=["int8"]))


def test_a_precision_that_no_target_here_has_is_said(stock: variants.Stock) -> None:
    heard: list[Any] = []
    asked = dataclasses.replace(stock.options, precision=("fp16", "int8"))
    stock = dataclasses.replace(stock, options=asked, listener=heard.append)
    target = plugins.load("targets", "x86-vnni").TARGET
    assert bundle._wanted(stock, ()) == [] and bundle._wanted(stock, (target,)) == [(target, "int8")]
    assert [event.values["text"] for event in heard] == [
        "No target with FP16 fits this machine; only fp32 is exported. Name one with --target.",
        "No target with INT8 fits this machine; only fp32 is exported. Name one with --target.",
        "No target with FP16 fits this machine. Name one with --target."]


def test_a_half_graph_outside_the_limits_is_left_out_and_exits_3(stock: variants.Stock, run: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    real = half.to_half

    def spoiled(graph: bytes, *given: Any, **more: Any) -> Any:
        made = real(graph, *given, **more)
        model = onnx.load_from_string(made.graph)
        head = next(node for node in reversed(model.graph.node) if node.op_type == "Gemm").input[1]
        tensor = next(one for one in model.graph.initializer if one.name == head)
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), head))
        return dataclasses.replace(made, graph=model.SerializeToString())

    monkeypatch.setattr(half, "to_half", spoiled)
    monkeypatch.setattr(bundle, "prepare", lambda asked, run, listener: dataclasses.replace(stock, options=asked))
    out = tmp_path / "bundle"
    with pytest.raises(GateFailed, match=r"cuda\.fp16 is outside the limits.* was written without it") as caught:
        export(options(run, out, target=["cuda"], precision=["fp16"], max_drop=0.5, min_agreement=98.0))
    assert caught.value.exit_code == 3
    assert [one.name for one in manifest_of(out).variants] == ["fp32"]
    assert "cuda.fp16 is outside the limits" in (out / "README.md").read_text()


def scaled(graph: bytes, factor: float) -> bytes:
    """The same answers with values that are larger inside: the first layer times a factor, the head divided by it.

    Between them are only convolutions, ReLU, sums and means, which are homogeneous but for their biases.
    """
    model = onnx.load_from_string(graph)
    tensors = {one.name: one for one in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]

    def times(name: str, by: float) -> None:
        tensors[name].CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensors[name]) * by).astype(np.float32),
                                                       name))

    for node in layers[:-1]:
        times(node.input[2], factor)
    times(layers[0].input[1], factor)
    times(layers[-1].input[1], 1 / factor)
    return model.SerializeToString()


def test_values_beyond_fp16_stay_in_float32_and_bf16_has_room(stock: variants.Stock, plain: variants.Built) -> None:
    great = variants.Built(plain.variant, scaled(plain.graph, 1e5), plain.spec, plain.val)
    assert great.val is not None
    naive = half.to_half(great.graph)
    lost = halving.answering(stock, dataclasses.replace(
        great, graph=naive.graph, variant=dataclasses.replace(great.variant, precision="fp16")), great.val)
    assert isinstance(lost, halving.Rejected) and "not finite numbers" in lost.sentence
    target = plugins.load("targets", "openvino").TARGET
    assert halving.too_great(stock, plain, "fp16") == ()
    found = halving.build_half(stock, target, "fp16", great)
    assert isinstance(found, variants.Built) and found.variant.calibration is not None
    assert found.variant.calibration["too_great"] and found.against_fp32 is not None
    assert found.against_fp32.agreement == 1.0
    assert halving.too_great(stock, great, "bf16") == ()


def test_the_reach_is_what_torch_finds(stock: variants.Stock) -> None:
    images = np.concatenate(list(evaluate.images(stock.splits.train, stock.data.read, stock.network.preprocess)))
    found = reach.greatest(stock.exported.graph, "image", images)
    with torch.inference_mode():
        expected = float(stock.network.module(torch.from_numpy(images)).abs().max())
    assert found["logits"] == pytest.approx(expected, rel=1e-3)


def test_without_validation_images_nothing_can_be_held(stock: variants.Stock, plain: variants.Built) -> None:
    fp32 = dataclasses.replace(plain, val=None)
    with pytest.raises(DataError, match="accuracy of fp16 cannot be held"):
        halving.build_half(stock, plugins.load("targets", "cuda").TARGET, "fp16", fp32)


def test_loading_imports_nothing_of_a_card(made: Path) -> None:
    code = ("import sys, edgetl.runtime\n"
            "with edgetl.runtime.load(sys.argv[1], threads=1) as classifier: print(classifier.info()['backend'])\n"
            "print([name for name in sys.modules if name.split('.')[0] in ('tensorrt', 'tensorrt_rtx', 'cuda', 'torch',"
            "'tensorrt_rtx_bindings') or name.startswith(('edgetl.backends._tensorrt', 'edgetl.backends.cuda',"
            "'edgetl.backends.tensorrt'))])")
    done = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True, text=True, timeout=600,
                          check=True)
    assert done.stdout.split("\n")[1] == "[]"
