"""Targets: which a machine gets, what their graphs look like, and that none saturates where it runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from compress.test_calibrate_quantize import cnn, logits, reader
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper

from edgetl import plugins
from edgetl.compress import quantize, rounding
from edgetl.errors import BackendUnavailable
from edgetl.export import variants
from edgetl.recipe import Export
from edgetl.runtime import processor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import emulate_avx2

TARGETS = {name: plugins.load("targets", name).TARGET for name in plugins.names("targets")}
INT8 = {name: target for name, target in TARGETS.items() if target.quantize}
CPU = {name: target for name, target in INT8.items() if target.requires}
SERVER = {"avx2", "avx512f", "avx512_vnni"}


def made(name: str, *, nearest: bool = False) -> bytes:
    """The INT8 graph of the tiny network for a target."""
    scheme = {**TARGETS[name].quantize, **({"rounding": "nearest"} if nearest else {})}
    return quantize.quantize(cnn(), scheme, reader(), method="min-max").graph


def weights_of(graph: bytes) -> list[np.ndarray]:
    """The int8 weights of a Q/DQ graph."""
    tensors = [numpy_helper.to_array(one) for one in onnx.load_from_string(graph).graph.initializer]
    return [one for one in tensors if one.dtype == np.int8 and one.ndim > 1]


def see(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """Makes this processor one with those flags only."""
    monkeypatch.setattr(processor, "flags", lambda *anything: frozenset(flags))


@pytest.mark.parametrize(("flags", "expected"), [
    (SERVER, ["x86-vnni"]), ({"avx2", "avx_vnni"}, ["x86-vnni"]), ({"avx2"}, ["x86-avx2"]), ({"sse4_2"}, []),
    ({"neon", "asimd", "asimddp"}, ["arm"]), ({"asimd"}, ["arm"])])
def test_a_machine_gets_the_target_that_suits_it_best(monkeypatch, flags, expected):
    see(monkeypatch, *flags)
    assert [one.name for one in variants.choose_targets(Export(run="r", out="o"))] == expected


@pytest.mark.parametrize(("flags", "target", "lacking"), [
    ({"avx2"}, "x86-vnni", "has no vnni"), ({"avx2"}, "arm", "has no neon or vnni"),
    ({"sse4_2"}, "x86-avx2", "has no avx2"), ({"asimd"}, "x86-avx2", "has no avx2")])
def test_what_cannot_be_judged_is_refused(monkeypatch, flags, target, lacking):
    see(monkeypatch, *flags)
    with pytest.raises(BackendUnavailable, match=lacking):
        variants.choose_targets(Export(run="r", out="o", target=(target,)))
    variants.choose_targets(Export(run="r", out="o", target=(target,), precision=("fp32",)))


def test_others_may_be_asked_for_where_their_answers_are_the_same(monkeypatch):
    see(monkeypatch, *SERVER)
    asked = ("arm", "x86-avx2", "x86-vnni")
    assert [one.name for one in variants.choose_targets(Export(run="r", out="o", target=asked))] == list(asked)


@pytest.mark.parametrize(("name", "greatest", "activations"), [
    ("x86-vnni", 127, np.uint8), ("x86-avx2", 64, np.uint8), ("arm", 127, np.int8)])
@pytest.mark.parametrize("nearest", [True, False])
def test_graphs_have_the_types_and_ranges_of_their_target(name, greatest, activations, nearest):
    graph = made(name, nearest=nearest)
    found = weights_of(graph)
    assert len(found) == 3 and max(np.abs(one.astype(int)).max() for one in found) == greatest
    model = onnx.load_from_string(graph)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    zeros = {constants[node.input[2]].dtype.type for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert zeros == {activations}


@pytest.mark.parametrize("name", INT8)
def test_graphs_answer_as_float_does(name):
    missing = processor.missing(TARGETS[name].judges or TARGETS[name].requires.get("int8", ()))
    if len(missing) == len(TARGETS[name].judges or missing) and missing:
        pytest.skip(f"this processor has no {' or '.join(missing)}, so it computes other answers than the target")
    expected, found = logits(cnn()), logits(made(name))
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_reduced_steps_are_compensated_within_their_range():
    weight = np.array([[1.0, -1.0, 0.4]])
    steps = rounding.round_layer(weight, np.array([1 / 64]), np.eye(3)[None], rounding.GREATEST_REDUCED)
    assert steps.tolist() == [[64, -64, 26]]
    assert rounding.round_layer(2 * weight, np.array([1 / 64]), np.eye(3)[None],
                                rounding.GREATEST_REDUCED).tolist() == [[64, -64, 51]]


# ------------------------------------------------------------------------------------------------------- emulation


def by_instruction(row: np.ndarray, weights: np.ndarray) -> int:
    """vpmaddubsw, vpmaddwd with ones, vpaddd: one output, pair by pair."""
    total = 0
    for place in range(0, len(row), 2):
        pair = sum(int(a) * int(b) for a, b in zip(row[place:place + 2], weights[place:place + 2], strict=True))
        total += max(-32768, min(32767, pair))
    return total


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 9))
def test_the_product_is_the_instructions(data, width):
    row = data.draw(arrays.arrays(np.uint8, (3, width), elements=st.sampled_from([0, 1, 127, 254, 255])))
    weights = data.draw(arrays.arrays(np.int8, (2, width), elements=st.sampled_from([-127, -100, 0, 64, 65, 127])))
    found = emulate_avx2.product(row, weights, saturate=True)
    assert found.tolist() == [[by_instruction(one, other) for other in weights] for one in row]
    exact = emulate_avx2.product(row, weights, saturate=False)
    assert (exact == row.astype(int) @ weights.T.astype(int)).all()


def test_two_great_products_saturate_and_those_of_seven_bits_do_not():
    row = np.full((1, 2), 255, np.uint8)
    assert emulate_avx2.product(row, np.array([[127, 127]], np.int8), saturate=True).item() == 32767
    assert emulate_avx2.product(row, np.array([[-127, -127]], np.int8), saturate=True).item() == -32768
    assert emulate_avx2.product(row, np.array([[64, 64]], np.int8), saturate=True).item() == 2 * 255 * 64 < 32767


def emulated(graph: bytes, *, saturate: bool) -> np.ndarray:
    runs, layers = emulate_avx2.evaluator(graph, saturate=saturate)
    assert layers == 3
    images = np.concatenate([batch["image"] for batch in iter(reader().get_next, None)] * 2)[:40]
    return runs.run(["logits"], {"image": images})[0]


@pytest.mark.skipif(bool(processor.missing(("vnni",))), reason="this processor has no VNNI to compare with")
def test_the_emulation_without_saturation_is_what_vnni_computes():
    graph = made("x86-vnni")
    expected = logits(graph)
    # A sum that lies between two steps may be rounded to the other one, since floats are multiplied in another order.
    assert np.abs(emulated(graph, saturate=False) - expected).max() < 0.02 * np.abs(expected).max()


def test_saturation_changes_nothing_in_the_graph_that_is_made_for_it():
    graph = made("x86-avx2")
    assert np.array_equal(emulated(graph, saturate=True), emulated(graph, saturate=False))


def test_it_would_change_the_answers_of_the_other():
    """Great weights of one sign under bright pixels, as they come: the sum of two products does not fit."""
    model = onnx.load_from_string(cnn())
    first = next(one for one in model.graph.initializer if one.name == "w1")
    first.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(first)) * 0 + np.float32(0.1), "w1"))
    graph = quantize.quantize(model.SerializeToString(), {**TARGETS["x86-vnni"].quantize, "rounding": "nearest"},
                              reader(), method="min-max").graph
    assert not np.array_equal(emulated(graph, saturate=True), emulated(graph, saturate=False))




@pytest.mark.parametrize("name", CPU)
def test_the_table_of_the_docs_is_true(name):
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    target = TARGETS[name]
    _, _, _, scheme, backends, runs, judged, _ = (part.strip() for part in row.split("|"))
    assert backends == ", ".join(f"`{one}`" for one in target.backends)
    assert runs == " ".join(f"`{one}`" for one in target.requires["int8"])
    assert judged == " or ".join(f"`{one}`" for one in target.judges or target.requires["int8"])
    assert scheme.startswith(target.quantize["activations"]) and ("7 bits" in scheme) == target.quantize["reduce_range"]
    told = text.split("**Ranges")[1].split("(")[0]
    assert set(re.findall("`([a-z0-9.-]+)`", told)) == set(target.quantize["methods"])
