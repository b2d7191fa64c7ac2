"""Which architectures can be cut, and that those which cannot say so in a sentence."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetl import models
from edgetl.compress import prune
from edgetl.errors import EdgetlError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prune_families.py"
REFUSED = {"convnext", "maxvit", "shufflenetv2", "swin_transformer", "vision_transformer"}
CUT = {
    "alexnet", "densenet", "efficientnet", "googlenet", "inception", "mnasnet", "mobilenetv2", "mobilenetv3", "regnet",
    "resnet", "squeezenet", "vgg",
}  # fmt: skip


def script() -> Any:
    spec = importlib.util.spec_from_file_location("prune_families", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prune_families"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("torchvision/shufflenet_v2_x0_5", 32, r"cannot be cut: torch-pruning cannot follow its channels \("),
        ("timm/test_vit", 160, r"cannot be cut: '[a-z_.]+' belongs to a layer of the kind \w+, and only convolutions"),
        ("timm/test_convnext", 32, r"cannot be cut: '[a-z0-9_.]+' belongs to a layer of the kind LayerNorm2d"),
    ],
)
def test_what_cannot_be_cut_is_one_sentence_with_a_way_out(name: str, size: int, says: str) -> None:
    network = models.create(name, classes=3, pretrained=False, image_size=size)
    with pytest.raises(EdgetlError, match=says) as refused:
        prune.slim(network, 0.6)
    assert refused.value.message.startswith(name)
    assert refused.value.hint == "Take a smaller variant of the family as the student, e.g. with --inherit teacher."


def test_the_families_are_torchvisions() -> None:
    assert set(script().smallest()) == CUT | REFUSED


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(CUT | REFUSED))
def test_a_family_is_cut_or_refused(family: str) -> None:
    found = script()
    row = found.row_of(family, found.smallest()[family])
    assert row["status"] == ("cut" if family in CUT else "refused")
    if family in CUT:
        assert 0.48 <= row["kept"] <= 0.6
        assert row["rebuilt_difference"] == 0
        assert row["loss_after"] < row["loss_before"]
        assert row["graph_macs"] == pytest.approx(row["torch_macs"], rel=0.02)
