"""The backbone stays as it is; a linear head is fitted on its features, which are computed once.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016, arXiv:1610.01644; fitted as
by Kornblith et al., CVPR 2019, arXiv:1805.08974, see `edgetl.train.probe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetl.models import Network
from edgetl.recipe import Finetune
from edgetl.train import probe, stages
from edgetl.train.setting import Setting
from edgetl.train.starting import start as start
from edgetl.train.steps import described


def fit(options: Finetune, place: Setting, network: Network) -> Mapping[str, Any]:
    """Fits the head alone.

    Raises:
        EdgetlError: the head is no linear layer with a bias.
    """
    probe.probe(place, network)
    return described(place, network, stages.of_head(network))
