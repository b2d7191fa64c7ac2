"""Slimmed networks: how much they keep, and that their safetensors alone build them again."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch_pruning as tp

from edgetl import models, weights
from edgetl.compress import cost, prune
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


def test_taylor_needs_and_uses_gradients() -> None:
    def gradients(module: torch.nn.Module) -> None:
        torch.nn.functional.cross_entropy(module(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()

    small = network("timm/test_efficientnet")
    found = prune.slim(small, 0.5, importance="taylor", gradients=gradients)
    assert 0.475 <= found.kept <= 0.5
    assert all(parameter.grad is None for parameter in found.network.module.parameters())


def tiny() -> Network:
    """3x8x8 -> conv 3x3 to 16 at 8x8 -> conv 3x3, stride 2, to 32 at 4x4 -> mean -> 3 classes."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        OrderedDict(
            early=torch.nn.Conv2d(3, 16, 3, padding=1, bias=False),
            norm=torch.nn.BatchNorm2d(16),
            act=torch.nn.ReLU(),
            late=torch.nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            act2=torch.nn.ReLU(),
            pool=torch.nn.AdaptiveAvgPool2d(1),
            flat=torch.nn.Flatten(),
            fc=torch.nn.Linear(32, 3),
        )
    )
    wants = dataclasses.replace(network("timm/test_resnet").preprocess, size_hw=(8, 8))
    return Network("test/tiny", module, "fc", wants)


EARLY_MACS, LATE_MACS, HEAD_MACS = 3 * 16 * 9 * 64, 16 * 32 * 9 * 16, 32 * 3
MACS = EARLY_MACS + LATE_MACS + HEAD_MACS
PARAMETERS = 3 * 16 * 9 + 2 * 16 + 16 * 32 * 9 + 32 * 3 + 3


def test_multiplications_in_closed_form() -> None:
    net = tiny()
    assert cost.output_pixels(net.module, (8, 8)) == {"early": 64, "late": 16, "fc": 1}
    assert cost.image_macs(net.module, (8, 8)) == MACS
    assert weights.parameter_count(net.module) == PARAMETERS
    grouped = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1, groups=3), torch.nn.Conv2d(3, 5, 1, stride=2))
    assert cost.image_macs(grouped, (8, 8)) == 3 * 9 * 64 + 15 * 16


@pytest.mark.parametrize(
    ("kind", "early", "late"),
    [
        ("params", 3 * 9 + 2 + 32 * 9, 16 * 9 + 3),
        ("macs", 3 * 9 * 64 + 32 * 9 * 16, 16 * 9 * 16 + 3),
        (
            "params+macs",
            (3 * 9 + 2 + 32 * 9) / PARAMETERS + (3 * 9 * 64 + 32 * 9 * 16) / MACS,
            (16 * 9 + 3) / PARAMETERS + (16 * 9 * 16 + 3) / MACS,
        ),
    ],
)
def test_the_cost_of_a_channel_in_closed_form(kind: str, early: float, late: float) -> None:
    net = tiny()
    scorer = prune.TaylorPerCost(cost.Costs.of(net.module, (8, 8), kind), net.module)
    graph = tp.DependencyGraph().build_dependency(net.module, torch.zeros(1, 3, 8, 8))
    for name, expected in (("early", early), ("late", late)):
        layer = net.module.get_submodule(name)
        group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=[0])
        assert scorer.cost(group) == pytest.approx(expected, rel=1e-12)


def test_counting_multiplications_thins_early_layers_and_keeps_the_share_of_the_parameters() -> None:
    net = network("timm/test_resnet")
    width, height = net.preprocess.size_hw
    left = {}

    def gradients(module: torch.nn.Module) -> None:
        images = torch.randn(8, 3, height, width, generator=torch.Generator().manual_seed(1))
        torch.nn.functional.cross_entropy(module(images), torch.arange(8) % 3).backward()

    for kind in ("params", "params+macs", "macs"):
        found = prune.slim(net, 0.5, importance="taylor", round_to=1, gradients=gradients, cost=kind)
        assert 0.475 <= found.kept <= 0.5
        left[kind] = cost.image_macs(found.network.module, net.preprocess.size_hw)
    assert left["macs"] < left["params"] and left["params+macs"] < left["params"]
    with pytest.raises(ValueError, match="unknown cost 'joules'"):
        cost.Costs.of(net.module, (8, 8), "joules")


def test_an_interrupt_while_the_network_is_traced_is_not_swallowed() -> None:
    net = tiny()
    calls = iter([KeyboardInterrupt()])

    def interrupt_once(*_: object) -> None:
        for problem in calls:
            raise problem

    net.module.register_forward_pre_hook(interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        prune.slim(net, 0.5, importance="magnitude", round_to=1)
    trials: list[int] = []
    prune.slim(net, 0.5, importance="magnitude", round_to=1, tried=trials.append)
    assert trials == list(range(1, len(trials) + 1)) != []


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
