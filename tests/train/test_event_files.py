"""Curves for TensorBoard are what the epochs said."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.errors import DiskFull
from edgetl.events import Event
from edgetl.train.eventfiles import FOLDER, EventFiles


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own reader
def test_every_number_of_an_epoch_is_a_curve_and_events_are_passed_on(tmp_path: Path) -> None:
    heard: list[Event] = []
    curves = EventFiles(tmp_path, heard.append)
    for epoch, loss in ((1, 0.5), (2, 0.25)):
        curves(Event("finetune", "epoch", {"epoch": epoch, "epochs": 2, "loss": loss, "val_accuracy": 0.75}))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / FOLDER))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "val_accuracy"}
    assert [(point.step, point.value) for point in read.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert len(heard) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own reader
def test_a_resumed_run_replaces_what_was_logged_after_its_checkpoint(tmp_path: Path) -> None:
    for losses in ({1: 0.5, 2: 0.25, 3: 0.125}, {2: 0.75, 3: 0.5}):
        curves = EventFiles(tmp_path, lambda event: None)
        for epoch, loss in losses.items():
            curves(Event("finetune", "epoch", {"epoch": epoch, "epochs": 3, "loss": loss}))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / FOLDER))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("loss")] == [(1, 0.5), (2, 0.75), (3, 0.5)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    curves = EventFiles(tmp_path, lambda event: None)
    curves.path = Path("/dev/full")
    with pytest.raises(DiskFull, match="/dev/full could not be written: No space left on device"):
        curves(Event("finetune", "epoch", {"epoch": 1, "epochs": 3, "loss": 1.0}))
    assert capfd.readouterr() == ("", "")


def test_without_an_epoch_nothing_is_written(tmp_path: Path) -> None:
    curves = EventFiles(tmp_path, lambda event: None)
    curves(Event("finetune", "note", {"text": "hello"}))
    assert not (tmp_path / FOLDER).exists()
