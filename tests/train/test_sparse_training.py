"""2:4 sparsity in the real loop: no step revives a weight, a resume goes on, and the exported graph has the pattern."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_run
import torch
from onnx import numpy_helper
from stop_at import StopAt

from edgetl import pipeline, rundir, weights
from edgetl.cli.app import main
from edgetl.compress import sparsity
from edgetl.export import graph
from edgetl.recipe import build
from edgetl.recipe_fields import DataFields
from edgetl.recipe_prune import Prune
from edgetl.train.course import Course
from edgetl.train.sparse import Held

QUICK = {"epochs": 2, "batch_size": "8", "workers": 0, "threads": 1, "ema": 0.9, "weight_decay": 0.1, "lr": 0.01,
         "control": False, "checkpoint_minutes": 0.0}  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` and `run`."""
    from conftest import write_photos

    folder = tmp_path_factory.mktemp("sparse")
    photos = write_photos(folder / "photos", classes=3, images=8)
    tiny_run.write_run(folder / "run", photos, DataFields(data=str(photos)), steps=2)
    run = folder / "run"
    rundir.write_json(run / rundir.RUN, {**weights.read_record(run), "metrics": {"val": {"accuracy": 0.5}}})
    return folder


def options(start: Path, out: Path, **values: Any) -> Prune:
    named = {"run": str(start / "run"), "data": str(start / "photos"), "out": str(out)}
    return build(Prune, {**named, **QUICK, **values}, where="test")


def sparse_weights(run: Path) -> dict[str, torch.Tensor]:
    network = weights.load(run).network
    return {name: network.module.get_parameter(name) for name in sparsity.masks_of(network).kept}


def test_training_keeps_the_zeros_it_began_with_and_a_resume_too(start: Path, tmp_path: Path) -> None:
    whole = pipeline.prune_with(options(start, tmp_path / "whole", sparsity="2:4"))
    begun = weights.load(start / "run").network
    masks = sparsity.masks_of(begun).kept
    after = weights.load(whole).network.module
    moved = 0
    for name, mask in masks.items():
        one = after.get_parameter(name)
        assert not one[~mask].any(), name  # what was smallest in the beginning is zero at the end
        moved += int((one != begun.module.get_parameter(name))[mask].sum())
    assert moved > 0.9 * sum(int(mask.sum()) for mask in masks.values())
    with pytest.raises(KeyboardInterrupt):
        pipeline.prune_with(options(start, tmp_path / "broken", sparsity="2:4"), StopAt(3, KeyboardInterrupt()))
    again = pipeline.prune_with(options(start, tmp_path / "broken", sparsity="2:4", resume=True))
    assert (again / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()
    told = weights.read_record(whole)["sparsity"]
    assert told["pattern"] == "2:4" and told["layers"] == len(masks) and 0.5 < told["macs_share"] < 1
    assert "head" in told["left_out"][begun.head]


def test_the_exported_graph_has_the_pattern(start: Path, tmp_path: Path) -> None:
    run = weights.load(pipeline.prune_with(options(start, tmp_path / "run", sparsity="2:4", epochs=1)))
    model = onnx.load_from_string(graph.export(run.network, run.labels).graph)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    folded = [torch.from_numpy(constants[node.input[1]].copy()) for node in model.graph.node if node.op_type == "Conv"]
    assert sum(sparsity.follows(one) for one in folded) >= len(sparsity.masks_of(run.network).kept)
    assert not all(sparsity.follows(one) for one in folded)  # the first layer stays dense


def test_channels_are_cut_first_and_the_control_is_sparse_too(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for name, value in {**QUICK, "epochs": 1}.items() if name != "control"
             for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    own = ["prune", str(start / "run"), "--data", str(start / "photos"), "--out", str(tmp_path / "cut"), *flags]
    assert main([*own, "--params", "0.5", "--round-to", "4", "--importance", "magnitude", "--sparsity", "2:4"]) == 0
    said = capsys.readouterr()
    assert "sparsity" in said.out and "2:4 sparsity in" in said.err and "left out: the head" in said.err
    for run in (tmp_path / "cut", tmp_path / "cut" / "control"):
        assert all(sparsity.follows(one) for one in sparse_weights(run).values())
        assert weights.read_record(run)["sparsity"]["layers"] > 0
    assert json.loads((tmp_path / "cut" / rundir.RUN).read_text())["kept"] <= 0.5


def test_an_optimizer_with_memory_revives_nothing() -> None:
    """Momentum that stems from before, weight decay, and gradients that would move every weight."""
    layer = torch.nn.Linear(8, 4)
    mask = sparsity.mask_of(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(mask)
    course = Course(sparse=Held({layer.weight: mask}))
    made = build(Prune, {"run": "r", "data": "d", "out": "o", "weight_decay": 0.1}, where="test")
    optimizer = course.optimizer(layer.named_parameters(), made)
    for step in range(3):
        layer(torch.randn(5, 8, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        if step == 1:  # as if the momentum had been there before the mask
            optimizer.state[layer.weight]["exp_avg"].add_(1.0)
        course.begin_step(optimizer, 0.1)
        assert not layer.weight.grad[~mask].any() and layer.weight.grad[mask].any()
        optimizer.step()
        optimizer.zero_grad()
        assert not layer.weight[~mask].any() and layer.weight[mask].all()
