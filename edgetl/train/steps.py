"""What strategies share: a training on the labels in which some parameters move, and what the record says of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgetl.models import Network
from edgetl.train import setting, wise
from edgetl.train.moving import Moves, counted
from edgetl.train.objective import terms as terms
from edgetl.train.setting import Setting
from edgetl.train.task import ClassifierTask


def trained(
    place: Setting, network: Network, moves: Moves | None = None, *, head_fitted: bool = False,
    task: ClassifierTask | None = None,
) -> Mapping[str, Any]:
    """Trains a network to its best validated weights, and returns what run.json says of what moved.

    Args:
        place: around it.
        network: what is trained.
        moves: which parameters move when; None: all, from the first step on.
        head_fitted: whether the head, which did not come with the weights, has learned these classes before.
        task: what is done in a step, if it is more than the losses of the recipe; knows of `moves` already.
    """
    task = task or ClassifierTask(network, terms(place), moves=moves, aim=place.aim)
    told = described(place, network, [name for name, one in network.module.named_parameters() if one.requires_grad])
    ended = wise.begun(place, network, head_fitted=head_fitted)
    setting.fit(place, task, network, place.folder, place.stage)
    return {**told, **ended()}


def described(place: Setting, network: Network, moved: Collection[str]) -> dict[str, Any]:
    """What run.json says of the parameters that move, by name; also told to the listener where some do not."""
    found = counted(network.module, moved)
    if found["parameters_frozen"]:
        names = found["frozen"]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        place.note(
            f"{found['parameters_moved']:,} of the parameters move, {found['parameters_frozen']:,} stay: {shown}"
        )
    return {"moved": found}
