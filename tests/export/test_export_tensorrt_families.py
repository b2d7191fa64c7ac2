"""TensorRT engines of torchvision's families: that none is forgotten, and, when slow, that each is built for real."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision

from edgetl.export import graph
from edgetl.export.half import to_half
from edgetl.models import Network
from edgetl.models import torchvision as zoo
from edgetl.runtime.preprocess import Preprocess

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import tensorrt_families as bench

NO_RTX = all(importlib.util.find_spec(name) is None for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"))
rtx = pytest.mark.skipif(NO_RTX, reason="TensorRT for RTX is not installed")
SMALL = {"alexnet": 63, "inception": 75, "maxvit": 224}  # px; the others take 64


def test_every_family_of_torchvision_is_there_with_its_smallest_architecture() -> None:
    chosen = bench.families()
    assert set(chosen) == {zoo.family(name) for name in zoo.variants()}
    assert chosen["resnet"] == ("resnet18", "resnext50_32x4d") and chosen["googlenet"] == ("googlenet",)
    assert all(zoo.family(name) == family for family, names in chosen.items() for name in names)


def test_calibration_goes_back_to_any_image() -> None:
    images = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    noise = bench.Images(images, "image")
    noise.set_range(1, 3)
    found = [noise.get_next(), noise.get_next(), noise.get_next()]
    assert [None if one is None else float(one["image"].item()) for one in found] == [1.0, 2.0, None]


def test_the_table_tells_what_was_built_and_why_not() -> None:
    row = {"family": "resnet", "model": "resnet18", "size": 64, "precision": "fp16", "cards": ["7.5"], "parsed": True}
    built = {**row, "built": True, "build_s": 1.25, "engine_bytes": 2_500_000, "precisions": {"fp16": 0.9, "fp32": 0.1},
             "difference": 1e-3, "difference_why_not": None}
    text = bench.table([built, {**row, "built": False, "why_not": "It has no a|b."}])
    assert "| yes | yes | 1.2 | 2.5 | fp16 90%, fp32 10% | 1.0e-03 |" in text
    assert "| 7.5 | yes | no |  |  | It has no a/b. |" in text


@rtx
def test_a_graph_that_is_none_is_not_parsed_and_fp32_is_no_fp16(tmp_path: Path) -> None:
    (tmp_path / "fp32.onnx").write_bytes(b"no graph")
    found = bench.engine(tmp_path / "fp32.onnx", 32, bench.TOGETHER)
    assert (found["parsed"], found["built"]) == (False, False) and "cannot parse the graph" in found["why_not"]


OPEN = """
import sys
import numpy as np
from pathlib import Path
import tensorrt_families
from edgetl.runtime.session import open_session
spec = tensorrt_families.spec_of(64, "fp16")
session = open_session("cpu", Path(sys.argv[1]).read_bytes(), spec, threads=1)
assert session.run({"image": np.zeros((3, 3, 64, 64), np.float32)})["logits"].shape == (3, tensorrt_families.CLASSES)
"""


def test_the_processor_opens_a_vision_transformer_in_half(tmp_path: Path) -> None:
    """ONNX Runtime's optimizer for blocked layouts dies of it; in a process of its own, for the tests would die too."""
    module = torchvision.models.VisionTransformer(64, patch_size=32, num_layers=1, num_heads=2, hidden_dim=64,
                                                  mlp_dim=64, num_classes=bench.CLASSES)
    network = Network("test/vit", module, "heads.head", Preprocess(size_hw=(64, 64)))
    exported = graph.export(network, [str(one) for one in range(bench.CLASSES)])
    (tmp_path / "fp16.onnx").write_bytes(to_half(exported.graph).graph)
    done = subprocess.run([sys.executable, "-c", OPEN, str(tmp_path / "fp16.onnx")], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path(bench.__file__).parent)})
    assert done.returncode == 0, done.stderr


def test_what_a_process_dies_of_is_a_sentence(tmp_path: Path) -> None:
    found = bench.in_process(["--engine", str(tmp_path / "absent.onnx"), "--size", "32", "--cards", "8.9"])
    assert found["why_not"].startswith("The process failed: ")


@rtx
@pytest.mark.slow
@pytest.mark.parametrize("family", bench.families())
def test_every_family_is_built_for_every_card(family: str) -> None:
    for name in bench.families()[family]:
        for row in bench.rows_of(family, name, SMALL.get(family, 64)):
            assert row["built"], f"{name} {row['precision']} {row['cards']}: {row['why_not']}"
            assert row["precisions"].get(row["precision"], 0) > 0
