"""INT8 as TensorRT takes it: what is rounded and what is not, zero points, steps, and the answers that follow."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from edgetl.compress import mixed, pairs, quantize, ranges
from edgetl.compress.calibrate import Reader
from edgetl.compress.histogram import BINS, Histogram
from edgetl.compress.placement import place
from edgetl.errors import GateFailed
from edgetl.runtime import telemetry
from edgetl.targets.tensorrt import TARGET

SCHEME = TARGET.quantize
SIDE = 12
METHODS = SCHEME["methods"]


class Noise(Reader):
    """Three batches of random images [4, 3, SIDE, SIDE]."""

    def __init__(self) -> None:
        self._place = 0

    def __len__(self) -> int:
        return 3

    def set_range(self, start_index: int, end_index: int) -> None:
        self._place = start_index

    def get_next(self) -> dict[str, Any] | None:
        self._place += 1
        return None if self._place > 3 else {"image": images(self._place)}


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, 3, SIDE, SIDE)).astype(np.float32)


def twelve() -> np.ndarray:
    return np.concatenate([images(seed) for seed in (1, 2, 3)])


def model(nodes: list[Any], weights: dict[str, tuple[int, ...]], *, opset: int = 18) -> onnx.ModelProto:
    """A graph from "image" to "logits" with drawn weights; one in four channels has weights near zero."""
    chance = np.random.default_rng(0)
    constants = {name: (chance.normal(size=shape) * 1.4 / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
                 for name, shape in weights.items()}
    for value in constants.values():
        if value.ndim == 4:
            value[::4] *= np.float32(1e-3)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(kind: str, inputs: str, output: str, **more: Any) -> Any:
    """Named as what it gives."""
    return helper.make_node(kind, inputs.split(), [output], name=output, **more)


def residual_net() -> onnx.ModelProto:
    """Stem, two residual blocks (the second halves the size), a pooled layer, a gate, and a linear layer."""
    pad: dict[str, Any] = {"pads": [1] * 4}
    return model([
        node("Conv", "image w0 b0", "c0", **pad), node("Relu", "c0", "r0"),
        node("MaxPool", "r0", "p0", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p0 w1 b0", "c1", **pad), node("Relu", "c1", "r1"), node("Conv", "r1 w2 b0", "c2", **pad),
        node("Add", "c2 p0", "a2"), node("Relu", "a2", "r2"),
        node("Conv", "r2 w3 b0", "short", strides=[2, 2]), node("Conv", "r2 w4 b0", "c4", strides=[2, 2], **pad),
        node("Relu", "c4", "r4"), node("Conv", "r4 w5 b0", "c5", **pad), node("Add", "short c5", "a5"),
        node("Relu", "a5", "r5"), node("AveragePool", "r5", "p5", kernel_shape=[2, 2], strides=[1, 1]),
        node("Conv", "p5 w6 b0", "c6"), node("GlobalAveragePool", "c6", "g"), node("Conv", "g w7 b0", "squeezed"),
        node("Sigmoid", "squeezed", "gate"), node("Mul", "c6 gate", "gated"),
        node("GlobalAveragePool", "gated", "pooled"), node("Flatten", "pooled", "flat"),
        node("Gemm", "flat w8 b8", "logits", transB=1),
    ], {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 1, 1),
        "w4": (16, 16, 3, 3), "w5": (16, 16, 3, 3), "w6": (16, 16, 1, 1), "w7": (16, 16, 1, 1), "w8": (5, 16),
        "b8": (5,)})


def sequence_net() -> onnx.ModelProto:
    """Pixels of a row as a sequence: an addition that no convolution is fused with, a layer a word, one an image."""
    return model([
        node("Transpose", "image", "t", perm=[0, 2, 3, 1]), node("Reshape", "t rows", "s"),
        node("MatMul", "s w0", "m"), node("Add", "m b0", "biased"), node("Add", "biased s", "sum"),
        node("Transpose", "sum", "keys", perm=[0, 2, 1]), node("MatMul", "sum keys", "attention"),
        node("MatMul", "attention sum", "seen"), node("ReduceMean", "seen axis", "mean", keepdims=0),
        node("MatMul", "mean w1", "wide"), node("Gemm", "wide w2", "logits")],
        {"w0": (36, 36), "b0": (36,), "w1": (36, 16), "w2": (16, 5)})


def sequences() -> onnx.ModelProto:
    made = sequence_net()
    made.graph.initializer.append(numpy_helper.from_array(np.array([0, SIDE, 36]), "rows"))
    made.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    return made


def study(made: onnx.ModelProto) -> quantize.Source:
    return quantize.study(made.SerializeToString(), Noise(), opset=SCHEME["opset"])


@pytest.fixture(scope="module")
def source() -> quantize.Source:
    return study(residual_net())


def placed(source: quantize.Source, *floats: str) -> tuple[set[str], dict[str, set[str]]]:
    """Outputs of the layers, and by rounded value the outputs of those that read it rounded."""
    found = place(source.ready, source.seen.shapes, source.seen.images, floats)
    makes = {one.name: one.output[0] for one in source.ready.graph.node}
    return {makes[name] for name in found.layers}, {name: {makes[reader] for reader, _ in readers}
                                                    for name, readers in found.rounded.items()}


def test_inputs_of_layers_and_residuals_are_rounded_and_nothing_else(source):
    layers, rounded = placed(source)
    assert layers == {"c0", "c1", "c2", "short", "c4", "c5", "c6"}
    assert rounded == {"image": {"c0"}, "p0": {"c1", "a2"}, "r1": {"c2"}, "r2": {"short", "c4"}, "r4": {"c5"},
                       "short": {"a5"}, "r5": {"p5"}, "p5": {"c6"}}


def test_what_stays_in_float_is_read_as_it_is(source):
    names = {one.output[0]: one.name for one in source.ready.graph.node}
    layers, rounded = placed(source, names["c5"], names["c6"], names["a2"])
    assert layers == {"c0", "c1", "c2", "short", "c4"}
    # The shortcut is what the last addition is fused with now, and so the other side has to be rounded.
    assert rounded == {"image": {"c0"}, "p0": {"c1"}, "r1": {"c2"}, "r2": {"short", "c4"}, "c5": {"a5"}}


def test_layers_of_a_sequence_are_rounded_and_those_of_a_vector_and_products_of_two_activations_not():
    layers, rounded = placed(study(sequences()))
    assert layers == {"m"} and rounded == {"s": {"m"}}


@pytest.mark.parametrize(("weight", "groups", "is_layer"), [
    ((16, 16, 3, 3), 1, True), ((12, 16, 3, 3), 1, True), ((12, 12, 3, 3), 1, False), ((24, 3, 3, 3), 1, True),
    ((24, 3, 3, 5), 1, False), ((24, 12, 1, 1), 1, True), ((8, 12, 3, 3), 1, False), ((24, 1, 3, 3), 24, True),
    ((24, 1, 1, 1), 24, False), ((20, 1, 3, 3), 20, False), ((64, 16, 1, 1), 4, True)])
def test_narrow_layers_stay_in_float(weight, groups, is_layer):
    ins = weight[1] * groups
    made = model([node("Conv", "image first", "c"), node("Conv", "c w", "d", group=groups),
                  node("GlobalAveragePool", "d", "e"), node("Flatten", "e", "f"), node("Gemm", "f v", "logits")],
                 {"first": (ins, 3, 1, 1), "w": weight, "v": (weight[0], 5)})
    found = place(made, {"image": (4, 3, 12, 12), "c": (4, ins, 12, 12)}, 4)
    assert ("d" in found.layers) == is_layer


def test_the_image_may_have_fewer_channels_than_any_other_input():
    made = model([node("Conv", "image w", "c"), node("GlobalAveragePool", "c", "e"), node("Flatten", "e", "f"),
                  node("Gemm", "f v", "logits")], {"w": (8, 3, 3, 3), "v": (8, 5)})
    assert place(made, {"image": (4, 3, 12, 12)}, 4).layers == ("c",)


def test_a_pooled_value_has_the_scale_of_what_it_was_pooled_from():
    made = residual_net()
    made.graph.node.insert(3, node("Conv", "r0 w9 b0", "aside", strides=[2, 2]))
    made.graph.node.insert(4, node("Add", "p0 aside", "both"))
    made.graph.node[5].input[0] = "both"
    made.graph.initializer.append(numpy_helper.from_array(np.full((16, 16, 1, 1), 0.1, np.float32), "w9"))
    found = place(study(made).ready, study(made).seen.shapes, 4)
    assert {"r0", "p0", "both"} <= set(found.rounded)
    assert found.scaled_as["p0"] == "r0" and found.scaled_as["both"] == "both"


# ------------------------------------------------------------------------------------------------------- the graph


def constants_of(made: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
@pytest.mark.parametrize("method", METHODS)
def test_zero_points_are_zero_biases_float_and_weights_rounded_by_channel(source, method, rounding):
    made = onnx.load_from_string(quantize.write(source, {**SCHEME, "rounding": rounding}, method=method).graph)
    assert [one.version for one in made.opset_import] == [SCHEME["opset"]] and SCHEME["opset"] <= 20
    values, kinds = constants_of(made), Counter(one.op_type for one in made.graph.node)
    assert kinds["QuantizeLinear"] == 8 and kinds["DequantizeLinear"] == 8 + 7
    for one in (one for one in made.graph.node if one.op_type.endswith("eLinear")):
        scale, zero = (values[name] for name in one.input[1:])
        assert zero.dtype == np.int8 and not zero.any() and zero.shape == scale.shape and (scale > 0).all()
        assert np.array_equal(scale, scale.astype(np.float16).astype(np.float32))
        if one.input[0] in values:  # weights
            assert values[one.input[0]].dtype == np.int8 and scale.shape == values[one.input[0]].shape[:1]
            assert np.abs(values[one.input[0]].astype(int)).max() <= 127
    assert {value.dtype for name, value in values.items() if name.startswith("b")} == {np.dtype(np.float32)}
    assert not {"w0", "w6"} & set(values) and {"w7", "w8"} <= set(values)
    assert [one.name for one in made.graph.output] == ["logits"]


def test_the_same_graph_comes_out_twice_and_metadata_stay(source):
    graph = residual_net()
    helper.set_model_props(graph, {"edgetl.labels": "[]"})
    first, second = (quantize.quantize(graph.SerializeToString(), SCHEME, Noise(), method="mse").graph
                     for _ in range(2))
    assert first == second
    assert {one.key: one.value for one in onnx.load_from_string(first).metadata_props} == {"edgetl.labels": "[]"}


def test_other_targets_round_what_they_rounded_before(source):
    other = {"activations": "uint8", "weights": "int8", "per_channel": True, "reduce_range": False,
             "rounding": "nearest"}
    made = onnx.load_from_string(quantize.write(source, other, method="min-max").graph)
    assert any(value.dtype == np.int32 and value.ndim == 1 for value in constants_of(made).values())  # biases
    assert len(quantize.layers_of(source, other)) == 9 and len(quantize.layers_of(source, SCHEME)) == 7


def test_a_graph_in_which_nothing_would_be_rounded_is_refused(source):
    with pytest.raises(GateFailed, match="no layer that TensorRT would compute faster"):
        quantize.write(source, SCHEME, method="min-max", floats=quantize.layers_of(source, SCHEME))


def test_every_layer_of_the_scheme_is_ranked_and_no_other(source):
    found = mixed.ranked(source, {**SCHEME, "rounding": "nearest"}, "min-max", lambda graph: answers(graph))
    assert {one.node for one in found} == set(quantize.layers_of(source, SCHEME))
    assert all(0 < one.sqnr_db < 200 for one in found)


# ---------------------------------------------------------------------------------------------------- the numbers


def answers(graph: bytes, optimised: bool = True) -> np.ndarray:
    telemetry.off()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": twelve()})[0]


def fake(values: np.ndarray, step: Any) -> np.ndarray:
    """Rounded to int8 and back, in numpy."""
    return np.clip(np.rint(values / step), -128, 127) * step


def convolved(values: np.ndarray, weight: np.ndarray, stride: int, pad: int) -> np.ndarray:
    """[N, O, H, W] of a convolution, in float64."""
    padded = np.pad(values, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwyx,ocyx->nohw", seen, weight)


def by_hand(method: str, source: quantize.Source) -> np.ndarray:
    """The residual network with rounded weights and activations, as the chapter on quantized types describes it."""
    values = {name: value.astype(np.float64) for name, value in constants_of(residual_net()).items()}
    ends = source.seen.ranges(method, symmetric=True)

    def step(greatest: Any) -> Any:
        return pairs.step_of(greatest, "float16").astype(np.float64)

    def act(value: np.ndarray, name: str) -> np.ndarray:
        return fake(value, step(np.float64(ends[name][1])))

    def conv(value: np.ndarray, name: str, stride: int = 1, pad: int = 1) -> np.ndarray:
        weight = values[name]
        rounded = fake(weight, step(np.abs(weight).max(axis=(1, 2, 3)))[:, None, None, None])
        return convolved(value, rounded, stride, pad) + values["b0"][:, None, None]

    def relu(value: np.ndarray) -> np.ndarray:
        return np.maximum(value, 0)

    pooled = relu(conv(act(twelve().astype(np.float64), "image"), "w0"))
    pooled = act(np.lib.stride_tricks.sliding_window_view(pooled, (2, 2), axis=(2, 3))[:, :, ::2, ::2].max((4, 5)),
                 "p0")
    second = act(relu(conv(act(relu(conv(pooled, "w1")), "r1"), "w2") + pooled), "r2")
    inner = act(relu(conv(second, "w4", 2)), "r4")
    third = act(relu(conv(inner, "w5") + act(conv(second, "w3", 2, 0), "short")), "r5")
    mean = np.lib.stride_tricks.sliding_window_view(third, (2, 2), axis=(2, 3)).mean((4, 5))
    last = conv(act(mean, "p5"), "w6", 1, 0)
    squeezed = convolved(last.mean((2, 3), keepdims=True), values["w7"], 1, 0) + values["b0"][:, None, None]
    gated = (last / (1 + np.exp(-squeezed))).mean((2, 3))
    return gated @ values["w8"].T + values["b8"]


@pytest.mark.parametrize("method", ["min-max", "mse"])
def test_the_graph_computes_what_numpy_does(source, method):
    made = quantize.write(source, {**SCHEME, "rounding": "nearest"}, method=method).graph
    expected = by_hand(method, source)
    reach = np.abs(expected).max()
    for optimised in (False, True):
        apart = np.abs(answers(made, optimised) - expected).max(axis=1) / reach
        # In an image a value between two steps may fall to the other side, since float32 adds in another order.
        assert np.quantile(apart, 0.25) < 1e-5 and apart.max() < 0.02
    unrounded = answers(residual_net().SerializeToString())
    assert 0.005 * reach < np.abs(unrounded - expected).max() < 0.05 * reach  # so the test can tell them apart


@pytest.mark.parametrize("method", METHODS)
def test_rounding_the_weights_of_sequences(method):
    made = study(sequences())
    graph = quantize.write(made, SCHEME, method=method).graph
    values = constants_of(onnx.load_from_string(graph))
    (rounded,) = [one for one in onnx.load_from_string(graph).graph.node
                  if one.op_type == "DequantizeLinear" and one.input[0] in values]
    assert helper.get_attribute_value(rounded.attribute[0]) == 1 and values[rounded.input[1]].shape == (36,)
    expected = answers(sequences().SerializeToString())
    assert np.abs(answers(graph) - expected).max() < 0.2 * np.abs(expected).max()


SIZES = arrays.arrays(np.float64, st.integers(1, 6), elements=st.floats(0, 1e4))


@settings(max_examples=100, deadline=None)
@given(SIZES, st.sampled_from(["float16", "float32"]))
def test_a_step_reaches_the_greatest_value_and_the_type_can_express_it(sizes, kind):
    steps = pairs.step_of(sizes, kind)
    assert steps.dtype == np.float32 and (steps > 0).all() and np.isfinite(steps).all()
    assert np.array_equal(steps, steps.astype(kind).astype(np.float32))
    assert (steps[sizes > 0].astype(np.float64) * 127 >= sizes[sizes > 0] * (1 - 1e-12)).all()
    large = sizes > 127 * 1e-4
    assert (steps[large] <= sizes[large] / 127 * (1 + 2.0**-10)).all() and (steps[sizes == 0] == 1).all()


def test_a_step_beyond_the_type_is_its_greatest():
    assert pairs.step_of(np.float64(1e9), "float16") == 65504


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float32, st.integers(1, 60), elements=FLOATS), st.sampled_from([4, 64, BINS]))
def test_sizes_are_counted_as_if_there_were_no_signs(values, bins):
    whole = Histogram(bins)
    whole.add(values)
    folded = whole.sizes()
    assert folded.total == len(values) and folded.zeros == whole.zeros and folded.width == whole.width
    sizes = np.abs(values)
    assert folded.high == sizes.max() and folded.low <= sizes.min()
    numbers = np.minimum(np.floor(sizes.astype(np.float64) / whole.width),
                         np.ceil(sizes.astype(np.float64) / whole.width)).astype(np.int64)
    on_edge = (values < 0) & (sizes.astype(np.float64) % whole.width == 0)  # belongs to the bin that ends there
    expected = np.bincount(numbers - on_edge - folded.first, minlength=len(folded.counts))
    assert np.array_equal(expected, folded.counts)


@pytest.mark.parametrize("method", METHODS)
def test_symmetric_ranges_do_not_depend_on_the_sign(method):
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32) ** 3
    found = []
    for one in (values, -values, np.abs(values)):
        histogram = Histogram()
        histogram.add(one)
        low, high = ranges.choose(histogram, method, symmetric=True)
        assert low == -high and 0 < high <= np.abs(values).max()
        found.append(high)
    assert np.allclose(found, found[0], rtol=0.05)
    assert (found[0] > 0.999 * np.abs(values).max()) == (method in ("min-max", "percentile-99.999"))


def test_the_symmetric_range_of_least_square_error_is_the_best_of_all():
    values = np.random.default_rng(1).laplace(size=40_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    _, chosen = ranges.choose(histogram, "mse", symmetric=True)

    def loss(end: float) -> float:
        return float(np.square(np.clip(np.rint(values / (end / 127)), -127, 127) * (end / 127) - values).mean())

    others = [loss(end) for end in np.linspace(0.1, 1, 60) * np.abs(values).max()]
    assert loss(chosen) < 1.03 * min(others) and loss(chosen) < 0.95 * loss(np.abs(values).max())
