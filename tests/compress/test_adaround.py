"""Learned rounding: a layer where the nearest steps are provably worse, slopes, and that no layer gets worse."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from compress.test_calibrate_quantize import cnn, reader
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgetl.compress import adapt, adaround, quantize, rounding, surgery
from edgetl.compress.adaround import Problem
from edgetl.targets.x86_vnni import TARGET

INFINITE = (-np.inf, np.inf)


def problem(weight, inputs, *, scale=1.0, rounded=None, bias=0.0, ends=INFINITE, greatest=127) -> Problem:
    """One group: `weight` [O, D], `inputs` [n, D]."""
    weight, inputs = np.asarray(weight, np.float32)[None], np.asarray(inputs, np.float32)[None]
    outs = weight.shape[1]
    return Problem(weight, np.full((1, outs), scale, np.float32), np.full((1, outs), bias, np.float32), inputs,
                   inputs if rounded is None else np.asarray(rounded, np.float32)[None], *ends, greatest)


def test_the_nearest_steps_are_worse_where_inputs_move_together():
    """Four weights near 0.4 whose inputs are always the same: the layer multiplies by 1.6; nearest, it would by 0."""
    inputs = np.linspace(-1, 1, 200)[:, None] * np.ones((1, 4))
    one = problem([[0.37, 0.39, 0.41, 0.43]], inputs)
    nearest = one.nearest()
    assert nearest.tolist() == [[[0, 0, 0, 0]]]
    square = float(np.square(inputs[:, 0]).mean())
    assert one.error(nearest) == pytest.approx(1.6**2 * square, rel=1e-5)
    every = [np.array(each, np.int8).reshape(1, 1, 4) for each in itertools.product((0, 1), repeat=4)]
    best = min(one.error(each) for each in every)
    assert best == pytest.approx(0.4**2 * square, rel=1e-4)  # two of them up: 2 in place of 1.6
    found = adaround.solve(one, nearest.astype(np.int8), steps=300, chance=np.random.default_rng(0))
    assert one.error(found) == pytest.approx(best, rel=1e-6) and found.sum() == 2


def test_what_the_function_behind_cuts_off_costs_nothing():
    """The second output is always below zero, so its weights may be anything; without the function they may not."""
    inputs = np.abs(np.random.default_rng(0).normal(1, 0.3, (300, 3)))
    cut = problem([[0.4] * 3, [-1.4] * 3], inputs, ends=(0.0, np.inf))
    steps = np.array([[[0, 0, 1], [-2, -2, -2]]], np.int8)
    other = np.array([[[0, 0, 1], [-1, -1, -1]]], np.int8)
    assert cut.error(steps) == cut.error(other) > 0
    open_ended = problem([[0.4] * 3, [-1.4] * 3], inputs)
    assert open_ended.error(steps) != open_ended.error(other)


def loss(one: Problem, floor, logits, unit, weight_of_pull, beta) -> float:
    share = adaround.relaxed(logits)
    wanted = one.wanted().astype(np.float64)
    answer = one.rounded.astype(np.float64) @ ((floor + share) * one.scale[..., None]).transpose(0, 2, 1)
    answer = np.clip(answer + one.bias[:, None], one.low, one.high)
    return float(np.square(answer - wanted).mean() / unit
                 + weight_of_pull * np.mean(1 - np.abs(2 * share - 1) ** beta)) * floor.size


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([INFINITE, (0.0, np.inf), (0.0, 1.0)]), st.sampled_from([0.0, 0.5, 0.9]))
def test_the_slope_is_that_of_the_loss(seed, ends, progress):
    chance = np.random.default_rng(seed)
    floats, weight = chance.normal(size=(40, 3)), chance.normal(size=(2, 3))
    rounded = floats + 0.1 * chance.normal(size=floats.shape)
    one = problem(weight, floats, rounded=rounded, scale=0.3, bias=0.1, ends=ends)
    logits = chance.uniform(-1.5, 1.5, (1, 2, 3))
    floor, unit = np.floor(one.weight / one.scale[..., None]).astype(np.float64), 0.02
    found = adaround._gradient(one, floor, logits, np.arange(40), one.wanted(), unit, progress)
    along = (progress - adaround.WARM) / (1 - adaround.WARM)
    beta = adaround.BETA[1] + 0.5 * (adaround.BETA[0] - adaround.BETA[1]) * (1 + np.cos(np.pi * along))
    grown = adaround.WEIGHT[0] * (adaround.WEIGHT[1] / adaround.WEIGHT[0]) ** along
    pull = grown if progress >= adaround.WARM else 0.0
    expected, change = np.zeros_like(logits), 1e-6
    for place in np.ndindex(logits.shape):
        ahead, behind = logits.copy(), logits.copy()
        ahead[place] += change
        behind[place] -= change
        expected[place] = (loss(one, floor, ahead, unit, pull, beta)
                           - loss(one, floor, behind, unit, pull, beta)) / (2 * change)
    assert np.allclose(found, expected, rtol=2e-2, atol=2e-2 * max(1.0, np.abs(expected).max()))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6))
def test_steps_stay_beside_the_weight_or_the_steps_that_were_there(seed):
    chance = np.random.default_rng(seed)
    one = problem(chance.normal(size=(3, 5)), chance.normal(size=(64, 5)), scale=0.02, greatest=64)
    start = np.clip(one.nearest() + chance.integers(-2, 3, (1, 3, 5)), -64, 64).astype(np.int8)
    found = adaround.solve(one, start, steps=20, chance=np.random.default_rng(0)).astype(int)
    scaled = one.weight / one.scale[..., None]
    near = np.abs(np.clip(found, -63, 63) - np.clip(scaled, -63, 63)) <= 1.001
    assert (near | (np.abs(found - start) <= 1)).all() and np.abs(found).max() <= 64


def test_the_same_seed_finds_the_same():
    chance = np.random.default_rng(0)
    one = problem(chance.normal(size=(3, 5)), chance.normal(size=(64, 5)), scale=0.1)
    start = one.nearest().astype(np.int8)
    first, again = (adaround.solve(one, start, steps=30, chance=np.random.default_rng(5)) for _ in range(2))
    assert (first == again).all()


def test_relaxed_steps_begin_where_the_weights_are():
    share = np.linspace(0.001, 0.999, 50).astype(np.float32)
    assert np.allclose(adaround.relaxed(adaround._inverse(share)), share, atol=1e-5)
    assert adaround.relaxed(np.array([-30.0, 30.0])).tolist() == [0.0, 1.0]


# --------------------------------------------------------------------------------------------------- a whole graph


@pytest.fixture(scope="module")
def source():
    return quantize.study(cnn(), reader())


@pytest.fixture(scope="module")
def batches():
    images = reader()
    return list(iter(images.get_next, None))


def adapted(source, batches, scheme=None, **more):
    graph = quantize.write(source, {**TARGET.quantize, **(scheme or {})}, method="min-max").graph
    int8 = onnx.load_from_string(graph)
    heard = []
    found = adapt.adapt(source.ready, int8, batches, greatest=more.pop("greatest", rounding.GREATEST), seed=0,
                        note=heard.append)
    return found, int8, heard


def test_no_layer_answers_worse_and_the_record_says_so(source, batches, monkeypatch):
    monkeypatch.setattr(adapt, "STEPS", (60, 60))
    found, int8, heard = adapted(source, batches)
    assert len(found.layers) == 3 and "3 of 3 layers" in heard[-1]
    for row in found.layers:
        assert row["kept"] == (row["after"] >= row["before"])
    assert len(found.steps) == sum(not row["kept"] for row in found.layers)
    tensors = {one.name: numpy_helper.to_array(one) for one in int8.graph.initializer}
    for name, steps in found.steps.items():
        assert (tensors[f"{name}_quantized"] == steps).all() and steps.dtype == np.int8


def test_weights_at_four_bits_come_out_better(source, batches, monkeypatch):
    """With 7 steps to either side what is learned on some images helps on others."""
    monkeypatch.setattr(adapt, "STEPS", (150, 150))
    graph = quantize.write(source, {**TARGET.quantize, "rounding": "nearest"}, method="min-max").graph
    model = onnx.load_from_string(graph)
    restored = {one.input[0]: one.input[1] for one in model.graph.node if one.op_type == "DequantizeLinear"}
    tensors = {one.name: one for one in model.graph.initializer}
    floats = {one.name: numpy_helper.to_array(one) for one in source.ready.graph.initializer}
    for name in ("w1", "w2", "w3"):  # the same weights in steps eighteen times as wide
        scale, steps = tensors[restored[f"{name}_quantized"]], tensors[f"{name}_quantized"]
        wide = (numpy_helper.to_array(scale) * (127 / 7)).astype(np.float32)
        rounded = np.rint(floats[name] / wide.reshape(-1, *[1] * (floats[name].ndim - 1)))
        scale.CopyFrom(numpy_helper.from_array(wide, scale.name))
        steps.CopyFrom(numpy_helper.from_array(np.clip(rounded, -7, 7).astype(np.int8), steps.name))
    found = adapt.adapt(source.ready, model, batches, greatest=7, seed=0, note=lambda text: None)
    better = [row for row in found.layers if not row["kept"]]
    assert len(better) >= 2 and min(row["after"] / row["before"] for row in better) < 0.9
    assert all(np.abs(steps).max() <= 7 for steps in found.steps.values())


def test_what_was_learned_is_written(source, batches):
    steps = {"w1": np.full((8, 3, 3, 3), 5, np.int8)}
    made = quantize.write(source, TARGET.quantize, method="min-max", steps=steps)
    tensors = {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(made.graph).graph.initializer}
    assert (tensors["w1_quantized"] == 5).all() and made.rounding["layers_given"] == 1
    layer = quantize.layers_of(source, TARGET.quantize)[0]
    floats = quantize.write(source, TARGET.quantize, method="min-max", steps=steps, floats=[layer])
    assert floats.rounding["layers_given"] == 0  # it has no steps


def test_steps_are_bounded_by_the_work():
    assert adapt._steps(1000) == adapt.STEPS[1] and adapt._steps(10**9) == adapt.STEPS[0]
    assert adapt.STEPS[0] < adapt._steps(8_000_000) < adapt.STEPS[1]


def test_a_cut_graph_computes_the_value_and_has_nothing_else(source, batches):
    whole = source.ready
    value = next(node.output[0] for node in whole.graph.node if node.op_type == "Clip")
    part = surgery.cut(whole, [value])
    assert [node.op_type for node in part.graph.node] == ["Conv", "Clip"]
    assert {one.name for one in part.graph.initializer} >= {"w1"} and "w3" not in {
        one.name for one in part.graph.initializer}
