"""Quantization-aware distillation: the trained graph is the graph that runs, and training mends what rounding broke."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from compress.test_calibrate_quantize import SPEC, SQUARE, cnn, items, png, reader
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgetl.compress import qat, quantize, views
from edgetl.compress.course import Course, Untrainable
from edgetl.compress.qat_graph import Trainable
from edgetl.plugins import load
from edgetl.runtime.session import open_session

MIX = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 0]], np.float32)  # of three channels to four classes
SCHEMES = ("x86-vnni", "x86-avx2", "arm", "openvino", "tensorrt")


def scheme_of(target: str) -> dict[str, Any]:
    return dict(load("targets", target).TARGET.quantize)


def wide() -> bytes:
    """A network of which TensorRT would round two layers: 16 channels, a pooling between them, and a last layer."""
    from onnx import TensorProto, helper

    chance = np.random.default_rng(3)
    shapes = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "b2": (16,), "w3": (4, 16), "b3": (4,)}
    constants = {name: chance.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], pads=[1] * 4),
             helper.make_node("Relu", ["c1"], ["r1"]),
             helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
             helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1] * 4),
             helper.make_node("Add", ["c2", "p1"], ["a2"]),
             helper.make_node("Relu", ["a2"], ["r2"]),
             helper.make_node("GlobalAveragePool", ["r2"], ["pool"]), helper.make_node("Flatten", ["pool"], ["flat"]),
             helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], transB=1)]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])
    scores = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "wide", [image], [scores],
                              [numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def trainable(made: quantize.Quantized, source: quantize.Source, scheme: dict[str, Any], **more: Any) -> Trainable:
    return Trainable(onnx.load_from_string(made.graph), qat.weights_of(source.ready),
                     greatest=64 if scheme["reduce_range"] else 127, kind=scheme.get("scales", "float32"), **more)


def answered(graph: Trainable, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return graph.run(torch.from_numpy(images))["logits"].numpy()


def pictures(count: int = 16, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 8, 8)).astype(np.float32)


def run(graph: bytes, images: np.ndarray) -> np.ndarray:
    session = open_session("cpu", graph, SPEC, threads=1)
    try:
        return session.run({"image": images})["logits"]
    finally:
        session.close()


def stirred(graph: Trainable, seed: int) -> None:
    """Moves everything that training moves."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in graph.parameters():
            one += torch.randn(one.shape, generator=chance) * 1.5
        for one in graph.step_parameters():
            one += torch.randn(one.shape, generator=chance) * 0.05


@pytest.mark.parametrize("target", SCHEMES)
def test_what_is_trained_is_what_the_engine_runs(target):
    """Before training, and after everything has moved: torch's answers are those of the INT8 graph on the engine."""
    scheme = scheme_of(target)
    source = quantize.study(wide(), reader(), opset=scheme.get("opset", 0))
    made = quantize.write(source, scheme, method="min-max")
    graph = trainable(made, source, scheme)
    images = pictures()
    reach = float(np.abs(run(made.graph, images)).max())
    # A value on the edge between two steps may fall to either; one of 256 steps of the last input, at most.
    assert np.abs(answered(graph, images) - run(made.graph, images)).max() < reach / 80
    stirred(graph, seed=0)
    written = graph.graph().SerializeToString()
    assert np.abs(answered(graph, images) - run(written, images)).max() < reach / 80
    assert np.abs(run(written, images) - run(made.graph, images)).max() > reach / 40  # it did move
    limit = 64 if scheme["reduce_range"] else 127
    ints = [numpy_helper.to_array(one) for one in onnx.load_from_string(written).graph.initializer]
    assert max(np.abs(one.astype(int)).max() for one in ints if one.dtype == np.int8 and one.ndim > 1) <= limit


@functools.cache
def studied() -> quantize.Source:
    return quantize.study(cnn(), reader())


def constants(model: Any) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


@settings(max_examples=8)
@given(st.integers(0, 2**31))
def test_a_written_graph_is_read_back_as_it_is(seed):
    scheme = scheme_of("x86-vnni")
    graph = trainable(quantize.write(studied(), scheme, method="min-max"), studied(), scheme)
    stirred(graph, seed)
    once = constants(graph.graph())
    twice = constants(Trainable(graph.graph(), {}, greatest=127).graph())
    assert once.keys() == twice.keys() and all(np.array_equal(once[name], twice[name]) for name in once)


def test_training_starts_from_the_compensated_weights_and_the_float_ones_in_them():
    scheme = scheme_of("x86-vnni")
    source = studied()
    made = quantize.write(source, scheme, method="min-max")
    graph = trainable(made, source, scheme)
    before, after = constants(onnx.load_from_string(made.graph)), constants(graph.graph())
    assert before.keys() == after.keys()
    assert all(np.allclose(before[name], after[name], rtol=1e-6) for name in before)
    units = next(iter(graph.weights.values())).units.detach().numpy()
    assert np.abs(units - np.rint(units)).max() > 0.1  # fractions of steps, which rounded weights do not have


def test_steps_of_tensorrt_are_numbers_of_fp16():
    scheme = scheme_of("tensorrt")
    source = quantize.study(wide(), reader(), opset=scheme["opset"])
    graph = trainable(quantize.write(source, scheme, method="mse"), source, scheme)
    stirred(graph, seed=4)
    steps = [numpy_helper.to_array(one) for one in graph.graph().graph.initializer if one.name.endswith("_scale")]
    assert len(steps) > 3 and all(np.array_equal(one, one.astype(np.float16)) for one in steps)


def test_what_is_only_moved_keeps_one_step_and_what_is_fixed_its_own():
    scheme = scheme_of("x86-vnni")
    source = quantize.study(wide(), reader())
    made = quantize.write(source, scheme, method="min-max", known={"image": (0.05, 100)})
    graph = trainable(made, source, scheme, fixed=frozenset({"image"}))
    stirred(graph, seed=1)
    after = constants(graph.graph())
    assert after["image_scale"] == np.float32(0.05) and after["image_zero_point"] == 100
    rounding = {node.input[0]: after[node.input[1]] for node in graph.graph().graph.node
                if node.op_type == "QuantizeLinear"}
    assert rounding["p1"] == rounding["r1"] and rounding["pool"] != rounding["r2"]


def crude(source: quantize.Source, scheme: dict[str, Any]) -> quantize.Quantized:
    """An INT8 graph that answers badly: weights of 15 steps, and a fifth of each activation's range cut off."""
    made = quantize.write(source, {**scheme, "rounding": "nearest"}, method="min-max")
    model = onnx.load_from_string(made.graph)
    graph = Trainable(model, qat.weights_of(source.ready), greatest=127)
    with torch.no_grad():
        for steps in graph.activations.values():
            steps.log += np.log(0.8)
        for weight in graph.weights.values():
            weight.steps.log += np.log(127 / 7)
    return quantize.Quantized(graph.graph().SerializeToString(), made.rounding)


def test_training_mends_what_rounding_broke():
    scheme = scheme_of("x86-vnni")
    source = studied()
    made = crude(source, scheme)
    shown, unseen = pictures(256, seed=5), pictures(128, seed=6)
    told: list[str] = []
    session = open_session("cpu", cnn(), SPEC, threads=1)
    course = Course(4, 8, lambda epoch: iter(shown.reshape(8, 32, 3, 8, 8)),
                    lambda one: session.run({"image": one})["logits"], "logits", threads=1, note=told.append)
    trained = qat.distilled(made, source.ready, scheme, course)
    wanted = session.run({"image": unseen})["logits"]
    before, after = (np.square(run(one.graph, unseen) - wanted).mean() for one in (made, trained))
    assert after < before / 2
    losses = trained.rounding["losses"]
    assert len(losses) == len(told) == 4 and losses[-1] < losses[0] / 1.5
    assert trained.rounding["updates"] == 32 and trained.rounding["layers"] == 3
    session.close()
    kinds = [[(node.op_type, node.input, node.output) for node in onnx.load_from_string(one.graph).graph.node]
             for one in (made, trained)]
    assert kinds[0] == kinds[1]


def test_a_loss_that_is_no_number_ends_it():
    scheme, source = scheme_of("x86-vnni"), studied()
    course = Course(1, 1, lambda epoch: iter([pictures(8)]), lambda one: np.full((8, 4), np.nan), "logits", threads=1)
    with pytest.raises(Untrainable, match="loss of quantization-aware distillation is nan in epoch 1"):
        qat.distilled(quantize.write(source, scheme, method="min-max"), source.ready, scheme, course)


def test_a_graph_with_nothing_rounded_cannot_be_trained():
    with pytest.raises(Untrainable, match="no layer with int8 weights"):
        Trainable(onnx.load_from_string(cnn()), {}, greatest=127)


def test_the_loss_is_kullback_and_leiblers_and_keeps_the_size_of_its_gradient():
    teacher, student = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 1.0, 0.5]], requires_grad=True)
    hot = qat.TEMPERATURE
    wanted, found = (np.exp(one / hot) / np.exp(one / hot).sum() for one in (teacher.numpy(), student.detach().numpy()))
    loss = qat.soft_loss(student, teacher)
    assert loss.item() == pytest.approx(hot**2 * float((wanted * np.log(wanted / found)).sum()), rel=1e-4)
    assert qat.soft_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert np.allclose(student.grad.numpy(), hot * (found - wanted), atol=1e-5)


def test_probabilities_are_compared_by_their_logarithms():
    scores = torch.tensor([[3.0, -1.0, 0.0]])
    assert torch.allclose(qat._scores(scores.softmax(1), True).softmax(1), scores.softmax(1))
    assert qat._scores(torch.tensor([[1.0, 0.0]]), True).isfinite().all()
    assert qat._scores(scores, False) is scores


def test_the_rates_rise_and_fall_to_nothing():
    rates = [qat.rate_at(update, 100) for update in range(101)]
    assert rates[:2] == [0.1, 0.2] and max(rates) == 1 and rates[100] == pytest.approx(0, abs=1e-9)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert qat.rate_at(0, 1) == 1


def test_views_show_each_image_once_and_the_same_ones_for_the_same_seed():
    read: list[str] = []

    def spy(item: Any) -> bytes:
        read.append(item.key)
        return png(item)

    first = list(views.views(items(7), spy, SQUARE, 3, np.random.default_rng([0, 1])))
    assert [one.shape for one in first] == [(3, 3, 8, 8)] * 2 and len(set(read)) == len(read) == 6
    again = list(views.views(items(7), png, SQUARE, 3, np.random.default_rng([0, 1])))
    other = list(views.views(items(7), png, SQUARE, 3, np.random.default_rng([0, 2])))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.booleans())
def test_a_view_is_the_image_mirrored_or_not_and_moved_a_little(seed, channels_last):
    image = np.arange(3 * 16 * 16, dtype=np.float32).reshape(3, 16, 16)
    given_image = image.transpose(1, 2, 0) if channels_last else image
    found = views.view(given_image, (0, 1) if channels_last else (1, 2), np.random.default_rng(seed))
    found = found.transpose(2, 0, 1) if channels_last else found
    inner = found[:, 1:-1, 1:-1]
    candidates = [padded[:, 1 + dy:15 + dy, 1 + dx:15 + dx] for padded in (image, image[:, :, ::-1])
                  for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert any(np.array_equal(inner, one) for one in candidates)


def test_the_same_images_give_the_same_graph():
    scheme, source = scheme_of("x86-vnni"), studied()
    made = quantize.write(source, scheme, method="min-max")
    course = Course(1, 2, lambda epoch: iter(pictures(16).reshape(2, 8, 3, 8, 8)), lambda one: one.mean((2, 3)) @ MIX,
                    "logits", threads=1)
    first, second = (qat.distilled(made, source.ready, scheme, course) for _ in range(2))
    assert first.graph == second.graph != made.graph
