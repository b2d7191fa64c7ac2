"""Structured pruning: whole channels leave, so that the smaller network is an ordinary one (with torch-pruning).

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetl.compress.cost import Costs
from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.weights import parameter_count

TOLERANCE = 0.01  # how far the kept share may lie below the one asked for, relative
LOOSE = 0.05  # the same where whole residual streams leave at once, so that nothing nearer exists
BISECTIONS = 14
MOST_OF_A_LAYER = 0.75  # greatest share of a layer's channels that a ranking over all layers may remove


@dataclass(frozen=True)
class Slimmed:
    """A pruned copy of a network."""

    network: Network
    kept: float  # share of the parameters, head included
    channel_ratio: float  # share of the channels that torch-pruning was asked to remove


# Hears of each trial of the search, from 1.
Tried = Callable[[int], None]
# Accumulates gradients for importances that need them: called with the copy that will be pruned.
Gradients = Callable[[nn.Module], None]


def slim(
    network: Network,
    ratio: float,
    *,
    importance: str = "magnitude",
    round_to: int = 8,
    gradients: Gradients | None = None,
    cost: str = "params",
    tried: Tried = lambda trials: None,
) -> Slimmed:
    """A copy of the network that keeps the fraction `ratio` of its parameters, head included, and no more.

    The channel ratio that gives that fraction is found by bisection, because removing a share s of the channels of
    two neighbouring layers removes about 1 - (1 - s)^2 of the weights between them. Channel counts are multiples of
    `round_to` for the kernels' sake; where that is too coarse to come within 1 % below the ratio, multiples of 4, 2
    and 1 follow, and at last the nearest within 5 % below is taken.

    Args:
        network: stays as it is.
        ratio: share of the parameters to keep, in (0, 1).
        importance: "taylor" ranks the channels of all layers in one list, see `TaylorPerCost` (needs `gradients`);
            "magnitude" removes the same share of each layer, those of the least L2 norm over the coupled weights.
        round_to: channel counts become multiples of this.
        gradients: leaves the gradients of a loss in the parameters of the module it is given.
        cost: what "taylor" sets the effect of a channel against: "params", "macs" or "params+macs" (both as shares of
            the whole), see `Costs`. Early layers have few parameters and most multiplications: with their
            multiplications counted they are thinned too. What is kept is the share `ratio` of the parameters anyhow.
        tried: hears of the search's progress.

    Raises:
        EdgetlError: the ratio is not in (0, 1), or the architecture cannot be cut so far.
    """
    if not 0 < ratio < 1:
        raise EdgetlError(f"slim:{ratio:g} keeps no proper part of the teacher; expected a number between 0 and 1.")
    total = parameter_count(network.module)
    ranking = measured_ranking(network, importance, gradients, cost)
    nearest: Slimmed | None = None
    trials = itertools.count(1)
    for multiple in dict.fromkeys([round_to, *(one for one in (4, 2, 1) if one < round_to)]):
        for found in _bisect(network, ratio, ranking, multiple, total):
            tried(next(trials))
            if 0 <= ratio - found.kept <= TOLERANCE * ratio:
                return found
            if nearest is None or _misses(found, ratio) < _misses(nearest, ratio):
                nearest = found
    assert nearest is not None
    if 0 <= ratio - nearest.kept <= LOOSE * ratio:
        return nearest
    raise EdgetlError(
        f"{network.model} cannot be cut to {100 * ratio:g} % of its parameters: the nearest possible is "
        f"{100 * nearest.kept:.3g} %.",
        hint=f"Use slim:{above(nearest.kept)} or another architecture.",
    )


def above(kept: float) -> str:
    """The least share with three decimals, or more where they say nothing, that is not below `kept`: 0.178, 0.00043."""
    digits = max(3, 1 - math.floor(math.log10(kept)))
    return f"{math.ceil(kept * 10**digits) / 10**digits:.{digits}f}".rstrip("0")


def _misses(found: Slimmed, ratio: float) -> tuple[bool, float]:
    """How far from the ratio, what keeps too much after what keeps too little."""
    return found.kept > ratio, abs(found.kept - ratio)


def _bisect(network: Network, ratio: float, ranking: Ranking, multiple: int, total: int) -> Iterable[Slimmed]:
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        module = pruned(network, middle, ranking, multiple)
        kept = parameter_count(module) / total
        yield Slimmed(Network(network.model, module, network.head, network.preprocess, network.weights), kept, middle)
        low, high = (middle, high) if kept > ratio else (low, middle)


@dataclass(frozen=True)
class Ranking:
    """What channels are ranked by, measured once for all trials."""

    gradient: Mapping[str, torch.Tensor]  # by parameter name
    costs: Costs | None  # None: by magnitude, the same share of every layer


def measured_ranking(network: Network, importance: str, gradients: Gradients | None, cost: str) -> Ranking:
    """What `slim` ranks the channels of a network by."""
    if importance != "taylor":
        return Ranking({}, None)
    if gradients is None:
        raise ValueError("importance 'taylor' needs gradients")
    module = copy.deepcopy(network.module).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    gradients(module)
    gradient = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return Ranking(gradient, Costs.of(network.module, network.preprocess.size_hw, cost))


def pruned(network: Network, channel_ratio: float, ranking: Ranking, multiple: int) -> nn.Module:
    """A copy without the least important `channel_ratio` of the channels; the head's outputs stay."""
    import torch_pruning as tp  # here: students that are not cut out of their teacher do without

    module = copy.deepcopy(network.module).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    for name, parameter in module.named_parameters():
        parameter.grad = ranking.gradient[name].clone() if name in ranking.gradient else None
    height, width = network.preprocess.size_hw
    everywhere = ranking.costs is not None
    pruner = tp.pruner.BasePruner(
        module,
        torch.zeros(1, 3, height, width),
        forward_fn=lambda copied, images: copied(images),  # torch-pruning's own way swallows Ctrl-C
        importance=TaylorPerCost(ranking.costs, module)
        if ranking.costs is not None
        else tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=everywhere,
        pruning_ratio=channel_ratio,
        max_pruning_ratio=MOST_OF_A_LAYER if everywhere else 1.0,
        round_to=multiple,
        ignored_layers=[module.get_submodule(network.head)],
    )
    pruner.step()
    module.zero_grad(set_to_none=True)
    return module


class TaylorPerCost:
    """Importance of a channel for torch-pruning: its first-order effect on the loss, over the root of what it costs.

        I_c = mean over the coupled layers of sum over their weights w of channel c of |w * dL/dw|  /  sqrt(cost of c)

    The numerator (Molchanov et al., CVPR 2019) can be compared between layers when it is not normalised within them,
    so channels of the whole network are ranked in one list. Alone it empties the narrow late layers first, although
    most parameters lie in the wide ones; divided by the full cost it spares the early layers and ruins the late ones.
    The root lies between: `benchmarks/slim_importance.py` compares them. The cost sums what every coupled layer loses.
    """

    power = 0.5

    def __init__(self, costs: Costs, module: nn.Module) -> None:
        import torch_pruning as tp

        self.effect = tp.importance.GroupTaylorImportance(normalizer=None)
        self.costs, self.prices = costs, costs.of_layers(module)

    def __call__(self, group: Any) -> torch.Tensor | None:
        """Scores [C] of one group of coupled channels; None where torch-pruning has none."""
        effect: torch.Tensor | None = self.effect(group)
        return None if effect is None else effect / self.cost(group) ** self.power

    def cost(self, group: Any) -> float:
        """What leaves the network with one channel of a group."""
        return sum(self.costs.of_channel(step, self.prices) for step, _ in group)
