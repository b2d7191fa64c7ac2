"""From what the trials measured to the rows of a report: what compares one case with another."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgetl import judging
from edgetl.bench import exam, stats
from edgetl.bench.exam import Exam
from edgetl.bench.report import BACK_TO_BACK, Row, Throughput
from edgetl.bench.trial import Trial
from edgetl.judging import Judged, TaskEvaluation


def rows(trials: Sequence[Trial], reference: str, seed: int, paper: Exam | None) -> tuple[Row, ...]:
    """A row for each trial, with speed-ups and agreement against the reference, and the best throughputs.

    Args:
        trials: as far as they have been measured.
        reference: name of the case to compare with.
        seed: of the bootstrap.
        paper: the test images, where there are some.
    """
    base = next(trial for trial in trials if trial.case.name == reference)
    return _with_best([_compared(trial, counterpart(trial, base, trials), base, seed, paper) for trial in trials])


def counterpart(trial: Trial, base: Trial, trials: Sequence[Trial]) -> Trial | None:
    """The reference under the arrival of `trial`, for patterns are never compared; None where it was not measured."""
    wanted = dataclasses.replace(base.case, name="", interval=trial.case.interval)
    return next((one for one in trials if dataclasses.replace(one.case, name="") == wanted), None)


def _compared(trial: Trial, against: Trial | None, base: Trial, seed: int, paper: Exam | None) -> Row:
    row = trial.row()
    if against is not None and trial is not against:
        row = dataclasses.replace(row, speedup=_speedup(against, trial, seed))
    if paper is not None and trial.answers is not None:
        reference = None if trial is base else base.answers
        row = dataclasses.replace(row, **_judged(trial.answers, reference, paper))
    return row


def _judged(found: Judged, reference: Judged | None, paper: Exam) -> dict[str, Any]:
    """How right the answers are, by the name of the field of a row."""
    if isinstance(found, TaskEvaluation):
        return {"score": exam.score(found, reference if isinstance(reference, TaskEvaluation) else None)}
    against = None if reference is None else judging.of_classes(reference)
    return {"accuracy": exam.grade(found, against, paper.data.labels)}


def _speedup(base: Trial, trial: Trial, seed: int) -> stats.Interval | None:
    """How many times faster a case is than the reference, over the rounds that both have."""
    rounds = min(len(one.blocks) for one in (base, trial))
    if not (trial.alive and base.alive and rounds):
        return None
    # Per image, so that cases of different batches can stand in one column.
    per_image = [one.measurement().by_round()[:rounds] / one.case.batch for one in (base, trial)]
    return stats.speedup(*per_image, seed=seed)


def _with_best(found: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with the best throughput of their graph, backend and threads, over batches and concurrencies."""
    known: dict[tuple[object, ...], list[Throughput]] = defaultdict(list)
    for row in found:
        known[_graph(row)] += [*row.throughputs, *_of_calls(row)]
    best = {graph: max(all_of_it, key=lambda one: one.ips) for graph, all_of_it in known.items() if all_of_it}
    return tuple(dataclasses.replace(row, best_throughput=best.get(_graph(row)) if row.measured else None)
                 for row in found)


def _graph(row: Row) -> tuple[object, ...]:
    return row.source, row.variant, row.backend, row.threads


def _of_calls(row: Row) -> list[Throughput]:
    """The throughput of one caller, from the latencies of calls back to back; a paced row has none."""
    if not row.measured or row.measurement.arrival != BACK_TO_BACK:
        return []
    rates = tuple(float(row.batch / np.mean(calls)) for calls in row.measurement.by_round())
    middle = stats.median_interval(rates)
    return [Throughput(middle.value, middle.low, middle.high, row.batch, 1, rates)]


def focus(found: Sequence[Row], reference: str) -> str | None:
    """The case to show in detail: the first variant of a bundle, which is what ships; else the reference; else any."""
    graded = [row for row in found if row.accuracy is not None or row.score is not None]
    graded.sort(key=lambda row: (row.kind != "bundle", row.case != reference))  # stable: keeps the order within
    return graded[0].case if graded else None
