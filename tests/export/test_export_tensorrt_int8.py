"""INT8 graphs for TensorRT with the rest in fp16: what is in them, and that engines are built of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from compress.test_calibrate_quantize import SQUARE, cnn, items, png
from compress.test_symmetric import SIDE, Noise, node, residual_net, sequences, twelve
from onnx import TensorProto, helper, numpy_helper

from edgetl import datasets, evaluate
from edgetl.backends import _tensorrt_build, _tensorrt_flavor
from edgetl.compress import calibrate, quantize
from edgetl.export import half, ladder, twin
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec, TensorSpec
from edgetl.targets.tensorrt import TARGET

SCHEME = TARGET.quantize
HOW = _tensorrt_build.How(batches=(1, 1, 8), compute_capabilities=("8.6", "8.9", "12.0"))
RTX = next((one for one in _tensorrt_flavor.installed() if one.name == "rtx"), None)
rtx = pytest.mark.skipif(RTX is None, reason="TensorRT for RTX is not installed")
# Models and the sides of their images.
PANEL = {"timm/tf_efficientnet_lite0": 96, "timm/mobilenetv2_100": 96, "torchvision/mobilenet_v3_small": 96,
         "torchvision/mobilenet_v3_large": 96, "torchvision/efficientnet_b0": 96, "torchvision/resnet18": 96,
         "torchvision/resnet50": 96, "timm/mobilenetv4_conv_small": 96, "torchvision/regnet_y_400mf": 96,
         "timm/convnext_atto": 96, "timm/vit_tiny_patch16_224": 224, "timm/fastvit_t8": 256,
         "torchvision/squeezenet1_1": 96, "slim": 96}


def spec_of(side: int, classes: int, precision: str = "int8") -> GraphSpec:
    return GraphSpec((TensorSpec("image", "image", "float32", ("N", 3, side, side), "NCHW"),),
                     (TensorSpec("logits", "logits", "float32", ("N", classes), "NC"),), precision)


def made(graph: bytes, reader: Any) -> bytes:
    source = quantize.study(graph, reader, opset=SCHEME["opset"])
    return half.to_half(quantize.write(source, {**SCHEME, "rounding": "nearest"}, method="min-max").graph,
                        SCHEME["remainder"]).graph


def answers(graph: bytes, images: np.ndarray, classes: int) -> np.ndarray:
    session = twin.open_judge(graph, spec_of(images.shape[2], classes), threads=1)
    try:
        return session.run({"image": images})["logits"]
    finally:
        session.close()


def precisions(graph: bytes, side: int, classes: int) -> dict[str, float]:
    assert RTX is not None
    return dict(_tensorrt_build.build(graph, spec_of(side, classes), RTX, HOW).precisions)


@pytest.mark.parametrize("net", [residual_net, sequences])
def test_what_is_not_rounded_is_half_and_what_is_rounded_stays(net: Callable[[], onnx.ModelProto]) -> None:
    float_graph = net().SerializeToString()
    graph = made(float_graph, Noise())
    model = onnx.load_from_string(graph)
    assert max(one.version for one in model.opset_import) <= 20
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    kinds = Counter(one.op_type for one in model.graph.node)
    plain = quantize.quantize(float_graph, {**SCHEME, "rounding": "nearest"}, Noise(), method="min-max").graph
    before = Counter(one.op_type for one in onnx.load_from_string(plain).graph.node)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        assert kinds[kind] == before[kind]
    for one in model.graph.node:
        if one.op_type == "DequantizeLinear":  # all that layers read is half
            assert constants[one.input[1]].dtype == np.float16 and not constants[one.input[2]].any()
        if one.op_type in ("Conv", "Gemm", "MatMul"):
            assert {constants[name].dtype for name in one.input if name in constants} <= {np.dtype(np.float16)}
    types = [one.type.tensor_type.elem_type for one in (*model.graph.input, *model.graph.output)]
    assert types == [TensorProto.FLOAT] * 2
    expected, found = (answers(one, twelve(), 5) for one in (plain, graph))
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@rtx
@pytest.mark.parametrize(("net", "rounded"), [(residual_net, 7 / 9), (sequences, 1 / 5)])
def test_an_engine_is_built_for_three_kinds_of_cards(net: Callable[[], onnx.ModelProto], rounded: float) -> None:
    found = precisions(made(net().SerializeToString(), Noise()), SIDE, 5)
    assert found == {"int8": pytest.approx(rounded), "fp16": pytest.approx(1 - rounded)}


def test_convolutions_whose_results_are_rounded_at_once_are_judged_right() -> None:
    """ONNX Runtime's optimiser would round their biases to int32, with steps that fp16 cannot express."""
    graph = residual_net()
    same = {one.output[0]: one.input[0] for one in graph.graph.node if one.op_type == "Relu"}
    nodes = [one for one in graph.graph.node if one.op_type != "Relu"]
    for one in nodes:
        one.input[:] = [same.get(name, name) for name in one.input]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    for one in graph.graph.initializer:
        if one.name == "b0":
            one.CopyFrom(numpy_helper.from_array(np.linspace(-3, 3, 16, dtype=np.float32), "b0"))
    expected = answers(graph.SerializeToString(), twelve(), 5)
    found = answers(made(graph.SerializeToString(), Noise()), twelve(), 5)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


# -------------------------------------------------------------------------------------------- weights that were trained


def digits_graph(weights: dict[str, Any]) -> bytes:
    """A stem, a residual block, a gate and a last layer for images of 8 x 8 pixels."""
    pad: dict[str, Any] = {"pads": [1] * 4}
    nodes = [node("Conv", "image w0 b0", "c0", **pad), node("Relu", "c0", "r0"),
             node("Conv", "r0 w1 b1", "c1", strides=[2, 2], **pad), node("Relu", "c1", "r1"),
             node("Conv", "r1 w2 b2", "c2", **pad), node("Add", "c2 r1", "a2"), node("Relu", "a2", "r2"),
             node("GlobalAveragePool", "r2", "p2"), node("Flatten", "p2", "f"),
             node("Gemm", "f w3 b3", "logits", transB=1)]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
             for name, shape in (("image", ["N", 3, 8, 8]), ("logits", ["N", 10]))]
    constants = [numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "digits", ports[:1], ports[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def trained(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The graph after ten epochs."""
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(0)
    shapes = {"w0": (16, 3, 3, 3), "w1": (32, 16, 3, 3), "w2": (32, 32, 3, 3), "w3": (10, 32)}
    weights = {name: torch.randn(shape, generator=generator) * (2 / np.prod(shape[1:])) ** 0.5
               for name, shape in shapes.items()}
    weights |= {f"b{name[1]}": torch.zeros(shape[0]) for name, shape in shapes.items()}
    moved = {name: torch.zeros_like(one.requires_grad_()) for name, one in weights.items()}
    pictures_, targets = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(10):
        for chosen in torch.randperm(len(images), generator=generator).split(64):
            first = functional.relu(functional.conv2d(pictures_[chosen], weights["w0"], weights["b0"], padding=1))
            second = functional.relu(functional.conv2d(first, weights["w1"], weights["b1"], stride=2, padding=1))
            third = functional.relu(functional.conv2d(second, weights["w2"], weights["b2"], padding=1) + second)
            answer = functional.linear(third.mean((2, 3)), weights["w3"], weights["b3"])
            loss = functional.cross_entropy(answer, targets[chosen])
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):  # descent with momentum
                moved[name] = 0.9 * moved[name] + gradient
                weight.data -= 0.05 * moved[name]
    return digits_graph(weights)


def test_a_trained_network_loses_no_more_than_allowed() -> None:
    data = datasets.open_data("digits")
    train, val = data.items[:800], data.items[800:1400]
    plain = Preprocess(size_hw=(8, 8), resize_mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3)
    images = np.concatenate(list(evaluate.images(train, data.read, plain)))
    graph, spec = trained(images, np.array([item.label for item in train])), spec_of(8, 10, "fp32")
    reference = ladder.judged(graph, spec, val, data.read, plain, 1)
    assert reference.accuracy > 0.9
    subject = ladder.Subject(graph, spec, plain, train, val, data.read, reference, ladder.Limits(0.5, 98.0), 128, 0, 1,
                             lambda text: None)
    climbed = ladder.Ladder("tensorrt.int8", TARGET, subject)
    found = climbed.climbed()
    assert found is not None and found.val.accuracy > reference.accuracy - 0.005 and not found.plan.floats
    assert found.found.agreement >= 0.98 and climbed.calibration(found)["fused"] is None
    layers = [one for one in onnx.load_from_string(found.made.graph).graph.node if one.op_type == "QuantizeLinear"]
    assert len(layers) == 3 and found.made.rounding == {"method": "compensated", "layers": 3, "layers_left": 0}


# ---------------------------------------------------------------------------------------------------------- the panel


def network_of(name: str, side: int) -> Any:
    from edgetl import models
    from edgetl.compress import prune

    if name != "slim":
        return models.create(name, classes=10, pretrained=False, image_size=side)
    teacher = models.create("timm/tf_efficientnet_lite0", classes=10, pretrained=False, image_size=side)
    return prune.slim(teacher, 0.35).network


class Pictures(Noise):
    """Three batches of two random images of any size."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self._side = side

    def get_next(self) -> dict[str, Any] | None:
        found = super().get_next()
        return None if found is None else {"image": pictures(self._side, self._place)}


def pictures(side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 3, side, side)).astype(np.float32)


@rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", PANEL)
def test_the_panel_is_built(name: str) -> None:
    import torch

    from edgetl.export import graph

    torch.manual_seed(0)
    side = PANEL[name]
    network = network_of(name, side)
    exported = graph.export(network, [str(one) for one in range(10)])
    quantized = made(exported.graph, Pictures(side))
    found = precisions(quantized, side, 10)
    assert found["int8"] > 0.3, found
    model = onnx.load_from_string(quantized)
    assert not any(tensor.data_type == TensorProto.INT32 for tensor in model.graph.initializer)


@pytest.mark.parametrize("fixed", [1, 4])
def test_a_fixed_batch_is_rounded_as_a_free_one(fixed: int) -> None:
    free, held = (onnx.load_from_string(cnn()) for _ in range(2))
    for one in (*held.graph.input, *held.graph.output):
        one.type.tensor_type.shape.dim[0].dim_value = fixed
    kinds = [Counter(each.op_type for each in onnx.load_from_string(
        made(one.SerializeToString(), calibrate.Reader(items(20), png, SQUARE, batch=fixed))).graph.node)
        for one in (free, held)]
    assert kinds[0] == kinds[1] and kinds[0]["QuantizeLinear"] == 2
