"""A packed bundle is measured as its folder is: the same graph, read where it lies in the file."""

from __future__ import annotations

import numpy as np

from edgetl import recipe
from edgetl.bench import gate_cases, pairs, runner
from edgetl.recipe_gate import RegressionGate
from edgetl.runtime import archive
from edgetl.runtime.bundle import open_bundle
from tests.tiny_bundle import make_bundle


def test_a_packed_bundle_beside_its_folder(tmp_path):
    bundle = make_bundle(tmp_path / "tiny")
    packed = tmp_path / "small.edgetl"
    with packed.open("wb") as stream:
        archive.write(open_bundle(bundle), stream)
    found = runner.bench(recipe.Bench(cases=(str(packed), str(bundle)), out=str(tmp_path / "report"), backend=("cpu",),
                                      rounds=1, block=12, starts=1, timeout_s=600.0))
    assert [(row.case, row.measured, row.kind) for row in found.rows] == [
        ("small fp32 cpu", True, "bundle"), ("tiny fp32 cpu", True, "bundle")]
    assert {row.size_bytes for row in found.rows} == {(bundle / "fp32.onnx").stat().st_size}


def test_a_gate_between_a_packed_bundle_and_its_folder(tmp_path):
    bundle = make_bundle(tmp_path / "small")
    packed = tmp_path / "small.edgetl"
    with packed.open("wb") as stream:
        archive.write(open_bundle(bundle), stream)
    sides = gate_cases.find(RegressionGate(base=str(bundle), new=str(packed)))
    assert sides.base.subject.within is None and sides.new.subject.within is not None
    pair = pairs.measure(sides.both, sides.options, pairs.Pattern(2, 1, 2), np.random.default_rng(0))
    assert pair.seconds.shape == (2, 2, 2) and pair.seconds.min() > 0
