"""Measures variants x backends x threads of a bundle on this machine, and remembers the best for `runtime.load`.

A call is timed from an image's pixels to its logits, so that graphs which embed the normalisation compete with those
that need it done. Nothing is chosen by the test split: accuracies are those of the validation split.
"""

from __future__ import annotations

import datetime
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import __version__, extras, judging, plugins, recipe, rundir, timing
from edgetl.bench import cases, environment, exam, phases, runner, selection
from edgetl.bench.cases import Case
from edgetl.bench.exam import Exam
from edgetl.bench.selection import FP32, LEAST_ROUNDS, Candidate, Verdict
from edgetl.bench.trial import Trial
from edgetl.errors import EdgetlError, OutputError, RecipeError, UnknownName
from edgetl.events import Event, Listener, ignore
from edgetl.recipe_tune import Tune
from edgetl.runtime import choice, tuned
from edgetl.runtime.bundle import Bundle, open_bundle
from edgetl.runtime.manifest import Manifest, Variant
from edgetl.runtime.session import usable_threads
from edgetl.runtime.tuned import Answer, Entry

STAGE = "tune"
BLOCK = 50  # calls a round; the first 10 are dropped
MOST_ROUNDS = 30
HOPELESS = 2.0  # a case that is so many times slower than the same variant elsewhere is left after the first round
UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Tuning:
    """What was measured, what was chosen, and where it is kept."""

    entry: Entry
    path: Path
    chosen: Candidate
    why: str
    candidates: tuple[Candidate, ...]  # in the order of preference
    refusals: tuple[str | None, ...]  # why each cannot be chosen; None where only a better one was
    rounds: int
    elapsed_s: float
    notes: tuple[str, ...]

    def details(self) -> dict[str, Any]:
        """What people may want to know of it later, as plain JSON."""
        rows = [{**one.to_json(), "refusal": refusal}
                for one, refusal in zip(self.candidates, self.refusals, strict=True)]
        return {"edgetl": __version__, "rounds": self.rounds, "elapsed_s": self.elapsed_s,
                "faster_by": selection.FASTER_BY, "significance": selection.SIGNIFICANCE,
                "notes": list(self.notes), "cases": rows}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the stored file, where it is, and what is chosen when nothing is asked for."""
        one = self.chosen
        return {"path": str(self.path),
                "chosen": {"variant": one.variant, "backend": one.backend, "threads": one.threads, "why": self.why},
                **tuned.to_json(self.entry, self.details())}


def tune(options: Tune, *, listener: Listener = ignore) -> Tuning:
    """The measured cases and the best of them, which is also written to the user's cache.

    Args:
        options: what to measure, and how.
        listener: hears of progress, notes and warnings.

    Raises:
        RecipeError: no bundle was named.
        BundleError: it is incomplete or altered.
        UnknownName: a variant or backend that does not exist.
        DataError: see `exam.prepare`.
        OutputError: the cache cannot be written.
        EdgetlError: nothing could be measured, or nothing that was may be chosen.
    """
    if options.bundle is None:
        raise RecipeError(["'bundle' is missing: the bundle to tune"], where="edgetl tune")
    extras.require("scipy", extra="cli", purpose="Choosing by a rank test")
    begun_s = timing.now_s()
    bundle = open_bundle(options.bundle)
    where = tuned.machine()
    path = _claim(tuned.path_of(bundle.digest, where))
    notes: list[str] = []
    heard = exam.collecting(listener, notes)
    with tempfile.TemporaryDirectory(prefix="edgetl-tune-") as scratch:
        found, impossible = find(bundle, options, Path(scratch))
        paper = exam.prepare(options, found, heard, split="val")
        runner.warn_if_busy(environment.load_average(), usable_threads(), heard, STAGE)
        trials = [Trial(case, _bench(options), from_pixels=True) for case in found]
        aside = _measure(trials, options, begun_s + budget_s(options.budget), paper, heard)
    measured = candidates(bundle.manifest, trials, aside, paper)
    entry, verdict = _entry(bundle, where, measured, options, trials)
    if verdict.chosen is None:
        raise EdgetlError(_nothing_left(measured, verdict, impossible), hint="`edgetl doctor` lists what this machine "
                          "can run; `--data` measures accuracies, `--max-drop` allows more.")
    made = Tuning(entry, path, verdict.chosen, verdict.why, (*measured, *impossible),
                  (*verdict.refusals, *(one.reason for one in impossible)), max(len(one.blocks) for one in trials),
                  timing.now_s() - begun_s, tuple(notes))
    rundir.write_json(path, tuned.to_json(entry, made.details()))
    return made


def forget(bundle: str | None) -> tuple[Path, ...]:
    """The files that were removed from the cache: what was measured of a bundle, on whichever machine, or of all.

    Raises:
        BundleError: there is no such bundle.
    """
    prefix = "" if bundle is None else open_bundle(bundle).digest[:16]
    gone = tuple(path for path in tuned.files() if path.name.startswith(prefix))
    for path in gone:
        path.unlink()
    return gone


def budget_s(text: str) -> float:
    """Seconds of a duration that the recipe has checked."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(ms|s|m)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is no duration")
    return float(match[1]) * UNITS_S[match[2]]


def _claim(path: Path) -> Path:
    """The file to write, in a folder that is there.

    Raises:
        OutputError: it cannot be; better known before the work.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise _unwritable(path, problem.strerror or str(problem)) from problem
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise _unwritable(path, "it is read-only")
    return path


def _unwritable(path: Path, why: str) -> OutputError:
    return OutputError(f"The cache {path.parent} cannot be written: {why}.", hint="Name another: EDGETL_CACHE=FOLDER")


def _bench(options: Tune) -> recipe.Bench:
    """What a trial needs to know."""
    return recipe.Bench(cases=(), out="", block=BLOCK, timeout_s=options.timeout_s)


# ------------------------------------------------------------------------------------------------------------ cases


def find(bundle: Bundle, options: Tune, scratch: Path) -> tuple[tuple[Case, ...], tuple[Candidate, ...]]:
    """The cases to measure, in the order of preference, and the pairs that cannot run here with their reasons.

    The graphs are written to `scratch`, from the very bytes whose digest was compared.

    Raises:
        UnknownName: a variant or backend that does not exist.
        EdgetlError: nothing that was asked for can run here.
    """
    for backend in options.backend:
        plugins.require("backends", backend)
    names = [one.name for one in bundle.manifest.variants]
    for name in options.variant:
        if name not in names:
            raise UnknownName("variant", name, names)
    counts = thread_counts(options.threads)
    found: list[Case] = []
    impossible: list[Candidate] = []
    for variant, backend, refusal in _pairs(bundle.manifest, options):
        if refusal is not None:
            impossible.append(Candidate(variant.name, backend, counts[0], variant.precision, reason=refusal))
            continue
        graph = scratch / f"{names.index(variant.name)}.onnx"
        if not graph.exists():
            choice.check_classifier(bundle.manifest, variant)
            graph.write_bytes(bundle.read(variant.file, variant.sha256, variant.size_bytes))
        title = f"{variant.name} {backend}"
        subject = cases.of_variant(bundle.manifest, variant, backend, title=title, source=Path(str(options.bundle)),
                                   graph=graph)
        found += [Case(f"{title} {count} thread{'s' * (count != 1)}", subject, count, 1)
                  for count in _worth_measuring(backend, counts)]
    if not found:
        raise EdgetlError(f"Nothing of '{bundle.manifest.name}' that was asked for can run here: "
                          + "; ".join(f"{one.variant} {one.reason}" for one in impossible) + ".",
                          hint="`edgetl doctor` lists what this machine can run.")
    return tuple(found), tuple(impossible)


def _pairs(manifest: Manifest, options: Tune) -> Iterator[tuple[Variant, str, str | None]]:
    """Variants with the backends asked for that they are made for, in the manifest's order of both.

    fp32 always comes along, for the others are held against it.
    """
    asked = [plugins.public(one) for one in options.backend]
    for variant in manifest.variants:
        if options.variant and variant.name not in (*options.variant, _reference(manifest).name):
            continue
        # No manifest lists `ort:xnnpack`.
        named = [one for one in asked if ":" in one and choice.made_for(variant, one)]
        for backend in (*variant.backends, *(one for one in named if one not in variant.backends)):
            if asked and backend not in asked:
                continue
            yield variant, backend, choice.refusal(variant, backend, asked=backend in asked)


def _worth_measuring(backend: str, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Of the thread counts, those that make a difference on a backend: where a card computes, the first for all."""
    return counts if getattr(plugins.load("backends", backend), "COMPUTES_ON_THREADS", True) else counts[:1]


def thread_counts(asked: Sequence[str]) -> tuple[int, ...]:
    """Thread counts in rising order; by default the powers of two up to what the machine allows, and that."""
    most = usable_threads()
    powers = [1 << exponent for exponent in range(most.bit_length()) if 1 << exponent <= most]
    return tuple(sorted({int(one) or most for one in asked} if asked else {*powers, most}))


# -------------------------------------------------------------------------------------------------------- measuring


def _measure(trials: Sequence[Trial], options: Tune, deadline_s: float, paper: Exam | None,
             listener: Listener) -> Mapping[str, str]:
    """Interleaved rounds until the deadline; the names of cases that were left after the first, and why."""
    with phases.closing(trials):
        order = np.random.default_rng(options.seed)
        with phases.told(listener, STAGE, "starting", len(trials), "process") as step:
            for trial in phases.shuffled(trials, order):
                trial.start(keep=True)
                step.advance(case=trial.case.name)
        with phases.told(listener, STAGE, "measuring", None, "round") as step:
            round_s = _round(trials, order)
            aside = _leave_the_hopeless(trials)
            step.advance()
            while step.done < LEAST_ROUNDS or (step.done < MOST_ROUNDS and timing.now_s() + round_s < deadline_s):
                round_s = _round([one for one in trials if one.case.name not in aside], order)
                step.advance()
        if timing.now_s() > deadline_s:
            listener(Event(STAGE, "warning", {"text": f"{LEAST_ROUNDS} rounds, the least that a verdict needs, took "
                                                      f"longer than the budget of {options.budget}."}))
        if paper is not None:
            phases.examine(_sitting(trials, aside), paper, listener, STAGE)
    return aside


def _round(trials: Sequence[Trial], order: np.random.Generator) -> float:
    """Seconds that a round took: one block of every case, in random order."""
    begun_s = timing.now_s()
    for trial in phases.shuffled(trials, order):
        trial.block()
    return timing.now_s() - begun_s


def _leave_the_hopeless(trials: Sequence[Trial]) -> Mapping[str, str]:
    """Ends the cases that no further round could make the best of their variant, and says why."""
    first = {one.case.name: float(np.median(one.blocks[0]["seconds"])) for one in trials if one.alive}
    best: dict[str | None, float] = {}
    for trial in trials:
        if trial.alive:
            variant, own_s = trial.case.subject.variant, first[trial.case.name]
            best[variant] = min(own_s, best.get(variant, own_s))
    aside = {}
    for trial in trials:
        if trial.alive and first[trial.case.name] > HOPELESS * best[trial.case.subject.variant]:
            times = first[trial.case.name] / best[trial.case.subject.variant]
            aside[trial.case.name] = (f"it was left after the first round, {times:.1f} times as slow as its variant's "
                                      "best")
            trial.close()
    return aside


def _sitting(trials: Sequence[Trial], aside: Mapping[str, str]) -> list[Trial]:
    """One case a variant and backend: threads do not change the answers."""
    chosen: dict[tuple[str | None, str], Trial] = {}
    for trial in trials:
        if trial.alive and trial.case.name not in aside:
            chosen.setdefault((trial.case.subject.variant, trial.case.subject.backend), trial)
    return list(chosen.values())


# ------------------------------------------------------------------------------------------------------- judging


def candidates(manifest: Manifest, trials: Sequence[Trial], aside: Mapping[str, str],
               paper: Exam | None) -> tuple[Candidate, ...]:
    """What was measured of every case, in the order of the trials."""
    drops = _recorded(manifest) if paper is None else _measured(trials, manifest)
    told = "recorded by the export" if paper is None else f"measured here on {len(paper.items)} images"
    failed = {(one.case.subject.variant, one.case.subject.backend): one.no_answers for one in trials if one.no_answers}
    made = []
    for trial in trials:
        subject = trial.case.subject
        assert subject.variant is not None and subject.precision is not None  # cases of a bundle have both
        here = subject.variant, subject.backend
        drop = drops.get(here, drops.get((subject.variant, "")))
        rounds_s = tuple(float(np.median(block["seconds"])) for block in trial.blocks) if trial.alive else ()
        source = failed.get(here) if drop is None else told
        made.append(Candidate(*here, trial.case.threads, subject.precision, rounds_s,
                              trial.reason or aside.get(trial.case.name), drop, source))
    return tuple(made)


def _reference(manifest: Manifest) -> Variant:
    """What accuracies are held against: fp32, else what the manifest prefers."""
    return next((one for one in manifest.variants if one.precision == FP32), manifest.variants[0])


def _recorded(manifest: Manifest) -> dict[tuple[str, str], float]:
    """Points below the reference on the validation split, as the export measured them; by variant and "".

    With heads they are hundredths of the task's own score.
    """
    judged = "score" if manifest.heads else "accuracy"

    def accuracy(variant: Variant) -> float | None:
        found = [row.get(judged) for row in variant.evaluations if row.get("split") == "val"]
        return next((float(one) for one in found if isinstance(one, int | float)), None)

    reference = accuracy(_reference(manifest))
    known = {one.name: accuracy(one) for one in manifest.variants}
    return {(name, ""): 100 * (reference - own) for name, own in known.items()
            if own is not None and reference is not None}


def _measured(trials: Sequence[Trial], manifest: Manifest) -> dict[tuple[str, str], float]:
    """Points below the reference on the validation images, by variant and backend; see `_recorded` for their unit."""
    answers = {(str(one.case.subject.variant), one.case.subject.backend): one.answers
               for one in trials if one.answers is not None}
    name = _reference(manifest).name
    references = {backend: found for (variant, backend), found in answers.items() if variant == name}
    if not references:
        return {}
    any_backend = next(iter(references.values()))
    return {(variant, backend): judging.compare(found, references.get(backend, any_backend)).drop_points
            for (variant, backend), found in answers.items()
            if judging.is_known(found) and judging.is_known(references.get(backend, any_backend))}


def _entry(bundle: Bundle, where: tuned.Machine, measured: Sequence[Candidate], options: Tune,
           trials: Sequence[Trial]) -> tuple[Entry, Verdict]:
    """What is stored, and the verdict on what to run when nothing is asked for."""
    auto = choice.AUTO
    verdict = selection.decide(measured, max_drop=options.max_drop)
    answers = []
    for variant in (auto, *dict.fromkeys(one.variant for one in measured)):
        for backend in (auto, *dict.fromkeys(one.backend for one in measured)):
            group = [one for one in measured if variant in (auto, one.variant) and backend in (auto, one.backend)]
            found = selection.decide(group, max_drop=options.max_drop, by_name=variant != auto)
            if found.chosen is not None:
                best = found.chosen
                answers.append(Answer(variant, backend, best.variant, best.backend, best.threads, found.why))
    versions = {one: choice.identity(plugins.load("backends", one).probe()) for one in
                dict.fromkeys(trial.case.subject.backend for trial in trials)}
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Entry(bundle.digest, bundle.manifest.name, where, versions, moment, tuple(answers)), verdict


def _nothing_left(measured: Sequence[Candidate], verdict: Verdict, impossible: Sequence[Candidate]) -> str:
    reasons = [f"{one.name}: {refusal}" for one, refusal in zip(measured, verdict.refusals, strict=True)]
    reasons += [f"{one.variant} {one.reason}" for one in impossible]
    return f"Nothing of what was tried may be chosen: {'; '.join(reasons)}."
