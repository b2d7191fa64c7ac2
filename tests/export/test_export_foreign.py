"""`edgetl quantize` on graphs as other people make them: what is taken, what must be said, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgetl
from edgetl import foreign
from edgetl.cli import app
from edgetl.errors import DataError, EdgetlError, GateFailed, OutputError
from edgetl.export import quantizing, variants
from edgetl.recipe_quantize import Quantize
from edgetl.runtime import processor
from edgetl.runtime.session import GraphSpec, TensorSpec, open_session
from edgetl.targets.x86_vnni import TARGET

needs_vnni = pytest.mark.skipif(bool(processor.missing(("vnni",))), reason="this processor has no VNNI")
NAMES = ("amber", "beryl", "coral")  # of the photos below, in their order
PLAIN = {"mean": ("0", "0", "0"), "std": ("1", "1", "1")}


def graph(*, layout: str = "NCHW", batch: Any = "N", side: Any = 16, opset: int = 18, classes: int = 3,
          spread: float = 1.0, filters: int = 12) -> onnx.ModelProto:
    """The mean colour of each of the filters, then a linear layer; NHWC graphs begin with a Transpose."""
    chance = np.random.default_rng(0)
    weights = {"w1": chance.normal(0, 0.4, (filters, 3, 3, 3)), "b1": np.zeros(filters),
               "w2": chance.normal(0, spread, (classes, filters)), "b2": np.zeros(classes)}
    shape = [batch, 3, side, side] if layout == "NCHW" else [batch, side, side, 3]
    nodes = [helper.make_node("Transpose", ["photo"], ["image"], perm=[0, 3, 1, 2])] if layout == "NHWC" else []
    nodes += [helper.make_node("Conv", ["photo" if layout == "NCHW" else "image", "w1", "b1"], ["c"], pads=[1] * 4),
              helper.make_node("Relu", ["c"], ["r"]), helper.make_node("GlobalAveragePool", ["r"], ["p"]),
              helper.make_node("Flatten", ["p"], ["f"]), helper.make_node("Gemm", ["f", "w2", "b2"], ["s"], transB=1),
              helper.make_node("Softmax", ["s"], ["scores"], axis=1)]
    made = helper.make_graph(
        nodes, "foreign", [helper.make_tensor_value_info("photo", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=4 if opset < 9 else 8)


@pytest.fixture
def photos(photo_folder: Any) -> Path:
    return photo_folder("photos", classes=3, images=24)


def options(folder: Path, model: onnx.ModelProto | None = None, **more: Any) -> Quantize:
    """For a graph written into the folder."""
    path = folder / "foreign.onnx"
    if model is not None:
        onnx.save(model, path)
    return Quantize(**{"model": str(path), "out": str(folder / "int8.onnx"), "data": "", **PLAIN, **more})


def read(said: Quantize) -> foreign.Foreign:
    return foreign.read(Path(said.model), said)


def refused(match: str, folder: Path, model: onnx.ModelProto | None = None, **more: Any) -> None:
    with pytest.raises(EdgetlError, match=match):
        read(options(folder, model, **more))


@pytest.mark.parametrize(("changes", "shape", "layout"), [
    ({}, ("N", 3, 16, 16), "NCHW"), ({"layout": "NHWC"}, ("N", 16, 16, 3), "NHWC"),
    ({"batch": 1}, (1, 3, 16, 16), "NCHW"), ({"batch": 4, "layout": "NHWC"}, (4, 16, 16, 3), "NHWC"),
    ({"opset": 11}, ("N", 3, 16, 16), "NCHW"), ({"opset": 9, "layout": "NHWC"}, ("N", 16, 16, 3), "NHWC")])
def test_what_a_graph_takes_is_found_out(tmp_path, changes, shape, layout):
    model = graph(**changes)
    found = read(options(tmp_path, model))
    assert (found.spec.inputs[0].shape, found.spec.inputs[0].layout) == (shape, layout)
    assert found.spec.outputs[0].shape == (shape[0], 3) and found.labels is None
    assert found.preprocess.size_hw == (16, 16) and found.preprocess.mean == (0, 0, 0)
    written = onnx.load_from_string(found.graph)
    assert 13 <= next(one.version for one in written.opset_import if one.domain == "") <= 20
    batch = 2 if shape[0] == "N" else shape[0]
    images = np.random.default_rng(1).normal(size=(batch, *shape[1:])).astype(np.float32)
    spec = GraphSpec((TensorSpec("photo", "image", "float32", shape),), (TensorSpec("scores", "logits", "float32",
                                                                                     (shape[0], 3)),))
    before, after = (open_session("cpu", one, spec, threads=1).run({"photo": images})["scores"]
                     for one in (model.SerializeToString(), found.graph))
    assert np.allclose(before, after, atol=1e-6)


def test_a_free_size_must_be_said(tmp_path):
    model = graph(side="side")
    refused("its size is free", tmp_path, model)
    assert read(options(tmp_path, model, input_size="16x24")).preprocess.size_hw == (16, 24)
    refused("--input-size 20: the input 'photo' of .* has the shape", tmp_path, graph(), input_size="20")


def test_constants_among_the_inputs_and_weights_in_files(tmp_path):
    model = graph()
    model.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [12, 3, 3, 3]))
    assert [one.name for one in read(options(tmp_path, model)).spec.inputs] == ["photo"]
    path = tmp_path / "beside.onnx"
    onnx.save_model(graph(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    read(dataclasses.replace(options(tmp_path), model=str(path)))


def test_what_edgetl_wrote_says_all_itself(tmp_path):
    from edgetl.export.metadata import metadata_of
    from edgetl.runtime.preprocess import Preprocess

    model = graph()
    wanted = Preprocess(size_hw=(16, 16), resize_mode="squash", mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    helper.set_model_props(model, metadata_of(wanted, NAMES))
    found = read(dataclasses.replace(options(tmp_path, model), mean=(), std=()))
    assert found.labels == NAMES and found.preprocess == wanted
    changed = read(dataclasses.replace(options(tmp_path, model), mean=("0", "0", "1"), std=(), color="bgr"))
    assert changed.preprocess == dataclasses.replace(wanted, mean=(0.0, 0.0, 1.0), color="bgr")


def test_what_is_missing_or_wrong_is_one_sentence(tmp_path):
    refused("foreign.onnx does not exist", tmp_path)
    (tmp_path / "foreign.onnx").write_bytes(b"no graph")
    refused("is no ONNX graph, or is damaged|cannot be read as an ONNX graph", tmp_path)
    refused("--mean and --std must be given", tmp_path, graph(), mean=(), std=())
    refused("--std must be given", tmp_path, graph(), std=())
    refused("'mean' is .*expected", tmp_path, graph(), mean=("0",))
    two = graph()
    two.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    refused("has 2 inputs; expected one", tmp_path, two)
    bytes_in = graph()
    bytes_in.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    refused("is of UINT8; expected FLOAT|cannot be read as an ONNX graph", tmp_path, bytes_in)
    refused("where its channels are cannot be told", tmp_path, graph(side=3))
    (tmp_path / "names").write_text("one\ntwo\n")
    refused("names names 2 classes; .* has 3", tmp_path, graph(), labels=str(tmp_path / "names"))
    (tmp_path / "names").write_text("one\ntwo\none\n")
    refused("names 'one' twice", tmp_path, graph(), labels=str(tmp_path / "names"))
    refused("nobody cannot be read: No such file", tmp_path, graph(), labels=str(tmp_path / "nobody"))


def test_a_graph_that_is_quantized_already_is_refused(tmp_path):
    model = graph()
    model.graph.initializer.extend([numpy_helper.from_array(np.float32(0.1), "step"),
                                    numpy_helper.from_array(np.uint8(0), "zero")])
    model.graph.node.insert(2, helper.make_node("QuantizeLinear", ["r", "step", "zero"], ["q"]))
    model.graph.node.insert(3, helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"]))
    model.graph.node[4].input[0] = "d"
    refused("is quantized already: it has QuantizeLinear nodes", tmp_path, model)


def test_an_output_that_is_no_matrix_is_refused(tmp_path):
    model = graph()
    del model.graph.node[-3:]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 12, 1, 1]))
    refused(r"gives 'p' \[1, 12, 1, 1\]; expected scores of classes", tmp_path, model)


# -------------------------------------------------------------------------------------------------------- the verb


def taught(photos: Path, **changes: Any) -> onnx.ModelProto:
    """The graph with a last layer that tells the photos' classes apart, by least squares on their filters' means."""
    from edgetl import datasets, evaluate
    from edgetl.runtime.preprocess import Preprocess

    model = graph(spread=1.0, **changes)
    data = datasets.open_data(str(photos))
    plain = Preprocess(size_hw=(16, 16), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1),
                       layout=changes.get("layout", "NCHW"))
    images = np.concatenate(list(evaluate.images(data.items, data.read, plain)))
    inner = onnx.ModelProto()
    inner.CopyFrom(model)
    filters = changes.get("filters", 12)
    inner.graph.output[0].CopyFrom(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["N", filters]))
    spec = GraphSpec((TensorSpec("photo", "image", "float32", ("N", *images.shape[1:])),),
                     (TensorSpec("f", "features", "float32", ("N", filters)),))
    seen = open_session("cpu", inner.SerializeToString(), spec, threads=1).run({"photo": images})["f"]
    targets = 8 * (np.eye(3)[[item.label for item in data.items]] - 0.5)
    centred = np.column_stack([seen, np.ones(len(seen))])
    solved = np.linalg.lstsq(centred, targets, rcond=None)[0]
    for tensor in model.graph.initializer:
        if tensor.name in ("w2", "b2"):
            value = solved[:-1].T if tensor.name == "w2" else solved[-1]
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return model


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 takes half as long, whatever this machine thinks of so small a graph."""
    monkeypatch.setattr(quantizing, "_latencies", lambda *anything: {"fp32": 2e-3, "int8": 1e-3})


@needs_vnni
@pytest.mark.parametrize("changes", [{}, {"layout": "NHWC"}, {"opset": 11}])
def test_a_foreign_graph_becomes_an_int8_one(tmp_path, photos, quick, changes):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    made = edgetl.quantize(model=str(saved(tmp_path, taught(photos, **changes))), data=str(photos), labels=str(names),
                           out=str(tmp_path / "int8.onnx"), max_drop=100.0, min_agreement=50.0, **PLAIN)
    assert made.target == "x86-vnni" and made.fp32_accuracy is not None and made.fp32_accuracy > 0.6
    written = onnx.load(tmp_path / "int8.onnx")
    assert "QuantizeLinear" in {node.op_type for node in written.graph.node}
    assert made.calibration["fused"]["integer_nodes"] >= 2 and made.latency_s == 1e-3
    assert json.loads(json.dumps(made.to_json()))["out"] == str(tmp_path / "int8.onnx")


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "foreign.onnx")
    return folder / "foreign.onnx"


@needs_vnni
def test_without_names_only_agreement_is_judged_and_said(tmp_path, photos, quick):
    heard: list[Any] = []
    made = edgetl.quantize(model=str(saved(tmp_path, taught(photos))), data=str(photos), min_agreement=50.0,
                           out=str(tmp_path / "int8.onnx"), listener=heard.append, **PLAIN)
    assert made.accuracy is made.fp32_accuracy is None
    # What fp32 says counts as right: every point lost is a disagreement, and none can be won.
    assert made.found.drop_points == pytest.approx(100 * (1 - made.found.agreement)) and made.found.gained == 0
    assert any("only the agreement with fp32 is judged" in event.values.get("text", "") for event in heard)


@needs_vnni
@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_is_fixed_stays(tmp_path, photos, quick, batch):
    model = taught(photos)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch
    made = edgetl.quantize(model=str(saved(tmp_path, model)), data=str(photos), min_agreement=50.0,
                           out=str(tmp_path / "int8.onnx"), **PLAIN)
    assert made.found.n % 4  # the last call lacks some
    assert onnx.load(tmp_path / "int8.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch


@needs_vnni
def test_a_batch_greater_than_the_data_is_said(tmp_path, photos):
    with pytest.raises(DataError, match="takes 4 images at once; 3 training images are less"):
        edgetl.quantize(model=str(saved(tmp_path, graph(batch=4))), data=str(photos), calibration_images=3,
                        out=str(tmp_path / "int8.onnx"), **PLAIN)


@needs_vnni
def test_the_folder_of_out_is_made_and_looked_at_first(tmp_path, photos, quick):
    (tmp_path / "file").write_text("")
    path = saved(tmp_path, taught(photos))
    with pytest.raises(OutputError, match="file is a file"):
        edgetl.quantize(model=str(path), data="nowhere", out=str(tmp_path / "file" / "int8.onnx"), **PLAIN)
    edgetl.quantize(model=str(path), data=str(photos), out=str(tmp_path / "new" / "int8.onnx"), min_agreement=50.0,
                    **PLAIN)
    assert (tmp_path / "new" / "int8.onnx").exists()


@needs_vnni
def test_what_is_not_faster_is_not_written(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(quantizing, "_latencies", lambda *anything: {"fp32": 1e-3, "int8": 0.99e-3})
    with pytest.raises(GateFailed, match=r"not faster than fp32 here: 0\.99 against 1\.00 ms") as caught:
        edgetl.quantize(model=str(saved(tmp_path, graph())), data=str(photos), out=str(tmp_path / "int8.onnx"),
                        min_agreement=0.0, **PLAIN)
    assert caught.value.exit_code == 3 and not (tmp_path / "int8.onnx").exists()


@needs_vnni
def test_what_is_outside_the_limits_is_not_written(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(quantizing.Limits, "hold", lambda self, found: False)
    monkeypatch.setattr("edgetl.compress.adapt.STEPS", (20, 20))
    with pytest.raises(GateFailed, match=r"is outside the limits: it agrees .* Nothing was written"):
        edgetl.quantize(model=str(saved(tmp_path, graph())), data=str(photos), out=str(tmp_path / "int8.onnx"),
                        qat_epochs=0, **PLAIN)
    assert not (tmp_path / "int8.onnx").exists()


@needs_vnni
def test_latencies_are_measured_side_by_side(tmp_path, photos, monkeypatch):
    """The real measurement; whoever wins, both have one."""
    seen: list[Any] = []
    monkeypatch.setattr(quantizing, "_require_faster", lambda name, timed: seen.append(dict(timed)))
    edgetl.quantize(model=str(saved(tmp_path, graph())), data=str(photos), out=str(tmp_path / "int8.onnx"),
                    min_agreement=0.0, **PLAIN)
    assert set(seen[0]) == {"fp32", "int8"} and min(seen[0].values()) > 0


@needs_vnni
def test_another_processor_s_graph_is_written_untimed(tmp_path, photos):
    made = edgetl.quantize(model=str(saved(tmp_path, graph())), data=str(photos), out=str(tmp_path / "int8.onnx"),
                           target="arm", min_agreement=0.0, **PLAIN)
    assert made.latency_s is None and made.fp32_latency_s is None and (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("changes", [{}, {"layout": "NHWC"}, {"opset": 13}, {"opset": 11}])
def test_a_graph_for_tensorrt_is_judged_here_and_not_timed(tmp_path, photos, capsys, monkeypatch, changes):
    monkeypatch.setattr(quantizing.evaluate, "latencies", None)  # nothing here is what it is made for
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    words = ["quantize", str(saved(tmp_path, taught(photos, filters=16, **changes))), "--data", str(photos), "--out",
             str(tmp_path / "int8.onnx"), "--mean", "0,0,0", "--std", "1,1,1", "--labels", str(names), "--max-drop",
             "10", "--min-agreement", "80", "--target", "tensorrt", "--json"]
    assert app.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["latency_s"] is None and told["fp32_accuracy"] > 0.6 and told["calibration"]["fused"] is None
    assert told["calibration"]["remainder"] == "fp16" and told["target"] == "tensorrt"
    written = onnx.load(tmp_path / "int8.onnx")
    constants = {one.name: numpy_helper.to_array(one) for one in written.graph.initializer}
    kinds = {value.dtype for value in constants.values() if value.ndim}
    assert np.dtype(np.float16) in kinds and np.dtype(np.int32) not in kinds
    assert max(one.version for one in written.opset_import) <= 20
    assert not any(constants[node.input[2]].any() for node in written.graph.node if node.op_type == "QuantizeLinear")
    assert app.main([*words[:-1], "--overwrite"]) == 0
    assert "not measured: accuracy was judged on this processor" in capsys.readouterr().out


def test_a_target_without_int8_is_refused(tmp_path, capsys):
    words = ["quantize", str(saved(tmp_path, graph())), "--data", "nowhere", "--out", str(tmp_path / "int8.onnx"),
             "--target", "cuda"]
    assert app.main(words) == 1
    assert "no INT8 for the target 'cuda', only fp32, fp16" in capsys.readouterr().err


def test_a_graph_without_a_layer_for_tensorrt_is_left_alone(tmp_path, photos, capsys):
    words = ["quantize", str(saved(tmp_path, graph())), "--data", str(photos), "--out", str(tmp_path / "int8.onnx"),
             "--mean", "0,0,0", "--std", "1,1,1", "--target", "tensorrt"]
    assert app.main(words) == 3 and not (tmp_path / "int8.onnx").exists()
    assert "no layer that TensorRT would compute faster in INT8" in capsys.readouterr().err


def test_classes_that_the_graph_does_not_have_are_named(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(variants, "one_target", lambda name: TARGET)
    (tmp_path / "names").write_text("amber\nberyl\nred\n")
    with pytest.raises(DataError, match=r"has the class 'coral', which .*foreign\.onnx does not have"):
        quantizing.quantize(options(tmp_path, graph(), data=str(photos), labels=str(tmp_path / "names")))


def test_an_out_that_exists_is_refused_first(tmp_path, capsys):
    (tmp_path / "int8.onnx").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        quantizing.quantize(options(tmp_path, graph()))
    words = ["quantize", str(tmp_path / "foreign.onnx"), "--data", "nowhere", "--out", str(tmp_path / "int8.onnx")]
    assert app.main(words) == 1 and "exists already" in capsys.readouterr().err
    assert (tmp_path / "int8.onnx").read_text() == "mine"


@needs_vnni
def test_the_command(tmp_path, photos, quick, capsys):
    words = ["quantize", str(saved(tmp_path, taught(photos))), "--data", str(photos), "--out",
             str(tmp_path / "int8.onnx"), "--mean", "0,0,0", "--std", "1,1,1", "--min-agreement", "50"]
    assert app.main(words) == 0
    shown = capsys.readouterr()
    assert "x86-vnni" in shown.out and "1.000 ms (fp32 2.000 ms)" in shown.out
    assert app.main([*words, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "x86-vnni"
    assert app.main([*words, "--overwrite", "--target", "x86-vni"]) == 1
    assert "Did you mean 'x86-vnni'?" in capsys.readouterr().err
