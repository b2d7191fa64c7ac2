"""Which parameters of a network move in a training, and from which epoch on.

What does not move computes as it does in use: its batch norms keep their statistics, and nothing in it is dropped at
random. So a frozen part of a network is the same function from the first step to the last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Moves:
    """Which parameters move when; a pure function of the epoch, so that a resumed training goes on as it was."""

    begins: Mapping[str, int]  # by parameter, the epoch (from 0) from which on it moves; what is not named never does

    def at(self, epoch: int | None) -> frozenset[str]:
        """Names of the parameters that move in an epoch; with None, of those that move in any."""
        return frozenset(name for name, first in self.begins.items() if epoch is None or first <= epoch)

    @property
    def settled(self) -> int:
        """The epoch from which on all moves that ever does."""
        return max(self.begins.values(), default=0)

    def settle(self, module: nn.Module) -> None:
        """Lets a network compute gradients for exactly the parameters that move in any epoch."""
        require_gradients(module, self.at(None))

    def begin(self, module: nn.Module, epoch: int | None) -> None:
        """Puts the frozen parts of a network that is in training mode into evaluation mode."""
        for part in _frozen_parts(module, self.at(epoch)):
            part.eval()


def require_gradients(module: nn.Module, names: Collection[str]) -> None:
    """Has the named parameters of a network compute gradients, and no other."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)


def _frozen_parts(module: nn.Module, moving: Collection[str], path: str = "") -> Iterator[nn.Module]:
    """The topmost parts that have parameters, none of which moves."""
    below = [f"{path}{name}" for name, _ in module.named_parameters()]
    if below and not any(name in moving for name in below):
        yield module
        return
    for name, child in module.named_children():
        yield from _frozen_parts(child, moving, f"{path}{name}.")


def all_but(module: nn.Module, frozen: Collection[str]) -> Moves:
    """All parameters move from the first epoch on, but for the frozen ones, which never do."""
    return Moves({name: 0 for name, _ in module.named_parameters() if name not in frozen})


def covered(module: nn.Module, names: Collection[str]) -> tuple[str, ...]:
    """Paths of the topmost modules all of whose parameters are among `names`, and the single parameters besides."""
    return tuple(_covered(module, names, ""))


def _covered(module: nn.Module, names: Collection[str], path: str) -> Iterator[str]:
    below = [f"{path}{name}" for name, _ in module.named_parameters()]
    if path and below and all(name in names for name in below):
        yield path.removesuffix(".")
        return
    for name, _ in module.named_parameters(recurse=False):
        if f"{path}{name}" in names:
            yield f"{path}{name}"
    for name, child in module.named_children():
        yield from _covered(child, names, f"{path}{name}.")


def counted(module: nn.Module, moved: Collection[str]) -> dict[str, Any]:
    """What run.json says of the parameters that moved and of those that did not.

    Args:
        module: the network.
        moved: names of its parameters that moved.
    """
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    frozen = [name for name in sizes if name not in moved]
    return {
        "parameters_moved": sum(sizes[name] for name in sizes if name in moved),
        "parameters_frozen": sum(sizes[name] for name in frozen),
        "frozen": list(covered(module, frozen)),
    }
