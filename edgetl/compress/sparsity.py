"""2:4 sparsity: of every four weights that are added up next to one another, at least two are zero.

NVIDIA's tensor cores from Ampere on multiply such weights at up to twice the rate. After Mishra et al., "Accelerating
sparse deep neural networks", 2021, arXiv:2104.08378: a trained network loses the two weights of least magnitude in each
four along the input channels, and is trained once more with those that are left. The authors' tool (ASP) may also
permute channels before, so that less magnitude is lost (Pool and Yu, NeurIPS 2021); that is not done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from edgetl.compress.cost import output_pixels
from edgetl.errors import EdgetlError
from edgetl.models import Network

PATTERN = "2:4"
GROUP, KEPT = 4, 2
INSIDE = "torch's own attention, whose first projections are no layers (its last one is)"
STANDARDIZED = "StdConv"  # in the class names of timm's convolutions that standardise their weights as they run


@dataclass(frozen=True)
class Masks:
    """Which weights stay, and which layers stay as they are."""

    kept: Mapping[str, torch.Tensor]  # by name of the weight: bool, of its shape
    left_out: Mapping[str, str]  # by name of the layer: why


def mask_of(weight: torch.Tensor) -> torch.Tensor:
    """True for the two weights of greatest magnitude in each four along the inputs, of equals the first.

    Args:
        weight: [O, I, ...] with I a multiple of 4.
    """
    last = weight.detach().abs().movedim(1, -1)  # [O, ..., I]
    fours = last.reshape(-1, GROUP)
    best = fours.argsort(dim=1, descending=True, stable=True)[:, :KEPT]
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, best, True)
    return mask.reshape(last.shape).movedim(-1, 1)


def follows(weight: torch.Tensor) -> bool:
    """Whether of each four weights [O, I, ...] along the inputs at most two are not zero."""
    if weight.shape[1] % GROUP:
        return False
    return bool(((weight.detach().movedim(1, -1).reshape(-1, GROUP) != 0).sum(1) <= KEPT).all())


def masks_of(network: Network) -> Masks:
    """What 2:4 sparsity leaves of a network, by the magnitude of its weights.

    Raises:
        EdgetlError: none of its layers can be sparse.
    """
    kept, left_out = {}, {}
    for name, layer in network.module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            left_out[name] = INSIDE
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        reason = objection(layer) if name != network.head else "the head, which tells the classes apart"
        if reason is None:
            kept[f"{name}.weight"] = mask_of(layer.weight)
        else:
            left_out[name] = reason
    if not kept:
        raise EdgetlError(
            f"No layer of {network.model} can have {PATTERN} sparsity: "
            f"{'; '.join(f'{name} is {why}' for name, why in list(left_out.items())[:3])}.",
            hint="Cut whole channels instead: --params, --macs or --latency.",
        )
    return Masks(kept, left_out)


def objection(layer: nn.Conv2d | nn.Linear) -> str | None:
    """Why a layer cannot be sparse, as what it is; None where it can."""
    inputs = layer.weight.shape[1]
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:  # maintainers in NVIDIA/TensorRT issue 4054
        return "a grouped convolution, for which TensorRT has no sparse kernels"
    if inputs % GROUP:
        return f"a layer of {inputs} inputs, no multiple of {GROUP}"
    if STANDARDIZED in type(layer).__name__:
        return "a convolution that standardises its weights as it runs, so that zeros do not stay zero"
    if not isinstance(layer.weight, nn.Parameter):
        return "a layer whose weights are fixed"
    return None


def apply(network: Network, masks: Masks) -> None:
    """Sets the weights that do not stay to zero, in place."""
    with torch.no_grad():
        for name, mask in masks.kept.items():
            network.module.get_parameter(name).mul_(mask)


def described(network: Network, masks: Masks) -> dict[str, object]:
    """What run.json says of a sparse network: what is sparse, and what is not and why.

    Shares are of all parameters, and of all multiplications of an image in convolutions and linear layers.
    """
    total = sum(one.numel() for one in network.module.parameters())
    pixels = output_pixels(network.module, network.preprocess.size_hw, network.preprocess.channels)
    work = {name: pixels.get(name, 0) * layer.weight.numel() for name, layer in network.module.named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)}  # fmt: skip
    inside = [name.removesuffix(".weight") for name in masks.kept]
    return {
        "pattern": PATTERN,
        "layers": len(inside),
        "parameters_share": sum(one.numel() for one in masks.kept.values()) / total,
        "macs_share": sum(work[name] for name in inside) / max(1, sum(work.values())),
        "left_out": dict(masks.left_out),
    }
