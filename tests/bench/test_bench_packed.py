"""A packed bundle is measured as its folder is: the same graph, read where it lies in the file."""

from __future__ import annotations

from edgetl import recipe
from edgetl.bench import runner
from edgetl.runtime import archive
from edgetl.runtime.bundle import open_bundle
from tests.tiny_bundle import make_bundle


def test_a_packed_bundle_beside_its_folder(tmp_path):
    bundle = make_bundle(tmp_path / "tiny")
    packed = tmp_path / "small.edgetl"
    with packed.open("wb") as stream:
        archive.write(open_bundle(bundle), stream)
    found = runner.bench(recipe.Bench(cases=(str(packed), str(bundle)), out=str(tmp_path / "report"), backend=("cpu",),
                                      rounds=1, block=12, starts=1, timeout_s=60.0))
    assert [(row.case, row.measured, row.kind) for row in found.rows] == [
        ("small fp32 cpu", True, "bundle"), ("tiny fp32 cpu", True, "bundle")]
    assert {row.size_bytes for row in found.rows} == {(bundle / "fp32.onnx").stat().st_size}
