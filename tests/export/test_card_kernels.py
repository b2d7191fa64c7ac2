"""The card of a bundle says how much of an INT8 graph the engine computes with integers."""

from __future__ import annotations

import types

import pytest

from edgetl.export import card


@pytest.mark.parametrize(("floats", "said"), [({}, "0 in floating point, and 2 convert"),
                                              ({"HardSwish": 3}, "3 in floating point (3 HardSwish), and 2 convert")])
def test_the_numbers_are_those_that_the_export_found(floats, said):
    fused = {"integer_nodes": 31, "float_nodes": sum(floats.values()), "converting_nodes": 2, "float_kernels": floats}
    found = card._kernels(types.SimpleNamespace(name="x86-vnni.int8", calibration={"fused": fused}))
    total = 33 + sum(floats.values())
    assert found.startswith(f"ONNX Runtime computes 31 of the {total} computing nodes of `x86-vnni.int8` with integers")
    assert said in found
