"""Curves of a training for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.events import Event, Listener

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FOLDER = "tensorboard"


class EventFiles:
    """A listener that writes every number of an epoch into `folder/tensorboard`, and passes all events on."""

    def __init__(self, folder: Path, listener: Listener) -> None:
        self.folder, self.listener = folder / FOLDER, listener
        self.writer: SummaryWriter | None = None

    def __call__(self, event: Event) -> None:
        """Writes what an epoch brought; opens the file with the first one."""
        if event.kind == "epoch":
            if self.writer is None:
                from torch.utils.tensorboard.writer import SummaryWriter

                # A resumed run opens a new file beside the old one; what was logged after the checkpoint is purged.
                self.writer = SummaryWriter(self.folder, purge_step=event.values["epoch"])
            for name, value in event.values.items():
                if name not in ("epoch", "epochs"):
                    self.writer.add_scalar(name, value, event.values["epoch"])
            self.writer.flush()
        self.listener(event)

    def close(self) -> None:
        """Closes the file."""
        if self.writer is not None:
            self.writer.close()
