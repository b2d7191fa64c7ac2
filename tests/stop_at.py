"""A training that breaks off where a test wants it to."""

from __future__ import annotations

from edgetl.events import Event


class StopAt:
    """A listener that breaks off at the n-th step, like a machine that dies between two checkpoints."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def __call__(self, event: Event) -> None:
        if event.kind == "advance" and event.values.get("loss") is not None and event.values["done"] == self.step:
            raise self.error
