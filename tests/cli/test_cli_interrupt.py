"""Ctrl-C waits for the end of an import, is told again where somebody swallowed it, and never shows a traceback."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import time
from pathlib import Path

import pytest

from edgetl.cli import app, interrupt, progress
from edgetl.events import Event

ADVANCE = Event("distill", "advance", {"done": 1})


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def slow_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that takes until the person is told of it, and that drops an interrupt as large packages do."""
    (tmp_path / "slow_module.py").write_text("""
import signal, time
from edgetl.cli import interrupt
try:
    signal.raise_signal(signal.SIGINT)
    while interrupt._Heard.looks < interrupt.TOLD:
        time.sleep(0.001)
    whole = True
except:
    whole = False
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "slow_module", raising=False)
    return "slow_module"


def test_an_import_is_finished_first_and_a_long_one_says_so(
    slow_module: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interrupt, "TOLD", 2)
    with pytest.raises(KeyboardInterrupt), interrupt.heard():
        importlib.import_module(slow_module)
        time.sleep(60)
    assert sys.modules[slow_module].whole
    assert capfd.readouterr().err == "Stopping as soon as the libraries are loaded; Ctrl-C again stops at once.\n"


def test_a_second_one_does_not_wait(slow_module: str, tmp_path: Path) -> None:
    twice = "signal.raise_signal(signal.SIGINT)\n" * 2
    (tmp_path / "impatient.py").write_text(f"import signal\n{twice}")
    with pytest.raises(KeyboardInterrupt), interrupt.heard():
        importlib.import_module("impatient")
    assert "impatient" not in sys.modules


def test_outside_of_imports_it_is_heard_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), interrupt.heard():
        press()
        pytest.fail("went on")


def test_one_that_was_swallowed_stops_the_work_at_its_next_sign_of_life(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), interrupt.heard(), progress.shown() as listener:
        listener(ADVANCE)
        with contextlib.suppress(BaseException):  # as others do
            press()
        listener(ADVANCE)
        pytest.fail("went on")


def test_what_fails_because_of_it_is_no_bug_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: object) -> int:
        try:
            press()
        except KeyboardInterrupt:
            raise AttributeError("partially initialized module") from None
        return 0

    monkeypatch.setattr(app, "_invoke", broken)
    assert app.main(["distill", "--out", "o"]) == 130
    said = capsys.readouterr().err
    assert said == "error: Interrupted.\nhint: Continue with: edgetl distill --out o --resume\n"


def test_without_one_failures_stay_what_they_are_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    with pytest.raises(AttributeError), interrupt.heard():
        raise AttributeError("a bug")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)) == before
    with interrupt.heard(), progress.shown() as listener:
        listener(ADVANCE)  # nothing of an earlier command is left
