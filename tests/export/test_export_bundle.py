"""A RUN to a bundle on a network of a few thousand weights and photos made on the spot."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import write_photos
from PIL import Image
from tiny_run import write_run

import edgetl.runtime
from edgetl import datasets, evaluate, judging, metrics, models, rundir, splits, weights
from edgetl.errors import BackendUnavailable, DataError, EdgetlError, GateFailed, OutputError, RecipeError, UnknownName
from edgetl.export import bundle, golden, ladder, private, rejection, variants
from edgetl.export.bundle import export
from edgetl.recipe import Export, build
from edgetl.runtime import drift, preprocess, processor
from edgetl.runtime import manifest as manifests
from edgetl.targets.x86_vnni import TARGET

pytestmark = pytest.mark.usefixtures("written_once")
VNNI = not processor.missing(("vnni",))
needs_vnni = pytest.mark.skipif(not VNNI, reason="this processor has no VNNI")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", classes=3, images=30)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has seen the photos a few times: enough for logits that are far apart."""
    return write_run(tmp_path_factory.mktemp("runs") / "student", photos, options("", ""), steps=12)


def options(run: Path | str, out: Path | str, **values: Any) -> Export:
    plain = {"run": str(run), "out": str(out), "threads": 1, "calibration_images": 16, "golden": 4}
    return build(Export, {**plain, **values}, where="test")


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    precision = ("fp32", "int8") if VNNI else ("fp32",)
    values = {"max_drop": 15.0, "min_agreement": 80.0}  # nine validation images
    return export(options(run, tmp_path_factory.mktemp("out") / "bundle", precision=precision, **values))


@pytest.fixture(scope="module")
def full(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with everything that is not the default."""
    precision = ("fp32", "int8") if VNNI else ("fp32",)
    values = {"max_drop": 15.0, "min_agreement": 80.0, "with_features": True, "reject_accuracy": 20.0}
    return export(options(run, tmp_path_factory.mktemp("out") / "full", precision=precision, **values))


def manifest_of(folder: Path) -> manifests.Manifest:
    return manifests.from_json((folder / manifests.MANIFEST).read_text(), where=str(folder))


def test_the_bundle_opens_verifies_and_predicts(made: Path, photos: Path, run: Path) -> None:
    report = edgetl.runtime.verify(made, backend="cpu")
    assert report.images == 4 + golden.DRAWN_BESIDE_PHOTOS and report.kind == "photos"
    classifier = edgetl.runtime.load(made, backend="cpu", variant="fp32")
    photo = next(iter(sorted((photos / "amber").iterdir())))
    network = weights.load(run).network
    pixels = evaluate.images([datasets.Item("photo", 0)], lambda item: photo.read_bytes(), network.preprocess)
    with torch.inference_mode():
        expected = network.module(torch.from_numpy(next(pixels))).numpy()
    assert np.allclose(classifier.logits([photo]), expected, atol=1e-4)


def test_the_manifest_tells_what_is_in_the_files(made: Path) -> None:
    manifest = manifest_of(made)
    names = {variant.name for variant in manifest.variants}
    assert names == ({"fp32", "x86-vnni.int8"} if VNNI else {"fp32"})
    for variant in manifest.variants:
        content = (made / variant.file).read_bytes()
        assert (variant.sha256, variant.size_bytes) == (rundir.sha256(content), len(content))
        assert variant.status == "measured" and 0 < variant.tolerance < 10
        assert [row["split"] for row in variant.evaluations] == ["val", "test"]
        for row in variant.evaluations:
            assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
            assert row["latency_s"] > 0 and row["machine"] and row["backend"] == "cpu"
        assert [one.version for one in onnx.load_from_string(content).opset_import] == [variant.opset]
    assert sorted(path.name for path in made.iterdir()) == sorted(
        [*(variant.file for variant in manifest.variants), "README.md", "golden.npz", "manifest.json", "recipe.toml"])
    told = manifest.provenance
    assert told["export"]["exporter"] == "dynamo" and told["export"]["fallback_reason"] is None
    assert told["run"]["data"]["rule"] and told["notes"] is not None


@needs_vnni
def test_int8_says_how_it_was_made(made: Path) -> None:
    variant = next(one for one in manifest_of(made).variants if one.precision == "int8")
    assert variant.requires == ("vnni",) and variant.backends == ("cpu", "openvino")
    calibration = variant.calibration
    assert calibration is not None and calibration["split"] == "train" and calibration["images"] == 16
    assert calibration["rungs"][-1]["passed"] and calibration["rungs"][-1]["method"] == calibration["method"]
    assert calibration["rounding"]["method"] == "compensated" and calibration["rounding"]["layers_left"] == 0
    assert calibration["fused"]["integer_nodes"] > 5 and calibration["fused"]["float_nodes"] == 0
    assert all(row["agreement"] is not None for row in variant.evaluations)


def test_golden_photos_are_training_photos_with_torchs_logits(made: Path, run: Path, photos: Path) -> None:
    data = datasets.open_data(str(photos))
    trained_on = {data.read(item) for item in splits.resolve(data, options("", "")).train}
    arrays = np.load(made / "golden.npz")
    assert all(arrays[f"source_{place:03d}"].tobytes() in trained_on for place in range(4))
    with torch.inference_mode():
        logits = weights.load(run).network.module(torch.from_numpy(arrays["tensor"])).numpy()
    assert np.array_equal(arrays["logits"], logits)


def custom_metadata(graph: Path) -> dict[str, str]:
    """What a program that has nothing but ONNX Runtime and the file sees."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return found


def test_every_graph_is_of_use_without_its_bundle(made: Path, full: Path, photos: Path) -> None:
    """Plain ONNX Runtime and the graph's own metadata give the answers that the runtime gives."""
    photo = next(iter(sorted((photos / "beryl").iterdir())))
    for folder in (made, full):
        for variant in manifest_of(folder).variants:
            said = custom_metadata(folder / variant.file)
            ours = {key: json.loads(value) for key, value in said.items() if key.startswith("edgetl.")}
            assert ours["edgetl.labels"] == ["amber", "beryl", "coral"] and ours["edgetl.task"] == "classify"
            assert ours["edgetl.embeds_preprocess"] is False and ours["edgetl.schema"] == 1
            assert ast.literal_eval(said["names"]) == {0: "amber", 1: "beryl", 2: "coral"}
            assert ast.literal_eval(said["imgsz"]) == [32, 32] and said["task"] == "classify"
            assert [int(said[key]) for key in ("stride", "batch", "channels")] == [1, 1, 3]
            wants = preprocess.from_dict(ours["edgetl.preprocess"], where="metadata")
            session = onnxruntime.InferenceSession(folder / variant.file, providers=["CPUExecutionProvider"])
            logits = session.run(["logits"], {"image": preprocess.prepare(photo, wants)[None]})[0]
            with edgetl.runtime.load(folder, backend="cpu", variant=variant.name) as classifier:
                assert np.allclose(classifier.logits([photo]), logits, atol=1e-5)


def test_a_bundle_that_nothing_more_was_asked_of_has_nothing_more(made: Path) -> None:
    manifest = manifest_of(made)
    assert manifest.reject_below is None and manifest.rejection is None
    for variant in manifest.variants:
        assert [one.role for one in variant.outputs] == ["logits"] and variant.features_tolerance is None
        assert [one.name for one in onnx.load(made / variant.file).graph.output] == ["logits"]
    assert "features" not in np.load(made / "golden.npz")
    assert "Rejection" not in (made / "README.md").read_text()


def test_features_are_what_goes_into_the_last_layer(full: Path, run: Path) -> None:
    network = weights.load(run).network
    caught: list[torch.Tensor] = []
    network.module.get_submodule(network.head).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    arrays = np.load(full / "golden.npz")
    with torch.inference_mode():
        network.module(torch.from_numpy(arrays["tensor"]))
    assert np.allclose(arrays["features"], caught[0].numpy(), atol=1e-6)
    manifest = manifest_of(full)
    length = arrays["features"].shape[1]
    assert manifests.features_length(manifest) == length and manifest.provenance["export"]["parity"]["features"]
    for variant in manifest.variants:
        assert [(one.role, one.dtype, one.shape) for one in variant.outputs] == [
            ("logits", "float32", ("N", 3)), ("features", "float32", ("N", length))]
        session = onnxruntime.InferenceSession(full / variant.file, providers=["CPUExecutionProvider"])
        found = session.run(["features"], {"image": arrays["tensor"]})[0]
        assert np.abs(found - arrays["features"]).max() <= (variant.features_tolerance or 0)
        cosine = (found * arrays["features"]).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(
            arrays["features"], axis=1)
        assert cosine.min() > (0.999999 if variant.precision == "fp32" else 0.99)
    checks = {check.name: check for check in edgetl.runtime.verify(full, backend="cpu").checks}
    assert all(checks[f"{variant.name} features"].status == "passed" for variant in manifest.variants)
    assert f"{length} features an image" in (full / "README.md").read_text()


@needs_vnni
def test_features_cost_int8_no_integer_kernel(made: Path, full: Path) -> None:
    kernels = [next(one.calibration for one in manifest_of(folder).variants if one.precision == "int8")["fused"]
               for folder in (made, full)]
    assert kernels[0]["integer_nodes"] == kernels[1]["integer_nodes"] and kernels[1]["float_nodes"] == 0


def test_the_score_to_reject_below_is_told_with_its_figures(full: Path) -> None:
    manifest = manifest_of(full)
    assert manifest.reject_below is not None and manifest.rejection is not None
    assert manifest.rejection["target_accuracy"] == 0.2 and manifest.rejection["variant"] == manifest.variants[0].name
    rows = {(one["variant"], one["split"]): one for one in manifest.rejection["checks"]}
    assert set(rows) == {(variant.name, split) for variant in manifest.variants for split in ("val", "test")}
    assert rows[manifest.variants[0].name, "val"]["holds"] is True
    assert all(one["holds"] is None for (_, split), one in rows.items() if split == "test")
    card = (full / "README.md").read_text()
    assert "at least 20 % of the rest are right" in card and f"{manifest.reject_below:.6g}" in card


def test_a_target_that_cannot_be_shown_is_refused_and_nothing_is_told(run: Path, tmp_path: Path) -> None:
    out, heard = tmp_path / "bundle", []
    with pytest.raises(GateFailed, match=r"^No score was found above which 95 % .*bundle was written without it") as no:
        export(options(run, out, precision=["fp32"], reject_accuracy=95.0), listener=heard.append)
    assert no.value.exit_code == 3 and "--reject-accuracy" in no.value.hint and "int8" not in no.value.hint
    manifest = manifest_of(out)
    assert manifest.reject_below is None and manifest.rejection is None
    assert [one["name"] for one in manifest.provenance["rejected"]] == ["reject_below"]
    assert "No score was found" in (out / "README.md").read_text()
    assert any(event.kind == "warning" and "No score was found" in event.values["text"] for event in heard)
    edgetl.runtime.verify(out)


def test_the_drift_reference_is_of_the_default_variants_validation_scores(made: Path, run: Path, photos: Path) -> None:
    manifest = manifest_of(made)
    reference = manifest.drift_reference
    assert reference is not None
    assert (reference["variant"], reference["split"]) == (manifest.variants[0].name, "val")
    data = datasets.open_data(str(photos))
    items = splits.resolve(data, options("", "")).val
    with edgetl.runtime.load(made, backend="cpu", variant=reference["variant"]) as classifier:
        logits = classifier.logits([data.read(item) for item in items])
    scores = metrics.softmax(logits, manifest.variants[0].temperature or 1.0)
    expected = drift.reference_of(scores)
    assert reference["count"] == len(items) and reference["class_counts"] == expected["class_counts"]
    assert reference["top"]["mean"] == pytest.approx(expected["top"]["mean"], abs=1e-4)
    assert drift.Drift(3).compare(reference).status == "undecided"
    assert "edgetl.runtime.drift" in (made / "README.md").read_text()


def test_the_card_has_the_figures(made: Path) -> None:
    text = (made / "README.md").read_text()
    row = manifest_of(made).variants[0].evaluations[1]
    for part in (f"{100 * row['accuracy']:.2f} %", f"{1e3 * row['latency_s']:.2f} ms", row["machine"], "`amber`",
                 "python -P -m edgetl.runtime predict", "4 photos from the training split and 3 drawn pictures"):
        assert part in text, part


class Spy:
    """Stands for `judging.evaluate` and `calibrate.Reader`: which images were used, in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, parts: splits.Splits) -> None:
        self.where = {item.key: split for split in ("train", "val", "test") for item in parts.of(split)}
        self.uses: list[tuple[str, set[str]]] = []
        evaluated, reader, chosen = judging.evaluate, ladder.calibrate.Reader, golden.choose

        def evaluating(predict: Any, items: Any, *more: Any, **named: Any) -> Any:
            self.uses.append(("evaluate", {self.where[item.key] for item in items}))
            return evaluated(predict, items, *more, **named)

        def reading(items: Any, *more: Any, **named: Any) -> Any:
            self.uses.append(("calibrate", {self.where[item.key] for item in items}))
            return reader(items, *more, **named)

        def choosing(items: Any, *more: Any) -> Any:
            self.uses.append(("golden", {self.where[item.key] for item in items}))
            return chosen(items, *more)

        found, referred = rejection.search, bundle.drift.reference_of

        def searching(val: Any, *more: Any, **named: Any) -> Any:
            self.uses.append(("reject", {self.where[key] for key in val.keys}))
            return found(val, *more, **named)

        def referring(scores: Any) -> Any:
            self.uses.append(("drift", set()))
            self.referred = scores
            return referred(scores)

        monkeypatch.setattr(rejection, "search", searching)
        monkeypatch.setattr(bundle.drift, "reference_of", referring)
        monkeypatch.setattr(judging, "evaluate", evaluating)
        monkeypatch.setattr(ladder.calibrate, "Reader", reading)
        monkeypatch.setattr(golden, "choose", choosing)


@needs_vnni
def test_the_test_split_decides_nothing(run: Path, photos: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration sees train, every choice val, and test is looked at when no choice is left."""
    spy = Spy(monkeypatch, splits.resolve(datasets.open_data(str(photos)), options("", "")))
    times = variants.latencies_of

    def timing(*anything: Any) -> Any:
        spy.uses.append(("time", set()))
        return times(*anything)

    scaled = bundle.scaling.fitted

    def scaling(stock: Any, one: Any) -> Any:
        spy.uses.append(("scale", {spy.where[key] for key in one.val.keys}))
        return scaled(stock, one)

    monkeypatch.setattr(variants, "latencies_of", timing)
    monkeypatch.setattr(bundle.scaling, "fitted", scaling)
    export(options(run, tmp_path / "bundle", max_drop=100.0, min_agreement=0.0, reject_accuracy=1.0))
    assert spy.uses == [("golden", {"train"}), ("evaluate", {"val"}), ("calibrate", {"train"}), ("evaluate", {"val"}),
                        ("time", set()), ("scale", {"val"}), ("scale", {"val"}), ("reject", {"val"}),
                        ("evaluate", {"test"}), ("evaluate", {"test"}), ("drift", set())]
    assert len(spy.referred) == sum(split == "val" for split in spy.where.values())


@needs_vnni
def test_a_failed_gate_keeps_fp32_and_exits_3(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, write = ladder.quantize.study, ladder.quantize.write
    methods = []

    def spoiled(graph: bytes, *more: Any, **options: Any) -> Any:
        """The sign of the head's weights is lost: every answer is another."""
        model = onnx.load_from_string(graph)
        last = next(node for node in model.graph.node if node.op_type == "Gemm")
        head = next(one for one in model.graph.initializer if one.name == last.input[1])
        head.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(head), head.name))
        return study(model.SerializeToString(), *more, **options)

    def counted(*given: Any, method: str, **options: Any) -> Any:
        methods.append(method)
        return write(*given, method=method, **options)

    monkeypatch.setattr(ladder.quantize, "study", spoiled)
    monkeypatch.setattr(ladder.quantize, "write", counted)
    monkeypatch.setattr(ladder.rungs, "ORDER", ("calibrated", "mixed"))  # test_export_rungs.py tries them all
    heard: list[Any] = []
    out = tmp_path / "bundle"
    with pytest.raises(GateFailed, match=r"x86-vnni\.int8 is outside .* was written without it") as caught:
        export(options(run, out, qat_epochs=0), listener=heard.append)
    assert caught.value.exit_code == 3 and str(out) in str(caught.value)
    assert [variant.name for variant in manifest_of(out).variants] == ["fp32"]
    refused = manifest_of(out).provenance["rejected"][0]
    every = list(TARGET.quantize["methods"])
    assert [rung["method"] for rung in refused["rungs"][:len(every)]] == methods[:len(every)] == every
    assert all(rung["method"].startswith("mixed (") and rung["float_layers"] for rung in refused["rungs"][len(every):])
    assert len(refused["rungs"]) > len(every)
    assert not any(rung["passed"] for rung in refused["rungs"])
    edgetl.runtime.verify(out)
    assert "Left out" in (out / "README.md").read_text()
    assert any("one image is" in event.values.get("text", "") for event in heard)  # what so few images can resolve


@needs_vnni
def test_graphs_for_other_processors_are_judged_and_not_timed(run: Path, tmp_path: Path) -> None:
    heard: list[Any] = []
    out = export(options(run, tmp_path / "bundle", target=["arm", "x86-avx2"], max_drop=100.0, min_agreement=0.0),
                 listener=heard.append)
    manifest = manifest_of(out)
    assert sorted(one.name for one in manifest.variants[:2]) == ["fp32", "x86-avx2.int8"]
    arm = manifest.variants[2]
    assert (arm.name, arm.status, arm.requires) == ("arm.int8", "not-measured", ("neon",))
    assert [(row["split"], row["latency_s"]) for row in arm.evaluations] == [("val", None), ("test", None)]
    assert all(row["accuracy"] > 0 for row in arm.evaluations)
    assert "| arm.int8 | int8 | cpu |" in (card := (out / "README.md").read_text()) and "| not measured |" in card
    assert any("arm.int8 is for processors with neon" in event.values.get("text", "") for event in heard)
    with edgetl.runtime.load(out) as classifier:
        assert classifier.info()["variant"] != "arm.int8"


@needs_vnni
def test_what_a_better_target_outdoes_comes_after_it(run: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"fp32": 0.01, "x86-vnni.int8": 0.006, "x86-avx2.int8": 0.005}
    monkeypatch.setattr(variants, "latencies_of", lambda stock, built: {
        one.variant.name: seconds[one.variant.name] for one in built})
    out = export(options(run, tmp_path / "bundle", target=["x86-avx2", "x86-vnni"], max_drop=100.0, min_agreement=0.0))
    assert [one.name for one in manifest_of(out).variants] == ["x86-vnni.int8", "x86-avx2.int8", "fp32"]


@needs_vnni
def test_what_is_not_faster_is_not_preferred(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for factor, first in ((0.5, "x86-vnni.int8"), (0.99, "fp32")):
        monkeypatch.setattr(variants, "latencies_of", lambda stock, built, factor=factor: {
            one.variant.name: 0.01 * (factor if one.variant.precision == "int8" else 1) for one in built})
        out = export(options(run, tmp_path / str(factor), max_drop=100.0, min_agreement=0.0))
        assert manifest_of(out).variants[0].name == first


@pytest.mark.parametrize(("lost", "gained", "n", "passed"), [(1, 0, 200, True), (2, 0, 200, False), (4, 4, 400, True),
                                                             (3, 5, 100, False)])
def test_the_gate_holds_points_and_agreement(lost: int, gained: int, n: int, passed: bool) -> None:
    def said(right: np.ndarray) -> evaluate.Evaluation:
        logits = np.stack([right, 1 - right], axis=1).astype(np.float32)
        return evaluate.summarize(logits, np.zeros(n, np.int64), tuple(map(str, range(n))))

    reference, model = np.ones(n), np.ones(n)
    model[:lost] = 0
    reference[n - gained:] = 0
    found = evaluate.compare(said(model), said(reference))
    assert ladder.Limits(0.5, 98.0).hold(found) is passed  # 0.5 points and 98 %, the defaults


def test_synthetic_goldens_are_many_kinds_and_always_the_same(run: Path, tmp_path: Path) -> None:
    import io

    sources = golden.synthetic(8, 0)
    assert sources == golden.synthetic(8, 0) != golden.synthetic(8, 1)
    opened = [Image.open(io.BytesIO(source)) for source in sources]
    assert [image.mode for image in opened] == list(golden.MODES) and len({image.size for image in opened}) == 8
    out = export(options(run, tmp_path / "bundle", golden_kind="synthetic", golden=8, precision=["fp32"]))
    assert edgetl.runtime.verify(out).kind == "synthetic"
    assert "golden images: 8 drawn pictures" in (out / "README.md").read_text()


def test_the_fallback_is_in_the_manifest(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*anything: object) -> bytes:
        raise torch.onnx.OnnxExporterError("an operator is missing")

    monkeypatch.setattr(bundle.graph, "_dynamo", refuse)
    heard: list[Any] = []
    out = export(options(run, tmp_path / "bundle", precision=["fp32"]), listener=heard.append)
    told = manifest_of(out).provenance["export"]
    assert told["exporter"] == "torchscript" and "an operator is missing" in told["fallback_reason"]
    assert "an operator is missing" in (out / "README.md").read_text()
    assert any(event.kind == "warning" and "TorchScript" in event.values["text"] for event in heard)


def refused(error: type[EdgetlError], match: str, run: Path, out: Path, **values: Any) -> None:
    with pytest.raises(error, match=match):
        export(options(run, out, **values))
    assert not list(out.parent.glob(f"*{out.name}*")), "something half written was left"


def test_what_cannot_be_exported_is_said_and_leaves_nothing(
        run: Path, tmp_path: Path, photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bundle"
    refused(UnknownName, "Did you mean 'x86-vnni'", run, out, target=["x86-vni"])
    refused(RecipeError, "found 'int9', expected one of bf16, fp16, fp32, int8", run, out, precision=["int9"])
    refused(EdgetlError, "does not exist", run / "nothing", out)
    refused(DataError, "has the classes", run, out, data=str(photo_folder("two", classes=2, images=12)))
    refused(DataError, "not what .* was made with", run, out, data=str(photo_folder("other", classes=3, images=12)))
    monkeypatch.setattr(processor, "flags", lambda *anything: frozenset({"avx2"}))
    refused(BackendUnavailable, "this processor has no vnni", run, out, target=["x86-vnni"])


def test_a_machine_without_a_target_gets_fp32_with_a_warning(run: Path, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "flags", lambda *anything: frozenset({"sse4_2"}))
    heard: list[Any] = []
    out = export(options(run, tmp_path / "bundle"), listener=heard.append)
    assert [variant.name for variant in manifest_of(out).variants] == ["fp32"]
    assert any(event.kind == "warning" and "No target" in event.values["text"] for event in heard)


def test_an_existing_bundle_is_kept_or_replaced(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    for name in ("manifest.json", "x86-vnni.int8.onnx"):
        (out / name).write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        export(options(run, out, precision=["fp32"]))
    assert (out / "manifest.json").read_text() == "old"
    export(options(run, out, precision=["fp32"], overwrite=True))
    assert not (out / "x86-vnni.int8.onnx").exists()
    assert json.loads((out / "manifest.json").read_text())["name"] == "bundle"


def test_grey_photos_do_not_hide_swapped_channels(tmp_path: Path) -> None:
    """Solar cells are grey: without a drawn picture in colour, a bundle that swaps red and blue would pass."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for place in range(3):
            Image.fromarray(np.full((20, 20), 40 * place + 20, np.uint8)).save(tmp_path / label / f"{place}.png")
    data = datasets.open_data(str(tmp_path))
    wants = models.create("timm/test_resnet", classes=2, pretrained=False, image_size=16).preprocess
    made = golden.make("photos", 4, 0, items=data.items, data=data, preprocess=wants,
                       outputs=lambda x: {"logits": x.mean((2, 3))})
    assert len(made.sources) == len(made.tensor) == 4 + golden.DRAWN_BESIDE_PHOTOS
    assert np.allclose(made.tensor[:4], made.tensor[:4, ::-1])
    assert not np.allclose(made.tensor, made.tensor[:, ::-1])


def test_a_bundle_tells_no_paths_of_the_machine_that_made_it(made: Path, run: Path, photos: Path) -> None:
    texts = [(made / name).read_text() for name in ("manifest.json", "README.md", "recipe.toml")]
    for text in texts:
        assert str(photos.parent) not in text and str(run.parent) not in text and str(made.parent) not in text
    assert manifest_of(made).provenance["run"]["data"]["source"] == photos.name
    assert weights.read_record(run)["data"]["source"] == str(photos)


@pytest.mark.parametrize(("text", "kept"), [
    ("/home/me/photos", "photos"), ("csv:/home/me/photos.csv", "csv:photos.csv"), ("~/photos/", "photos"),
    ("fashion-mnist:../data", "fashion-mnist:data"), ("elpv:doubt-is-defective", "elpv:doubt-is-defective"),
    ("timm/test_resnet", "timm/test_resnet"), ("out/teacher", "teacher"), ("slim:0.4", "slim:0.4"), ("..", ".."),
    ("/home/me/runs/a,onnx:/home/me/b.onnx,timm/c", "a,onnx:b.onnx,timm/c")])
def test_final_names(text: str, kept: str) -> None:
    record = {"options": {"teacher": text, "name": text}, "kept": 0.4}
    assert private.without_folders(record) == {"options": {"teacher": kept, "name": text}, "kept": 0.4}


def test_what_was_said_of_a_teacher_names_no_folder():
    said = ["2:labels=/home/me/names;mean=0,0,0", "weights=w.safetensors"]
    assert private.without_folders({"teacher_options": said}) == {
        "teacher_options": ["2:labels=names;mean=0,0,0", "weights=w.safetensors"]}


def test_names_that_are_no_utf8_do_not_stop_an_export(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / os.fsdecode(b"ph\xf6tos"), classes=2, images=8)
    for image in sorted(photos.rglob("*.png")):
        image.rename(image.with_name(os.fsdecode(b"\xff") + image.name))
    (photos / "amber" / os.fsdecode(b"n\xf6te.txt")).write_text("no image")
    network = models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32)
    (tmp_path / "run").mkdir()
    weights.save(tmp_path / "run", network, {"labels": ["amber", "beryl"], "data": {"source": str(photos)}})
    out = export(options(tmp_path / "run", tmp_path / "bundle", precision=["fp32"], data=str(photos)))
    manifest = manifest_of(out)
    assert manifest.provenance["run"]["data"]["source"] == photos.name
    assert "n\\udcf6te.txt" in (out / "README.md").read_text() and "ph\\udcf6tos" in (out / "recipe.toml").read_text()
