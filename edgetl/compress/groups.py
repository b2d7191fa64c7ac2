"""Groups of nodes that are rounded together or not at all: a layer with weights and what is computed behind it.

An engine fuses a layer with its activation function and with an addition behind it into one kernel, which is an integer
kernel where all of them are between Q/DQ pairs and a float kernel where none is. So a node without weights belongs to
the last layer that went into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetl.compress import quantize
from edgetl.compress.quantize import Source


def groups_of(source: Source, scheme: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The nodes of each group, by its layer, in the order of computation.

    What stands before the first layer is in its group; a graph in which nothing is rounded has no groups.
    """
    layers = quantize.layers_of(source, scheme)
    if not layers:
        return {}
    allowed, places = set(quantize.nodes_of(source)), {name: place for place, name in enumerate(layers)}
    found: dict[str, list[str]] = {name: [] for name in layers}
    owners: dict[str, int] = {}
    for node in source.ready.graph.node:
        owner = places.get(node.name, max((owners.get(name, 0) for name in node.input), default=0))
        owners |= dict.fromkeys(node.output, owner)
        if node.name in allowed:
            found[layers[owner]].append(node.name)
    return {name: tuple(nodes) for name, nodes in found.items()}
