"""What benchmarks/train_speed.py says is the same on both sides; what it measures is not run here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from edgetl.runtime import preprocess as pre
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import schedules


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    return importlib.import_module("train_speed")


@pytest.mark.parametrize(("scale", "mean", "std"), [(1 / 255, 0.485, 0.225), (1.0, 127.0, 128.0)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_usual_loop_evaluates_the_same_pixels(
    script: ModuleType, scale: float, mean: float, std: float, interpolation: str
) -> None:
    wants = Preprocess(size_hw=(128, 128), crop_fraction=0.875, interpolation=interpolation, scale=scale,
                       mean=(mean,) * 3, std=(std,) * 3)  # fmt: skip
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 320, 3), np.uint8))
    ours = pre.normalize(pre.resize(pre.decode(picture, wants), wants)[None], wants)[0]
    np.testing.assert_allclose(script.plain(wants)(picture).numpy(), ours, atol=1e-5)


def test_the_usual_loop_has_the_same_rate_in_every_step(script: ModuleType) -> None:
    theirs = [script.rate(step, 60, 6) for step in range(60)]
    assert theirs == pytest.approx(
        [schedules.rate_at(step, kind="cosine", total=60, warmup=6, peak=1.0) for step in range(60)])


def test_a_ratio_counts_what_comes_before_the_first_step_and_who_was_right(script: ModuleType) -> None:
    clock, loop = script.Clock([]), script.Loop.__new__(script.Loop)
    clock.seconds, clock.prepare_s, loop.seconds = [1.0, 2.0, 2.0], 5.0, [4.0, 4.0, 6.0]
    loop.tested = lambda: {"a": True, "b": False, "c": False, "d": True}
    found = script.against(clock, loop, {"a": True, "b": True, "c": True, "d": False})
    assert (found["ratio"], found["ratio_whole"], found["points"]) == (3.0, 1.4, 25.0)
    assert found["points_low"] < 25 < found["points_high"]
