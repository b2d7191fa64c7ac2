"""A linear head first, as `probe` fits it, and then all weights: a fitted head keeps the first gradients from
distorting the features.

Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022,
arXiv:2202.10054.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetl.models import Network
from edgetl.recipe import Finetune
from edgetl.train import probe
from edgetl.train.freezing import frozen
from edgetl.train.moving import all_but
from edgetl.train.setting import Setting
from edgetl.train.starting import start as start
from edgetl.train.steps import trained


def fit(options: Finetune, place: Setting, network: Network) -> Mapping[str, Any]:
    """Fits the head, then moves everything that --freeze does not hold.

    Raises:
        EdgetlError: the head is no linear layer with a bias, or --freeze matches nothing.
    """
    moves = all_but(network.module, frozen(network, options.freeze)) if options.freeze else None
    probe.probe(place, network)
    return trained(place, network, moves, head_fitted=True)
