"""Layers of an eager module from PyTorch's profiler: every leaf module is one range of its trace.

What runs outside leaf modules (an addition in a forward method) belongs to no layer, so the layers are less than the
call. docs.pytorch.org/docs/stable/profiler.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edgetl.runtime import layers
from edgetl.runtime.layers import FLOAT, Layer, Node
from edgetl.runtime.session import Session

MARK = "edgetl layer "


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
        self._leaves = {name: leaf for name, leaf in module.named_modules() if not any(leaf.children())}
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
        return Node(name, name or op, op, _kernel(event), FLOAT, microseconds / 1e6)

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
    """The innermost operation that takes most of the range, e.g. aten::mkldnn_convolution."""
    name = "nothing"
    while event.cpu_children:
        event = max(event.cpu_children, key=lambda child: child.cpu_time_total)
        name = event.name
    return name


__all__ = ["Profiled"]
