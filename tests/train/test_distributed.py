"""Several processes, started by torchrun, train what one process trains; and end together when one of them does."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from edgetl import rundir, weights
from edgetl.recipe import Distill, Finetune, build
from edgetl.train import checkpoint, shared_norm
from edgetl.train.distributed import ALONE, World
from edgetl.train.student import distill
from edgetl.train.teacher import finetune

TINY = {"image_size": 32, "epochs": 2, "workers": 0, "lr": 1e-3, "threads": 1, "batch_size": "9", "ema": 0.9}
FRESH = {"teacher": "timm/test_resnet", "pretrained": False}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
            "--nproc-per-node", "2")
LIMIT_S = 1200  # far above what any of these takes on a busy machine: nothing may hang

TRAIN = """
import json, os, sys
from edgetl.recipe import Distill, Finetune, build
from edgetl.train.student import distill
from edgetl.train.teacher import finetune
kinds = {"finetune": (Finetune, finetune), "distill": (Distill, distill)}
for kind, values in json.loads(sys.argv[1]):
    recipe, train = kinds[kind]
    train(build(recipe, values, where="test"))
"""

HURT = """
import os, signal, sys
from edgetl.cli import app
from edgetl.train.loop import Fit
number, rank, last, *arguments = sys.argv[1:]
moved, move = [], Fit._move
def hurting(fit):
    move(fit)
    moved.append(fit)
    if os.environ["RANK"] == rank and len(moved) == int(last):
        os.kill(os.getpid(), int(number))
Fit._move = hurting
sys.exit(app.main(arguments))
"""


@pytest.fixture
def photos(photo_folder: Callable[..., Path]) -> Path:
    return photo_folder(classes=3, images=12)


def together(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What two processes made of a script."""
    path = folder / "script.py"
    path.write_text(script)
    there = {"cwd": Path(__file__).parents[2], "env": {**os.environ, "PYTHONPATH": "."}}
    return subprocess.run(
        [*TORCHRUN, str(path), *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False, **there
    )


def curve(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / rundir.METRICS).read_text().splitlines()]
    skipped = ("epoch", "images_per_s", "lr")
    return [row[name] for row in rows for name in sorted(row) if name not in skipped]


def flags(values: dict[str, Any]) -> list[str]:
    pairs = ((f"--{name.replace('_', '-')}", value) for name, value in values.items())
    return [word for flag, value in pairs
            for word in ([flag, str(value)] if value is not False else [f"--no-{flag[2:]}"])]  # fmt: skip


LOSSES = ("labels:0.2,kd:0.5,dist:0.2,rkd:0.01;temperature=2", "sp:10,fitnet:0.1")


def test_two_processes_train_what_one_does(
    photos: Path, photo_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """27 images in steps of 9: one process sees 5 and the other 4, with batch norm, mixup and losses of all kinds."""
    others = photo_folder("others", classes=4, images=4, seed=3)
    start = finetune(build(Finetune, {"data": str(photos), "out": str(tmp_path / "start"), **TINY, **FRESH,
                                      "epochs": 1}, where="test"))  # fmt: skip
    taught = {**TINY, "teacher": str(start), "student": "timm/test_resnet", "pretrained": False, "control": False}
    work: list[tuple[str, dict[str, Any]]] = [
        ("finetune", {**TINY, **FRESH, "mixup": 0.3}),
        ("finetune", {**TINY, **FRESH, "strategy": "gradual", "freeze": ("stages:1",), "accumulate": 2,
                      "batch_size": "5"}),
        ("finetune", {**TINY, **FRESH, "strategy": "joint", "source": str(others), "source_ratio": 0.5, "epochs": 1}),
        ("finetune", {**TINY, "teacher": str(start), "epochs": 1, "schedule": "one-cycle", "layer_decay": 0.7,
                      "l2_sp": 0.1, "balance": "sampler", "loss": ("focal",), "wise_ft": True}),
        ("distill", {**taught, "loss": LOSSES, "accumulate": 2, "batch_size": "5"}),
        ("distill", {**taught, "loss": ("kd:1",), "views": 1, "mixup": 0.2}),
    ]
    alone = [{"data": str(photos), "out": str(tmp_path / f"alone-{number}"), **values}
             for number, (_, values) in enumerate(work)]  # fmt: skip
    several = [{**values, "out": str(tmp_path / f"two-{number}")} for number, values in enumerate(alone)]
    finding = {"data": str(photos), **TINY, **FRESH, "lr": "find", "epochs": 1, "accumulate": 2, "batch_size": "5",
               "loss": ("labels:1", "focal:0.5")}  # fmt: skip
    jobs = [(kind, one) for (kind, _), one in zip(work, several, strict=True)]
    jobs += [("finetune", {**finding, "out": str(tmp_path / "two-find")})]
    told = together(TRAIN, tmp_path, json.dumps(jobs))
    assert told.returncode == 0, told.stderr[-3000:]
    _compare_range_tests(tmp_path, finding)
    for (kind, _), one, two in zip(work, alone, several, strict=True):
        run = finetune(build(Finetune, one, where="test")) if kind == "finetune" else distill(
            build(Distill, one, where="test"))  # fmt: skip
        np.testing.assert_allclose(curve(Path(two["out"])), curve(run), rtol=2e-3, atol=2e-3)
        record = weights.read_record(Path(two["out"]))
        assert record["choices"]["processes"] == 2
        assert {path.name for path in Path(two["out"]).iterdir()} == {path.name for path in run.iterdir()}
    assert not list(tmp_path.glob(".*partial"))


def _compare_range_tests(folder: Path, finding: dict[str, Any]) -> None:
    """The range test of two processes is that of one: the same losses while the rate is too low to tear them apart."""
    finetune(build(Finetune, {**finding, "out": str(folder / "alone-find")}, where="test"))
    one, two = (weights.read_record(folder / name)["choices"]["lr"]["finetune"]["curve"]
                for name in ("alone-find", "two-find"))  # fmt: skip
    quiet = [place for place, (rate, _) in enumerate(one) if rate < 1e-3]
    assert len(quiet) > 5 and len(two) > 10
    np.testing.assert_allclose([two[place] for place in quiet], [one[place] for place in quiet], rtol=5e-3)


def test_a_killed_process_ends_the_other_with_one_sentence_and_a_checkpoint(photos: Path, tmp_path: Path) -> None:
    values = {"data": photos, "out": tmp_path / "run", **TINY, **FRESH, "checkpoint_minutes": 0.0}
    told = together(HURT, tmp_path, "9", "1", "4", "finetune", *flags(values))
    assert told.returncode == 1
    assert told.stderr.count("error: ") == 1
    assert "error: Another of the 2 processes of this training ended, or cannot be reached any more in epoch 2, step " \
        in told.stderr  # fmt: skip
    assert "the last good checkpoint is kept in" in told.stderr and "with --resume" in told.stderr
    kept = checkpoint.read(rundir.partial(tmp_path / "run") / rundir.CHECKPOINT)
    assert kept.scalars["progress"]["epoch"] == 1
    # One process can go on, too.
    plain = {**{name: str(one) if isinstance(one, Path) else one for name, one in values.items()}, "resume": True}
    run = finetune(build(Finetune, plain, where="test"))
    assert len((run / rundir.METRICS).read_text().splitlines()) == 2


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees fewer than two NVIDIA GPUs here")
def test_two_gpus_train_what_one_does(photos: Path, tmp_path: Path) -> None:
    values = {**TINY, **FRESH, "data": str(photos), "device": "cuda", "amp": "off", "mixup": 0.3}
    told = together(TRAIN, tmp_path, json.dumps([("finetune", {**values, "out": str(tmp_path / "two")})]))
    assert told.returncode == 0, told.stderr[-3000:]
    one = finetune(build(Finetune, {**values, "out": str(tmp_path / "one")}, where="test"))
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(one), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=None, affine=False),
                                   BatchNormAct2d(4), nn.BatchNorm2d(4, track_running_stats=False)])  # fmt: skip
def test_a_shared_batch_norm_computes_what_the_layer_does(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sum over all processes is the process's own."""
    monkeypatch.setattr(shared_norm, "summed_over", lambda values: values)
    draw = torch.Generator().manual_seed(0)
    images = 3 + 2 * torch.randn(5, 4, 3, 3, generator=draw)
    weights_of_loss = torch.randn(5, 4, 3, 3, generator=draw)
    layer.train()
    own = copy.deepcopy(layer)
    found = []
    for module, world in ((own, ALONE), (layer, World(size=2))):
        values = images.clone().requires_grad_()
        with shared_norm.shared(module, world):
            for _ in range(2):
                said = module(values)
            (said * weights_of_loss).sum().backward()
            module.eval()
            judged = module(images)
        learned = [one.grad for one in module.parameters()]
        found.append([said, judged, values.grad, *learned, *module.state_dict().values()])
    assert "forward" not in vars(layer)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "rank"), [(15, "1"), (2, "1"), (15, "0")])
def test_a_signal_to_one_stops_all_and_a_resume_is_bit_exact(
    photos: Path, tmp_path: Path, signal: int, rank: str
) -> None:
    values = {"data": photos, **TINY, **FRESH}
    whole = together(HURT, tmp_path, "0", "9", "1", "finetune", *flags({**values, "out": tmp_path / "whole"}))
    assert whole.returncode == 0, whole.stderr[-3000:]
    broken = ["finetune", *flags({**values, "out": tmp_path / "broken"})]
    told = together(HURT, tmp_path, str(signal), rank, "4", *broken)
    assert told.returncode == 1 and told.stderr.count("error: ") == 1
    assert "error: Interrupted.\nhint: Continue with the same torchrun line and --resume.\n" in told.stderr
    again = together(HURT, tmp_path, "0", "9", "1", *broken, "--resume")
    assert again.returncode == 0, again.stderr[-3000:]
    ours, theirs = ((tmp_path / name / rundir.MODEL).read_bytes() for name in ("broken", "whole"))
    assert ours == theirs


@pytest.mark.slow
def test_a_killed_first_process_is_told_of_by_the_other(photos: Path, tmp_path: Path) -> None:
    values = {"data": photos, "out": tmp_path / "run", **TINY, **FRESH, "checkpoint_minutes": 0.0}
    told = together(HURT, tmp_path, "9", "0", "4", "finetune", *flags(values))
    assert told.returncode == 1 and told.stderr.count("error: Another of the 2 processes") == 1
    assert rundir.resumable(rundir.partial(tmp_path / "run"))


@pytest.mark.slow
def test_a_failure_of_all_is_said_once(photos: Path, tmp_path: Path) -> None:
    values = {"data": photos, "out": tmp_path / "run", **TINY, **FRESH, "val_fraction": 0}
    told = together(HURT, tmp_path, "0", "9", "1", "finetune", *flags(values))
    assert told.returncode == 1 and told.stderr.count("error: ") == 1
    assert "leaves no validation image" in told.stderr and not list(tmp_path.glob(".*partial"))


@pytest.mark.slow
def test_crd_draws_the_same_in_all_processes_and_resumes(photos: Path, tmp_path: Path) -> None:
    start = finetune(build(Finetune, {"data": str(photos), "out": str(tmp_path / "start"), **TINY, **FRESH},
                           where="test"))  # fmt: skip
    values = {**TINY, "data": photos, "teacher": start, "student": "timm/test_resnet", "pretrained": False,
              "control": False, "loss": "labels:0.5,crd:0.1;negatives=16"}  # fmt: skip
    whole = together(HURT, tmp_path, "0", "9", "1", "distill", *flags({**values, "out": tmp_path / "whole"}))
    assert whole.returncode == 0, whole.stderr[-3000:]
    broken = ["distill", *flags({**values, "out": tmp_path / "broken"})]
    assert together(HURT, tmp_path, "15", "1", "4", *broken).returncode == 1
    assert together(HURT, tmp_path, "0", "9", "1", *broken, "--resume").returncode == 0
    ours, theirs = ((tmp_path / name / rundir.MODEL).read_bytes() for name in ("broken", "whole"))
    assert ours == theirs
