"""How a training is led from step to step, beyond its numbers: who moves how fast, and what holds the weights back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from edgetl.models import Network
from edgetl.recipe_fields import TrainFields
from edgetl.train import layer_decay, optim
from edgetl.train.anchor import Anchor
from edgetl.train.sparse import Held


@dataclass(frozen=True)
class Course:
    """What decides a step of the optimizer besides the options."""

    scales: Mapping[nn.Parameter, float] = field(default_factory=dict)  # of the learning rate; 1 where there is none
    anchor: Anchor | None = None
    sparse: Held | None = None  # weights that stay zero

    @classmethod
    def of(cls, network: Network, options: TrainFields, sparse: Held | None = None) -> Course:
        """What the options ask for, of a network whose training has not begun.

        Args:
            network: whose training.
            options: the recipe.
            sparse: its weights that stay zero.

        Raises:
            EdgetlError: something pulls towards pretrained weights, and there are none.
        """
        scales: dict[nn.Parameter, float] = {}
        if options.layer_decay < 1:
            by_name = layer_decay.scales(network, options.layer_decay)
            scales = {one: by_name[name] for name, one in network.module.named_parameters()}
        strength = getattr(options, "l2_sp", 0.0)
        return cls(scales, Anchor.of(network, strength) if strength > 0 else None, sparse)

    def row(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """What each line of metrics.jsonl says besides."""
        held = {"l2_sp": self.anchor.penalty()} if self.anchor is not None else {}
        return {**optim.slowest(optimizer), **held}

    @property
    def digest(self) -> str | None:
        """Of what a resumed training must find again; None where nothing holds the weights."""
        return self.anchor.digest if self.anchor is not None else None

    def require(self, digest: str | None) -> None:
        """Returns when the training that is resumed was held by the same weights.

        Raises:
            TrainingError: it was not.
        """
        if self.anchor is not None:
            self.anchor.require(digest)

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]], options: TrainFields) -> torch.optim.Optimizer:
        """The optimizer of named parameters."""
        held = self.anchor.held if self.anchor is not None else {}
        optimizer = optim.build_optimizer(parameters, options, self.scales, held)
        if self.sparse is not None:
            optimizer.register_step_post_hook(self.sparse.after_step)
        return optimizer

    def begin_step(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Sets the learning rates of a step, and takes the anchor's part of it; the gradients are there."""
        optim.set_rate(optimizer, rate)
        if self.sparse is not None:
            self.sparse.drop_gradients()
        if self.anchor is not None:
            self.anchor.pull(optimizer)
