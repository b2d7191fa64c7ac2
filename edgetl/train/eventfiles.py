"""Curves of a training for TensorBoard."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl import rundir
from edgetl.events import Event, Listener

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event as Record

FOLDER = "tensorboard"


class EventFiles:
    """A listener that writes every number of an epoch into `folder/tensorboard`, and passes all events on.

    It writes at once: torch's SummaryWriter leaves that to a thread, which prints a traceback when the disk is full.
    """

    def __init__(self, folder: Path, listener: Listener) -> None:
        self.folder, self.listener = folder / FOLDER, listener
        self.path: Path | None = None

    def __call__(self, event: Event) -> None:
        """Writes what an epoch brought; opens a file with the first one.

        Raises:
            OutputError: the file cannot be written.
        """
        if event.kind == "epoch":
            self._write(event.values)
        self.listener(event)

    def _write(self, values: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        step = values["epoch"]
        numbers = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if name not in ("epoch", "epochs")
        ]
        records = [Record(wall_time=time.time(), step=step, summary=Summary(value=numbers))]
        if self.path is None:
            self.path = self._new_file()
            # What an interrupted run logged from this epoch on, in a file of its own, is not shown.
            start = SessionLog(status=SessionLog.START)
            records = [
                Record(wall_time=time.time(), file_version="brain.Event:2"),
                Record(wall_time=time.time(), step=step, session_log=start),
                *records,
            ]
        self._append(self.path, records)

    def _new_file(self) -> Path:
        with rundir.explained(self.folder):
            self.folder.mkdir(exist_ok=True)
        count = sum(1 for _ in self.folder.iterdir())
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{count}"
        return self.folder / name

    def _append(self, path: Path, records: list[Record]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        with rundir.explained(path), path.open("ab") as file:
            writer = RecordWriter(file)
            for record in records:
                writer.write(record.SerializeToString())
