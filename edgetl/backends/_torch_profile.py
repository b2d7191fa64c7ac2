"""Layers of an eager module from PyTorch's profiler: every innermost module is one range of its trace.

What runs outside of them (an addition in a forward method) belongs to no layer, so the layers are less than the call.
docs.pytorch.org/docs/stable/profiler.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from edgetl.runtime import layers
from edgetl.runtime.layers import FLOAT, MOVING, Layer, Node
from edgetl.runtime.session import Session

MARK = "edgetl layer "
IDLE = frozenset({"Identity", "Dropout", "Dropout2d", "Dropout3d", "DropPath", "StochasticDepth"})
MOVERS = frozenset({"Flatten", "Unflatten", "ChannelShuffle", "PixelShuffle", "PixelUnshuffle", "ZeroPad2d"})


class Profiled:
    """See `edgetl.runtime.layers.ProfiledSession`.

    Args:
        session: what runs the calls.
        module: the network inside it, whose leaves are marked.
        cuda: whether it runs on a card.
    """

    def __init__(self, session: Session, module: Any, *, cuda: bool) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._session, self._count = session, 0
        self._leaves = dict(innermost("", module))
        self._handles = [handle for name, leaf in self._leaves.items() for handle in _mark(name, leaf)]
        self._cuda = cuda
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self._profiler: Any = profile(activities=activities, acc_events=True)
        self._profiler.start()
        self.info = session.info

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """See `edgetl.runtime.session.Session.run`."""
        self._count += 1
        return self._session.run(feeds)

    def layers(self, dropped: int) -> tuple[Layer, ...]:
        """See `edgetl.runtime.layers.ProfiledSession`."""
        events = [event for event in self._stop().events() if event.name.startswith(MARK)]
        runs: dict[str, list[Any]] = {}
        for event in sorted(events, key=lambda event: event.time_range.start):
            runs.setdefault(event.name.removeprefix(MARK), []).append(event)
        # A module that is used twice a call has two ranges a call, one call's after the other's.
        calls = [[self._node(name, event) for name, found in runs.items()
                  for event in found[place * len(found) // self._count:(place + 1) * len(found) // self._count]]
                 for place in range(self._count)]
        return layers.gather(calls, dropped)

    def _node(self, name: str, event: Any) -> Node:
        op = type(self._leaves[name]).__name__
        microseconds = event.device_time_total if self._cuda else event.cpu_time_total
        kind = MOVING if op in MOVERS else FLOAT
        return Node(name, name or op, op, _kernel(event), kind, microseconds / 1e6)

    def _stop(self) -> Any:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        for handle in self._handles:
            handle.remove()
        return profiler

    def close(self) -> None:
        """Ends the profiler and releases the session; a second call does nothing."""
        if self._profiler is not None:
            self._stop()
        self._session.close()


def innermost(name: str, module: Any) -> Iterator[tuple[str, Any]]:
    """Modules with their dotted names: those that hold no other, and those that alone hold the weights below them.

    The latter are norms with an activation inside, as timm has them. What does nothing in evaluation is left out.
    """
    if type(module).__name__ in IDLE:
        return
    children = list(module.named_children())
    weights_below = any(True for _, child in children for _ in child.parameters())
    if not children or (not weights_below and any(True for _ in module.parameters(recurse=False))):
        yield name, module
        return
    for part, child in children:
        yield from innermost(f"{name}.{part}" if name else part, child)


def _mark(name: str, leaf: Any) -> tuple[Any, Any]:
    """Opens a range of the trace before the leaf runs and ends it afterwards."""
    from torch.profiler import record_function

    ranges: list[Any] = []

    def begin(*_: object) -> None:
        ranges.append(record_function(f"{MARK}{name}"))
        ranges[-1].__enter__()

    def end(*_: object) -> None:
        ranges.pop().__exit__(None, None, None)

    return leaf.register_forward_pre_hook(begin), leaf.register_forward_hook(end)


def _kernel(event: Any) -> str:
    """The operation in the range that itself takes most of it, e.g. aten::mkldnn_convolution."""
    inner, open_ends = [], list(event.cpu_children)
    while open_ends:
        inner.append(open_ends.pop())
        open_ends += inner[-1].cpu_children
    return max(inner, key=lambda one: one.self_cpu_time_total).name if inner else "nothing"


__all__ = ["Profiled"]
