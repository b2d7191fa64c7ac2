"""The residual networks of CIFAR-10: the very network of the paper, other people's files, cutting and export."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgetl import models, weights
from edgetl.compress import prune
from edgetl.errors import EdgetlError, UnknownName
from edgetl.models import cifar

PUBLISHED = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}  # millions


def resnet20() -> models.Network:
    torch.manual_seed(0)
    return models.create("cifar/resnet20", classes=10, pretrained=False)


def foreign_file(path: Path, network: models.Network) -> Path:
    """As the published files are: behind `module.`, without shortcuts and without counts of batches."""
    state = OrderedDict(
        (f"module.{name}", tensor)
        for name, tensor in network.module.state_dict().items()
        if "shortcut" not in name and "num_batches" not in name
    )
    torch.save({"state_dict": state, "best_prec1": 91.73}, path)
    return path


@pytest.mark.parametrize("variant", cifar.variants())
def test_the_networks_have_the_papers_depth_and_parameters(variant: str) -> None:
    module = models.create(f"cifar/{variant}", classes=10, pretrained=False).module
    learned = [one for one in module.parameters() if one.dim() > 1]
    assert len(learned) == int(variant.removeprefix("resnet"))
    assert weights.parameter_count(module) / 1e6 == pytest.approx(PUBLISHED[variant], abs=0.03)


def test_the_shortcut_takes_every_other_pixel_between_channels_of_zeros() -> None:
    images = torch.randn(2, 16, 8, 8)
    expected = F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(cifar.Shortcut(16, 32)(images), expected)


def test_the_shortcut_learns_nothing() -> None:
    shortcut = cifar.Shortcut(16, 32)
    shortcut.weight = nn.Parameter(shortcut.weight[4:])  # what pruning does
    assert not list(shortcut.parameters())
    assert dict(shortcut.named_buffers())["weight"].shape == (28, 16, 1, 1)


def test_a_published_file_fills_the_whole_network(tmp_path: Path) -> None:
    network = resnet20()
    file = foreign_file(tmp_path / "resnet20.th", network)
    loaded = models.create("cifar/resnet20", classes=10, weights=file)
    assert loaded.weights.missing == loaded.weights.unexpected == loaded.weights.mismatched == ()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.module.eval()(images), network.module.eval()(images))


def test_another_number_of_classes_gets_a_new_head(tmp_path: Path) -> None:
    loaded = models.create("cifar/resnet20", classes=3, weights=foreign_file(tmp_path / "resnet20.th", resnet20()))
    assert loaded.weights.mismatched == ("linear.weight", "linear.bias")


def test_images_are_not_cropped_and_normalised_as_the_files_want() -> None:
    wants = resnet20().preprocess
    assert (wants.size_hw, wants.crop_fraction) == ((32, 32), 1.0)
    assert (wants.mean, wants.std, wants.scale) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255)


def test_weights_of_its_own_it_has_none() -> None:
    with pytest.raises(EdgetlError, match="cifar/resnet20 comes with no weights of its own") as problem:
        models.create("cifar/resnet20", classes=10)
    assert problem.value.hint is not None and "--weights FILE" in problem.value.hint


def test_an_unknown_variant_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="resnet"):
        models.create("cifar/resnet18", classes=10)


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_a_cut_network_keeps_its_shortcuts_and_comes_back_from_its_run(importance: str, tmp_path: Path) -> None:
    network, images = resnet20(), torch.randn(4, 3, 32, 32)

    def gradients(module: nn.Module) -> None:
        F.cross_entropy(module(images), torch.arange(4)).backward()  # type: ignore[no-untyped-call]

    cut = prune.slim(network, 0.5, importance=importance, round_to=1, gradients=gradients).network
    assert 0.47 < weights.parameter_count(cut.module) / weights.parameter_count(network.module) <= 0.5
    assert {name for name, _ in cut.module.named_buffers() if "shortcut" in name} == {
        "layer2.0.shortcut.weight",
        "layer3.0.shortcut.weight",
    }
    weights.save(tmp_path, cut, {"labels": [str(one) for one in range(10)]})
    again = weights.load(tmp_path).network.module
    with torch.no_grad():
        assert torch.equal(again(images), cut.module(images))
        cut.module.get_submodule("layer2.0.shortcut").weight.zero_()  # type: ignore[operator, union-attr]
        assert not torch.equal(again(images), cut.module(images))


@pytest.mark.slow
def test_the_graph_answers_as_the_network() -> None:
    pytest.importorskip("onnxruntime")
    from edgetl.export import graph
    from edgetl.runtime.session import open_session

    network = resnet20()
    network.module.eval()
    made = graph.export(network, [str(one) for one in range(10)])
    session = open_session("cpu", made.graph, made.spec, threads=1)
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = network.module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session.run({"image": images})["logits"], expected, atol=1e-4)
