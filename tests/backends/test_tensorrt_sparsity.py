"""2:4 sparse graphs, parsed and built for real with TensorRT for RTX, which needs no card; and what an engine tells."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_bundle import LABELS, graph_spec
from tiny_precisions import onnx_bytes

from edgetl.backends import _tensorrt_build, _tensorrt_flavor, _tensorrt_profile, _tensorrt_sparsity
from edgetl.backends._tensorrt_build import How
from edgetl.backends._tensorrt_flavor import Flavor

ADA = How(compute_capabilities=("8.9",))
RTX = next((one for one in _tensorrt_flavor.installed() if one.name == "rtx"), None)
real = pytest.mark.skipif(RTX is None, reason="TensorRT for RTX is not installed")


def thinned(weights: np.ndarray, axis: int) -> np.ndarray:
    """Weights without two of each four along an axis."""
    last = np.moveaxis(weights.copy(), axis, -1)
    fours = last.reshape(-1, 4)
    fours[:, [0, 3]] = 0
    return np.ascontiguousarray(np.moveaxis(fours.reshape(last.shape), -1, axis))


def graph(*, conv: bool, product: bool, int8: bool = False, transposed: bool = True, groups: int = 1) -> bytes:
    """A stem of three channels, a convolution of eight and a product, each of the latter sparse or dense."""
    from onnx import helper

    rng = np.random.default_rng(0)
    wide = rng.uniform(0.5, 1, (8, 8 // groups, 3, 3)).astype(np.float32)
    last = rng.uniform(0.5, 1, (len(LABELS), 8) if transposed else (8, len(LABELS))).astype(np.float32)
    wide = thinned(wide, 1) if conv else wide
    last = thinned(last, 1 if transposed else 0) if product else last
    weights: dict[str, np.ndarray] = {"stem_w": rng.uniform(0.5, 1, (8, 3, 1, 1)).astype(np.float32), "last_w": last}
    name, image, before = "wide_w", "stem", []
    if int8:
        weights |= {"scale": np.array(0.01, np.float32), "zero": np.int8(0),
                    "wide_q": (wide / 0.01).round().astype(np.int8)}
        before = [helper.make_node("QuantizeLinear", ["stem", "scale", "zero"], ["stem_q"]),
                  helper.make_node("DequantizeLinear", ["stem_q", "scale", "zero"], ["stem_dq"]),
                  helper.make_node("DequantizeLinear", ["wide_q", "scale", "zero"], ["wide_dq"])]
        name, image = "wide_dq", "stem_dq"
    else:
        weights["wide_w"] = wide
    nodes = [helper.make_node("Conv", ["image", "stem_w"], ["stem"], name="stem"), *before,
             helper.make_node("Conv", [image, name], ["wide"], name="wide", pads=[1] * 4, group=groups),
             helper.make_node("GlobalAveragePool", ["wide"], ["pool"]), helper.make_node("Flatten", ["pool"], ["flat"]),
             helper.make_node("Gemm", ["flat", "last_w"], ["logits"], name="last", transB=int(transposed))]
    return onnx_bytes(nodes, weights)


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs that builders were given."""
    made, config = [], _tensorrt_build._config

    def kept(*arguments: Any) -> Any:
        made.append(config(*arguments))
        return made[-1]

    monkeypatch.setattr(_tensorrt_build, "_config", kept)
    return made


@real
@pytest.mark.parametrize(("what", "sparse"), [
    ({"conv": True, "product": True}, 2), ({"conv": True, "product": False}, 1), ({"conv": False, "product": True}, 1),
    ({"conv": False, "product": True, "transposed": False}, 1), ({"conv": True, "product": False, "int8": True}, 1),
    ({"conv": False, "product": False}, 0), ({"conv": False, "product": False, "int8": True}, 0),
    ({"conv": True, "product": False, "groups": 2}, 0),
])  # fmt: skip
def test_sparse_kernels_are_allowed_where_a_parsed_layer_is_sparse(
    configs: list[Any], what: dict[str, Any], sparse: int
) -> None:
    flavor: Flavor = _tensorrt_flavor.find("rtx")
    made = _tensorrt_build.build(graph(**what), graph_spec(), flavor, ADA)
    assert made.plan.startswith(b"vtrt")
    assert configs[0].get_flag(flavor.module.BuilderFlag.SPARSE_WEIGHTS) == (sparse > 0)
    counted = f"{sparse} layer{'s have' if sparse > 1 else ' has'} 2:4 sparse weights; sparse kernels were allowed"
    assert [note.startswith(counted) for note in made.notes] == [True] * (sparse > 0)


@pytest.mark.parametrize(("weights", "expected"), [
    (np.array([[1.0], [0], [0], [2]]), True), (np.array([[1.0], [1], [0], [2]]), False), (np.zeros((8, 2)), True),
    (np.zeros((6, 2)), False), (np.zeros((0, 2)), False), (None, False),
    (np.array([[1.0, 0], [0, 1], [0, 1], [2, 0]]), True),
])  # fmt: skip
def test_the_pattern(weights: np.ndarray | None, expected: bool) -> None:
    assert _tensorrt_sparsity.follows(weights) is expected


def test_an_engine_tells_which_layers_run_sparse_kernels() -> None:
    layers = [{"Name": "wide", "LayerType": "CaskConvolution", "TacticName": "sm80_xmma_fprop_sparse_conv_f16f16"},
              {"Name": "stem", "LayerType": "CaskConvolution", "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16"},
              {"Name": "flat", "LayerType": "Shuffle"}, "a name alone"]
    inspector = SimpleNamespace(get_engine_information=lambda kind: json.dumps({"Layers": layers}))
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    module = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON="json"))
    assert _tensorrt_profile.sparse(engine, module) == ("wide",)
