"""Ctrl-C, or the SIGTERM of torchrun and Slurm, that waits for the end of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Whether the training was asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def deferred(self, *, several: bool) -> Iterator[None]:
        """Notes a first signal only; a second Ctrl-C does not wait.

        Args:
            several: whether torchrun started more than one process, of which each may be sent SIGTERM, too.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signal.SIGINT: signal.signal(signal.SIGINT, self._on_signal)}
        if several:
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
