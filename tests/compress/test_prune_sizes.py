"""What a cut goes by: the scales of batch norms, multiplications of the graph, a size that is measured."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from edgetl.compress import cost, prune
from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.runtime.preprocess import Preprocess

CHANNELS = 16


def two_layers(norm: Callable[[int], torch.nn.Module] = torch.nn.BatchNorm2d) -> Network:
    """3 x 8 x 8 -> 16 channels, normalised -> 16 channels, normalised -> mean -> 3 classes."""
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(
        OrderedDict(
            first=torch.nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False),
            norm=norm(CHANNELS),
            act=torch.nn.ReLU(),
            second=torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
            norm2=norm(CHANNELS),
            act2=torch.nn.ReLU(),
            pool=torch.nn.AdaptiveAvgPool2d(1),
            flat=torch.nn.Flatten(),
            fc=torch.nn.Linear(CHANNELS, 3),
        )
    )
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return Network("test/two", module, "fc", Preprocess(size_hw=(8, 8)))


def test_bn_scale_removes_the_channels_of_the_least_scales_over_all_layers() -> None:
    net = two_layers()
    scales = torch.linspace(1, 2, CHANNELS)
    net.module.norm.weight.data = scales.clone()
    net.module.norm2.weight.data = scales.flip(0) + 0.5
    net.module.norm.weight.data[[3, 11]] = 0.0  # these two go first,
    net.module.norm2.weight.data[7] = -0.01  # then this one: the sign is none of importance
    ranking = prune.measured_ranking(net, "bn-scale", None, "params")
    cut = prune.pruned(net, 3 / (2 * CHANNELS), ranking, 1)
    kept = [one for one in range(CHANNELS) if one not in (3, 11)]
    assert torch.equal(cut.norm.weight, net.module.norm.weight[kept])
    assert torch.equal(cut.first.weight, net.module.first.weight[kept])
    others = [one for one in range(CHANNELS) if one != 7]
    assert torch.equal(cut.norm2.weight, net.module.norm2.weight[others])
    assert torch.equal(cut.second.weight, net.module.second.weight[others][:, kept])
    assert torch.equal(cut.fc.weight, net.module.fc.weight[:, others])


def test_channels_that_do_nothing_change_no_answer_when_they_leave() -> None:
    net = two_layers()
    net.module.norm.weight.data[:8] = 0.0
    net.module.norm.bias.data[:8] = -1.0  # the ReLU makes them zero
    cut = prune.pruned(net, 8 / (2 * CHANNELS), prune.measured_ranking(net, "bn-scale", None, "params"), 1)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    net.module.eval()
    assert cut.first.out_channels == 8
    torch.testing.assert_close(cut(images), net.module(images))


@pytest.mark.parametrize("norm", [torch.nn.Identity, lambda channels: torch.nn.BatchNorm2d(channels, affine=False)])
def test_bn_scale_without_scales_is_one_sentence(norm: Callable[[int], torch.nn.Module]) -> None:
    with pytest.raises(EdgetlError, match="ranks channels by the scales of batch norms, and test/two has none") as said:
        prune.slim(two_layers(norm), 0.5, importance="bn-scale", round_to=1)
    assert said.value.hint == "Use --importance taylor or magnitude."


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_channels_are_multiples(multiple: int) -> None:
    ranking = prune.measured_ranking(two_layers(), "bn-scale", None, "params")
    cut = prune.pruned(two_layers(), 0.4, ranking, multiple)
    assert cut.first.out_channels % multiple == cut.second.out_channels % multiple == 0


def test_a_size_of_its_own_is_what_is_searched_for() -> None:
    net = two_layers()
    for size in (prune.parameters_of(net), prune.macs_of(net)):
        found = prune.slim(net, 0.5, round_to=1, size=dataclasses.replace(size, tolerance=0.2))
        assert 0.4 <= found.kept <= 0.5 and found.kept == pytest.approx(size.share(found.network))
    assert prune.macs_of(net).share(net) == prune.parameters_of(net).share(net) == 1
    seen: list[float] = []

    def share(cut: Network) -> float:
        seen.append(cut.module.second.out_channels / CHANNELS)
        return seen[-1]

    wide = prune.Size("width", share, tolerance=0.1, loose=0.1, trials=5, finer=False)
    assert prune.slim(net, 0.5, round_to=1, size=wide).kept == 0.5 == seen[-1]
    with pytest.raises(EdgetlError, match=r"cannot be cut to 0\.1 % of its width: the nearest possible is"):
        prune.slim(net, 0.001, round_to=1, size=wide)


def test_a_network_with_other_weights_is_one_sentence() -> None:
    net = two_layers(lambda channels: torch.nn.GroupNorm(1, channels))
    with pytest.raises(EdgetlError, match=r"test/two cannot be cut: 'norm\.weight' belongs to .* kind GroupNorm"):
        prune.slim(net, 0.5)


GRAPHS = {
    "agraph (float[N, 6, 10, 10] x) => (float[N, 8, 8, 8] y) <float[8, 3, 3, 3] w> "
    "{ y = Conv <group = 2> (x, w) }": 8 * 64 * 27,
    "agraph (float[N, 8, 4, 4] x) => (float y) <float[8, 5, 2, 2] w> "
    "{ y = ConvTranspose <strides = [2, 2]> (x, w) }": 8 * 16 * 20,
    "agraph (float[N, 7] x) => (float[N, 3] y) <float[3, 7] w> { y = Gemm <transB = 1> (x, w) }": 21,
    "agraph (float[N, 4, 5, 6] x) => (float y) { t = Transpose <perm = [0, 1, 3, 2]> (x) "
    " y = MatMul (x, t) }": 4 * 5 * 5 * 6,
    "agraph (float[N, 5, 6] x) => (float y) <float[6, 7] w> "
    '{ y = Einsum <equation = "n i j, j k -> n i k"> (x, w) }': 5 * 6 * 7,
    "agraph (float[N, 5] x) => (float y) { z = Add (x, x)  y = Relu (z) }": 0,
    "agraph (float[4, 7] x) => (float[4, 3] y) <float[3, 7] w> { y = Gemm <transB = 1> (x, w) }": 21,
    "agraph (uint8[N, 2, 6, 6] x, float s, uint8 z, int8[5, 2, 3, 3] q, float t, int8 o, float r, uint8 p) => "
    "(uint8[N, 5, 4, 4] y) { y = QLinearConv (x, s, z, q, t, o, r, p) }": 5 * 16 * 18,
}


@pytest.mark.parametrize(("text", "expected"), GRAPHS.items())
def test_multiplications_of_a_graph_in_closed_form(text: str, expected: int) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]>\n'
    names = [one for one in ("w",) if " w>" in text]
    model = onnx.parser.parse_model(head + text)
    for value in [one for one in model.graph.value_info if one.name in names]:
        shape = [one.dim_value for one in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), value.name))
    assert cost.graph_macs(model.SerializeToString()) == expected


def test_sizes_that_the_graph_leaves_free_are_those_of_the_image() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> agraph (float[N, 3, h, w] x, float[8, 3, 1, 1] k) => (float y) ' \
           "{ y = Conv (x, k) }"
    assert cost.graph_macs(onnx.parser.parse_model(text).SerializeToString(), ("N", 3, 5, 4)) == 8 * 20 * 3


def test_work_that_nobody_knows_is_not_left_out_silently() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> ' \
           "agraph (float[N, 3, 5, 5] x, float[8, 3, 1, 1] k) => (float y) { y = com.microsoft.FusedConv (x, k) }"
    with pytest.raises(EdgetlError, match=r"what '' \(com\.microsoft FusedConv\) multiplies is not known"):
        cost.graph_macs(onnx.parser.parse_model(text).SerializeToString())


def test_a_graph_whose_shapes_are_not_known_is_one_sentence() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> agraph (float[N, a] x, float[a, b] w) => (float y) ' \
           "{ y = MatMul (x, w) }"
    with pytest.raises(EdgetlError, match="multiplications of the graph cannot be counted"):
        cost.graph_macs(onnx.parser.parse_model(text).SerializeToString())
