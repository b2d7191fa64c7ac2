"""L2-SP: weight decay towards the pretrained weights, not towards zero (Li et al., ICML 2018, arXiv:1802.01483).

    penalty = A / 2 * |w - w0|^2     of all weights but the head's, norms and biases among them
    step:     w <- w - rate * A * (w - w0), then AdamW's own step

As AdamW does with weight decay (arXiv:1711.05101), and for its reason, the penalty's step is taken beside the adaptive
one: divided by the gradients' size, the pull would be weakest where the gradients are largest (Chen et al., EMNLP 2020,
arXiv:2004.12651, do the same). So A is on the scale of --weight-decay, whose place it takes in the backbone; the head,
which has no pretrained weights to stay near, keeps the weight decay towards zero, the paper's second penalty.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import nn

from edgetl import rundir
from edgetl.errors import EdgetlError, TrainingError
from edgetl.models import Network
from edgetl.train.stages import of_head


class Anchor:
    """The weights that a training is held near.

    Args:
        held: for each parameter, the weights it is pulled towards.
        strength: A.
    """

    def __init__(self, held: Mapping[nn.Parameter, torch.Tensor], strength: float) -> None:
        self.held, self.strength = dict(held), strength

    @classmethod
    def of(cls, network: Network, strength: float) -> Anchor:
        """An anchor of a network's backbone at the weights that it has now, before training.

        Parameters that its file of weights did not have are left out: they began at random.

        Raises:
            EdgetlError: the network has no pretrained weights.
        """
        report = network.weights
        if report.source == "scratch":
            raise EdgetlError(
                f"--l2-sp pulls towards pretrained weights, and {network.model} starts without any.",
                hint="Leave --l2-sp out, or give --weights FILE, --pretrained or a RUN as --teacher.",
            )
        fresh = {*of_head(network), *report.missing, *report.mismatched}
        held = {
            one: one.detach().clone()
            for name, one in network.module.named_parameters()
            if name not in fresh
        }
        return cls(held, strength)

    def pull(self, optimizer: torch.optim.Optimizer) -> None:
        """Brings the optimizer's parameters nearer, each by its own learning rate."""
        with torch.no_grad():
            for group in optimizer.param_groups:
                mine = [one for one in group["params"] if one in self.held]
                if mine:
                    share = min(1.0, group["lr"] * self.strength)
                    torch._foreach_lerp_(mine, [self.held[one] for one in mine], share)

    def penalty(self) -> float:
        """A / 2 * |w - w0|^2 as it is now."""
        squares = [float((one.detach() - self.held[one]).double().square().sum()) for one in self.held]
        return self.strength / 2 * sum(squares)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights that hold: those of a resumed training must be the same."""
        flat = (one.detach().cpu().contiguous().numpy().tobytes() for one in self.held.values())
        return rundir.sha256(b"".join(flat))

    def require(self, digest: str | None) -> None:
        """Returns when the weights have that digest.

        Raises:
            TrainingError: they have another one.
        """
        if digest != self.digest:
            raise TrainingError(
                "The pretrained weights are not those towards which the interrupted training was pulled (--l2-sp).",
                hint="Put back the weights that it started from, or give --overwrite to start again.",
            )
