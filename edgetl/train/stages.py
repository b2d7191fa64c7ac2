"""The stages of a network: the groups of its parameters, from the input up, that are frozen or set free together.

A stage is what timm calls a block group where a network comes from there (its `group_matcher`, coarse). Of any other
network it is what computes at one resolution: the blocks are heard while the network answers once, and neighbours whose
outputs have as many places belong together, as in the stages of a ResNet. A network that never shrinks its maps, as
vision transformers do not, has a stage for each block; a norm between two of them belongs to the one before. The head
is no stage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgetl.models import Network
from edgetl.train.features import as_map
from edgetl.train.moving import covered

FEWEST = 3  # of another network's stages by resolution; with fewer, each block is one


@dataclass(frozen=True)
class Stage:
    """Parameters that belong together."""

    name: str  # the topmost modules in it
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """A block, or a layer outside of blocks, as it was heard."""

    path: str
    places: int | None  # of its output map; None where it gives no map
    small: bool  # a norm or the like, which has vectors only


def stages(network: Network) -> tuple[Stage, ...]:
    """The stages in the order in which an image passes through them, without the head."""
    return _grouped(network, coarse=True)


def blocks(network: Network) -> tuple[Stage, ...]:
    """The single blocks, and layers outside of blocks, in that order, without the head: finer than `stages`."""
    return _grouped(network, coarse=False)


def _grouped(network: Network, *, coarse: bool) -> tuple[Stage, ...]:
    trunk = [name for name, _ in network.module.named_parameters() if name not in of_head(network)]
    if not trunk:
        return ()
    matcher = getattr(network.module, "group_matcher", None)
    groups = _of_timm(network.module, matcher, coarse) if matcher is not None else _heard(network, trunk, coarse)
    inside = set(trunk)
    kept = [group for group in ([name for name in group if name in inside] for group in groups) if group]
    if len(kept) > 1 and all(network.module.get_parameter(name).ndim < 2 for name in kept[-1]):
        kept[-2:] = [kept[-2] + kept[-1]]  # a norm before the head is not worth a stage
    return tuple(Stage(", ".join(covered(network.module, group)), tuple(group)) for group in kept)


def of_head(network: Network) -> frozenset[str]:
    """Names of the head's parameters."""
    names = (name for name, _ in network.module.named_parameters())
    return frozenset(name for name in names if name.startswith(f"{network.head}."))


def _of_timm(module: nn.Module, matcher: Any, coarse: bool) -> list[list[str]]:
    from timm.models import group_parameters  # here: only a network of timm's has a matcher

    grouped = group_parameters(module, matcher(coarse=coarse))
    return [grouped[place] for place in sorted(grouped)]


def _heard(network: Network, trunk: Sequence[str], coarse: bool) -> list[list[str]]:
    """Groups of parameters by what is heard while the network answers."""
    sizes = {name: network.module.get_parameter(name).numel() for name in trunk}
    paths = list(_units(network.module, "", sizes, sum(sizes.values())))
    heard = _listened(network, paths)
    groups = _by_places(heard) if coarse else []
    if len(groups) < FEWEST:
        groups = _one_by_one(heard)
    owner = {path: place for place, group in enumerate(groups) for path in group}
    found: list[list[str]] = [[] for _ in groups] or [[]]
    for name in trunk:
        place = next((owner[path] for path in _above(name) if path in owner), None)
        # A parameter outside of all units, as a class token or position embeddings, goes in at the beginning; a unit
        # that was not heard is used in training only, at the end.
        found[-1 if place is None and any(path in paths for path in _above(name)) else place or 0].append(name)
    return found


def _units(module: nn.Module, path: str, sizes: dict[str, int], total: int) -> Iterator[str]:
    """Paths of the blocks and of the layers outside of blocks: what is no container and has not most of the weights."""
    inside = sum(size for name, size in sizes.items() if name.startswith(path))
    children = [(name, one) for name, one in module.named_children()
                if any(known.startswith(f"{path}{name}.") for known in sizes)]  # fmt: skip
    container = not path or isinstance(module, nn.Sequential | nn.ModuleList) or 2 * inside > total
    if not (children and container):
        yield path.removesuffix(".")
        return
    for name, one in children:
        yield from _units(one, f"{path}{name}.", sizes, total)


def _listened(network: Network, paths: Sequence[str]) -> list[Unit]:
    """The units in the order in which they answered to a black image."""
    module, heard = network.module, dict[str, Unit]()
    modes = {one: one.training for one in module.modules()}

    def hear(path: str, layer: nn.Module, output: Any) -> None:
        found = as_map(output)
        places = None if found is None else found.shape[2:].numel()
        small = all(parameter.ndim < 2 for parameter in layer.parameters())
        heard.setdefault(path, Unit(path, places, small))

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for path in paths:
            hook = module.get_submodule(path).register_forward_hook(
                lambda layer, _, output, path=path: hear(path, layer, output))  # fmt: skip
            hooks.callback(hook.remove)
        module.eval()
        device = next(module.parameters()).device
        module(torch.zeros((2, *network.preprocess.input_shape), device=device))  # two, since one can hide the batch
    for one, training in modes.items():
        one.training = training
    return list(heard.values())


def _by_places(heard: Sequence[Unit]) -> list[list[str]]:
    groups: list[list[str]] = []
    before: int | None = None
    for unit in heard:
        other = unit.places is not None and before is not None and unit.places != before
        if not groups or (other and not unit.small):
            groups.append([])
        groups[-1].append(unit.path)
        before = unit.places if unit.places is not None else before
    return groups


def _one_by_one(heard: Sequence[Unit]) -> list[list[str]]:
    groups: list[list[str]] = []
    for unit in heard:
        if unit.small and groups:
            groups[-1].append(unit.path)
        else:
            groups.append([unit.path])
    return groups


def _above(name: str) -> Iterator[str]:
    """Paths of the modules around a parameter."""
    parts = name.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts)))


def in_words(found: Collection[Stage]) -> str:
    """Numbered names of stages, for people."""
    return "; ".join(f"{place}: {stage.name}" for place, stage in enumerate(found, 1))
