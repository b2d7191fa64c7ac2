"""The cache and the golden check on a real card, and what is said on a machine without one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import edit_manifest, graph_spec, make_bundle, make_graph, reference_logits

from edgetl.backends import _cuda, _tensorrt_flavor, tensorrt
from edgetl.backends._tensorrt_sidecar import read_sidecar, sidecar_path
from edgetl.errors import BackendUnavailable, GateFailed
from edgetl.runtime import load
from edgetl.runtime.session import open_session

ROOT = Path(__file__).parents[2]
IMAGES = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)


@pytest.fixture
def bundle(tmp_path) -> Path:
    made = make_bundle(tmp_path / "bundle")
    edit_manifest(made, "variants", 0, "backends", value=["tensorrt"])
    return made


@pytest.fixture
def usable() -> None:
    """Skips with the reason where TensorRT cannot run."""
    tensorrt._probed.cache_clear()
    told = tensorrt.probe()
    if not told.usable:
        pytest.skip(f"TensorRT cannot run here: {told.reason}")


def engine_of(folder: Path) -> dict:
    session = open_session("tensorrt", make_graph(), graph_spec(), threads=1, cache_dir=folder)
    assert np.abs(session.run({"image": IMAGES})["logits"] - reference_logits(IMAGES)).max() < 1e-3
    session.close()
    return session.info()["engine"]


@pytest.mark.gpu
def test_a_real_engine_is_built_kept_and_opened_again(usable, tmp_path):
    first, second = engine_of(tmp_path), engine_of(tmp_path)
    assert (first["built"], first["kept"], second["built"]) == (True, True, False)
    assert first["sha256"] == second["sha256"]


@pytest.mark.gpu
@pytest.mark.parametrize("damage", ["cut", "flipped", "deleted"])
def test_a_damaged_real_plan_is_built_again(usable, tmp_path, damage):
    engine_of(tmp_path)
    plan = next(tmp_path.glob("*.engine"))
    data = bytearray(plan.read_bytes())
    if damage == "deleted":
        plan.unlink()
    elif damage == "cut":
        plan.write_bytes(data[:len(data) // 2])
    else:
        data[len(data) // 3] ^= 0x40
        plan.write_bytes(data)
    assert engine_of(tmp_path)["built"]
    assert not engine_of(tmp_path)["built"]


@pytest.mark.gpu
def test_a_real_plan_that_looks_right_and_is_of_no_use_is_built_again(usable, tmp_path):
    """The header alone, with a sidecar that agrees: TensorRT gives no engine for it."""
    engine_of(tmp_path)
    plan = next(tmp_path.glob("*.engine"))
    side = sidecar_path(plan)
    plan.write_bytes(b"\0" * 64 + plan.read_bytes()[64:])
    told = json.loads(side.read_text())
    told["plan_sha256"] = hashlib.sha256(plan.read_bytes()).hexdigest()
    side.write_text(json.dumps(told))
    again = engine_of(tmp_path)
    assert again["built"] and "cannot open the engine" in again["why_built"]
    assert not engine_of(tmp_path)["built"]


@pytest.mark.gpu
def test_a_real_engine_answers_the_golden_images_once(usable, bundle, tmp_path):
    for _ in range(2):
        with load(bundle, cache_dir=tmp_path / "cache") as classifier:
            assert len(classifier.info()["session"]["proofs"]) == 1
    assert len(read_sidecar(next((tmp_path / "cache").glob("*.engine.json"))).proofs) == 1
    edit_manifest(bundle, "variants", 0, "tolerance", value=1e-12)
    with pytest.raises(GateFailed, match="the engine is refused, and it is removed from the cache"):
        load(bundle, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.engine")) == []


def driverless() -> bool:
    try:
        _cuda.driver_cuda()
    except BackendUnavailable:
        return True
    return False


@pytest.mark.skipif(not driverless(), reason="there is an NVIDIA driver here")
def test_without_a_driver_one_sentence_says_what_is_missing(bundle):
    if not _tensorrt_flavor.installed():
        pytest.skip("neither TensorRT nor TensorRT for RTX can be imported")
    words = [sys.executable, "-m", "edgetl.runtime", "verify", str(bundle), "--backend", "tensorrt"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 1
    assert "There is no NVIDIA driver" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver") as caught:
        open_session("tensorrt", make_graph(), graph_spec(), threads=1)
    assert "Install the NVIDIA driver" in caught.value.hint
