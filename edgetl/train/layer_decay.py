"""Discriminative learning rates: the deeper below the head a layer lies, the slower it moves.

    rate of a layer = rate * decay^depth

The head has depth 0, the last block of the backbone 1, the stem the greatest. Howard and Ruder, ACL 2018
(arXiv:1801.06146) divide by 2.6 a layer; with transformers 0.65 to 0.8 a block is usual (Clark et al., ICLR 2020,
arXiv:2003.10555; Bao et al., ICLR 2022, arXiv:2106.08254).
"""

from __future__ import annotations

from edgetl.models import Network
from edgetl.train.stages import blocks


def depths(network: Network) -> dict[str, int]:
    """By name of each parameter, how many blocks lie between it and the output; the head's have 0."""
    found = blocks(network)
    body = {name: len(found) - place for place, block in enumerate(found) for name in block.parameters}
    return {name: body.get(name, 0) for name, _ in network.module.named_parameters()}


def scales(network: Network, decay: float) -> dict[str, float]:
    """By name, what each parameter's learning rate is multiplied with.

    Args:
        network: whose parameters.
        decay: of the rate from a block to the one before, above 0 and up to 1.
    """
    return {name: decay**depth for name, depth in depths(network).items()}
