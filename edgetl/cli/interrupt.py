"""Ctrl-C that is not lost: it waits for the end of an import, and is told again where a library swallowed it.

An interrupt half-way through the import of a large package leaves broken modules behind, or is dropped by an `except:`
on the way; so is one within a library that tries one call and then another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from edgetl.events import Event, Listener

AGAIN_S = 0.1  # after which it is looked again whether an import has ended
TOLD = 10  # looks after which the person is told why nothing happens
WAITING = b"Stopping as soon as the libraries are loaded; Ctrl-C again stops at once.\n"
IMPORT = "<frozen importlib._bootstrap>"


class _Heard:
    """Whether Ctrl-C was pressed since the command began, and how often it was looked for the end of an import."""

    pressed = False
    looks = 0


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != IMPORT:
        frame = frame.f_back
    return frame is not None


def _on_signal(number: int, frame: FrameType | None) -> None:
    again, _Heard.pressed = _Heard.pressed, True
    if again or not _importing(frame):
        raise KeyboardInterrupt
    signal.setitimer(signal.ITIMER_REAL, AGAIN_S)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    if not _importing(frame):
        raise KeyboardInterrupt
    _Heard.looks += 1
    if _Heard.looks == TOLD:
        os.write(2, WAITING)  # print() must not be used here: it may be what was interrupted
    signal.setitimer(signal.ITIMER_REAL, AGAIN_S)


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Watches for Ctrl-C for the time of a command; whatever fails after one is KeyboardInterrupt."""
    _Heard.pressed, _Heard.looks = False, 0
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _on_signal), signal.signal(signal.SIGALRM, _on_alarm)
    try:
        yield
    except Exception as problem:
        if _Heard.pressed:
            raise KeyboardInterrupt from problem
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGALRM, before[1])


def listening(listener: Listener) -> Listener:
    """The listener, which first stops the work where Ctrl-C was pressed and swallowed."""

    def checked(event: Event) -> None:
        if _Heard.pressed:
            raise KeyboardInterrupt
        listener(event)

    return checked
