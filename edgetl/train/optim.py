"""The optimizer, its learning rate as a pure function of the step, and the averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from edgetl.recipe_fields import TrainFields


def build_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], options: TrainFields) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) without weight decay on norms and biases."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for _, parameter in parameters:
        (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=options.lr)


def lr_at(step: int, *, total: int, warmup: int, peak: float) -> float:
    """Learning rate of a step counted from 0: linear warm-up, then a cosine to 0 (arXiv:1608.03983).

    Args:
        step: steps taken so far.
        total: steps of the whole training.
        warmup: steps of the warm-up.
        peak: the greatest rate.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


class AveragedWeights:
    """Exponential moving average of a module's state, batch-norm statistics included.

    The decay grows from 0 with the steps, min(decay, (1 + t) / (10 + t)), so that the first average is not the
    starting weights; t starts again when a checkpoint says so.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.steps = module, decay, 0
        self.values = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def update(self) -> None:
        """Moves the average towards the module's present state."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        floats = [
            (self.values[name], tensor.detach())
            for name, tensor in self.module.state_dict().items()
            if tensor.is_floating_point()
        ]
        torch._foreach_lerp_([mine for mine, _ in floats], [theirs for _, theirs in floats], weight)
        for name, tensor in self.module.state_dict().items():
            if not tensor.is_floating_point():  # batch norm counts its batches in integers
                self.values[name].copy_(tensor)


def swapped(module: nn.Module, values: dict[str, torch.Tensor]) -> Iterator[None]:
    """Generator for `contextlib.contextmanager`: the module with other weights for the length of a block."""
    own = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(values)
    try:
        yield
    finally:
        module.load_state_dict(own)
