"""torchvision's classifiers through the training step and the export: the light ones here, all of them when slow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgetl import models
from edgetl.errors import EdgetlError
from edgetl.export import graph
from edgetl.models import torchvision as zoo

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import torchvision_sweep as sweep

LIGHT = ("googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18",
         "shufflenet_v2_x0_5", "squeezenet1_1")
TOO_LARGE = ("regnet_y_128gf", "vit_h_14")  # for one ONNX file


@pytest.mark.parametrize(("variant", "size"), [("resnet18", 32), ("alexnet", 63), ("inception_v3", 75),
                                               ("maxvit_t", 224), ("vit_h_14", 42), ("vit_b_32", 32), ("swin_t", 32)])
def test_the_smallest_size_from_32_px_on_is_found(variant: str, size: int) -> None:
    assert sweep.smallest(variant) == size


@pytest.mark.parametrize("variant", LIGHT)
def test_light_architectures_learn_in_the_loop(variant: str) -> None:
    size = sweep.smallest(variant)
    network = models.create(f"torchvision/{variant}", classes=sweep.CLASSES, pretrained=False, image_size=size)
    assert 0.1 < sweep.trained_once(network, size) < 10
    sweep.settle(network, size)


def test_a_row_is_measured_with_features_and_logits() -> None:
    row = sweep.measure("torchvision/squeezenet1_1", 32)
    assert (row["exporter"], row["features"], row["head"]) == ("dynamo", 512, "classifier.1")
    assert max(row["difference"], row["features_difference"]) < 1e-4


def test_what_fails_or_has_no_memory_is_a_row_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = sweep.alone("torchvision/alexnet", 48)
    assert failed["why_not"] == "torchvision/alexnet takes images of 63 px and more, found 48 px."
    monkeypatch.setattr(sweep, "MEMORY_BASE", 1 << 50)
    full = {"model": "torchvision/squeezenet1_1", **sweep.measure("torchvision/squeezenet1_1", 32)}
    assert "GB of memory" in full["why_not"] and "| Needs about" in sweep.table([failed, full])


def test_timm_is_represented_by_a_small_model_of_each_file() -> None:
    import timm

    ((convnext, size), (levit, own)) = sweep.of_timm(["convnext", "levit"])
    assert (size, own) == (sweep.TIMM_SIZE, None), "LeViT is built for one size of image"
    assert convnext.removeprefix("timm/") in timm.list_models(module="convnext")
    assert levit.removeprefix("timm/") in timm.list_models(module="levit")


def test_a_network_too_large_for_onnx_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    network = models.create("torchvision/squeezenet1_1", classes=2, pretrained=False, image_size=32)
    monkeypatch.setattr(graph, "LARGEST", 1_000_000)
    with pytest.raises(EdgetlError, match=r"torchvision/squeezenet1_1 has 0\.0 GB of float32 weights, and one ONNX"):
        graph.export(network, ["a", "b"])


@pytest.mark.slow
@pytest.mark.parametrize("variant", zoo.variants())
def test_every_architecture_is_trained_and_exported_or_says_why_not(variant: str) -> None:
    row = sweep.alone(f"torchvision/{variant}", sweep.smallest(variant))
    if "why_not" in row:
        assert variant in TOO_LARGE and ("ONNX file holds less" in row["why_not"] or "GB are free" in row["why_not"])
        return
    assert row["exporter"] == "dynamo", row["reason"]
    assert max(row["difference"], row["features_difference"]) < 1e-4
