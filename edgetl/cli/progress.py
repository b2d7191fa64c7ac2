"""Draws what stages tell: bars on a terminal, one line an epoch elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from edgetl.cli import interrupt
from edgetl.events import Event, Listener


@contextlib.contextmanager
def shown(stream: TextIO | None = None) -> Iterator[Listener]:
    """A listener that draws until the block ends, and stops the work after a Ctrl-C that went unheard."""
    stream = stream or sys.stderr
    if stream.isatty():
        with _Bars(stream) as bars:
            yield interrupt.listening(bars)
    else:
        yield interrupt.listening(_Lines(stream))


def figures(values: Mapping[str, Any]) -> str:
    """Loss, validation score and rate, as far as they are known: `loss 0.532  val 88.1 %  91 images/s`.

    A score that is no accuracy goes by its name: `val R2 0.812`.
    """
    known = {name: value for name, value in values.items() if value is not None}
    parts = []
    if "loss" in known:
        parts.append(f"loss {known['loss']:.3f}")
    if "val_accuracy" in known:
        score = known["val_accuracy"]
        parts.append(f"val {known['score']} {score:.3f}" if "score" in known else f"val {100 * score:.1f} %")
    if "images_per_s" in known:
        parts.append(f"{known['images_per_s']:.0f} images/s")
    return "  ".join(parts)


def _told(event: Event) -> str | None:
    """The line that stays: of an epoch, a note or a warning."""
    values = event.values
    if event.kind == "epoch":
        return f"{event.stage}: epoch {values['epoch']}/{values['epochs']}  {figures(values)}".rstrip()
    if event.kind == "note":
        return f"{event.stage}: {values['text']}"
    if event.kind == "warning":
        return f"{event.stage}: warning: {values['text']}"
    return None


class _Lines:
    """For files and pipes: plain text, no control codes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.begun: set[tuple[str, str]] = set()

    def __call__(self, event: Event) -> None:
        line = _told(event)
        if event.kind == "begin" and (event.stage, event.values["what"]) not in self.begun:
            self.begun.add((event.stage, event.values["what"]))
            line = f"{event.stage}: {event.values['what']}{_amount(event.values)}"
        if line is not None:
            print(line, file=self.stream, flush=True)


def _amount(values: Mapping[str, Any]) -> str:
    return f", {values['total']} {values.get('unit', 'steps')}" if values.get("total") is not None else ""


class _Bars(contextlib.AbstractContextManager["_Bars"]):
    """For terminals: a bar for each piece of work under way; epochs, notes and warnings stay above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(file=stream, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"), TimeRemainingColumn(), console=self.console, transient=True,
            refresh_per_second=4)
        self.tasks: dict[tuple[str, str], Any] = {}
        self.current: dict[str, tuple[str, str]] = {}  # by stage, the piece of work begun last

    def __enter__(self) -> _Bars:
        self.progress.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        line = _told(event)
        if line is not None:
            style = "yellow" if event.kind == "warning" else None
            self.console.print(line, style=style, markup=False, soft_wrap=True)
        draw = {"begin": self._begin, "advance": self._advance, "end": self._end}.get(event.kind)
        if draw is not None:
            draw(event)

    def _begin(self, event: Event) -> None:
        key = (event.stage, event.values["what"])
        self._remove(key)
        self.tasks[key] = self.progress.add_task(f"{event.stage}: {event.values['what']}",
                                                 total=event.values.get("total"), figures="")
        self.current[event.stage] = key

    def _advance(self, event: Event) -> None:
        key = self.current.get(event.stage)
        if key in self.tasks:
            self.progress.update(self.tasks[key], completed=event.values["done"], figures=figures(event.values))

    def _end(self, event: Event) -> None:
        self._remove((event.stage, event.values["what"]))

    def _remove(self, key: tuple[str, str]) -> None:
        if key in self.tasks:
            self.progress.remove_task(self.tasks.pop(key))
