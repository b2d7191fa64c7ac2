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

from edgetl.compress.cost import Costs, image_macs
from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.weights import parameter_count

TOLERANCE = 0.01  # how far the kept share may lie below the one asked for, relative
LOOSE = 0.05  # the same where whole residual streams leave at once, so that nothing nearer exists
BISECTIONS = 14
MOST_OF_A_LAYER = 0.75  # greatest share of a layer's channels that a ranking over all layers may remove
# What torch-pruning raises where it loses its way through an architecture.
LOST = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
OTHERWISE = "Take a smaller variant of the family as the student, e.g. with --inherit teacher."
TAYLOR, MAGNITUDE, BN_SCALE = "taylor", "magnitude", "bn-scale"


@dataclass(frozen=True)
class Slimmed:
    """A pruned copy of a network."""

    network: Network
    kept: float  # share of what shrinks: by default of the parameters, head included
    channel_ratio: float  # share of the channels that torch-pruning was asked to remove


@dataclass(frozen=True)
class Size:
    """What of a network shall shrink."""

    what: str  # in words: "parameters"
    share: Callable[[Network], float]  # what a cut network has of it, as a share of what the first one had
    tolerance: float = TOLERANCE  # how far the share may lie below the one asked for, relative
    loose: float = LOOSE  # the same where nothing nearer was found
    trials: int = BISECTIONS  # with each multiple of channels
    finer: bool = True  # whether smaller multiples of channels are tried too


def parameters_of(network: Network) -> Size:
    """The size that `slim` cuts by default: parameters, head included, as a share of this network's."""
    total = parameter_count(network.module)
    return Size("parameters", lambda cut: parameter_count(cut.module) / total)


def macs_of(network: Network) -> Size:
    """Multiply-accumulates of convolutions and linear layers at the network's own image size, as a share of its."""
    size = network.preprocess.size_hw, network.preprocess.channels
    total = image_macs(network.module, *size)
    return Size("multiplications", lambda cut: image_macs(cut.module, *size) / total)


# Hears of each trial of the search, from 1.
Tried = Callable[[int], None]
# Accumulates gradients for importances that need them: called with the copy that will be pruned.
Gradients = Callable[[nn.Module], None]


def slim(
    network: Network,
    ratio: float,
    *,
    importance: str = MAGNITUDE,
    round_to: int = 8,
    gradients: Gradients | None = None,
    cost: str = "params",
    size: Size | None = None,
    tried: Tried = lambda trials: None,
) -> Slimmed:
    """A copy of the network that keeps the fraction `ratio` of its parameters, head included, and no more.

    The channel ratio that gives that fraction is found by bisection, because removing a share s of the channels of
    two neighbouring layers removes about 1 - (1 - s)^2 of the weights between them. Channel counts are multiples of
    `round_to` for the kernels' sake; where that is too coarse to come within 1 % below the ratio, multiples of 4, 2
    and 1 follow, and at last the nearest within 5 % below is taken.

    Args:
        network: stays as it is.
        ratio: share to keep, in (0, 1).
        importance: "taylor" ranks the channels of all layers in one list, see `TaylorPerCost` (needs `gradients`);
            "magnitude" removes the same share of each layer, those of the least L2 norm over the coupled weights;
            "bn-scale" ranks all in one list by their batch norms' scale (Network Slimming: Liu et al., ICCV 2017,
            arXiv:1708.06519): the mean |gamma| over the batch norms that the channel passes.
        round_to: channel counts become multiples of this.
        gradients: leaves the gradients of a loss in the parameters of the module it is given.
        cost: what "taylor" sets the effect of a channel against: "params", "macs" or "params+macs" (both as shares of
            the whole), see `Costs`. Early layers have few parameters and most multiplications: with their
            multiplications counted they are thinned too. What is kept is the share `ratio` anyhow.
        size: what the ratio is a share of; None: this network's parameters.
        tried: hears of the search's progress.

    Raises:
        EdgetlError: the ratio is not in (0, 1), the network has no batch norm to rank by, or the architecture cannot
            be cut at all, or not so far.
    """
    if not 0 < ratio < 1:
        raise EdgetlError(f"slim:{ratio:g} keeps no proper part of the teacher; expected a number between 0 and 1.")
    size = size or parameters_of(network)
    require_cuttable(network)
    ranking = measured_ranking(network, importance, gradients, cost)
    nearest: Slimmed | None = None
    trials = itertools.count(1)
    finer = (one for one in (4, 2, 1) if one < round_to and size.finer)
    for multiple in dict.fromkeys([round_to, *finer]):
        for found in _bisect(network, ratio, ranking, multiple, size):
            tried(next(trials))
            if 0 <= ratio - found.kept <= size.tolerance * ratio:
                return found
            if nearest is None or _misses(found, ratio) < _misses(nearest, ratio):
                nearest = found
    assert nearest is not None
    if 0 <= ratio - nearest.kept <= size.loose * ratio:
        return nearest
    raise EdgetlError(
        f"{network.model} cannot be cut to {100 * ratio:g} % of its {size.what}: the nearest possible is "
        f"{100 * nearest.kept:.3g} %.",
        hint=f"Use slim:{above(nearest.kept)} or another architecture.",
    )


def require_cuttable(network: Network) -> None:
    """Returns when whole channels can leave: every weight belongs to a convolution, a linear layer or a batch norm.

    Other weights (layer norms, position embeddings and tables, class tokens, scales of a block) are as wide as the
    channels too, but neither torch-pruning nor the safetensors of a RUN say how they shrink with them.

    Raises:
        EdgetlError: there are others, names one; or it is several networks, whose channels torch-pruning mixes up.
    """
    if network.model.startswith("joined/"):
        raise EdgetlError(
            f"{network.model} is several networks side by side, of which no part is cut.",
            hint="Give a FAMILY/VARIANT as --student, which learns from all of them.",
        )
    for name, layer in network.module.named_modules():
        own = [key for key, _ in layer.named_parameters(recurse=False)]
        if own and not isinstance(layer, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm):
            where = f"{name}.{own[0]}" if name else own[0]
            raise EdgetlError(
                f"{network.model} cannot be cut: '{where}' belongs to a layer of the kind {type(layer).__name__}, and "
                "only convolutions, linear layers and batch norms can lose channels.",
                hint=OTHERWISE,
            )


def above(kept: float) -> str:
    """The least share with three decimals, or more where they say nothing, that is not below `kept`: 0.178, 0.00043."""
    digits = max(3, 1 - math.floor(math.log10(kept)))
    return f"{math.ceil(kept * 10**digits) / 10**digits:.{digits}f}".rstrip("0")


def _misses(found: Slimmed, ratio: float) -> tuple[bool, float]:
    """How far from the ratio, what keeps too much after what keeps too little."""
    return found.kept > ratio, abs(found.kept - ratio)


def _bisect(network: Network, ratio: float, ranking: Ranking, multiple: int, size: Size) -> Iterable[Slimmed]:
    low, high = 0.0, 1.0
    for _ in range(size.trials):
        middle = (low + high) / 2
        module = pruned(network, middle, ranking, multiple)
        cut = Network(network.model, module, network.head, network.preprocess, network.weights)
        kept = size.share(cut)
        yield Slimmed(cut, kept, middle)
        low, high = (middle, high) if kept > ratio else (low, middle)


@dataclass(frozen=True)
class Ranking:
    """What channels are ranked by, measured once for all trials."""

    importance: str
    gradient: Mapping[str, torch.Tensor]  # by parameter name; empty where nothing asks for them
    costs: Costs | None  # where channels are ranked by their effect over their cost

    @property
    def everywhere(self) -> bool:
        """Whether the channels of all layers stand in one list; else every layer loses the same share."""
        return self.importance != MAGNITUDE

    def scorer(self, module: nn.Module) -> Any:
        """What torch-pruning calls for the scores of a group of coupled channels."""
        import torch_pruning as tp  # here: students that are not cut out of their teacher do without

        if self.costs is not None:
            return TaylorPerCost(self.costs, module)
        if self.importance == BN_SCALE:  # not normalised within layers: the scales are compared between them
            return tp.importance.BNScaleImportance(normalizer=None)
        return tp.importance.GroupMagnitudeImportance(p=2)


def measured_ranking(network: Network, importance: str, gradients: Gradients | None, cost: str) -> Ranking:
    """What `slim` ranks the channels of a network by.

    Raises:
        EdgetlError: the importance is "bn-scale", and the network has no batch norm with a scale.
    """
    if importance == BN_SCALE:
        require_batch_norm(network)
    if importance != TAYLOR:
        return Ranking(importance, {}, None)
    if gradients is None:
        raise ValueError("importance 'taylor' needs gradients")
    module = copy.deepcopy(network.module).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    gradients(module)
    gradient = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    wants = network.preprocess
    return Ranking(importance, gradient, Costs.of(network.module, wants.size_hw, cost, wants.channels))


def require_batch_norm(network: Network) -> None:
    """Returns when there are scales of batch norms to rank channels by.

    Raises:
        EdgetlError: there are none.
    """
    norms = (layer for layer in network.module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
    if not any(layer.affine for layer in norms):
        raise EdgetlError(
            f"--importance bn-scale ranks channels by the scales of batch norms, and {network.model} has none.",
            hint="Use --importance taylor or magnitude.",
        )


def pruned(network: Network, channel_ratio: float, ranking: Ranking, multiple: int) -> nn.Module:
    """A copy without the least important `channel_ratio` of the channels; the head's outputs stay."""
    import torch_pruning as tp

    module = copy.deepcopy(network.module).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    for name, parameter in module.named_parameters():
        parameter.grad = ranking.gradient[name].clone() if name in ranking.gradient else None
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer.weight, nn.Parameter):
            layer.weight.grad = torch.zeros_like(layer.weight)  # what is fixed has no effect of its own to rank by
    _pruner(tp, network, module, channel_ratio, ranking, multiple).step()
    module.zero_grad(set_to_none=True)
    return module


def _pruner(tp: Any, network: Network, module: nn.Module, channel_ratio: float, ranking: Ranking, multiple: int) -> Any:
    """torch-pruning's pruner of a copy of the network.

    Raises:
        EdgetlError: it cannot follow the channels (ShuffleNet's, which are dealt out like cards).
    """
    try:
        return tp.pruner.BasePruner(
            module,
            torch.zeros(1, *network.preprocess.input_shape),
            forward_fn=lambda copied, images: copied(images),  # torch-pruning's own way swallows Ctrl-C
            importance=ranking.scorer(module),
            global_pruning=ranking.everywhere,
            pruning_ratio=channel_ratio,
            max_pruning_ratio=MOST_OF_A_LAYER if ranking.everywhere else 1.0,
            round_to=multiple,
            ignored_layers=[module.get_submodule(network.head)],
        )
    except LOST as problem:
        raise EdgetlError(
            f"{network.model} cannot be cut: torch-pruning cannot follow its channels ({type(problem).__name__}: "
            f"{problem}).", hint=OTHERWISE,
        ) from problem  # fmt: skip


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
