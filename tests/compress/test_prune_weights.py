"""Slimmed networks: how much they keep, and that their safetensors alone build them again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from edgetl import models, weights
from edgetl.compress import prune
from edgetl.errors import EdgetlError
from edgetl.models import Network


def network(name: str = "efficientnet-lite/efficientnet_lite0", size: int = 32) -> Network:
    torch.manual_seed(0)
    return models.create(name, classes=3, pretrained=False, image_size=size)


@pytest.fixture(scope="module")
def lite() -> Network:
    return network()


@pytest.mark.parametrize("ratio", [0.7, 0.4, 0.2])
def test_slim_keeps_the_share_that_was_asked_for(lite: Network, ratio: float) -> None:
    before = weights.parameter_count(lite.module)
    found = prune.slim(lite, ratio, importance="magnitude")
    kept = weights.parameter_count(found.network.module) / before
    assert kept == pytest.approx(found.kept)
    assert 0.99 * ratio <= kept <= ratio
    assert found.network.module(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert weights.parameter_count(lite.module) == before  # the teacher is untouched


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet-lite/efficientnet_lite0",
        "torchvision/mobilenet_v3_small",
        "torchvision/resnet18",
        "timm/test_resnet",
    ],
)
def test_a_slim_run_is_built_again_from_its_shapes(tmp_path: Path, name: str) -> None:
    small = prune.slim(network(name), 0.5, importance="magnitude", round_to=4).network
    small.module.eval()
    weights.save(tmp_path, small, {"labels": ["a", "b", "c"]})
    again = weights.load(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.network.module(images), small.module(images))
    assert again.network.preprocess == small.preprocess and again.labels == ("a", "b", "c")
    assert again.record["parameters"] == weights.parameter_count(small.module)


def test_taylor_needs_and_uses_gradients(lite: Network) -> None:
    def gradients(module: torch.nn.Module) -> None:
        torch.nn.functional.cross_entropy(module(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()

    found = prune.slim(lite, 0.5, importance="taylor", gradients=gradients)
    assert 0.475 <= found.kept <= 0.5
    assert all(parameter.grad is None for parameter in found.network.module.parameters())


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, 1.5])
def test_a_ratio_outside_its_range_is_refused(lite: Network, ratio: float) -> None:
    with pytest.raises(EdgetlError, match="between 0 and 1"):
        prune.slim(lite, ratio, importance="magnitude")


def test_what_cannot_be_reached_names_the_nearest() -> None:
    with pytest.raises(EdgetlError, match="the nearest possible is"):
        prune.slim(network("timm/test_resnet"), 0.0001, importance="magnitude")


def test_a_run_with_a_missing_or_foreign_tensor_is_refused(tmp_path: Path) -> None:
    small = network("timm/test_resnet")
    weights.save(tmp_path, small, {"labels": ["a", "b", "c"]})
    record = json.loads((tmp_path / "run.json").read_text())
    import safetensors.torch

    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    with pytest.raises(EdgetlError, match=r"does not fit timm/test_resnet: missing \['fc.bias'\]"):
        weights.rebuild(record, safetensors.torch.save({name: one for name, one in state.items() if name != "fc.bias"}))
    with pytest.raises(EdgetlError, match="not safetensors"):
        weights.rebuild(record, b"nothing of the kind")


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(EdgetlError, match=r"is not a RUN folder: it has no run\.json"):
        weights.load(tmp_path)
    with pytest.raises(EdgetlError, match="does not exist"):
        weights.load(tmp_path / "absent")
    weights.save(tmp_path, dataclasses.replace(network("timm/test_resnet")), {"labels": ["a", "b", "c"], "schema": 99})
    with pytest.raises(EdgetlError, match="schema 99; this version reads up to 1"):
        weights.load(tmp_path)
