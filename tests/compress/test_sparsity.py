"""2:4 sparsity: what the masks keep, which layers have none, and what is told of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgetl import models
from edgetl.compress import rounding, sparsity
from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.runtime.preprocess import Preprocess


class StdConv2d(nn.Conv2d):
    """As timm's, by its name."""


def network(*layers: nn.Module, head: nn.Module | None = None) -> Network:
    module = nn.Sequential()
    for place, layer in enumerate(layers):
        module.add_module(f"layer{place}", layer)
    module.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    module.add_module("head", head or nn.Linear(8, 3))
    return Network("test/net", module, "head", Preprocess(size_hw=(8, 8)))


def by_hand(weight: np.ndarray) -> np.ndarray:
    """The mask of [O, I, H, W], group by group."""
    mask = np.zeros(weight.shape, bool)
    outputs, inputs, height, width = weight.shape
    for o in range(outputs):
        for y in range(height):
            for x in range(width):
                for start in range(0, inputs, 4):
                    four = np.abs(weight[o, start : start + 4, y, x])
                    for place in sorted(range(4), key=lambda one: (-four[one], one))[:2]:
                        mask[o, start + place, y, x] = True
    return mask


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), outputs=st.integers(1, 3), fours=st.integers(1, 3), side=st.integers(1, 3),
       steps=st.integers(1, 4))  # fmt: skip
def test_the_two_greatest_of_each_four_stay(seed: int, outputs: int, fours: int, side: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-steps, steps + 1, (outputs, 4 * fours, side, side)).astype(np.float32)  # with equals
    mask = sparsity.mask_of(torch.from_numpy(weight))
    assert np.array_equal(mask.numpy(), by_hand(weight))
    thinned = torch.from_numpy(weight) * mask
    assert sparsity.follows(thinned) and int(mask.sum()) == weight.size // 2
    again = thinned * sparsity.mask_of(thinned)
    assert torch.equal(again, thinned)  # once more takes nothing away


def test_a_linear_layer_has_its_fours_along_its_inputs() -> None:
    weight = torch.tensor([[4.0, -3, 2, 1, 0, 0, 0, -9]])
    assert sparsity.mask_of(weight).tolist() == [[True, True, False, False, True, False, False, True]]
    assert not sparsity.follows(weight) and sparsity.follows(weight * sparsity.mask_of(weight))
    assert not sparsity.follows(torch.zeros(4, 6))


def test_layers_that_cannot_be_sparse_are_named_with_the_reason() -> None:
    net = network(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), StdConv2d(8, 8, 1))
    before = net.module.layer0.weight.clone()
    masks = sparsity.masks_of(net)
    assert set(masks.kept) == {"layer2.weight"}
    assert {name: words for name, why in masks.left_out.items() for words in [why.split(",")[0]]} == {
        "layer0": "a layer of 3 inputs", "layer1": "a grouped convolution",
        "layer3": "a convolution that standardises its weights as it runs", "head": "the head"}  # fmt: skip
    sparsity.apply(net, masks)
    assert sparsity.follows(net.module.layer2.weight) and torch.equal(net.module.layer0.weight, before)
    told = sparsity.described(net, masks)
    total = sum(one.numel() for one in net.module.parameters())
    work = 36 * 27 * 8 + 16 * 9 * 8 + 16 * 64 + 16 * 64 + 24
    assert told["layers"] == 1 and told["parameters_share"] == 64 / total
    assert told["macs_share"] == pytest.approx(16 * 64 / work)


def test_int8_steps_whose_errors_are_passed_on_keep_the_zeros() -> None:
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.normal(size=(6, 8, 2, 2)))
    thin = (weight * sparsity.mask_of(weight)).numpy()
    inputs = rng.normal(size=(100, 32)) @ rng.normal(size=(32, 32))  # correlated, so that much is passed on
    steps = rounding.round_layer(thin, np.full(6, 0.05), (inputs.T @ inputs)[None])
    assert not steps[thin == 0].any() and sparsity.follows(torch.from_numpy(steps))
    assert (steps != np.rint(thin / 0.05)).any()


class Attending(nn.Module):
    """torch's own attention between maps of eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        tokens = maps.flatten(2).transpose(1, 2)
        return self.own(tokens, tokens, tokens)[0].transpose(1, 2).reshape(maps.shape)


def test_projections_that_are_no_layers_are_named_too() -> None:
    masks = sparsity.masks_of(network(nn.Conv2d(3, 8, 3), Attending()))
    assert set(masks.kept) == {"layer1.own.out_proj.weight"}
    assert masks.left_out["layer1.own"] == sparsity.INSIDE


def test_a_network_without_such_layers_is_one_sentence() -> None:
    with pytest.raises(EdgetlError, match=r"No layer of test/net can have 2:4 sparsity: layer0 is a layer of 3 inputs"):
        sparsity.masks_of(network(nn.Conv2d(3, 8, 3)))


def test_a_mobile_network_keeps_its_stem_and_depthwise_layers() -> None:
    net = models.create("timm/mobilenetv3_small_050", classes=3, pretrained=False, image_size=32)
    masks = sparsity.masks_of(net)
    assert all("conv_dw" in name or name in ("conv_stem", net.head) or "multiple" in why
               for name, why in masks.left_out.items())  # fmt: skip
    assert any("conv_pwl" in name for name in masks.kept)
