"""The optimizer, and the averaged weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import nn

from edgetl.recipe_fields import TrainFields


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    options: TrainFields,
    scales: Mapping[nn.Parameter, float] = MappingProxyType({}),
    held: Collection[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) without weight decay on norms and biases.

    Args:
        parameters: by name.
        options: the recipe.
        scales: what a parameter's learning rate is multiplied with; 1 where it is not named.
        held: parameters that something else than weight decay holds back.
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for _, parameter in parameters:
        decay = options.weight_decay if parameter.ndim > 1 and parameter not in held else 0.0
        members.setdefault((scales.get(parameter, 1.0), decay), []).append(parameter)
    keys = sorted(members, reverse=True)  # the fastest first, and of these what decays
    groups = [{"params": members[key], "lr_scale": key[0], "weight_decay": key[1]} for key in keys]
    # On a CPU one kernel for all tensors: a step of each by itself takes a light network 3 % of its time.
    fused = all(one.device.type == "cpu" for of_group in members.values() for one in of_group) or None
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)  # the loop sets the rate of every step


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives each group of parameters its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def slowest(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What a line of metrics.jsonl says of the group with the smallest rate; nothing where all move alike."""
    rates = [group["lr"] for group in optimizer.param_groups]
    return {"lr_least": min(rates)} if min(rates) < max(rates) else {}


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
