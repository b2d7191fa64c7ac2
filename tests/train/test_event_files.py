"""Curves for TensorBoard are what the epochs said."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.events import Event
from edgetl.train.eventfiles import FOLDER, EventFiles


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own reader
def test_every_number_of_an_epoch_is_a_curve_and_events_are_passed_on(tmp_path: Path) -> None:
    heard: list[Event] = []
    curves = EventFiles(tmp_path, heard.append)
    for epoch, loss in ((1, 0.5), (2, 0.25)):
        curves(Event("finetune", "epoch", {"epoch": epoch, "epochs": 2, "loss": loss, "val_accuracy": 0.75}))
    curves.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / FOLDER))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "val_accuracy"}
    assert [(point.step, point.value) for point in read.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert len(heard) == 2


def test_without_an_epoch_nothing_is_written(tmp_path: Path) -> None:
    curves = EventFiles(tmp_path, lambda event: None)
    curves(Event("finetune", "note", {"text": "hello"}))
    curves.close()
    assert not (tmp_path / FOLDER).exists()
