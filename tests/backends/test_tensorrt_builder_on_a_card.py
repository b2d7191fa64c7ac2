"""What only a real NVIDIA card can show of the builder: `pytest -m gpu`; skipped in words without one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import LABELS, SIZE, graph_spec, make_graph, reference_logits
from tiny_precisions import half_graph, onnx_bytes, quantized_graph

import edgetl
from edgetl import plugins
from edgetl.backends import _tensorrt_build, _tensorrt_flavor, _tensorrt_timing, tensorrt
from edgetl.backends._tensorrt_build import How
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.runtime.session import GraphSpec, Session, TensorSpec

pytestmark = pytest.mark.gpu
GRAPHS = {"fp32": make_graph, "fp16": half_graph, "int8": quantized_graph}


@pytest.fixture(scope="module", params=_tensorrt_flavor.FLAVORS)
def flavor(request: pytest.FixtureRequest) -> Flavor:
    """Each TensorRT that builds for the card that is here."""
    found = _tensorrt_flavor.look(request.param)
    if not isinstance(found, Flavor):
        pytest.skip(f"{found.reason}")
    available = tensorrt.probe()
    if not available.usable:
        pytest.skip(f"TensorRT cannot run here: {available.reason}")
    return found


def opened(tmp_path: Path, graph: bytes, precision: str, flavor: Flavor, **options: str) -> Session:
    spec = dataclasses.replace(graph_spec(), precision=precision)
    return tensorrt.open(graph, spec, threads=1, cache_dir=tmp_path / "cache",
                         options={"flavor": flavor.name, **options})


def worst(session: Session) -> float:
    images = np.random.default_rng(2).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
    return float(np.abs(session.run({"image": images})["logits"] - reference_logits(images)).max())


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-4), ("fp16", 5e-3), ("int8", 0.15)])
def test_the_inspector_finds_the_precision_that_was_asked_for(flavor: Flavor, tmp_path: Path, precision: str,
                                                              most: float) -> None:
    session = opened(tmp_path, GRAPHS[precision](), precision, flavor)
    try:
        assert session.info()["precisions"].get(precision, 0) > 0
        assert worst(session) < most
    finally:
        session.close()


def test_fp32_is_no_tf32(flavor: Flavor, tmp_path: Path) -> None:
    """TF32 would round the factors to ten bits: errors of 1e-3 of their size."""
    session = opened(tmp_path, make_graph(), "fp32", flavor)
    try:
        assert worst(session) < 2e-5
    finally:
        session.close()


def test_a_timing_cache_is_taken_and_a_wrong_one_is_not(flavor: Flavor) -> None:
    if not _tensorrt_timing.kept_by(flavor):
        pytest.skip(f"{flavor.title} keeps no timing cache")

    def build(cache: bytes | None) -> _tensorrt_build.Engine:
        return _tensorrt_build.build(make_graph(), graph_spec(), flavor, How(), timing_cache=cache)

    first = build(None)
    assert first.timing_cache and first.notes == ()
    assert build(first.timing_cache).notes == ()
    assert build(b"no cache at all" * 9).notes[0].startswith("The timing cache is not of")
    merged = _tensorrt_timing.merged(flavor, first.timing_cache, first.timing_cache)
    assert build(merged).notes == ()


@pytest.mark.parametrize("flag", [{"version_compatible": "on"}, {"hardware_compatible": "ampere-plus"},
                                  {"hardware_compatible": "same-compute-capability"}])
def test_compatible_engines_answer_rightly(flavor: Flavor, tmp_path: Path, flag: dict[str, str]) -> None:
    if flavor.name == "rtx":
        pytest.skip(f"{flavor.title} builds no such engines")
    session = opened(tmp_path, make_graph(), "fp32", flavor, **flag)
    try:
        assert worst(session) < 1e-4
    finally:
        session.close()


def test_a_build_that_is_cancelled_ends_and_the_next_one_is_whole(flavor: Flavor) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    def build(progress: Callable[[str, int, int], None] | None) -> bytes:
        return _tensorrt_build.build(make_graph(), graph_spec(), flavor, How(), progress=progress).plan

    with pytest.raises(KeyboardInterrupt):
        build(stop)
    assert build(None)


def test_an_engine_file_for_this_card_is_opened_as_it_is(flavor: Flavor, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(make_graph())
    made = edgetl.engine(source=tmp_path / "m.onnx", out=tmp_path / "m.engine", flavor=flavor.name)
    assert made.device is not None and made.driver is not None
    assert json.loads((tmp_path / "m.engine.json").read_text())["fingerprint"]["device"] == made.device
    session = opened(tmp_path, make_graph(), "fp32", flavor, engine=str(tmp_path / "m.engine"))
    try:
        assert session.info()["engine"]["file"] == str(tmp_path / "m.engine")
        assert worst(session) < 1e-4
    finally:
        session.close()


def sparse_graph(channels: int, side: int) -> bytes:
    """An fp16 convolution of many channels, whose weights are 2:4 sparse, between small float32 ends."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    wide = rng.normal(scale=0.02, size=(channels, channels // 4, 4, 3, 3)).astype(np.float16)
    wide[:, :, 1:3] = 0
    weights = {"stem_w": rng.normal(size=(channels, 3, 1, 1)).astype(np.float16),
               "wide_w": wide.reshape(channels, channels, 3, 3),
               "last_w": rng.normal(size=(len(LABELS), channels)).astype(np.float16)}
    nodes = [helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
             helper.make_node("Conv", ["half", "stem_w"], ["stem"], name="stem"),
             helper.make_node("Conv", ["stem", "wide_w"], ["wide"], name="wide", pads=[1] * 4),
             helper.make_node("GlobalAveragePool", ["wide"], ["pool"]), helper.make_node("Flatten", ["pool"], ["flat"]),
             helper.make_node("Gemm", ["flat", "last_w"], ["last"], name="last", transB=1),
             helper.make_node("Cast", ["last"], ["logits"], to=TensorProto.FLOAT)]
    return onnx_bytes(nodes, weights, image=("FLOAT", [8, 3, side, side]), logits=("FLOAT", [8, len(LABELS)]))


def test_sparse_weights_answer_as_they_are_and_the_layers_say_which_kernels_they_got(
    flavor: Flavor, tmp_path: Path
) -> None:
    """Which kernel is faster is the card's to say; what the builder and the engine tell of it must agree."""
    graph, side = sparse_graph(512, 28), 28
    spec = GraphSpec((TensorSpec("image", "image", "float32", (8, 3, side, side), "NCHW"),),
                     (TensorSpec("logits", "logits", "float32", (8, len(LABELS)), "NC"),), precision="fp16")
    session = tensorrt.open(graph, spec, threads=1, cache_dir=tmp_path / "cache", options={"flavor": flavor.name})
    reference = plugins.load("backends", "cpu").open(graph, spec, threads=1, cache_dir=None, options={})
    try:
        images = np.random.default_rng(2).normal(size=(8, 3, side, side)).astype(np.float32)
        ours, theirs = (one.run({"image": images})["logits"] for one in (session, reference))
        assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
        note = session.info()["engine"]["notes"][-1]
        assert note.startswith("1 layer has 2:4 sparse weights")
        told = session.info().get("sparse_layers", [])
        assert len(told) <= 1
        if "got sparse kernels" in note:
            assert told and "wide" in told[0]
    finally:
        session.close()
        reference.close()
