"""All weights move from the first step on, from pretrained ones: what most call fine-tuning.

Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014, arXiv:1411.1792: features that
are carried over and then trained on generalise better than those that are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetl.models import Network
from edgetl.recipe import Finetune
from edgetl.train.setting import Setting
from edgetl.train.starting import start as start
from edgetl.train.steps import trained


def fit(options: Finetune, place: Setting, network: Network) -> Mapping[str, Any]:
    """Moves everything."""
    return trained(place, network)
