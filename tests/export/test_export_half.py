"""Graphs in half: close to float32, half where it pays, few conversions, valid, and runnable."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import BundleError, EdgetlError, UnknownName
from edgetl.export import half_rules
from edgetl.export.half import kind_of, to_half

ELEMENTS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def model_of(nodes: list[Any], constants: dict[str, np.ndarray], *, opset: int = 18, inputs: Any = None,
             outputs: Any = None) -> bytes:
    """A graph from "image" [N, 4, 8, 8] to "logits"."""
    inputs = inputs or [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4, 8, 8])]
    outputs = outputs or [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "C", "H", "W"])]
    graph = helper.make_graph(nodes, "made", inputs, outputs,
                              [numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    helper.set_model_props(model, {"edgetl.schema": "1"})
    return model.SerializeToString()


def run(graph: bytes, image: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


def types_of(graph: bytes) -> tuple[onnx.ModelProto, dict[str, int]]:
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph), strict_mode=True)
    found = {one.name: one.type.tensor_type.elem_type
             for one in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    found.update((one.name, one.data_type) for one in model.graph.initializer)
    return model, found


def cast_count(graph: bytes) -> int:
    return sum(node.op_type == "Cast" for node in onnx.load_from_string(graph).graph.node)


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def network(seed: int, layers: int) -> bytes:
    """A random small network with branches, norms and gates."""
    rng = np.random.default_rng(seed)
    nodes, constants, value = [], {}, "image"

    def then(kind: str, *more: str, source: str = "", **attributes: Any) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, [source or value, *more], [name], name=f"n{len(nodes)}", **attributes))
        return name

    def constant(array: np.ndarray) -> str:
        constants[f"c{len(constants)}"] = array
        return f"c{len(constants) - 1}"

    for _ in range(layers):
        kind = rng.integers(8)
        if kind == 0:
            value = then("Conv", constant(weights(rng, 4, 4, 3, 3)), constant(weights(rng, 4, 1)[:, 0]),
                         pads=[1, 1, 1, 1])
        elif kind == 1:
            value = then(str(rng.choice(["Relu", "Sigmoid", "Tanh", "HardSwish"])))
        elif kind == 2:
            value = then("Softmax", axis=1)
        elif kind == 3:
            value = then("LayerNormalization", constant(np.ones(8, np.float32)), axis=-1)
        elif kind == 4:
            gate = then("Sigmoid", source=then("GlobalAveragePool"))
            value = then("Mul", gate)
        elif kind == 5:
            value = then("Add", then("Relu"))
        elif kind == 6:
            value = then("MatMul", constant(weights(rng, 8, 8)))
        else:
            squares = then("Pow", constant(np.array(2, np.float32)))
            value = then("Div", then("Sqrt", source=then("Add", constant(np.array(1, np.float32)), source=squares)))
    value = then("Flatten")
    nodes.append(helper.make_node("Gemm", [value, constant(weights(rng, 256, 5))], ["logits"], name="head"))
    return model_of(nodes, constants, outputs=[helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), layers=st.integers(1, 9), precision=st.sampled_from(["fp16", "bf16"]))
def test_random_networks_answer_the_same_and_compute_in_half(seed: int, layers: int, precision: str) -> None:
    graph = network(seed, layers)
    made = to_half(graph, precision)
    model, types = types_of(made.graph)
    onnx.checker.check_model(model, full_check=True)
    assert types["image"] == types["logits"] == TensorProto.FLOAT
    assert [(one.key, one.value) for one in model.metadata_props] == [("edgetl.schema", "1")]
    for node in model.graph.node:
        if node.op_type in half_rules.HEAVY:
            assert {types[name] for name in (*node.input, *node.output)} == {ELEMENTS[precision]}
        if node.op_type in half_rules.DELICATE:
            assert types[node.output[0]] == TensorProto.FLOAT
    assert made.casts == cast_count(made.graph)
    assert not {tuple(node.input) for node in model.graph.node if node.op_type == "Cast"} & {
        tuple(node.output) for node in model.graph.node if node.op_type == "Cast"}  # no chains
    if precision == "fp16":  # ONNX Runtime has no kernels for bf16 on the processor
        image = np.random.default_rng(seed).standard_normal((2, 4, 8, 8)).astype(np.float32)
        expected = run(graph, image)
        assert np.abs(run(made.graph, image) - expected).max() < 5e-3 * max(1.0, float(np.abs(expected).max()))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), layers=st.integers(1, 5))
def test_no_other_choice_of_nodes_has_fewer_casts(seed: int, layers: int) -> None:
    """Against every choice of the nodes that are free to choose, by exhaustion."""
    import itertools

    from edgetl.export import half

    kind = kind_of("fp16")
    model = half.readied(network(seed, layers))
    anatomy = half_rules.Anatomy(model, kind)
    kept = half_rules.must_stay(anatomy, ())
    heavy = half_rules.must_be_half(anatomy, kept)
    free = sorted(set(half_rules.float_nodes(anatomy)) - kept - heavy)[:9]
    found = to_half(network(seed, layers)).casts
    for count in range(len(free) + 1):
        for chosen in itertools.combinations(free, count):
            names = [anatomy.nodes[index].name for index in chosen]
            other = half.readied(network(seed, layers))
            fresh = half_rules.Anatomy(other, kind)
            stay = kept | {index for index, node in enumerate(fresh.nodes) if node.name in names}
            assert half._Writer(other, fresh, stay).written() >= found


def test_weights_that_half_cannot_hold_stay() -> None:
    rng = np.random.default_rng(0)
    constants = {"great": np.full((4, 4, 1, 1), 1e5, np.float32), "plain": weights(rng, 4, 4, 1, 1),
                 "tiny": np.full(1, 1e-9, np.float32)}
    nodes = [helper.make_node("Conv", ["image", "plain"], ["a"], name="plain"),
             helper.make_node("Conv", ["a", "great"], ["b"], name="great"),
             helper.make_node("Add", ["b", "tiny"], ["c"], name="eps"),
             helper.make_node("Conv", ["c", "plain"], ["logits"], name="again")]
    made = to_half(model_of(nodes, constants))
    assert made.kept == ("great", "eps")
    assert to_half(model_of(nodes, constants), "bf16").kept == ()
    assert cast_count(made.graph) == 4


def test_a_constant_of_both_precisions_is_stored_twice_and_only_then() -> None:
    constants = {"both": np.full((4, 4, 1, 1), 0.5, np.float32), "once": np.ones((4, 4, 1, 1), np.float32)}
    nodes = [helper.make_node("Conv", ["image", "both"], ["a"], name="first"),
             helper.make_node("Conv", ["a", "once"], ["b"], name="second"),
             helper.make_node("ReduceSum", ["both"], ["s"], name="sum", keepdims=0),
             helper.make_node("Mul", ["b", "s"], ["logits"], name="product")]
    model, _ = types_of(to_half(model_of(nodes, constants)).graph)
    stored = {one.name: one.data_type for one in model.graph.initializer}
    assert stored == {"both": TensorProto.FLOAT, "both_fp16": TensorProto.FLOAT16, "once": TensorProto.FLOAT16}


def test_keep_takes_names_outputs_and_kinds() -> None:
    nodes = [helper.make_node("Conv", ["image", "w"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("Conv", ["b", "w"], ["logits"], name="second")]
    graph = model_of(nodes, {"w": weights(np.random.default_rng(0), 4, 4, 1, 1)})
    assert to_half(graph, keep=["first"]).kept == ("first",)
    assert to_half(graph, keep=["logits"]).kept == ("second",)
    assert len(to_half(graph, keep=["Conv"]).kept) == 3  # and the Relu between them, which would need two conversions
    with pytest.raises(UnknownName, match=r"'firts'.*'first'"):
        to_half(graph, keep=["firts"])


def quantized(scale: float = 0.05) -> bytes:
    """What TensorRT's scheme writes: int8 symmetric, weights by channel, biases in float."""
    rng = np.random.default_rng(0)
    constants = {"s": np.array(scale, np.float32), "z": np.array(0, np.int8),
                 "w": rng.integers(-127, 127, (4, 4, 3, 3), dtype=np.int8),
                 "ws": np.array([1e-2, 2e-3, 5e-3, 1e-12], np.float32), "wz": np.zeros(4, np.int8),
                 "b": weights(rng, 4, 1)[:, 0]}
    nodes = [helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"], name="q"),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
             helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], name="dw", axis=0),
             helper.make_node("Conv", ["d", "dw", "b"], ["a"], name="conv"),
             helper.make_node("Relu", ["a"], ["r"], name="relu"),
             helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q2"], name="q2"),
             helper.make_node("DequantizeLinear", ["q2", "s", "z"], ["d2"], name="d2"),
             helper.make_node("Conv", ["d2", "dw"], ["logits"], name="conv2")]
    return model_of(nodes, constants)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_int8_graph_has_a_half_remainder(precision: str) -> None:
    made = to_half(quantized(), precision)
    model, types = types_of(made.graph)
    assert made.opset == {"fp16": 19, "bf16": 22}[precision]
    assert made.kept == ("q",)  # it reads the image, which is float32
    assert Counter(node.op_type for node in model.graph.node) == {
        "QuantizeLinear": 2, "DequantizeLinear": 3, "Conv": 2, "Relu": 1, "Cast": 1}
    assert types["w"] == TensorProto.INT8
    for node in model.graph.node:
        if node.op_type in ("Conv", "DequantizeLinear"):
            assert types[node.output[0]] == ELEMENTS[precision]
    scales = numpy_helper.to_array(next(one for one in model.graph.initializer if one.name == "ws"))
    assert (scales > 0).all()
    if precision == "fp16":
        image = np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)
        expected = run(quantized(), image)
        # A value at the edge of two steps may fall on the other side.
        assert np.abs(run(made.graph, image) - expected).max() < 0.02 * np.abs(expected).max()


def test_a_rounding_whose_scale_is_too_small_keeps_the_layers_behind_it() -> None:
    assert set(to_half(quantized(1e-9)).kept) >= {"q", "d", "conv", "conv2"}
    assert "conv" not in to_half(quantized(1e-9), "bf16").kept


def test_integer_biases_become_float() -> None:
    constants = {"w": np.ones((4, 4, 1, 1), np.float32), "b": np.array([1000, -3, 0, 70000], np.int32),
                 "s": np.array([1e-6, 1e-4, 1e-5, 1e-7], np.float32)}
    nodes = [helper.make_node("DequantizeLinear", ["b", "s"], ["bias"], axis=0),
             helper.make_node("Conv", ["image", "w", "bias"], ["logits"])]
    model, _ = types_of(to_half(model_of(nodes, constants)).graph)
    bias = numpy_helper.to_array(next(one for one in model.graph.initializer if one.name == "bias"))
    np.testing.assert_allclose(bias, [1e-3, -3e-4, 0, 7e-3], rtol=1e-3)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Conv", "Cast"]


def test_sizes_and_scales_of_a_resize_are_left_alone() -> None:
    constants = {"w": np.ones((4, 4, 1, 1), np.float32), "scales": np.array([1, 1, 2.5, 2.5], np.float32),
                 "half": np.array([0.5], np.float32), "two": np.array([2], np.int64), "three": np.array([3], np.int64)}
    nodes = [helper.make_node("Conv", ["image", "w"], ["a"], name="conv"),
             helper.make_node("Resize", ["a", "", "scales"], ["b"], name="resize"),
             helper.make_node("Shape", ["b"], ["shape"], name="shape"),
             helper.make_node("Cast", ["shape"], ["real"], name="real", to=TensorProto.FLOAT),
             helper.make_node("Mul", ["real", "half"], ["halved"], name="halved"),
             helper.make_node("Floor", ["halved"], ["floor"], name="floor"),
             helper.make_node("Cast", ["floor"], ["whole"], name="whole", to=TensorProto.INT64),
             helper.make_node("Slice", ["whole", "two", "three"], ["height"], name="slice"),
             helper.make_node("ReduceMax", ["height"], ["top"], name="top", keepdims=1),
             helper.make_node("Expand", ["b", "top"], ["logits"], name="expand")]
    model, types = types_of(to_half(model_of(nodes, constants)).graph)
    assert types["b"] == TensorProto.FLOAT16
    assert types["scales"] == types["real"] == types["halved"] == TensorProto.FLOAT
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 4


def test_constant_nodes_features_and_pixels() -> None:
    """Constants as nodes, an output that is read inside too, and an image of bytes."""
    nodes = [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
             helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32))),
             helper.make_node("Constant", [], ["third"], value_float=1 / 3),
             helper.make_node("Mul", ["x", "third"], ["m"]), helper.make_node("Conv", ["m", "w"], ["features"]),
             helper.make_node("Conv", ["features", "w"], ["logits"])]
    graph = model_of(nodes, {}, inputs=[helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 4, 8, 8])],
                     outputs=[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 8, 8])
                              for name in ("logits", "features")])
    made = to_half(graph)
    model, types = types_of(made.graph)
    assert types["features"] == types["logits"] == TensorProto.FLOAT
    assert [node.op_type for node in model.graph.node] == ["Cast", "Mul", "Conv", "Cast", "Conv", "Cast"]
    assert types[model.graph.node[0].output[0]] == TensorProto.FLOAT16
    image = np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8)
    np.testing.assert_allclose(run(made.graph, image), run(graph, image), rtol=2e-3)


def test_the_same_graph_gives_the_same_bytes() -> None:
    assert to_half(network(3, 8)).graph == to_half(network(3, 8)).graph


def test_half_of_half_changes_nothing() -> None:
    once = to_half(network(3, 8))
    assert cast_count(to_half(once.graph).graph) == once.casts


def test_what_cannot_be_written_is_said() -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["image"], ["out"])], "branch", [],
                               [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4, 8, 8])])
    nodes = [helper.make_node("If", ["yes"], ["logits"], name="either", then_branch=branch, else_branch=branch)]
    with pytest.raises(EdgetlError, match=r"The node either \(If\) has a graph inside"):
        to_half(model_of(nodes, {"yes": np.array(True)}))
    with pytest.raises(BundleError, match="no ONNX graph"):
        to_half(b"\x0f\xff no graph")
    with pytest.raises(UnknownName, match="precision"):
        to_half(network(0, 1), "int8")
