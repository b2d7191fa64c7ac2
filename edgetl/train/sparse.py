"""Training with 2:4 sparsity: what is zero at the beginning stays zero, through every step of the optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgetl.compress import sparsity
from edgetl.models import Network

if TYPE_CHECKING:
    from edgetl.train.setting import Setting

NONE = "none"


class Held:
    """Weights that stay zero.

    Their gradients are dropped before these are clipped, so that they take no part in the norm; AdamW then leaves a
    zero where it is. After each step the weights are masked all the same: no optimizer may bring them back.
    """

    def __init__(self, masks: Mapping[nn.Parameter, torch.Tensor]) -> None:
        self._parameters: list[torch.Tensor] = list(masks)
        # As the weights lie in memory, and in their type: one kernel multiplies all of them.
        self._masks = [torch.empty_like(one, requires_grad=False).copy_(mask) for one, mask in masks.items()]

    def drop_gradients(self) -> None:
        """Forgets what would move them; called before gradients are clipped."""
        pairs = [(one.grad, mask) for one, mask in zip(self._parameters, self._masks, strict=True)
                 if one.grad is not None]  # fmt: skip
        if pairs:
            torch._foreach_mul_([gradient for gradient, _ in pairs], [mask for _, mask in pairs])

    @torch.no_grad()
    def after_step(self, *_: object) -> None:
        """Sets them to zero; a hook of the optimizer."""
        torch._foreach_mul_(self._parameters, self._masks)


def settled(setting: Setting, network: Network) -> Held | None:
    """Makes a network sparse whose training is about to begin, as the options ask; None where they do not.

    The same network gets the same masks, so that a resumed training has those that it began with.

    Raises:
        EdgetlError: none of its layers can be sparse.
    """
    setting.told.pop("sparsity", None)  # of a training before this one
    if getattr(setting.options, "sparsity", NONE) == NONE:
        return None
    masks = sparsity.masks_of(network)
    sparsity.apply(network, masks)
    setting.told["sparsity"] = found = sparsity.described(network, masks)
    reasons = Counter(masks.left_out.values())
    others = "".join(f"; {count} left out: {why}" for why, count in reasons.most_common())
    setting.note(
        f"{sparsity.PATTERN} sparsity in {found['layers']} layers with {found['macs_share']:.0%} of the "
        f"multiplications{others}"
    )
    return Held({network.module.get_parameter(name): mask for name, mask in masks.kept.items()})
