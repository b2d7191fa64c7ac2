"""Measures every case beside the others and writes the report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import extras, recipe, rundir
from edgetl.bench import cases, environment, exam, formats, html, provenance, report, stats, tables
from edgetl.bench.exam import Exam
from edgetl.bench.report import Report, Row
from edgetl.bench.trial import Trial
from edgetl.errors import DiskFull, EdgetlError, UnknownName
from edgetl.events import Event, Listener, ignore

STAGE = "bench"
BUSY = 0.5  # runnable processes a usable thread, before anything was started, above which a note says so


def bench(options: recipe.Bench, *, listener: Listener = ignore) -> Report:
    """The report on all cases, also written to `options.out` as json, markdown and html.

    A case that fails is a row with its reason; the others go on.

    Args:
        options: what to measure, and how.
        listener: hears of progress, notes and warnings.

    Raises:
        EdgetlError: a case, backend or number is wrong, before anything is measured; or every case failed, after the
            report was written.
        DataError: see `exam.prepare`.
        OutputError: `options.out` exists or cannot be written.
    """
    extras.require("matplotlib", extra="cli", purpose="The html report of a benchmark")
    out = Path(options.out)
    rundir.claim(out, resume=None, overwrite=options.overwrite)
    cases.interval_s(options.interval)
    chosen = cases.find(options)
    reference = _reference(options, [case.name for case in chosen])
    notes: list[str] = []
    heard = exam.collecting(listener, notes)
    for text in cases.warnings(chosen):
        heard(Event(STAGE, "warning", {"text": text}))
    paper = exam.prepare(options, chosen, heard)
    machine = {**environment.fingerprint(), **provenance.record()}
    warn_if_busy(machine["load_average"], machine["usable_threads"], heard, STAGE)
    trials = [Trial(case, options) for case in chosen]
    _measure(trials, options, paper, listener)
    for text in late_calls([trial.row() for trial in trials]):
        heard(Event(STAGE, "warning", {"text": text}))
    found = _assemble(trials, options, paper, machine, reference, notes)
    _write(found, options, paper, out)
    if not any(row.measured for row in found.rows):
        raise EdgetlError(f"None of the {len(found.rows)} cases could be measured; the first: "
                          f"{found.rows[0].case}: {found.rows[0].measurement.reason}", hint=f"The report is in {out}.")
    return found


def _reference(options: recipe.Bench, names: Sequence[str]) -> str:
    """The case that the others are compared with: the one asked for, else the first."""
    if options.reference is not None and options.reference not in names:
        raise UnknownName("case to refer to", options.reference, names)
    return options.reference or names[0]


def warn_if_busy(load: float | None, threads: int, listener: Listener, stage: str) -> None:
    """Warns where other work is going to disturb the measurement; `load` is the system's load average."""
    if load is not None and load > BUSY * threads:
        text = f"The machine was busy before the benchmark began (load {load:.1f} on {threads} threads)."
        listener(Event(stage, "warning", {"text": text}))


def late_calls(rows: Sequence[Row]) -> list[str]:
    """A sentence for each paced case that did not keep up with the clock."""
    return [f"{row.case}: {row.late_calls} of {len(row.measurement.seconds)} calls began late, since the call before "
            f"had not ended; it does not keep up with {row.measurement.arrival}." for row in rows if row.late_calls]


def _measure(trials: Sequence[Trial], options: recipe.Bench, paper: Exam | None, listener: Listener) -> None:
    with closing(trials):
        order = np.random.default_rng(options.seed)
        _start(trials, options, order, listener)
        _rounds(trials, options, order, listener)
        if paper is not None:
            examine(trials, paper, listener, STAGE)


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


def _start(trials: Sequence[Trial], options: recipe.Bench, order: np.random.Generator, listener: Listener) -> None:
    """Fresh processes in random order; those of the last turn stay open."""
    with told(listener, STAGE, "starting", options.starts * len(trials), "process") as step:
        for turn in range(options.starts):
            for trial in shuffled(trials, order):
                if trial.alive:
                    trial.start(keep=turn == options.starts - 1)
                step.advance(case=trial.case.name)


def _rounds(trials: Sequence[Trial], options: recipe.Bench, order: np.random.Generator, listener: Listener) -> None:
    """Interleaved rounds: in each every case is measured once, in another random order."""
    with told(listener, STAGE, "measuring", options.rounds * len(trials), "block") as step:
        for _ in range(options.rounds):
            for trial in shuffled(trials, order):
                trial.block()
                step.advance(case=trial.case.name)


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
                    if trial.evaluate(paper.record.source, keys, out, step.by):
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


def _assemble(trials: Sequence[Trial], options: recipe.Bench, paper: Exam | None, machine: dict[str, Any],
              reference: str, notes: Sequence[str]) -> Report:
    base = next(trial for trial in trials if trial.case.name == reference)
    rows = [_compared(trial, base, options.seed, paper) for trial in trials]
    allocators = [trial.starts[0]["allocator"] for trial in trials if trial.starts]
    machine = {**machine, "allocator": allocators[0] if allocators else None}
    if not base.alive:
        notes = [*notes, f"The reference {reference} could not be measured, so there are no speed-ups."]
    return Report(report.SCHEMA, machine, dataclasses.asdict(options), tuple(rows), reference if base.alive else None,
                  _focus(rows, reference), paper.record if paper else None, tuple(notes))


def _compared(trial: Trial, base: Trial, seed: int, paper: Exam | None) -> Row:
    row = trial.row()
    if trial is not base and trial.alive and base.alive:
        # Per image, so that cases of different batches can stand in one column.
        per_image = [one.measurement().by_round() / one.case.batch for one in (base, trial)]
        times = stats.speedup(*per_image, seed=seed)
        row = dataclasses.replace(row, speedup=times)
    if paper is not None and trial.answers is not None:
        against = None if trial is base else base.answers
        row = dataclasses.replace(row, accuracy=exam.grade(trial.answers, against, paper.data.labels))
    return row


def _focus(rows: Sequence[Row], reference: str) -> str | None:
    """The case to show in detail: the first variant of a bundle, which is what ships; else the reference; else any."""
    graded = [row for row in rows if row.accuracy is not None]
    graded.sort(key=lambda row: (row.kind != "bundle", row.case != reference))  # stable: keeps the order within
    return graded[0].case if graded else None


def _write(found: Report, options: recipe.Bench, paper: Exam | None, out: Path) -> None:
    """Writes the figures first: measurements of an hour are not lost because a picture cannot be drawn."""
    with rundir.building(out, overwrite=options.overwrite) as folder:
        rundir.write_text(folder / rundir.REPORT, report.dumps(found))
        rundir.write_text(folder / rundir.RECIPE, tables.legible(recipe.to_toml(options)))
    try:
        for name, text in formats.texts(found).items():
            rundir.write_text(out / name, text)
        pictures = {} if paper is None else html.thumbnails(found, paper.items, paper.data.read)
        rundir.write_text(out / report.HTML, tables.legible(html.page(found, pictures)))
    except DiskFull as problem:
        raise DiskFull(f"{problem.message} All measurements are kept in {out / rundir.REPORT}.",
                       hint="Make room, then run the same command again with --overwrite.") from problem
    except BaseException as problem:
        problem.add_note(f"All measurements are kept in {out / rundir.REPORT}.")
        raise
