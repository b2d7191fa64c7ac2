"""Structured pruning: whole channels leave, so that the smaller network is an ordinary one (with torch-pruning).

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.weights import parameter_count

TOLERANCE = 0.01  # how near the kept share must come to the one asked for, relative
BISECTIONS = 14


@dataclass(frozen=True)
class Slimmed:
    """A pruned copy of a network."""

    network: Network
    kept: float  # share of the parameters, head included
    channel_ratio: float  # what torch-pruning was asked to remove


# Accumulates gradients for importances that need them: called with the copy that will be pruned.
Gradients = Callable[[nn.Module], None]


def slim(
    network: Network,
    ratio: float,
    *,
    importance: str = "magnitude",
    round_to: int = 8,
    gradients: Gradients | None = None,
) -> Slimmed:
    """A copy of the network that keeps the fraction `ratio` of its parameters, head included, within 1 %.

    The channel ratio that gives that fraction is found by bisection, because removing a share s of the channels of
    two neighbouring layers removes about 1 - (1 - s)^2 of the weights between them. Channel counts are multiples of
    `round_to` for the kernels' sake; where that is too coarse to come within 1 %, multiples of 4, 2 and 1 follow.

    Args:
        network: stays as it is.
        ratio: share of the parameters to keep, in (0, 1).
        importance: "magnitude" (L2 norm over the coupled weights of a channel) or "taylor" (|weight * gradient|,
            Molchanov et al., CVPR 2019, arXiv:1906.10771; needs `gradients`).
        round_to: channel counts become multiples of this.
        gradients: leaves the gradients of a loss in the parameters of the module it is given.

    Raises:
        EdgetlError: the ratio is not in (0, 1), or the architecture cannot be cut so far.
    """
    if not 0 < ratio < 1:
        raise EdgetlError(f"slim:{ratio:g} keeps no proper part of the teacher; expected a number between 0 and 1.")
    total = parameter_count(network.module)
    nearest: Slimmed | None = None
    for multiple in dict.fromkeys([round_to, *(one for one in (4, 2, 1) if one < round_to)]):
        for found in _bisect(network, ratio, importance, multiple, gradients, total):
            if nearest is None or abs(found.kept - ratio) < abs(nearest.kept - ratio):
                nearest = found
            if abs(found.kept - ratio) <= TOLERANCE * ratio:
                return found
    assert nearest is not None
    raise EdgetlError(
        f"{network.model} cannot be cut to {ratio:.0%} of its parameters: the nearest possible is {nearest.kept:.1%}.",
        hint=f"Use slim:{nearest.kept:.2f} or another architecture.",
    )


def _bisect(
    network: Network, ratio: float, importance: str, multiple: int, gradients: Gradients | None, total: int
) -> Iterable[Slimmed]:
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        module = pruned(network, middle, importance, multiple, gradients)
        kept = parameter_count(module) / total
        yield Slimmed(Network(network.model, module, network.head, network.preprocess, network.weights), kept, middle)
        low, high = (middle, high) if kept > ratio else (low, middle)


def pruned(
    network: Network, channel_ratio: float, importance: str, multiple: int, gradients: Gradients | None
) -> nn.Module:
    """A copy without the least important `channel_ratio` of each layer's channels; the head's outputs stay."""
    module = copy.deepcopy(network.module).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    if importance == "taylor":
        if gradients is None:
            raise ValueError("importance 'taylor' needs gradients")
        gradients(module)
    height, width = network.preprocess.size_hw
    sample = torch.zeros(1, 3, height, width)
    pruner = tp.pruner.BasePruner(
        module,
        sample,
        importance=score(importance),
        pruning_ratio=channel_ratio,
        round_to=multiple,
        ignored_layers=[module.get_submodule(network.head)],
    )
    pruner.step()
    module.zero_grad(set_to_none=True)
    return module


def score(importance: str) -> Any:
    """torch-pruning's importance by our name for it."""
    if importance == "taylor":
        return tp.importance.GroupTaylorImportance()
    return tp.importance.GroupMagnitudeImportance(p=2)
