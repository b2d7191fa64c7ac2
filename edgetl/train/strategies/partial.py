"""Only a part moves: what --freeze names stays bit for bit as it was, batch norm's statistics included.

Long et al., "Learning transferable features with deep adaptation networks", ICML 2015, arXiv:1502.02791, freeze the
first layers, which are general, and train the last ones, which are the task's; Lee et al., "Surgical fine-tuning
improves adaptation to distribution shifts", ICLR 2023, arXiv:2210.11466, show when other parts are the ones to move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.recipe import Finetune
from edgetl.train.freezing import frozen
from edgetl.train.moving import all_but
from edgetl.train.setting import Setting
from edgetl.train.starting import start as start
from edgetl.train.steps import trained


def require(options: Finetune) -> None:
    """Returns when it is said what stays.

    Raises:
        EdgetlError: there is no --freeze.
    """
    if not options.freeze:
        raise EdgetlError(
            "--strategy partial needs --freeze, which names what stays as it is.",
            hint="For example --freeze stages:2 for the first two stages, or --freeze 'blocks.0,blocks.1'.",
        )


def fit(options: Finetune, place: Setting, network: Network) -> Mapping[str, Any]:
    """Moves what --freeze does not hold.

    Raises:
        EdgetlError: --freeze matches nothing, or everything.
    """
    return trained(place, network, all_but(network.module, frozen(network, options.freeze)))
