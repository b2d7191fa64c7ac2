"""Which nodes of a graph compute in half so that its values are converted as rarely as can be: a minimum cut.

Some nodes must stay in float32 and some must be in half; all others follow their neighbours. A value that its maker has
in one precision and some reader wants in the other costs one Cast, however many such readers there are. The fewest
casts are a cut of the least weight between the two groups, which the largest flow finds (Ford and Fulkerson, "Maximal
flow through a network", 1956). Of several such cuts the one with the most nodes in half is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HALF, FLOAT = -1, -2  # vertices; the others are the indices of nodes, and those of values
ENDLESS = 1 << 30


@dataclass(frozen=True)
class Value:
    """A float value: the node that makes it, and the nodes that read it; FLOAT stands for what has no choice."""

    maker: int
    readers: tuple[int, ...]


def fewest(nodes: Iterable[int], halves: Iterable[int], floats: Iterable[int], values: Sequence[Value]) -> set[int]:
    """The nodes that stay in float32.

    Args:
        nodes: every node with a float value, by index.
        halves: those that must be in half.
        floats: those that must not.
        values: between them; none that is constant, for a constant can be stored in both precisions.
    """
    free = set(nodes)
    flow = _Flow()
    for node in halves:
        flow.edge(HALF, node, ENDLESS)
    for node in floats:
        flow.edge(node, FLOAT, ENDLESS)
    beyond = max(free, default=0) + 1
    for place, value in enumerate(values):
        # One vertex for "made in half, read in float", one for the other way round: each is cut once for all readers.
        down, up = beyond + 2 * place, beyond + 2 * place + 1
        flow.edge(value.maker, down, 1)
        flow.edge(up, value.maker, 1)
        for reader in set(value.readers) - {value.maker}:
            flow.edge(down, reader, ENDLESS)
            flow.edge(reader, up, ENDLESS)
    flow.fill()
    return flow.reaching(FLOAT) & free


class _Flow:
    """Edges with what they still let through."""

    def __init__(self) -> None:
        self._left: dict[int, dict[int, int]] = {HALF: {}, FLOAT: {}}

    def edge(self, start: int, end: int, room: int) -> None:
        if start == end:
            return
        self._left.setdefault(start, {})[end] = self._left.get(start, {}).get(end, 0) + room
        self._left.setdefault(end, {}).setdefault(start, 0)

    def fill(self) -> None:
        """Sends as much as possible from HALF to FLOAT."""
        while (path := self._path()) is not None:
            least = min(self._left[start][end] for start, end in path)
            for start, end in path:
                self._left[start][end] -= least
                self._left[end][start] += least

    def _path(self) -> list[tuple[int, int]] | None:
        """The shortest way that has room left; None where there is none."""
        came_from = {HALF: HALF}
        waiting = deque([HALF])
        while waiting and FLOAT not in came_from:
            start = waiting.popleft()
            for end, room in self._left[start].items():
                if room and end not in came_from:
                    came_from[end] = start
                    waiting.append(end)
        if FLOAT not in came_from:
            return None
        path, end = [], FLOAT
        while end != HALF:
            path.append((came_from[end], end))
            end = came_from[end]
        return path

    def reaching(self, goal: int) -> set[int]:
        """The vertices from which there is still room to `goal`."""
        found = {goal}
        waiting = deque([goal])
        while waiting:
            end = waiting.popleft()
            for start in self._left[end]:
                if start not in found and self._left[start][end]:
                    found.add(start)
                    waiting.append(start)
        return found
