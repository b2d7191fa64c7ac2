"""What stages tell is drawn on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

from edgetl.cli import progress
from edgetl.events import Event

STORY = (
    Event("finetune", "note", {"text": "the split is [red]new[/red]"}),
    Event("finetune", "begin", {"what": "train", "total": 20, "unit": "steps"}),
    Event("finetune", "advance", {"done": 7, "loss": 1.23456, "images_per_s": 91.4, "val_accuracy": None}),
    Event("finetune", "epoch", {"epoch": 1, "epochs": 2, "loss": 0.5, "val_accuracy": 0.881, "images_per_s": 90.0}),
    Event("finetune", "advance", {"done": 20, "loss": 0.4, "images_per_s": 91.4, "val_accuracy": 0.881}),
    Event("finetune", "end", {"what": "train"}),
    Event("bench", "warning", {"text": "the machine is busy"}),
    Event("bench", "begin", {"what": "rounds", "total": None}),
    Event("bench", "begin", {"what": "rounds", "total": None}),
    Event("bench", "advance", {"done": 1}),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(stream: io.StringIO) -> str:
    with progress.shown(stream) as listener:
        for event in STORY:
            listener(event)
    return stream.getvalue()


def test_a_file_gets_one_line_an_epoch_and_no_control_codes() -> None:
    assert drawn(io.StringIO()).splitlines() == [
        "finetune: the split is [red]new[/red]",
        "finetune: train, 20 steps",
        "finetune: epoch 1/2  loss 0.500  val 88.1 %  90 images/s",
        "bench: warning: the machine is busy",
        "bench: rounds",
    ]


def test_a_terminal_gets_a_bar_with_figures_and_the_lines_that_stay(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    shown = drawn(Terminal())
    for expected in (
        "the split is [red]new[/red]",
        "finetune: train",
        "epoch 1/2  loss 0.500  val 88.1 %  90 images/s",
        "bench: warning: the machine is busy",
        "\x1b[",
    ):
        assert expected in shown


def test_the_bar_carries_loss_rate_accuracy_and_progress() -> None:
    with progress._Bars(Terminal()) as bars:
        for event in STORY[:5]:
            bars(event)
        (task,) = bars.progress.tasks
        assert (task.completed, task.total) == (20, 20)
        assert task.fields["figures"] == "loss 0.400  val 88.1 %  91 images/s"
        for event in STORY[5:]:
            bars(event)
        (task,) = bars.progress.tasks  # the same work begun again is one bar
        assert (task.description, task.completed, task.total) == ("bench: rounds", 1, None)


def test_figures_that_are_not_known_are_left_out() -> None:
    assert progress.figures({}) == ""
    assert progress.figures({"loss": None, "val_accuracy": 0.5}) == "val 50.0 %"


def test_a_score_that_is_no_accuracy_goes_by_its_name() -> None:
    values = {"loss": 0.5, "val_accuracy": -0.0625, "score": "R2", "images_per_s": 90.0}
    assert progress.figures(values) == "loss 0.500  val R2 -0.062  90 images/s"
