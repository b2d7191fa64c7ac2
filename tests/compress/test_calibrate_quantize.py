"""Calibration images and INT8 graphs: which, from where, and what the engine makes of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.compress import calibrate, quantize, rounding, surgery
from edgetl.datasets import Item
from edgetl.errors import DataError, RecipeError
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec, TensorSpec, open_session
from edgetl.targets.x86_vnni import TARGET

SQUARE = Preprocess(size_hw=(8, 8), resize_mode="squash")
SPEC = GraphSpec((TensorSpec("image", "image", "float32", ("N", 3, 8, 8), "NCHW"),),
                 (TensorSpec("logits", "logits", "float32", ("N", 4), "NC"),), "int8")


def items(*sizes: int) -> list[Item]:
    return [Item(f"{label}/{place:03d}.png", label) for label, size in enumerate(sizes) for place in range(size)]


def test_choice_keeps_the_shares_of_the_classes() -> None:
    chosen = calibrate.choose(items(60, 30, 10), 20, seed=0)
    assert Counter(item.label for item in chosen) == {0: 12, 1: 6, 2: 2}
    assert list(chosen) == sorted(chosen, key=lambda item: item.key)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_choice_is_the_seeds_and_takes_nothing_twice(sizes, count, seed) -> None:
    given_items = items(*sizes)
    chosen = calibrate.choose(given_items, count, seed)
    assert chosen == calibrate.choose(given_items, count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(given_items))
    counts = Counter(item.label for item in chosen)
    for label, size in enumerate(sizes):  # within one image of the class's share
        assert abs(counts[label] - size * len(chosen) / len(given_items)) <= 1


def test_another_seed_chooses_others_and_nothing_is_refused() -> None:
    assert calibrate.choose(items(50), 10, 0) != calibrate.choose(items(50), 10, 1)
    with pytest.raises(DataError, match="no training image"):
        calibrate.choose([], 3, 0)


def png(item: Item) -> bytes:
    import io

    from PIL import Image

    pixels = np.random.default_rng(int(item.key[2:5])).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def test_reader_streams_every_image_once_and_goes_back() -> None:
    read = []

    def spy(item: Item) -> bytes:
        read.append(item.key)
        return png(item)

    reader = calibrate.Reader(items(7), spy, SQUARE, name="image", batch=3)
    assert len(reader) == 3
    first = reader.get_next()
    assert first is not None and first["image"].shape == (3, 3, 8, 8) and len(read) == 3  # no more than is needed
    assert [len(batch["image"]) for batch in iter(reader.get_next, None)] == [3, 1] and reader.get_next() is None
    reader.set_range(start_index=1, end_index=2)
    again = reader.get_next()
    assert again is not None and len(again["image"]) == 3 and reader.get_next() is None
    assert read[-3:] == [item.key for item in items(7)[3:6]]


def cnn(*, sizes: bool = False) -> bytes:
    """conv, relu6, depthwise conv, relu6, sum, pool, gemm; `sizes` computes a Reshape's numbers in the graph."""
    chance = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (4, 8), "b3": (4,)}
    constants = {name: chance.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    constants |= {"zero": np.float32(0), "six": np.float32(6)}
    nodes = [helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1] * 4),
             helper.make_node("Clip", ["c1", "zero", "six"], ["r1"]),
             helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1] * 4, group=8),
             helper.make_node("Clip", ["c2", "zero", "six"], ["r2"]),
             helper.make_node("Add", ["r1", "r2"], ["sum"]),
             helper.make_node("GlobalAveragePool", ["sum"], ["pool"])]
    if sizes:
        constants |= {"first": np.array([0]), "rest": np.array([8.0], np.float32)}
        nodes += [helper.make_node("Shape", ["pool"], ["shape"]), helper.make_node("Gather", ["shape", "first"], ["n"]),
                  helper.make_node("Cast", ["n"], ["n_float"], to=TensorProto.FLOAT),
                  helper.make_node("Concat", ["n_float", "rest"], ["sides_float"], axis=0),
                  helper.make_node("Mul", ["sides_float", "one"], ["same"]),
                  helper.make_node("Cast", ["same"], ["sides"], to=TensorProto.INT64),
                  helper.make_node("Reshape", ["pool", "sides"], ["flat"])]
        constants["one"] = np.float32(1)
    else:
        nodes.append(helper.make_node("Flatten", ["pool"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], transB=1))
    graph = helper.make_graph(nodes, "cnn", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
                              [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"edgetl.labels": '["a", "b", "c", "d"]'})
    return model.SerializeToString()


def with_features(graph: bytes) -> bytes:
    """The graph with what goes into its last layer as a second output."""
    model = onnx.load_from_string(graph)
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 8]))
    return model.SerializeToString()


def reader() -> calibrate.Reader:
    return calibrate.Reader(items(20), png, SQUARE)


def logits(graph: bytes, n: int = 40) -> np.ndarray:
    images = np.concatenate([batch["image"] for batch in iter(reader().get_next, None)] * 2)[:n]
    return open_session("cpu", graph, SPEC, threads=1).run({"image": images})["logits"]


@pytest.mark.parametrize("method", TARGET.quantize["methods"])
def test_int8_is_near_fused_whole_and_keeps_its_face(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    fp32 = cnn()
    made = quantize.quantize(fp32, TARGET.quantize, reader(), method=method).graph
    expected, found = logits(fp32), logits(made)
    assert np.abs(expected - found).max() < 0.05 * np.abs(expected).max()
    assert not np.array_equal(expected, found)
    kernels = quantize.fused(made)
    assert kernels["float_nodes"] == 0 and kernels["integer_nodes"] == 5 and kernels["converting_nodes"] == 1
    model = onnx.load_from_string(made)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    assert {one.key: one.value for one in model.metadata_props} == {"edgetl.labels": '["a", "b", "c", "d"]'}
    assert capfd.readouterr() == ("", "")  # stdout is for results, and nothing in the graph is worth a warning


def test_the_scheme_of_the_target_is_in_the_graph() -> None:
    model = onnx.load_from_string(quantize.quantize(cnn(), TARGET.quantize, reader(), method="min-max").graph)
    constants = {one.name: one for one in model.graph.initializer}
    rounded = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert rounded and all(constants[node.input[2]].data_type == TensorProto.UINT8 for node in rounded)
    weights = [constants[node.input[0]] for node in model.graph.node
               if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    assert {one.data_type for one in weights} == {TensorProto.INT8, TensorProto.INT32}
    per_channel = {len(numpy_helper.to_array(constants[node.input[1]]).ravel()) for node in model.graph.node
                   if node.op_type == "DequantizeLinear" and node.input[0].startswith("w1")}
    assert per_channel == {8}
    assert "Clip" not in {node.op_type for node in model.graph.node}  # its bounds are the range of the integers


def test_logits_stay_float() -> None:
    graph = onnx.load_from_string(quantize.quantize(cnn(), TARGET.quantize, reader(), method="min-max").graph).graph
    assert [node.op_type for node in graph.node if "logits" in node.output] == ["Gemm"]
    assert "logits_scale" not in {one.name for one in graph.initializer}


def test_features_are_float_values_of_integers_and_cost_no_kernel() -> None:
    plain, made = (quantize.quantize(graph, TARGET.quantize, reader(), method="min-max").graph
                   for graph in (cnn(), with_features(cnn())))
    model = onnx.load_from_string(made)
    assert [(one.name, one.type.tensor_type.elem_type) for one in model.graph.output] == [
        ("logits", TensorProto.FLOAT), ("flat", TensorProto.FLOAT)]
    images = np.concatenate([batch["image"] for batch in iter(reader().get_next, None)])
    spec = GraphSpec(SPEC.inputs, (*SPEC.outputs, TensorSpec("flat", "features", "float32", ("N", 8), "NC")), "int8")
    fp32, int8 = (open_session("cpu", graph, spec, threads=1).run({"image": images})
                  for graph in (with_features(cnn()), made))
    assert 0 < np.abs(fp32["flat"] - int8["flat"]).max() < 0.05 * np.abs(fp32["flat"]).max()
    assert np.array_equal(int8["logits"], logits(plain, len(images)))  # the same kernels, and one that hands it out
    before, after = quantize.fused(plain), quantize.fused(made)
    assert after["integer_nodes"] == before["integer_nodes"] and after["float_nodes"] == 0


def test_numbers_that_are_sizes_are_not_rounded() -> None:
    fp32 = cnn(sizes=True)
    assert len(surgery.shape_arithmetic(onnx.load_from_string(fp32))) == 6
    made = quantize.quantize(fp32, TARGET.quantize, reader(), method="min-max").graph
    for n in (1, 7, 33):
        assert logits(made, n).shape == (n, 4)
    assert quantize.fused(made)["float_nodes"] == 0


def test_what_the_engine_does_not_fuse_is_counted() -> None:
    kernels = quantize.fused(cnn())
    assert kernels["integer_nodes"] == kernels["converting_nodes"] == 0
    assert kernels["float_nodes"] >= 4 and sum(kernels["float_kernels"].values()) == kernels["float_nodes"]


@pytest.mark.parametrize("method", ["minmax", "percentile", "percentile-12", "percentile-x", ""])
def test_an_unknown_method_is_refused(method: str) -> None:
    with pytest.raises(RecipeError, match="no calibration method"):
        quantize.quantize(cnn(), TARGET.quantize, reader(), method=method)


def test_compensated_rounding_is_nearer_than_the_nearest_step() -> None:
    nearest = quantize.quantize(cnn(), {**TARGET.quantize, "rounding": "nearest"}, reader(), method="min-max")
    compensated = quantize.quantize(cnn(), TARGET.quantize, reader(), method="min-max")
    assert nearest.rounding == {"method": "nearest"}
    assert compensated.rounding == {"method": "compensated", "layers": 3, "layers_left": 0}
    expected = logits(cnn())
    assert np.square(logits(compensated.graph) - expected).mean() < np.square(logits(nearest.graph) - expected).mean()


@pytest.mark.parametrize("block", [1, 3, 7, 64])
def test_the_blocks_of_the_rounding_change_nothing(monkeypatch, block) -> None:
    chance = np.random.default_rng(0)
    weight, inputs = chance.normal(size=(6, 20)), chance.random((2, 90, 1)) + 0.1 * chance.normal(size=(2, 90, 20))
    moment, scale = np.matmul(inputs.transpose(0, 2, 1), inputs), np.full(6, 0.02)
    expected = rounding.round_layer(weight, scale, moment)
    monkeypatch.setattr(rounding, "BLOCK", block)
    assert np.array_equal(rounding.round_layer(weight, scale, moment), expected)
    assert not np.array_equal(expected, np.clip(np.rint(weight / 0.02), -127, 127))


class RoundedLayer:
    """A layer with correlated inputs: its weights in steps, rounded with compensation and to the nearest."""

    def __init__(self, seed: int, groups: int, outputs: int, width: int, greatest: int = 127) -> None:
        chance = np.random.default_rng(seed)
        weight = chance.normal(size=(groups * outputs, width))
        self.scale = np.abs(weight).max(axis=1) / greatest
        inputs = chance.random((groups, 200, 1)) + 0.1 * chance.normal(size=(groups, 200, width))
        self.moment = np.matmul(inputs.transpose(0, 2, 1), inputs)
        self.exact = weight / self.scale[:, None]
        self.found = rounding.round_layer(weight, self.scale, self.moment)
        self.nearest = np.clip(np.rint(self.exact), -127, 127)

    def loss(self, steps) -> float:
        """Squared error of the layer's answers, summed."""
        apart = ((steps - self.exact) * self.scale[:, None]).reshape(len(self.moment), -1, self.exact.shape[1])
        return float(np.einsum("goi,gij,goj->", apart, self.moment, apart))

    def most(self) -> float:
        """What the loss can be at most where nothing is clipped: every weight off by half a step of what is left of
        its input once those of the later weights explain what they can (the Schur complement)."""
        width = self.moment.shape[1]
        damping = rounding.DAMPING * np.einsum("gii->g", self.moment) / width
        damped = self.moment + damping[:, None, None] * np.eye(width)
        left = np.array([[1 / np.linalg.inv(one[i:, i:])[0, 0] for i in range(width)] for one in damped])
        return float(((self.scale.reshape(len(damped), -1) ** 2 / 4).sum(axis=1) * left.sum(axis=1)).sum())


@given(st.integers(0, 100_000), st.integers(1, 3), st.integers(1, 4), st.integers(2, 9))
@settings(deadline=None, max_examples=40)
def test_a_compensated_layer_loses_at_most_half_a_step_a_weight(seed, groups, outputs, width) -> None:
    layer = RoundedLayer(seed, groups, outputs, width, greatest=100)  # room, so that nothing is clipped
    assert layer.found.dtype == np.int8 and np.abs(layer.found.astype(int)).max() < 127
    assert layer.loss(layer.found) <= layer.most() * (1 + 1e-9)
    assert np.abs(layer.found - layer.exact).max() < 6  # an error is passed on, not heaped up


def test_nearest_rounding_does_lose_more_than_that() -> None:
    layers = [RoundedLayer(seed, 1, 4, 9, greatest=100) for seed in range(50)]
    assert sum(one.loss(one.nearest) > one.most() for one in layers) > 25


def test_compensated_layers_lose_much_less_on_average() -> None:
    chance = np.random.default_rng(0)
    layers = [RoundedLayer(seed, *chance.integers((1, 1, 2), (4, 5, 10)).tolist()) for seed in range(200)]
    ratios = np.array([one.loss(one.found) / one.loss(one.nearest) for one in layers])
    assert np.median(ratios) < 0.6 and (ratios <= 1 + 1e-9).mean() > 0.9, (np.median(ratios), ratios.max())


@pytest.mark.parametrize(("groups", "strides", "pads", "dilations"),
                         [(1, (1, 1), (1, 1, 1, 1), (1, 1)), (4, (2, 2), (0, 0, 1, 1), (1, 1)),
                          (2, (1, 2), (2, 2, 2, 2), (2, 2))])
def test_sampled_inputs_are_what_a_convolution_sees(groups, strides, pads, dilations, monkeypatch) -> None:
    """Inputs times weights are the convolution's own outputs, at all positions in some order."""
    import torch

    monkeypatch.setattr(rounding, "POSITIONS", 10**6)
    chance = np.random.default_rng(0)
    values = chance.normal(size=(2, 4, 7, 6)).astype(np.float32)
    weight = chance.normal(size=(8, 4 // groups, 3, 3)).astype(np.float32)
    layer = rounding.Layer("x", "w", groups, strides, pads, dilations)
    seen = rounding.sampled(values, weight.shape, layer, chance)
    found = np.matmul(seen, weight.reshape(groups, 8 // groups, -1).transpose(0, 2, 1))  # [G, samples, O / G]
    top, left, bottom, right = pads
    padded = torch.nn.functional.pad(torch.from_numpy(values), (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(padded, torch.from_numpy(weight), stride=strides, dilation=dilations,
                                          groups=groups).numpy()
    for group in range(groups):
        own = expected[:, group * 8 // groups:(group + 1) * 8 // groups]
        assert np.allclose(np.sort(found[group].ravel()), np.sort(own.ravel()), atol=1e-4)
