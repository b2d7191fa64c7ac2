"""Measures every case beside the others and writes the report."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import extras, recipe, rundir, timing
from edgetl.bench import (
    affinity,
    assemble,
    cases,
    exam,
    formats,
    html,
    kernel,
    mlperf_phase,
    phases,
    photos,
    provenance,
    remote,
    report,
    tables,
)
from edgetl.bench.connection import Lost
from edgetl.bench.exam import Exam
from edgetl.bench.photos import Photos
from edgetl.bench.report import Report, Row
from edgetl.bench.trial import Trial
from edgetl.bench.worker import WAIT_POLICIES
from edgetl.errors import DiskFull, EdgetlError, UnknownName
from edgetl.events import Event, Listener, ignore

STAGE = phases.STAGE
SAVE_EVERY_S = 60.0  # and at the end of every round
BUSY = 0.5  # runnable processes a usable thread, before anything was started, above which a note says so


def bench(options: recipe.Bench, *, listener: Listener = ignore) -> Report:
    """The report on all cases, also written to `options.out` as json, markdown and html.

    A case that fails is a row with its reason; the others go on.

    Args:
        options: what to measure, and how.
        listener: hears of progress, notes and warnings.

    Raises:
        EdgetlError: a case, backend or number is wrong, before anything is measured; every case failed, after the
            report was written; or see `remote.host`.
        DataError: see `exam.prepare`.
        OutputError: `options.out` exists or cannot be written.
    """
    extras.require("matplotlib", extra="cli", purpose="The html report of a benchmark")
    extras.require("scipy", extra="cli", purpose="The intervals of a benchmark")
    out = Path(options.out)
    rundir.claim(out, resume=None, overwrite=options.overwrite)
    chosen = cases.find(options)
    reference = _reference(options, [case.name for case in chosen])
    notes: list[str] = []
    heard = exam.collecting(listener, notes)
    with remote.host(options, chosen, heard) as host:
        _warn(cases.warnings(chosen, host.missing), heard)
        paper = exam.prepare(options, chosen, heard)
        own = paper if host.name is None else None  # test images do not leave this machine
        files = photos.choose(options, own, next((one.subject.preprocess for one in chosen), None))
        if options.pin is not None:
            affinity.require(cases.cores(options.pin) or (), host.cores())
        machine = {**host.fingerprint(), **provenance.record()}
        warn_if_busy(machine["load_average"], machine["usable_threads"], heard, STAGE)
        trials = [Trial(case, options, host=host) for case in chosen]
        run = Run(options, trials, reference, machine, paper, notes)
        with rundir.building(out, overwrite=options.overwrite) as folder:
            run.measure(files, folder, listener, heard)
            found = run.report()
            # The figures first: measurements of an hour are not lost because a picture cannot be drawn.
            rundir.write_text(folder / rundir.REPORT, report.dumps(found))
            rundir.write_text(folder / rundir.RECIPE, tables.legible(recipe.to_toml(options)))
    _show(found, paper, out)
    if not any(row.measured for row in found.rows):
        raise EdgetlError(f"None of the {len(found.rows)} cases could be measured; the first: "
                          f"{found.rows[0].case}: {found.rows[0].measurement.reason}", hint=f"The report is in {out}.")
    return found


class Run:
    """What a benchmark has measured so far, and the report on it at any time.

    Args:
        options: of the command.
        trials: one a case.
        reference: name of the case to compare with.
        machine: its fingerprint.
        paper: the test images, where there are some.
        notes: what was warned of, still growing.
    """

    def __init__(self, options: recipe.Bench, trials: Sequence[Trial], reference: str, machine: Mapping[str, Any],
                 paper: Exam | None, notes: Sequence[str]) -> None:
        self.options, self.trials, self.reference = options, trials, reference
        self.machine, self.paper, self.notes = machine, paper, notes
        self.calibration: list[kernel.Block] = []
        self.saved_s = timing.now_s()
        self.instruments = trials[0].host.instruments()

    def measure(self, files: Photos | None, folder: Path, listener: Listener, heard: Listener) -> None:
        """Everything, one part after the other; after each round what there is so far is in `folder`.

        Args:
            files: what goes the whole way to a label.
            folder: where the partial report is written.
            listener: hears of progress.
            heard: also keeps warnings for the notes.
        """
        order = np.random.default_rng(self.options.seed)
        trials, rounds = self.trials, self.options.rounds
        with phases.closing(trials), self._kept(folder):
            phases.start(trials, self.options.starts, order, listener)
            phases.warm_up(trials, order, listener)
            _warn(self._remarks(), heard)
            phases.measure(trials, rounds, order, listener, after=lambda: self._after_round(folder),
                           around=lambda case: self._around_block(case, folder))
            if self.paper is not None:
                phases.examine(trials, self.paper, listener, STAGE)
            # Last, because they take memory that the figures of the rounds do not mean.
            phases.device_alone(trials, rounds, order, listener)
            phases.crowd(trials, self.options.concurrency, rounds, order, listener)
            phases.walk(trials, files, rounds, order, listener)
            self._save(folder)
            mlperf_phase.run(trials, self.options, self.paper, order, listener, after=lambda: self._save(folder))
            self.instruments.weigh(trials)
            if self.options.profile_layers:
                phases.profile(trials, listener)
        _warn([*late_calls([trial.row() for trial in self.trials]),
               *(text for trial in self.trials for text in trial.remarks),
               *self.instruments.watch.warnings()], heard)

    def _after_round(self, folder: Path) -> None:
        calibration = self.trials[0].host.calibrate()
        if calibration is not None:
            self.calibration.append(calibration)
        self._save(folder)

    @contextlib.contextmanager
    def _around_block(self, case: str, folder: Path) -> Iterator[None]:
        with self.instruments.around(case):
            yield
        if timing.now_s() - self.saved_s > SAVE_EVERY_S:  # a round of many slow cases takes long
            self._save(folder)

    def _save(self, folder: Path) -> None:
        rundir.write_text(folder / rundir.REPORT, report.dumps(self.report(report.PARTIAL)))
        self.saved_s = timing.now_s()

    @contextlib.contextmanager
    def _kept(self, folder: Path) -> Iterator[None]:
        """Writes down what there is since the last round at Ctrl-C, and when a device is lost."""
        try:
            yield
        except (KeyboardInterrupt, Lost):
            if any(trial.blocks for trial in self.trials):
                self._save(folder)
            raise

    def _remarks(self) -> list[str]:
        """What is to be said of warm-ups and spinning."""
        found = [f"{trial.case.name}: {trial.warmth.reason}." for trial in self.trials
                 if trial.warmth is not None and trial.warmth.reason is not None]
        without = dict.fromkeys(trial.case.subject.backend for trial in self.trials
                                if trial.starts and trial.starts[-1].get("spin_option") is False)
        return found + [f"--spin {self.options.spin}: the backend '{backend}' has no such option; all that was set for "
                        f"it is OMP_WAIT_POLICY={WAIT_POLICIES[str(self.options.spin)]}." for backend in without]

    def report(self, status: str = report.COMPLETE) -> Report:
        """The report; a partial one compares nothing, since that takes a while."""
        if status == report.PARTIAL:
            rows = tuple(trial.row() for trial in self.trials)
        else:
            rows = assemble.rows(self.trials, self.reference, self.options.seed, self.paper)
        rows = tuple(dataclasses.replace(row, sensors=self.instruments.of(row.case)) for row in rows)
        allocators = [trial.starts[0]["allocator"] for trial in self.trials if trial.starts]
        machine = {**self.machine, "allocator": allocators[0] if allocators else None}
        notes, reference = list(self.notes), next(row for row in rows if row.case == self.reference)
        if not reference.measured:
            notes.append(f"The reference {self.reference} could not be measured, so there are no speed-ups.")
        calibration = kernel.Calibration(kernel.VERSION, tuple(self.calibration)) if self.calibration else None
        return Report(report.SCHEMA, machine, dataclasses.asdict(self.options), rows,
                      self.reference if reference.measured else None, assemble.focus(rows, self.reference),
                      self.paper.record if self.paper else None, tuple(notes), status=status, calibration=calibration,
                      device=self.trials[0].host.name)


def _warn(texts: Sequence[str], heard: Listener) -> None:
    for text in texts:
        heard(Event(STAGE, "warning", {"text": text}))


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
    """A sentence for each paced case that did not keep up with the clock, and one on what its latencies leave out."""
    return [f"{row.case}: {row.late_calls} of {len(row.measurement.seconds)} calls began late, since the call before "
            f"had not ended; it does not keep up with {row.measurement.arrival}.{_waits(row)}"
            for row in rows if row.late_calls]


def _waits(row: Row) -> str:
    if len(row.waited_s) != len(row.measurement.seconds):
        return ""
    since_due = np.add(row.measurement.seconds, row.waited_s)
    longest, middle, greatest = (tables.milliseconds(float(one)) for one in
                                 (max(row.waited_s), np.median(since_due), since_due.max()))
    return (f" They had been due for up to {longest} ms, which is in no latency: from when calls were due, the median "
            f"is {middle} ms and the greatest {greatest} ms.")


def _show(found: Report, paper: Exam | None, out: Path) -> None:
    """Draws what is drawn from the figures."""
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
