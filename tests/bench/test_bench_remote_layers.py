"""Layers and the state of the processor of a device over ssh."""

from __future__ import annotations

import os

from edgetl import recipe
from edgetl.bench import runner
from tests.bench import sshd
from tests.tiny_bundle import make_graph


def test_a_device_tells_its_layers_and_that_its_sensors_of_energy_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "board").mkdir()
    board = sshd.pretended(tmp_path / "board")
    monkeypatch.setenv("PATH", str(board.root / "bin"), prepend=os.pathsep)
    (tmp_path / "tiny.onnx").write_bytes(make_graph())
    [row] = runner.bench(recipe.Bench(
        cases=(str(tmp_path / "tiny.onnx"),), out=str(tmp_path / "report"), backend=("cpu",), rounds=1, block=20,
        starts=1, warmup_s=0.0, photos=0, timeout_s=600.0, profile_layers=True, device=board.url,
        device_python=board.python())).rows
    assert row.measured and row.layers_reason is None
    assert {"Conv", "Gemm"} <= {one.op for one in row.layers}
    assert "not read over ssh" in row.sensors["energy_reason"]
