"""The main path on an NVIDIA card, small and real: mixed precision, export, verify, bench and tune. Run with -m gpu."""

import json

import numpy as np
import pytest
from conftest import write_photos

import edgetl
from edgetl import plugins, rundir, weights
from edgetl.bench import report
from edgetl.runtime import manifest

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
BACKENDS = ("cuda", "tensorrt")
TRAINING = {"image_size": 32, "epochs": 2, "pretrained": False, "val_fraction": 0.25, "batch_size": "8", "workers": 0}


@pytest.fixture(scope="module", autouse=True)
def card():
    torch = pytest.importorskip("torch")
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no NVIDIA card here")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos", classes=3, images=24, size=40)


@pytest.fixture(scope="module", params=["auto", "fp16"])
def runs(request, photos, tmp_path_factory):
    """A teacher and a student that were trained on the card in mixed precision."""
    folder = tmp_path_factory.mktemp("runs")
    how = {**TRAINING, "data": str(photos), "device": DEVICE, "amp": request.param}
    teacher = edgetl.finetune(teacher="timm/test_resnet", out=folder / "teacher", **how)
    student = edgetl.distill(teacher=str(teacher), student="timm/test_efficientnet", out=folder / "student",
                             control=False, **how)
    return teacher, student


@pytest.fixture(scope="module")
def backends():
    found = {name: plugins.load("backends", name).probe() for name in BACKENDS}
    usable = [name for name, one in found.items() if one.usable]
    if not usable:
        pytest.skip("; ".join(f"{name}: {one.reason}" for name, one in found.items()))
    return usable


@pytest.fixture(scope="module")
def bundle(photos, tmp_path_factory, backends):
    folder = tmp_path_factory.mktemp("bundle")
    run = edgetl.finetune(teacher="timm/test_resnet", out=folder / "run", data=str(photos), device=DEVICE, **TRAINING)
    return edgetl.export(run=str(run), data=str(photos), out=folder / "bundle", target=backends,
                         precision=["fp32", "fp16"], golden=2, max_drop=100, min_agreement=0)


def test_training_in_mixed_precision_gives_a_run_like_any_other(runs):
    import torch

    for run in runs:
        record = json.loads((run / rundir.RUN).read_text())
        assert record["choices"]["device"].startswith(DEVICE) and record["choices"]["amp"] in ("bf16", "fp16")
        losses = [json.loads(line) for line in (run / rundir.METRICS).read_text().splitlines()]
        assert losses and all(np.isfinite(value) for line in losses for value in line.values()
                              if isinstance(value, float))
        module = weights.load(run).network.module
        assert all(value.dtype == torch.float32 for value in module.state_dict().values() if value.is_floating_point())
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            here = module(images)
            there = module.to(DEVICE)(images.to(DEVICE)).cpu()
        assert (here - there).abs().max() < 5e-3 * here.abs().max()  # TF32 rounds factors to 11 bits


def test_what_is_exported_is_measured_and_verified_on_the_card(bundle, backends):
    known = manifest.from_json((bundle / manifest.MANIFEST).read_text(), where="manifest.json")
    for backend in backends:
        variants = [one for one in known.variants if backend in one.backends]
        assert {one.precision for one in variants} >= {"fp16"}
        assert any(row["backend"] == backend for one in variants for row in one.evaluations)
        checks = edgetl.verify(bundle, backend).checks
        assert [one for one in checks if one.status == "passed" and "fp16" in one.name]


def test_a_bench_on_the_card_has_its_rows(bundle, backends, tmp_path):
    edgetl.bench(cases=[str(bundle)], backend=[*backends, "cpu"], rounds=1, block=50, starts=1, warmup_s=1,
                 out=tmp_path / "report", timeout_s=600)
    rows = report.read(tmp_path / "report").rows
    assert {row.backend for row in rows} >= {*backends, "cpu"}
    for row in rows:
        assert row.measured, row.measurement.reason
        if row.backend in backends:
            assert row.session["device"] and row.first_s and len(row.measurement.seconds) == 40


def test_what_tune_chooses_is_what_auto_loads(bundle, backends, photos):
    found = edgetl.tune(bundle=str(bundle), data=str(photos), budget="5s", max_drop=100, timeout_s=600)
    assert {one.backend for one in found.candidates if one.rounds_s} >= set(backends)
    with edgetl.load(bundle) as classifier:
        told = classifier.info()
        assert (told["variant"], told["backend"]) == (found.chosen.variant, found.chosen.backend)
