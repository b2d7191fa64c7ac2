"""The parts of a benchmark, one after another; in each the cases take turns, in another random order every round."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.bench.exam import Exam
from edgetl.bench.photos import Photos
from edgetl.bench.trial import Trial
from edgetl.events import Event, Listener

STAGE = "bench"
Around = Callable[[str], contextlib.AbstractContextManager[None]]


def start(trials: Sequence[Trial], starts: int, order: np.random.Generator, listener: Listener) -> None:
    """Fresh processes in random order; those of the last turn stay open."""
    with told(listener, STAGE, "starting", starts * len(trials), "process") as step:
        for turn in range(starts):
            for trial in shuffled(trials, order):
                if trial.alive:
                    trial.start(keep=turn == starts - 1)
                step.advance(case=trial.case.name)


def warm_up(trials: Sequence[Trial], order: np.random.Generator, listener: Listener) -> None:
    """Every case until it is stable, one after another."""
    with told(listener, STAGE, "warming up", len(trials), "case") as step:
        for trial in shuffled(trials, order):
            trial.warm_up()
            step.advance(case=trial.case.name)


def measure(trials: Sequence[Trial], rounds: int, order: np.random.Generator, listener: Listener,
            after: Callable[[], None] = lambda: None, around: Around | None = None) -> None:
    """Interleaved rounds: in each every case is measured once.

    Args:
        trials: what is measured.
        rounds: how often.
        order: of the cases in a round.
        listener: hears of progress.
        after: is called at the end of each round.
        around: given the name of a case, what is done before and after each of its blocks.
    """
    with told(listener, STAGE, "measuring", rounds * len(trials), "block") as step:
        for _ in range(rounds):
            for trial in shuffled(trials, order):
                with around(trial.case.name) if around else contextlib.nullcontext():
                    trial.block()
                step.advance(case=trial.case.name)
            after()


def device_alone(trials: Sequence[Trial], rounds: int, order: np.random.Generator, listener: Listener) -> None:
    """Interleaved rounds of calls of which the device tells its own time, of the cases whose sessions tell it."""
    telling = [trial for trial in trials if trial.tells_device]
    if not telling:
        return
    with told(listener, STAGE, "the device alone", rounds * len(telling), "block") as step:
        for _ in range(rounds):
            for trial in shuffled(telling, order):
                trial.device_alone()
                step.advance(case=trial.case.name)


def crowd(trials: Sequence[Trial], concurrency: Sequence[str], rounds: int, order: np.random.Generator,
          listener: Listener) -> None:
    """Interleaved rounds of windows in which so many threads call a session; nothing where none was asked for."""
    counts = list(dict.fromkeys(map(int, concurrency)))
    asked = [(trial, count) for trial in trials if trial.interval_s is None for count in counts]
    if not asked:
        return
    with told(listener, STAGE, "throughput", rounds * len(asked), "window") as step:
        for _ in range(rounds):
            for place in order.permutation(len(asked)):
                trial, count = asked[place]
                trial.throughput(count)
                step.advance(case=trial.case.name)


def walk(trials: Sequence[Trial], files: Photos | None, rounds: int, order: np.random.Generator,
         listener: Listener) -> None:
    """Interleaved rounds of the whole way from image files to labels, of the cases that go it."""
    if files is not None:
        for trial in trials:
            trial.take(files)
    going = [trial for trial in trials if trial.files is not None]
    if not going:
        return
    with told(listener, STAGE, "from the file to the label", rounds * len(going), "block") as step:
        for _ in range(rounds):
            for trial in shuffled(going, order):
                trial.walk()
                step.advance(case=trial.case.name)


def profile(trials: Sequence[Trial], listener: Listener) -> None:
    """Layers of every case, one after another; the timed processes end here."""
    with told(listener, STAGE, "profiling layers", len(trials), "case") as step:
        for trial in trials:
            trial.profile()
            step.advance(case=trial.case.name)


@contextlib.contextmanager
def closing(trials: Sequence[Trial]) -> Iterator[None]:
    """Leaves no worker behind; after Ctrl-C or a bug none is waited for."""
    finished = False
    try:
        yield
        finished = True
    finally:
        for trial in trials:
            trial.close(at_once=not finished)


def shuffled(trials: Sequence[Trial], order: np.random.Generator) -> list[Trial]:
    """All trials in a random order, so that no case always follows the same one."""
    return [trials[place] for place in order.permutation(len(trials))]


def examine(trials: Sequence[Trial], paper: Exam, listener: Listener, stage: str) -> None:
    """The answers of the very sessions that were timed, one after another."""
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as scratch:
        keys = Path(scratch) / "keys.json"
        keys.write_text(json.dumps([item.key for item in paper.items]))
        for number, trial in enumerate(trials):
            trial.no_answers = paper.why_not(trial.case.subject) if trial.alive else trial.reason
            if trial.no_answers is None:
                out = Path(scratch) / f"{number}.npz"
                with told(listener, stage, f"accuracy of {trial.case.name}", len(paper.items), "image") as step:
                    if trial.evaluate(paper.record.source, keys, out, step.by, paper.asked):
                        trial.answers = paper.read_answers(out)


class Step:
    """Progress of one part of a stage's work."""

    def __init__(self, listener: Listener, stage: str) -> None:
        self.listener, self.stage, self.done = listener, stage, 0

    def advance(self, **figures: Any) -> None:
        """One more is done."""
        self.done += 1
        self.listener(Event(self.stage, "advance", {"done": self.done, **figures}))

    def by(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        self.listener(Event(self.stage, "advance", {"done": self.done}))


@contextlib.contextmanager
def told(listener: Listener, stage: str, what: str, total: int | None, unit: str) -> Iterator[Step]:
    """Tells the begin and the end of one part of a stage's work, and lends what tells its progress."""
    listener(Event(stage, "begin", {"what": what, "total": total, "unit": unit}))
    yield Step(listener, stage)
    listener(Event(stage, "end", {"what": what}))
