"""The ladder: in which order layers go back to float, and that no more of them do than must."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from compress.test_calibrate_quantize import cnn, logits, reader
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgetl.compress import mixed, quantize
from edgetl.evaluate import Comparison
from edgetl.export import ladder
from edgetl.export.rungs import mixed as rungs_mixed
from edgetl.targets.x86_vnni import TARGET


def test_the_ratio_of_signal_to_noise():
    values = np.array([[3.0, 4.0]], np.float32)
    assert mixed.sqnr_db(values, values + np.float32([0.3, 0.4])) == pytest.approx(20.0, abs=1e-4)
    assert mixed.sqnr_db(values, values) == math.inf
    assert mixed.sqnr_db(0 * values, values) == -math.inf


def uneven() -> bytes:
    """The tiny network with depthwise weights of which one is a hundred times the others of its channel."""
    model = onnx.load_from_string(cnn())
    weight = next(one for one in model.graph.initializer if one.name == "w2")
    values = numpy_helper.to_array(weight).copy()
    values *= np.float32(0.01)
    values[:, 0, 0, 0] = 1.0
    weight.CopyFrom(numpy_helper.from_array(values, "w2"))
    return model.SerializeToString()


def test_what_is_hard_to_round_comes_first():
    graph = uneven()
    source = quantize.study(graph, reader())
    scheme = {**TARGET.quantize, "rounding": "nearest"}
    found = mixed.ranked(source, scheme, "min-max", logits)
    kinds = {node.name: (node.op_type, *node.input[1:2]) for node in source.ready.graph.node}
    assert sorted(kinds[one.node] for one in found) == [("Conv", "w1"), ("Conv", "w2"), ("Gemm", "w3")]
    assert [one.sqnr_db for one in found] == sorted(one.sqnr_db for one in found) and found[0].sqnr_db > 0


def test_a_layer_that_stays_in_float_keeps_its_weights():
    source = quantize.study(cnn(), reader())
    layers = quantize.layers_of(source, TARGET.quantize)
    made = onnx.load_from_string(quantize.write(source, TARGET.quantize, method="min-max", floats=layers[:1]).graph)
    int8 = {one.name for one in made.graph.initializer if numpy_helper.to_array(one).dtype == np.int8
            and numpy_helper.to_array(one).ndim > 1}
    assert int8 == {"w2_quantized", "w3_quantized"} and "w1" in {one.name for one in made.graph.initializer}
    everything = quantize.write(source, TARGET.quantize, method="min-max", floats=quantize.nodes_of(source)).graph
    assert np.allclose(logits(everything), logits(cnn()), atol=1e-5)


class Steps:
    """A ladder whose attempts pass from so many layers in float on."""

    def __init__(self, needed: int) -> None:
        self.needed, self.counts = needed, []

    def attempt(self, plan: ladder.Plan) -> Any:
        self.counts.append(len(plan.floats))
        return ladder.Attempt(plan, None, {"passed": len(plan.floats) >= self.needed}, None, None)


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 60), st.integers(1, 60))
def test_as_few_layers_as_will_do_stay_in_float(layers, needed):
    steps = Steps(needed)
    names = [f"layer {place}" for place in range(layers)]
    found = rungs_mixed.fewest(steps, ladder.Plan(None, "min-max", "min-max"), names)
    if needed > layers // 2:
        assert found is None
        assert steps.counts == sorted(set(steps.counts)) and all(count <= layers // 2 for count in steps.counts)
    else:
        assert found.plan.floats == tuple(names[:needed])
        assert len(steps.counts) <= 2 * math.ceil(math.log2(layers)) + 2


def test_without_labels_only_the_agreement_counts():
    found = Comparison(100, 0.99, 40.0, 30.0, 50.0, 40, 0, 0.0)
    assert ladder.Limits(None, 98.0).hold(found) and not ladder.Limits(0.5, 98.0).hold(found)
    assert not ladder.Limits(None, 99.5).hold(found)
