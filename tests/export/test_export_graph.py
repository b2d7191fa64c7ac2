"""Torch to ONNX on small networks: what the graph must be, and that every deviation is found and said."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgetl.errors import EdgetlError, GateFailed
from edgetl.export import graph, metadata, parity
from edgetl.models import Network
from edgetl.runtime import preprocess
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec, open_session

LABELS = ("amber", "beryl", "coral")
SQUARE = Preprocess(size_hw=(12, 16))


class Net(nn.Module):
    """Convolution, batch norm and ReLU6, depthwise too; the mean over pixels with or without its sides kept."""

    def __init__(self, keepdim: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
                                  nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.keepdim, self.head = keepdim, nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).mean((2, 3), keepdim=self.keepdim).flatten(1))


class TwoImages(Net):
    """A network that dynamo must refuse, since it looks at values; TorchScript traces one way through it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images if float(images.sum()) < 1e9 else -images)


def network(module: nn.Module) -> Network:
    torch.nn.init.normal_(module.head.weight, generator=torch.Generator().manual_seed(1))
    chance = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):  # statistics that a wrong folding would not survive
            layer.running_mean.copy_(torch.randn(8, generator=chance))
            layer.running_var.copy_(torch.rand(8, generator=chance) + 0.5)
    return Network("tests/net", module.eval(), "head", SQUARE)


@pytest.fixture(scope="module")
def exported() -> graph.Exported:
    return graph.export(network(Net()), LABELS)


def kinds(data: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(data).graph.node)


def test_dynamo_is_used_and_its_graph_is_folded(exported: graph.Exported) -> None:
    assert (exported.exporter, exported.reason) == ("dynamo", None)
    found = kinds(exported.graph)
    assert found["BatchNormalization"] == 0 and found["ReduceMean"] == 0
    assert found["GlobalAveragePool"] == 1 and found["Conv"] == 2 and found["Clip"] == 2


def test_relu6_has_constant_bounds(exported: graph.Exported) -> None:
    model = onnx.load_from_string(exported.graph).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.initializer}
    for node in model.node:
        if node.op_type == "Clip":
            assert [float(constants[name]) for name in node.input[1:]] == [0.0, 6.0]


def test_names_shape_opset_and_metadata(exported: graph.Exported) -> None:
    model = onnx.load_from_string(exported.graph)
    assert parity.declared_problems(exported.graph, exported.spec) == []
    assert exported.spec.inputs[0].shape == ("N", 3, 12, 16) and exported.spec.outputs[0].shape == ("N", 3)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)] and model.ir_version <= 10
    said = {one.key: one.value for one in model.metadata_props}
    assert json.loads(said["edgetl.labels"]) == list(LABELS)
    assert json.loads(said["edgetl.preprocess"])["size_hw"] == [12, 16]


def test_no_path_of_this_machine_leaves_in_the_graph(exported: graph.Exported) -> None:
    assert b".py" not in exported.graph and b"stack_trace" not in exported.graph


@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_number_of_images(exported: graph.Exported, n: int) -> None:
    images = np.random.default_rng(n).standard_normal((n, 3, 12, 16), dtype=np.float32)
    session = open_session("cpu", exported.graph, exported.spec, threads=1)
    expected = graph.outputs_of(network(Net()).module, exported.spec)  # other convolutions: only the shape is compared
    assert session.run({"image": images})["logits"].shape == expected(images)["logits"].shape == (n, 3)


def test_the_module_is_left_as_it_was() -> None:
    given = network(Net())
    given.module.train()
    before = {name: tensor.clone() for name, tensor in given.module.state_dict().items()}
    graph.export(given, LABELS)
    assert given.module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in given.module.state_dict().items())


@pytest.mark.parametrize("keepdim", [False, True])
def test_the_fallback_is_said_recorded_and_checked(keepdim: bool) -> None:
    heard = []
    found = graph.export(network(TwoImages(keepdim)), LABELS, listener=heard.append)
    assert found.exporter == "torchscript" and found.reason
    assert [event.kind for event in heard] == ["warning"] and found.reason in heard[0].values["text"]
    assert found.parity.difference <= found.parity.limit and found.parity.batches == (1, 5)
    folded = kinds(found.graph)
    assert folded["BatchNormalization"] == 0 and folded["GlobalAveragePool"] == 1 and folded["ReduceMean"] == 0


class Convolved(Net):
    """SqueezeNet's kind of head: a convolution whose output is averaged over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images)).mean((2, 3))


@pytest.mark.parametrize("module", [Net(), Net(keepdim=True), Convolved(), TwoImages()])
def test_features_are_the_second_output_for_any_number_of_images(module: nn.Module) -> None:
    given = network(module)
    made = graph.export(given, LABELS, with_features=True)
    assert made.exporter == ("torchscript" if isinstance(module, TwoImages) else "dynamo")
    assert [(one.name, one.role, one.shape) for one in made.spec.outputs] == [
        ("logits", "logits", ("N", 3)), ("features", "features", ("N", 8))]
    assert made.parity.features is not None and made.parity.features.difference <= made.parity.features.limit
    assert made.parity.to_json()["features"]["batches"] == [1, 5]
    session = open_session("cpu", made.graph, made.spec, threads=1)
    for n in (1, 3):
        images = np.random.default_rng(n).standard_normal((n, 3, 12, 16), dtype=np.float32)
        with torch.inference_mode():
            features = given.module.body(torch.from_numpy(images)).mean((2, 3)).numpy()
            logits = given.module(torch.from_numpy(images)).numpy()
        found = session.run({"image": images})
        assert np.allclose(found["features"], features, atol=1e-5) and np.allclose(found["logits"], logits, atol=1e-5)
    assert not given.module.get_submodule("head")._forward_pre_hooks  # nothing of ours stays in the model


def test_features_that_are_no_rows_are_refused() -> None:
    class Tokens(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(images).flatten(2).transpose(1, 2)).mean(1)

    with pytest.raises(EdgetlError, match=r"last layer of tests/net has the shape \[2, 48, 8\]") as caught:
        graph.export(network(Tokens()), LABELS, with_features=True)
    assert "without --with-features" in caught.value.hint


def test_a_wrong_feature_is_found() -> None:
    made = graph.export(network(Net()), LABELS, with_features=True)

    def outputs(images: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": np.zeros((len(images), 3), np.float32), "features": np.zeros((len(images), 8), np.float32)}

    class Wrong:
        def run(self, feeds):
            return outputs(feeds["image"]) | {"features": np.full((len(feeds["image"]), 8), 0.1, np.float32)}

    with pytest.raises(GateFailed, match=r"N=1: a feature differs by 0\.1, allowed are 0\.0001") as caught:
        parity.check(outputs, Wrong(), made.spec, graph=made.graph)
    assert "logit" not in str(caught.value)


def test_metadata_survive_labels_of_every_kind() -> None:
    labels = ("it's", 'a "b"', "two\nlines", "naïve \N{SNOWMAN}", "caf\udce9", "{0: 'x'}")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.helper.set_model_props(model, metadata.metadata_of(SQUARE, labels, embeds_preprocess=True))
    said = {one.key: one.value for one in onnx.load_from_string(model.SerializeToString()).metadata_props}
    assert tuple(json.loads(said["edgetl.labels"])) == labels
    assert ast.literal_eval(said["names"]) == dict(enumerate(labels))
    assert json.loads(said["edgetl.embeds_preprocess"]) is True
    assert preprocess.from_dict(json.loads(said["edgetl.preprocess"]), where="here") == SQUARE


def test_a_graph_fixed_to_its_sample_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.reshape(2, 3, 12, 16)) if torch.jit.is_tracing() else super().forward(images)

    def refuse(*args: object) -> bytes:
        raise torch.onnx.OnnxExporterError("not today")

    monkeypatch.setattr(graph, "_dynamo", refuse)
    with pytest.raises(GateFailed, match="N=1: ONNX Runtime failed"):
        graph.export(network(Fixed()), LABELS)


def test_a_dynamo_graph_of_wrong_values_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = graph._dynamo

    def spoiled(module: nn.Module, spec: GraphSpec, opset: int) -> bytes:
        model = onnx.load_from_string(real(module, spec, opset))
        bias = next(one for one in model.graph.initializer if one.name == "head.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, "head.bias"))
        return model.SerializeToString()

    monkeypatch.setattr(graph, "_dynamo", spoiled)
    found = graph.export(network(Net()), LABELS)
    assert found.exporter == "torchscript" and "GateFailed" in found.reason and "a logit differs" in found.reason


def test_every_mismatch_is_collected(exported: graph.Exported) -> None:
    class Wrong:
        def run(self, feeds):
            n = len(feeds["image"])
            return {"logits": np.zeros((n, 4), np.float64), "extra": np.zeros(1)}

    image = dataclasses.replace(exported.spec.inputs[0], name="picture")
    spec = dataclasses.replace(exported.spec, inputs=(dataclasses.replace(image, name="image"),))
    with pytest.raises(GateFailed) as caught:
        parity.check(lambda images: {"logits": np.ones((len(images), 3), np.float32)}, Wrong(), spec,
                     graph=exported.graph)
    said = str(caught.value)
    for part in ("N=1: there is an output 'extra'", "N=5: 'logits' is float64 [5, 4], expected float32 [5, 3]",
                 "N=1: a logit differs by inf"):
        assert part in said


def test_nan_is_a_difference() -> None:
    assert parity.greatest_difference(np.zeros((1, 2)), np.array([[0.0, np.nan]])) == float("inf")
    assert parity.greatest_difference(np.zeros((1, 2)), None) == float("inf")
