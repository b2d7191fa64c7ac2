"""What stages tell while they work; the command line draws it, an app may listen too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened in a stage.

    Kinds: "note" {text}, "warning" {text}, "begin" {what, total, unit}, "advance" {done, ...figures}, "end" {what},
    "epoch" {epoch, epochs, loss, val_accuracy, images_per_s, ...}. Where `val_accuracy` is another score than the share
    of images that are right, {score} is its name.
    """

    stage: str
    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener of those who do not listen."""
