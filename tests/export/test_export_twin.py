"""The twin of a graph in half: it rounds as half does, where ONNX Runtime's CPU would not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from test_export_half import model_of, network, quantized, run, weights

from edgetl.export.half import kind_of, to_half
from edgetl.export.twin import open_judge, twin_of
from edgetl.runtime.session import GraphSpec, TensorSpec


def two_layers(first: float, second: float) -> bytes:
    """A value of 4 * 100 * first in the middle, and that times 4 * second in the end."""
    constants = {"w": np.full((4, 4, 1, 1), first, np.float32), "v": np.full((4, 4, 1, 1), second, np.float32)}
    return model_of([helper.make_node("Conv", ["image", "w"], ["a"]), helper.make_node("Conv", ["a", "v"], ["logits"])],
                    constants)


HUNDREDS = np.full((1, 4, 8, 8), 100, np.float32)


def test_an_overflow_in_between_is_seen() -> None:
    made = to_half(two_layers(200, 0.001))  # 80,000 between the layers
    assert np.isfinite(run(made.graph, HUNDREDS)).all()  # what ONNX Runtime's CPU says of it
    assert not np.isfinite(run(twin_of(made.graph), HUNDREDS)).any()
    assert np.isfinite(run(twin_of(to_half(two_layers(200, 0.001), "bf16").graph), HUNDREDS)).all()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_it_is_rounded_after_every_node_and_added_in_float32(precision: str) -> None:
    kind = kind_of(precision).dtype
    image = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    w, v = weights(np.random.default_rng(1), 4, 4), weights(np.random.default_rng(2), 4, 4)
    nodes = [helper.make_node("Conv", ["image", "w"], ["a"]), helper.make_node("Conv", ["a", "v"], ["logits"])]
    graph = model_of(nodes, {"w": w[:, :, None, None], "v": v[:, :, None, None]})

    def half(values: np.ndarray) -> np.ndarray:
        return values.astype(kind).astype(np.float32)

    middle = half(np.einsum("oc,nchw->nohw", half(w), half(image)))
    expected = half(np.einsum("oc,nchw->nohw", half(v), middle))
    found = run(twin_of(to_half(graph, precision).graph), image)
    # Sums in another order may fall on the other side of a rounding.
    assert (found == expected).mean() > 0.98
    np.testing.assert_allclose(found, expected, atol=4 * kind_of(precision).step * float(np.abs(expected).max()))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_kind_of_graph_has_one_without_half_in_it(precision: str) -> None:
    for graph in (quantized(), *(network(seed, 8) for seed in range(6))):
        model = onnx.load_from_string(twin_of(to_half(graph, precision).graph))
        assert not {one.data_type for one in model.graph.initializer} & {10, 16}
        image = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
        expected, limit = run(graph, image), {"fp16": 5e-3, "bf16": 5e-2}[precision]
        assert np.abs(run(model.SerializeToString(), image) - expected).max() < limit * max(1.0, np.abs(expected).max())


def test_float_graphs_are_their_own_twins() -> None:
    assert twin_of(network(1, 5)) == network(1, 5)
    assert twin_of(quantized()) == quantized()


def test_a_judge_takes_the_graphs_spec() -> None:
    spec = GraphSpec((TensorSpec("image", "image", "float32", ("N", 4, 8, 8), "NCHW"),),
                     (TensorSpec("logits", "logits", "float32", ("N", 5), "NC"),), "bf16")
    session = open_judge(to_half(network(1, 5), "bf16").graph, spec, threads=1)
    try:
        found = session.run({"image": np.ones((3, 4, 8, 8), np.float32)})["logits"]
    finally:
        session.close()
    assert found.shape == (3, 5) and found.dtype == np.float32
