"""Holds two bundles against one another on this machine and says whether the new one may replace the other.

What is cheap is asked first: the size, then the answers, then the latencies. The first "no" is the verdict.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgetl import evaluate, judging, rundir, timing
from edgetl.bench import (
    cases,
    environment,
    exam,
    gate_cases,
    gate_verdict,
    gate_words,
    pairs,
    phases,
    runner,
    sequential,
)
from edgetl.bench.gate_cases import Sides
from edgetl.bench.gate_verdict import Condition, Side, Verdict
from edgetl.bench.pairs import Pair, Pattern
from edgetl.bench.sequential import FAIL, INCONCLUSIVE, PASS, Look, Outcome
from edgetl.bench.trial import Trial
from edgetl.errors import EdgetlError
from edgetl.events import Event, Listener, ignore
from edgetl.recipe_gate import RegressionGate, margin, seconds, size_limit
from edgetl.runtime import processor
from edgetl.runtime.session import usable_threads

STAGE = "gate"
ROUNDING = 1e-9  # points; a limit that is met exactly is met


def gate(options: RegressionGate, *, listener: Listener = ignore) -> Verdict:
    """The verdict, also written to `options.out` where that is given.

    Args:
        options: what to hold against one another, and the limits.
        listener: hears of progress, notes and warnings.

    Raises:
        EdgetlError: a side that is no case, sides that cannot be compared, or a worker that died: there is no verdict.
        UnknownName: a variant or backend that does not exist.
        BundleError: a bundle is incomplete or altered.
        DataError: see `exam.prepare`.
        OutputError: `options.out` exists or cannot be written.
    """
    if options.out is not None:
        rundir.claim(Path(options.out), resume=None, overwrite=options.overwrite)
    _require_data(options)
    sides = gate_cases.find(options)
    found = _Gate(options, sides, listener).held()
    if options.out is not None:
        gate_verdict.write(found, Path(options.out), overwrite=options.overwrite)
    return found


def _require_data(options: RegressionGate) -> None:
    for flag, value in (("--min-accuracy", options.min_accuracy), ("--max-drop", options.max_drop)):
        if value is not None and options.data is None:
            raise EdgetlError(f"{flag} needs images to measure accuracy on.", hint="Give them with --data.")


class _Gate:
    """A gate while it is held."""

    def __init__(self, options: RegressionGate, sides: Sides, listener: Listener) -> None:
        self.options, self.sides = options, sides
        self.notes: list[str] = []
        self.heard = exam.collecting(listener, self.notes)
        self.made: dict[bool, list[Pair]] = {True: [], False: []}  # of BASE with itself, of NEW with BASE

    def held(self) -> Verdict:
        """Asks one condition after the other, up to the first that says no."""
        machine = environment.fingerprint()
        runner.warn_if_busy(machine["load_average"], usable_threads(), self.heard, STAGE)
        for text in (*cases.warnings(self.sides.both, processor.missing), *gate_words.differences(self.sides)):
            self.heard(Event(STAGE, "warning", {"text": text}))
        conditions = [*self._size()]
        if self.options.data is not None and not _failed(conditions):
            conditions += self._answers()
        latency, plan = None, None
        if not _failed(conditions):
            latency, plan = self._latency()
            text = gate_words.latency(latency, margin(self.options.max_regression), seconds(self.options.budget))
            conditions.append(Condition("latency", latency.verdict, text))
        worst = next((verdict for verdict in (FAIL, INCONCLUSIVE)
                      if any(one.verdict == verdict for one in conditions)), PASS)
        raw = {same: tuple(one.to_json() for one in found) for same, found in self.made.items()}
        return Verdict(gate_verdict.SCHEMA, worst, tuple(conditions), _side(self.sides.base), _side(self.sides.new),
                       dataclasses.asdict(self.options), machine, tuple(self.notes), latency, plan, raw[True],
                       raw[False])

    def _size(self) -> list[Condition]:
        if self.options.max_size is None:
            return []
        base, new = (one.subject.size_bytes for one in self.sides.both)
        limit = size_limit(self.options.max_size, base)
        return [Condition("size", PASS if new <= limit else FAIL,
                          gate_words.size(new, base, self.options.max_size.strip()))]

    def _answers(self) -> list[Condition]:
        """Accuracy on the validation split: a gate is a choice, and the test split is for reports."""
        paper = exam.prepare(self.sides.options, self.sides.both, self.heard, split="val")
        assert paper is not None  # there is --data
        trials = [Trial(one, self.sides.options, from_pixels=self.sides.from_pixels) for one in self.sides.both]
        with phases.closing(trials):
            for trial in trials:
                trial.start(keep=True)
            phases.examine(trials, paper, self.heard, STAGE)
        for trial in trials:
            if trial.answers is None:
                raise EdgetlError(f"The accuracy of {trial.case.name} cannot be measured: "
                                  f"{trial.reason or trial.no_answers}.",
                                  hint="Leave out --data, --min-accuracy and --max-drop to gate the latency alone.")
        base, new = (one.answers for one in trials)
        assert base is not None and new is not None
        pair = judging.compare(new, base)
        least, most = self.options.min_accuracy, self.options.max_drop
        value = new.accuracy if isinstance(new, evaluate.Evaluation) else new.score
        low = least is not None and (value is None or 100 * value < least - ROUNDING)
        dropped = most is not None and pair.drop_points > most + ROUNDING
        return [Condition("accuracy", FAIL if low else PASS, gate_words.accuracy(new, least)),
                Condition("drop", FAIL if dropped else PASS, gate_words.drop(pair, most))]

    def _latency(self) -> tuple[Outcome, Pattern]:
        base, new = self.sides.both
        sequential.rank(sequential.LEAST_PAIRS, sequential.FALSE_ALARM)  # imports scipy before the clock runs
        order, budget_s = np.random.default_rng(self.options.seed), seconds(self.options.budget)
        with phases.told(self.heard, STAGE, "measuring", None, "pair") as step:
            begun_s = timing.now_s()
            plan = pairs.probe((base, new), self.sides.options, from_pixels=self.sides.from_pixels)

            def measure(same: bool) -> float:
                sides = (base, base) if same else (base, new)
                pair = pairs.measure(sides, self.sides.options, plan, order, origin_s=begun_s,
                                     from_pixels=self.sides.from_pixels)
                self.made[same].append(pair)
                step.advance(elapsed_s=timing.now_s() - begun_s)
                return pair.log_ratio

            found = sequential.conduct(measure, lambda: timing.now_s() - begun_s, budget_s=budget_s,
                                       margin=margin(self.options.max_regression),
                                       told=functools.partial(_tell, self.heard))
        return found, plan


def _tell(listener: Listener, look: Look) -> None:
    if look.verdict is None:
        listener(Event(STAGE, "note", {"text": f"not clear after {look.pairs} pairs: {gate_words.change(look.ratio)}"}))


def _failed(conditions: Sequence[Condition]) -> bool:
    return any(one.verdict == FAIL for one in conditions)


def _side(case: cases.Case) -> Side:
    subject = case.subject
    return Side(str(subject.source), subject.kind, subject.backend, case.threads, case.batch, subject.size_bytes,
                subject.variant, subject.precision)
