"""What only a real NVIDIA card can show of the builder: `pytest -m gpu`; skipped in words without one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import SIZE, graph_spec, make_graph, reference_logits
from tiny_precisions import half_graph, quantized_graph

import edgetl
from edgetl.backends import _tensorrt_build, _tensorrt_flavor, _tensorrt_timing, tensorrt
from edgetl.backends._tensorrt_build import How
from edgetl.backends._tensorrt_flavor import Flavor
from edgetl.runtime.session import Session

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
