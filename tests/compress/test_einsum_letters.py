"""Equations of Einsum nodes in the letters that TensorRT parses, with the same results."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgetl.backends import _tensorrt_build, _tensorrt_flavor
from edgetl.compress import surgery
from edgetl.runtime.session import GraphSpec, TensorSpec

RTX = next((one for one in _tensorrt_flavor.installed() if one.name == "rtx"), None)


def graph(equation: str) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
             for name, shape in (("image", ["N", 3, 4, 5]), ("other", ["N", 3, 6, 5]), ("logits", ["N", 3, 4, 6]))]
    weight = helper.make_tensor("other", TensorProto.FLOAT, [1, 3, 6, 5], np.linspace(-1, 1, 90).tolist())
    nodes = [helper.make_node("Einsum", ["image", "other"], ["logits"], equation=equation)]
    made = helper.make_graph(nodes, "g", ports[:1], ports[2:], [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def spelled(equation: str) -> str:
    model = graph(equation)
    surgery.spell_einsums(model)
    return helper.get_attribute_value(model.graph.node[0].attribute[0]).decode()


@pytest.mark.parametrize(("equation", "expected"), [
    ("bgid,bgjd->bgij", "bgid,bgjd->bgij"), ("b g i d, b g j d -> b g i j", "bgid,bgjd->bgij"),
    ("B G I D, B G J D -> B G I J", "abcd,abed->abce"), ("Bac,Bca->B", "bac,bca->b"), ("...iD,...Dj->...ij",
                                                                                      "...ia,...aj->...ij"),
    ("BA", "BA")])  # without an arrow the order of the letters says what comes out
def test_the_letters(equation: str, expected: str) -> None:
    assert spelled(equation) == expected


@settings(max_examples=60, deadline=None)
@given(st.permutations("aBcD"), st.integers(0, 24))
def test_the_results_stay(letters: list[str], seed: int) -> None:
    one, two, three, four = letters
    equation = f"{one}{two}{three},{two} {three}{four} -> {four}{one}"
    chance = np.random.default_rng(seed)
    values = [chance.normal(size=(2, 3, 4)), chance.normal(size=(3, 4, 5))]
    assert np.allclose(np.einsum(equation, *values), np.einsum(spelled(equation), *values))


@pytest.mark.skipif(RTX is None, reason="TensorRT for RTX is not installed")
def test_tensorrt_parses_it() -> None:
    model = graph("B G I D, B G J D -> B G I J")
    surgery.spell_einsums(model)
    spec = GraphSpec((TensorSpec("image", "image", "float32", ("N", 3, 4, 5)),),
                     (TensorSpec("logits", "logits", "float32", ("N", 3, 4, 6)),))
    how = _tensorrt_build.How(batches=(1, 1, 1), compute_capabilities=("8.9",))
    assert _tensorrt_build.build(model.SerializeToString(), spec, RTX, how).plan
