"""WiSE-FT: weights between the pretrained and the fine-tuned ones (Wortsman et al., CVPR 2022, arXiv:2109.01903).

    w(alpha) = (1 - alpha) * w_before + alpha * w_after,   alpha = 0, 0.1, ..., 1

The alpha that is best on validation is kept: of equals the one with the lower loss. 1 is the training's own result.

The paper begins with a head that is right for the classes before any training (from texts). Here, where the starting
weights have such a head, because a RUN or a file brought it or lp-ft fitted one, the head is interpolated with the
rest. A head that began at random is not: the fine-tuned one then serves every alpha, since half a random head is none.

Batch-norm statistics are averages over activations, and those of weights in between need not lie in between. So each
0 < alpha < 1 is tried with both: statistics between those of the ends, and statistics taken anew on training images, as
evaluation sees them (Izmailov et al., UAI 2018, arXiv:1803.05407, do so for averaged weights). The former go over into
the two ends, which a head that was fitted to the old statistics needs; the latter are right for the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.train import setting, store
from edgetl.train.objective import asked
from edgetl.train.progress import Score
from edgetl.train.stages import of_head

if TYPE_CHECKING:
    from edgetl.train.setting import Setting

ALPHAS = tuple(tenth / 10 for tenth in range(11))
BETWEEN, TAKEN = "between", "taken"
STATISTICS_IMAGES = 1024  # training images that batch norm looks at for each alpha

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Point:
    """One alpha, and how good its weights are on validation."""

    alpha: float
    statistics: str  # of batch norm: "between" those of the ends, or "taken" on training images
    score: Score

    def to_json(self) -> dict[str, Any]:
        """Plain values for the record."""
        accuracy, loss = self.score.accuracy, self.score.loss
        return {"alpha": self.alpha, "statistics": self.statistics, "val_accuracy": accuracy, "val_loss": loss}


def between(before: Weights, after: Weights, alpha: float, kept: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Weights and statistics at alpha; integers, and those named in `kept`, are the ones after."""
    return {
        name: after[name]
        if name in kept or alpha == 1 or not after[name].is_floating_point()
        else torch.lerp(before[name].to(after[name].device), after[name], alpha)
        for name in after
    }


def begun(place: Setting, network: Network, *, head_fitted: bool) -> Callable[[], dict[str, Any]]:
    """What brings the network to the best alpha when its training is over; without --wise-ft it does nothing.

    Args:
        place: the training.
        network: before training.
        head_fitted: whether a head was fitted to these classes already; one that came with the weights was.

    Raises:
        EdgetlError: the network starts without pretrained weights.
    """
    if not asked(place.options).wise_ft:
        return dict
    require_pretrained(network)
    knows = head_fitted or f"{network.head}.weight" in network.weights.matched
    before = _copied(network.module)
    return lambda: {"wise_ft": choose(place, network, before, head_fitted=knows)}


def choose(place: Setting, network: Network, before: Weights, *, head_fitted: bool) -> dict[str, Any]:
    """Brings the network to the weights at the best alpha, and returns what the record says of that.

    Args:
        place: the training, whose validation split decides.
        network: with the weights after training.
        before: its weights before training.
        head_fitted: whether the head before training knew these classes.
    """
    module, validate = network.module, setting.Validation(place, network)
    after = _copied(module)
    stale = learned_statistics(module, before, after)
    curve: list[Point] = []
    best, weights = Point(1.0, BETWEEN, validate(module.eval())), after
    for alpha in reversed(ALPHAS):  # so that of equals the one nearest to the training's own result is kept
        module.load_state_dict(between(before, after, alpha, () if head_fitted else tuple(of_head(network))))
        for statistics in (BETWEEN, TAKEN) if stale and 0 < alpha < 1 else (BETWEEN,):
            if statistics == TAKEN:
                take_statistics(place, network, stale)
            curve.append(Point(alpha, statistics, validate(module.eval())))
            if curve[-1].score.better_than(best.score):
                best, weights = curve[-1], _copied(module)
    module.load_state_dict(weights)
    place.note(f"WiSE-FT: alpha {best.alpha:g}, {place.scored(best.score)}")
    return {
        "alpha": best.alpha,
        "statistics": best.statistics,
        "statistics_images": min(STATISTICS_IMAGES, len(place.parts.train)) if stale else 0,
        "head": "interpolated" if head_fitted else "fine-tuned",
        "curve": [one.to_json() for one in reversed(curve)],
    }


def _copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def learned_statistics(module: nn.Module, before: Weights, after: Weights) -> list[_BatchNorm]:
    """The batch norms whose statistics moved in training; those of frozen parts stay as they are."""
    return [
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and not torch.equal(before[f"{name}.running_mean"], after[f"{name}.running_mean"])
    ]


def take_statistics(place: Setting, network: Network, layers: Sequence[_BatchNorm]) -> None:
    """Gives batch norms the mean statistics of training images, every batch counting alike."""
    momenta = [layer.momentum for layer in layers]
    items = spread(place.parts.train, STATISTICS_IMAGES)
    pixels = store.evaluation_pixels(place.data, items, place.parts.fingerprint, network.preprocess)
    network.module.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
        setting.answers(network.module, pixels, network.preprocess, place)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spread over them."""
    return [items[place * len(items) // most] for place in range(most)] if len(items) > most else list(items)


def require_pretrained(network: Network) -> None:
    """Returns when there is something to interpolate with.

    Raises:
        EdgetlError: the network starts without pretrained weights.
    """
    if network.weights.source == "scratch":
        raise EdgetlError(
            f"--wise-ft goes back towards pretrained weights, and {network.model} starts without any.",
            hint="Leave --wise-ft out, or give --weights FILE, --pretrained or a RUN as --teacher.",
        )
