"""The head first, then one stage after the other from the head down to the input, until all weights move.

Howard and Ruder, "Universal language model fine-tuning for text classification" (ULMFiT), ACL 2018, arXiv:1801.06146,
section 3.3: what is nearest to the old task is set free first, so that a new head does not spoil what lies below it.
The epochs are divided evenly: of S groups, the head being the first, group g begins to move with epoch floor(g E / S).
The learning rate follows one schedule throughout, and the optimizer keeps what it knows of what moves already.
Early stopping (--patience) counts from the epoch on in which the last stage is set free.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edgetl.models import Network
from edgetl.recipe import Finetune
from edgetl.train.freezing import frozen
from edgetl.train.moving import Moves
from edgetl.train.setting import Setting
from edgetl.train.stages import Stage, of_head, stages
from edgetl.train.starting import start as start
from edgetl.train.steps import trained


def fit(options: Finetune, place: Setting, network: Network) -> Mapping[str, Any]:
    """Moves the head, and sets the stages free that --freeze does not hold.

    Raises:
        EdgetlError: --freeze matches nothing, or everything.
    """
    found = groups(network, frozen(network, options.freeze))
    begins = [begin_of(place, len(found), options.epochs) for place in range(len(found))]
    unfrozen = [{"stage": one.name, "epoch": first + 1} for one, first in zip(found, begins, strict=True)]
    place.note("set free: " + "; ".join(f"{one['stage']} from epoch {one['epoch']}" for one in unfrozen))
    moves = Moves({name: first for one, first in zip(found, begins, strict=True) for name in one.parameters})
    return {**trained(place, network, moves), "unfrozen": unfrozen}


def groups(network: Network, held: Collection[str]) -> Sequence[Stage]:
    """The head, and the stages from the last to the first, without what is held for good."""
    head = Stage(network.head, tuple(name for name, _ in network.module.named_parameters() if name in of_head(network)))
    free = (Stage(one.name, tuple(name for name in one.parameters if name not in held))
            for one in reversed(stages(network)))  # fmt: skip
    return [one for one in (head, *free) if one.parameters]


def begin_of(group: int, groups: int, epochs: int) -> int:
    """The epoch, from 0, with which a group begins to move."""
    return group * epochs // groups
