"""Networks for images of other channels than three: what the adapted first layer computes, for every kind of family."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models import adapt_input_conv
from torch import nn

from edgetl import models, plugins, weights
from edgetl.errors import EdgetlError
from edgetl.models import Network, _channels
from edgetl.runtime.preprocess import Preprocess, normalize

SIZE = 32


def network(name: str, channels: int | None = None, size: int = SIZE) -> Network:
    torch.manual_seed(3)
    made = models.create(name, classes=4, pretrained=False, image_size=size, channels=channels)
    made.module.eval()
    return made


def shaken(given: Network) -> Network:
    """With batch norms and biases that have something in them, as trained ones have."""
    torch.manual_seed(5)
    for one in given.module.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(one.running_mean, -0.3, 0.3)
            nn.init.uniform_(one.running_var, 0.5, 2)
    return given


def copied(given: Network) -> Network:
    return dataclasses.replace(given, module=copy.deepcopy(given.module))


def fed(given: Network, pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(normalize(pixels, given.preprocess))


def said(given: Network, pixels: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = given.module(fed(given, pixels))
    return answer


def gray_pixels(size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    "name",
    [
        "timm/test_vit",  # patches, with a bias; ImageNet's means differ
        "timm/test_convnext",
        "efficientnet-lite/efficientnet_lite0",  # padded, and one mean for all
    ],
)
def test_a_gray_image_gets_the_answer_that_it_got_as_rgb(name: str) -> None:
    before = shaken(network(name))
    after = models.rechanneled(copied(before), 1)
    pixels = gray_pixels()
    assert (after.preprocess.color, after.preprocess.channels) == ("gray", 1)
    torch.testing.assert_close(said(after, pixels), said(before, pixels.repeat(3, axis=3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_differing_means_go_into_the_batch_norm_that_follows(color: str) -> None:
    """Exact inside; at the border, zeros were another grey in each colour."""
    before = shaken(network("torchvision/resnet18"))
    before = dataclasses.replace(before, preprocess=dataclasses.replace(before.preprocess, color=color))
    after = models.rechanneled(copied(before), 1)
    pixels = gray_pixels()
    first = []
    for one, images in ((before, pixels.repeat(3, axis=3)), (after, pixels)):
        with torch.no_grad():
            first.append(one.module.bn1(one.module.conv1(fed(one, images))))
    apart = (first[0] - first[1]).abs()
    assert apart[:, :, 2:-2, 2:-2].max() < 1e-4 < apart.max()


def test_repeated_colors_get_the_answer_that_they_got_once() -> None:
    before = shaken(network("torchvision/resnet18"))
    after = models.rechanneled(copied(before), 6)
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    assert (after.preprocess.color, after.preprocess.channels) == ("planes", 6)
    twice = np.concatenate([pixels, pixels], axis=3)
    torch.testing.assert_close(said(after, twice), said(before, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 7])
def test_the_weights_are_those_of_timms_rule(channels: int) -> None:
    before = network("timm/test_resnet")
    plain = dataclasses.replace(before.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    name, layer = next((n, one) for n, one in before.module.named_modules() if isinstance(one, nn.Conv2d))
    expected = adapt_input_conv(channels, layer.weight.detach().clone())
    after = models.rechanneled(dataclasses.replace(before, preprocess=plain), channels)
    torch.testing.assert_close(after.module.get_parameter(f"{name}.weight").detach(), expected)


def test_bgr_weights_are_put_in_the_order_of_rgba() -> None:
    before = network("timm/test_resnet")
    turned = dataclasses.replace(before.preprocess, color="bgr", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    layer = next(one for one in before.module.modules() if isinstance(one, nn.Conv2d))
    blue, _, red = layer.weight.detach().clone().unbind(1)
    after = models.rechanneled(dataclasses.replace(before, preprocess=turned), 4)
    assert (after.preprocess.color, after.preprocess.mean) == ("rgba", (0.3, 0.2, 0.1, 0.3))
    torch.testing.assert_close(layer.weight.detach()[:, 0], red * 0.75)
    torch.testing.assert_close(layer.weight.detach()[:, 2], blue * 0.75)


FAMILIES = [
    ("torchvision/resnet18", 32),
    ("torchvision/mobilenet_v3_small", 32),
    ("torchvision/squeezenet1_1", 32),
    ("torchvision/regnet_y_400mf", 32),
    ("torchvision/shufflenet_v2_x0_5", 32),
    ("timm/test_resnet", 32),
    ("timm/test_efficientnet", 32),
    ("timm/test_mambaout", 32),
    ("timm/test_nfnet", 32),
    ("timm/test_byobnet", 32),
    ("timm/mobileone_s0", 32),  # two branches read the image
    ("timm/mobilenetv4_conv_small_050", 32),
    ("timm/mixer_s32_224", 224),
    ("cifar/resnet20", 32),
    ("efficientnet-lite/efficientnet_lite1", 32),
]


@pytest.mark.parametrize(("name", "size"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_every_kind_of_family_takes_other_channels(name: str, size: int) -> None:
    made = network(name, 5, size)
    assert said(made, np.zeros((2, size, size, 5), np.uint8)).shape == (2, 4)
    assert any("from 3 channels to 5" in reason for reason in made.weights.reasons)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("torchvision/vit_b_32", 32), ("torchvision/swin_t", 32), ("torchvision/convnext_tiny", 32),
     ("torchvision/densenet121", 32), ("torchvision/inception_v3", 80), ("torchvision/googlenet", 32),
     ("torchvision/vgg11", 32), ("torchvision/alexnet", 64), ("torchvision/efficientnet_v2_s", 33),
     ("timm/deit_tiny_patch16_224", 32), ("timm/ghostnet_050", 32), ("timm/hrnet_w18_small", 32)],
)  # fmt: skip
def test_large_families_take_other_channels(name: str, size: int) -> None:
    for channels in (1, 4):
        made = network(name, channels, size)
        assert said(made, np.zeros((2, size, size, channels), np.uint8)).shape == (2, 4)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_an_adapted_network_is_built_again_from_its_files(channels: int, tmp_path: Path) -> None:
    made = shaken(network("timm/test_resnet", channels))
    weights.save(tmp_path, made, {"labels": ["a", "b", "c", "d"]})
    found = weights.load(tmp_path).network
    pixels = np.random.default_rng(2).integers(0, 256, (2, SIZE, SIZE, channels), dtype=np.uint8)
    assert found.preprocess == made.preprocess
    assert torch.equal(said(found, pixels), said(made, pixels))


def test_joined_networks_take_other_channels_and_are_built_again(tmp_path: Path) -> None:
    joined = plugins.load("models", "joined")
    second = dataclasses.replace(network("timm/test_vit"), preprocess=Preprocess(
        size_hw=(SIZE, SIZE), scale=1.0, mean=(127.0, 120.0, 90.0), std=(128.0, 64.0, 32.0)))  # fmt: skip
    members = [models.rechanneled(one, 4) for one in (network("timm/test_resnet"), second)]
    made = joined.assembled(members, classes=4, hidden=0)
    made.module.eval()
    weights.save(tmp_path, made, {"labels": ["a", "b", "c", "d"]})
    pixels = np.random.default_rng(2).integers(0, 256, (2, SIZE, SIZE, 4), dtype=np.uint8)
    assert torch.equal(said(weights.load(tmp_path).network, pixels), said(made, pixels))
    with pytest.raises(EdgetlError, match="joined networks look at the same image"):
        joined.assembled([network("timm/test_resnet", 1), network("timm/test_vit")], classes=4, hidden=0)


def test_the_modes_of_the_modules_stay() -> None:
    made = network("timm/test_resnet")
    made.module.train()
    made.module.get_submodule("bn1" if hasattr(made.module, "bn1") else "stem").eval()
    modes = [one.training for one in made.module.modules()]
    models.rechanneled(made, 4)
    assert [one.training for one in made.module.modules()] == modes


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(EdgetlError, match="takes images of 4 channels here, found --in-channels 3"):
        models.rechanneled(network("timm/test_resnet", 4), 3)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))
    with pytest.raises(EdgetlError, match="does not read its images with a convolution"):
        _channels.adapted(Network("flat/one", flat, "1", Preprocess(size_hw=(SIZE, SIZE))), 1)
    same = network("timm/test_resnet")
    assert models.rechanneled(same, 3) is same is models.rechanneled(same, None)
