"""Cross-layer equalization: the same answers, ranges that are known by hand, and what must be left alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from compress.test_calibrate_quantize import cnn, reader
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.compress import correct, equalize, quantize
from edgetl.compress.observe import channel_ranges
from edgetl.targets.x86_vnni import TARGET

SIDE = 6


class Given:
    """Batches by the name of a graph's input, as `calibrate.Reader` gives them."""

    def __init__(self, *batches: np.ndarray) -> None:
        self.batches, self.place, self.end = batches, 0, len(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.place, self.end = start_index, end_index

    def get_next(self):
        if self.place >= self.end:
            return None
        self.place += 1
        return {"image": self.batches[self.place - 1]}


def network(nodes, constants, *, channels=3, out="logits") -> onnx.ModelProto:
    """Nodes are (kind, inputs, output, attributes); they are named as what they compute."""
    made = [helper.make_node(kind, inputs, [output], name=output, **more) for kind, inputs, output, more in nodes]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, SIDE, SIDE])
    graph = helper.make_graph(made, "net", [image], [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
                              [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def answers(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def equalized(model: onnx.ModelProto, images: np.ndarray, by: str = "weights") -> equalize.Equalized:
    joints = equalize.joints_of(model)
    seen = channel_ranges(model, Given(images), [one.value for one in joints])
    return equalize.equalize(model, joints, seen, by=by)


def pictures(channels: int = 3, *, seed: int = 0, images: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (images, channels, SIDE, SIDE)).astype(np.float32)


def pair(first=((4.0,), (1.0,)), second=((1.0, 4.0),), *, between=(("Relu", ["c1"], "r1", {}),)) -> onnx.ModelProto:
    """Two convolutions of one pixel, their weights [O, I]."""
    constants = {"w1": np.array(first, np.float32)[..., None, None], "b1": np.array([8.0, 1.0], np.float32),
                 "w2": np.array(second, np.float32)[..., None, None]}
    return network([("Conv", ["image", "w1", "b1"], "c1", {}), *between, ("Conv", ["r1", "w2"], "c2", {}),
                    ("GlobalAveragePool", ["c2"], "logits", {})], constants, channels=1)


def test_two_layers_by_hand():
    model, images = pair(((4.0,), (1.0,)), ((1.0, 9.0),)), pictures(1)
    before = answers(model, images)
    done = equalized(model, images)
    # s = sqrt(r1 / r2): sqrt(4 / 1) = 2 and sqrt(1 / 9) = 1/3, after which both sides reach 2 and 3.
    found = weights_of(model)
    assert np.allclose(found["w1"].ravel(), [2, 3]) and np.allclose(found["w2"].ravel(), [2, 3])
    assert np.allclose(found["b1"], [4, 3])
    assert done == equalize.Equalized(joints=1, channels=2, clipped=0)
    assert np.allclose(answers(model, images), before, rtol=1e-5)


def test_three_layers_end_with_one_range():
    """Expand, depthwise, project: the ranges of a channel end at the cube root of their product."""
    ranges = np.array([[8.0, 1.0], [1.0, 2.0], [1.0, 32.0]])  # layer, channel
    constants = {"w1": ranges[0].reshape(2, 1, 1, 1), "w2": ranges[1].reshape(2, 1, 1, 1),
                 "w3": ranges[2].reshape(1, 2, 1, 1)}
    model = network([("Conv", ["image", "w1"], "c1", {}), ("Relu", ["c1"], "r1", {}),
                     ("Conv", ["r1", "w2"], "c2", {"group": 2}), ("Relu", ["c2"], "r2", {}),
                     ("Conv", ["r2", "w3"], "c3", {}), ("GlobalAveragePool", ["c3"], "logits", {})],
                    {name: value.astype(np.float32) for name, value in constants.items()}, channels=1)
    images = pictures(1)
    before = answers(model, images)
    assert equalized(model, images).joints == 2
    found = weights_of(model)
    for name in ("w1", "w2", "w3"):
        assert np.allclose(found[name].ravel(), [2.0, 4.0], rtol=1e-2), name
    assert np.allclose(answers(model, images), before, rtol=1e-5)


def test_activations_share_their_range_with_the_weights_that_read_them():
    model, images = pair(((1.0,), (100.0,)), ((1.0, 1.0),)), np.full((1, 1, SIDE, SIDE), 1.0, np.float32)
    joint = equalize.joints_of(model)[0]
    low, high = channel_ranges(model, Given(images), ["c1"])["c1"]
    assert high.tolist() == [9.0, 101.0] and low.tolist() == [9.0, 101.0]  # with the biases 8 and 1
    equalize.equalize(model, [joint], {"c1": (low, high)}, by="activations")
    _, after = channel_ranges(model, Given(images), ["c1"])["c1"]
    assert np.allclose(after, np.sqrt([9.0, 101.0]), rtol=1e-3)
    assert np.allclose(weights_of(model)["w2"].ravel(), np.sqrt([9.0, 101.0]), rtol=1e-3)


def clip(value: str, output: str) -> tuple:
    return ("Clip", [value, "zero", "six"], output, {})


def test_a_channel_that_reaches_the_end_of_a_clip_is_left_alone():
    """Of four channels the first is cut off at 6; the others stay below it, whatever they are divided by."""
    first = np.array([[9.0], [0.5], [2.0], [0.01]], np.float32)
    constants = {"w1": first[..., None, None], "w2": np.array([[[[1.0]], [[3.0]], [[0.1]], [[5.0]]]], np.float32),
                 "zero": np.float32(0), "six": np.float32(6)}
    model = network([("Conv", ["image", "w1"], "c1", {}), clip("c1", "r1"), ("Conv", ["r1", "w2"], "c2", {}),
                     ("GlobalAveragePool", ["c2"], "logits", {})], constants, channels=1)
    images = np.random.default_rng(0).uniform(0, 1, (8, 1, SIDE, SIDE)).astype(np.float32)
    before = answers(model, images)
    for by in equalize.BY:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        done = equalized(copy, images, by)
        assert done.clipped == 1 and done.channels == 3
        scale = first.ravel() / weights_of(copy)["w1"].ravel()
        assert scale[0] == 1
        reached = channel_ranges(copy, Given(images), ["c1"])["c1"][1]
        assert (reached[1:] * equalize.MARGIN <= 6 * 1.0001).all()
        assert np.allclose(answers(copy, images), before, rtol=1e-5)


def test_what_goes_into_an_addition_is_left_alone():
    assert equalize.joints_of(quantize.study(cnn(), reader()).ready) == []  # each Clip's result is added to the other's


@st.composite
def chains(draw):
    """A random network of layers and what may stand between them, with its images."""
    seed = draw(st.integers(0, 10**6))
    chance = np.random.default_rng(seed)
    depth, constants, nodes, value, channels = draw(st.integers(1, 4)), {}, [], "image", 3
    for place in range(depth):
        depthwise = place > 0 and draw(st.booleans())
        outs, side = (channels, 3) if depthwise else (draw(st.sampled_from([2, 4, 6])), draw(st.sampled_from([1, 3])))
        weight = chance.normal(size=(outs, 1 if depthwise else channels, side, side))
        constants[f"w{place}"] = (weight * np.exp(2 * chance.normal(size=(outs, 1, 1, 1)))).astype(np.float32)
        constants[f"b{place}"] = chance.normal(size=outs).astype(np.float32)
        inputs = [value, f"w{place}", f"b{place}"][:2 + draw(st.booleans())]
        nodes.append(("Conv", inputs, f"c{place}", {"group": channels if depthwise else 1, "pads": [side // 2] * 4}))
        value, channels = f"c{place}", outs
        for kind in draw(st.lists(st.sampled_from(["Relu", "LeakyRelu", "MaxPool", "Identity", "Sigmoid"]),
                                  max_size=2)):
            more = {"kernel_shape": [3, 3], "pads": [1] * 4} if kind == "MaxPool" else {}
            nodes.append((kind, [value], f"{value}_{kind}", more))
            value = f"{value}_{kind}"
    flat = draw(st.booleans())
    if not flat:
        nodes.append(("GlobalAveragePool", [value], "pool", {}))
        value = "pool"
    nodes.append(("Flatten", [value], "flat", {}))
    width = channels * (SIDE * SIDE if flat else 1)
    constants["head"] = chance.normal(size=(width, 4)).astype(np.float32)
    transposed = draw(st.booleans())
    if transposed:
        constants["head"] = np.ascontiguousarray(constants["head"].T)
    nodes.append(("Gemm", ["flat", "head"], "logits", {"transB": int(transposed)}))
    used = {name for _, inputs, _, _ in nodes for name in inputs}
    return network(nodes, {name: value for name, value in constants.items() if name in used}), pictures(seed=seed)


@settings(deadline=None, max_examples=40)
@given(chains(), st.sampled_from(equalize.BY))
def test_any_network_answers_what_it_did(drawn, by):
    model, images = drawn
    before = answers(model, images)
    equalized(model, images, by)
    after, size = answers(model, images), np.abs(before).max()
    assert np.abs(after - before).max() <= 1e-4 * max(size, 1e-6)


def test_what_is_read_by_several_layers_is_scaled_in_all_of_them():
    """As in a fire module: one convolution squeezes, two read it."""
    constants = {"w1": np.array([[4.0], [1.0]], np.float32)[..., None, None],
                 "w2": np.array([[1.0, 4.0]], np.float32)[..., None, None],
                 "w3": np.array([[0.5, 0.25]], np.float32)[..., None, None]}
    model = network([("Conv", ["image", "w1"], "c1", {}), ("Relu", ["c1"], "r1", {}),
                     ("Conv", ["r1", "w2"], "c2", {}), ("Conv", ["r1", "w3"], "c3", {}),
                     ("Concat", ["c2", "c3"], "both", {"axis": 1}), ("GlobalAveragePool", ["both"], "logits", {})],
                    constants, channels=1)
    assert [one.seconds for one in equalize.joints_of(model)] == [("c2", "c3")]
    images = pictures(1)
    before = answers(model, images)
    equalized(model, images)
    assert np.allclose(answers(model, images), before, rtol=1e-5)
    assert np.allclose(weights_of(model)["w2"].ravel(), [2, 2]) and np.allclose(weights_of(model)["w3"].ravel(),
                                                                                [1, 0.125])


@pytest.mark.parametrize("between", [
    (("Sigmoid", ["c1"], "r1", {}),),
    (("HardSwish", ["c1"], "r1", {}),),
    (("Relu", ["c1"], "a", {}), ("Add", ["a", "c1"], "r1", {})),
    (("Relu", ["c1"], "a", {}), ("Transpose", ["a"], "r1", {"perm": [0, 1, 3, 2]})),
])
def test_other_functions_are_no_joint(between):
    assert equalize.joints_of(pair(between=between)) == []


def test_a_value_that_is_an_output_is_left_alone():
    model = pair()
    model.graph.output.append(helper.make_tensor_value_info("r1", TensorProto.FLOAT, None))
    assert equalize.joints_of(model) == []


def test_a_channel_that_is_always_zero_keeps_its_weights():
    model = pair(((0.0,), (4.0,)), ((1.0, 1.0),))
    equalized(model, pictures(1))
    assert weights_of(model)["w1"].ravel().tolist() == [0, 2] and weights_of(model)["w2"].ravel().tolist() == [1, 2]


# ---------------------------------------------------------------------------------------------------- bias correction


def test_the_shift_by_hand():
    weight = np.array([[1.2, -0.4], [0.5, 0.5]])
    steps, scale = np.array([[1, 0], [1, 0]]), np.array([1.0, 0.5])
    # dW = [[-0.2, 0.4], [0.0, -0.5]]; E[x] = (1, 2)
    found = correct.shift(weight, steps, scale, np.array([[1.0, 2.0]]))
    assert np.allclose(found, [-0.2 + 0.8, -1.0])


def test_the_shift_of_groups_meets_their_own_inputs():
    weight, mean = np.ones((2, 1, 1, 1)), np.array([[1.0], [10.0]])
    assert np.allclose(correct.shift(weight, np.zeros_like(weight), np.ones(2), mean), [-1.0, -10.0])


def means_of(graph: bytes, batches: list[np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": one})[0] for one in batches]).mean(axis=0)


@pytest.mark.parametrize("placed", [False, True])
def test_corrected_biases_bring_the_means_back(placed):
    """One layer, rounded to the nearest of very few steps by an outlier in each channel."""
    chance = np.random.default_rng(0)
    weight = chance.uniform(0.0, 1.0, (16, 16, 3, 3)).astype(np.float32)
    weight[:, 0, 0, 0] = 300.0
    weight[:, :, 1, 1] = 0.0
    model = network([("Conv", ["image", "w", "b"], "c", {"pads": [1] * 4}), ("GlobalAveragePool", ["c"], "p", {}),
                     ("Flatten", ["p"], "logits", {})],
                    {"w": weight, "b": np.zeros(16, np.float32)}, channels=16)
    batches = [chance.uniform(0, 1, (8, 16, SIDE, SIDE)).astype(np.float32) for _ in range(4)]
    source = quantize.study(model.SerializeToString(), Given(*batches), opset=18)
    scheme = {**TARGET.quantize, "rounding": "nearest"}
    if placed:
        from edgetl.targets.tensorrt import TARGET as TENSORRT

        scheme = {**TENSORRT.quantize, "rounding": "nearest"}
    wanted = means_of(model.SerializeToString(), batches)
    plain = quantize.write(source, scheme, method="min-max").graph
    made = quantize.write(source, {**scheme, "bias": "corrected"}, method="min-max")
    assert made.rounding["biases_corrected"] == 1
    before, after = (np.abs(means_of(graph, batches) - wanted).mean() for graph in (plain, made.graph))
    assert after < 0.2 * before
