"""Strategies of fine-tuning against one another on the same data: each training a RUN below OUT, a table, a winner.

They are compared on validation images, or on the folds of a cross-validation. The test split is withheld from all
trainings, and looked at once: at the end, by the strategy that is recommended.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgetl import datasets, head_metrics, heads, predictions, rundir, splits, task_scores, timing, weights
from edgetl.errors import DataError, EdgetlError, OutputError, TrainingError
from edgetl.events import Event, Listener, ignore
from edgetl.heads import SCORES
from edgetl.predictions import Predictions
from edgetl.recipe_compare_strategies import Arm, CompareStrategies
from edgetl.recipe_fields import MOST_SEED
from edgetl.recipe_finetune import Finetune
from edgetl.splits import Splits
from edgetl.task_scores import Said
from edgetl.train import (
    beforehand,
    folds,
    objective,
    seed,
    setting,
    strategies,
    strategy_table,
    teacher,
    tta,
)
from edgetl.train.sameness import require_same
from edgetl.train.strategy_table import Answers, Row, Verdict

STAGE = "compare-strategies"
SCHEMA = 1
PLAN = "plan.json"  # what is compared, so that only the very same is resumed
TIMES = "times.json"  # seconds of each training, over all attempts
CHOSEN = "chosen.json"  # which strategy was chosen, before the test split was looked at; nothing changes it any more
RUNS, WINNER = "runs", "winner"
PREPARING = ("decode", "check test")  # phases that whoever trains first on some images pays for all

Of = TypeVar("Of")
Draw = Callable[[Path, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Compared:
    """A finished comparison."""

    out: Path
    result: Mapping[str, Any]  # what strategies.json says

    def insist(self) -> None:
        """Returns when every strategy could be trained.

        Raises:
            TrainingError: some failed; says which and why.
            DataError: all were, and the test images cannot be used.
        """
        failed = [f"{row['strategy']}: {row['reason']}" for row in self.result["rows"] if row["reason"] is not None]
        untested = (self.result["test"] or {}).get("reason")
        if not failed and untested is not None:
            raise DataError(f"The test split could not be measured: {untested}", hint=f"The table is in {self.out}.")
        if failed:
            raise TrainingError(f"{len(failed)} of {len(self.result['rows'])} strategies could not be trained: "
                                f"{'; '.join(failed)}",
                                hint=f"The table of the others is in {self.out}.")


def compare(options: CompareStrategies, *, draw: Draw, listener: Listener = ignore) -> Compared:
    """Trains every strategy as often as asked for, and writes the table, the pages and the winner's RUN.

    Args:
        options: what to compare; every problem of it is told before the first training.
        draw: writes pages beside strategies.json, from what that says.
        listener: hears of the trainings.

    Raises:
        RecipeError: a strategy or an option is wrong.
        DataError, OutputError: the data cannot be used, or OUT not written.
        TrainingError: no strategy could be trained, or --resume finds another comparison.
        KeyboardInterrupt: Ctrl-C; --resume goes on.
    """
    options.repeats()
    arms, left_out = options.arms(_require)
    for reason in left_out:
        listener(Event(STAGE, "note", {"text": f"left out: {reason}"}))
    out = Path(options.out)
    rundir.require_place(out)
    data = datasets.open_data(options.data, listener=listener, asked=heads.asked(options))
    parts = splits.resolve(data, options, listener=listener)
    identity = {**setting.identity(options, parts.fingerprint), "inputs": {arm.name: _inputs(arm) for arm in arms}}
    if options.resume and (out / rundir.STRATEGIES).is_file() and not rundir.resumable(rundir.partial(out)):
        found = rundir.read_json(out / rundir.STRATEGIES, TrainingError)
        require_same(found["identity"], identity, f"{out} is finished, and", CompareStrategies)
        listener(Event(STAGE, "note", {"text": f"{out} is finished already; nothing was done."}))
        return Compared(out, found)
    with rundir.building(out, resume=options.resume, overwrite=options.overwrite) as folder:
        plan = folder / PLAN
        if plan.is_file():
            then = rundir.read_json(plan, TrainingError)
            require_same(then, identity, f"The comparison in {folder}", CompareStrategies)
        rundir.write_json(plan, identity)
        contest = Contest(options, arms, folder, data, parts, listener)
        result = {**contest.result(), "identity": identity}
        rundir.write_json(folder / rundir.STRATEGIES, result)
        draw(folder, result)
    return Compared(out, result)


class Contest:
    """The trainings of a comparison in a folder, and what came of them."""

    def __init__(self, options: CompareStrategies, arms: tuple[Arm, ...], folder: Path, data: datasets.DataSet,
                 parts: Splits, listener: Listener) -> None:
        self.options, self.folder, self.data, self.parts, self.listener = options, folder, data, parts, listener
        self.arms, self.repeats = arms, options.repeats()
        self.crossed = options.folds is None
        self.score = SCORES[data.heads[0].kind] if data.heads else None  # None: accuracy
        self.times: dict[str, float] = {}
        if (folder / TIMES).is_file():
            self.times = rundir.read_json(folder / TIMES, TrainingError)
        self.failed: dict[str, str] = {}  # tried again on --resume, until the choice is made
        if (folder / CHOSEN).is_file():
            self.failed = rundir.read_json(folder / CHOSEN, TrainingError)["failed"]
        self.arrangements = self._arrangements()

    def _arrangements(self) -> list[setting.Arranged]:
        """What each repeat makes of the splits: none of them leaves the data's own test images in."""
        if self.options.folds is None:
            return [_without_test] * self.repeats
        digests = splits.content_digests(self.data)
        dealt = folds.deal(self.parts, digests, self.options.folds, self.options.split_seed, self.data.heads)

        def arrangement(number: int) -> setting.Arranged:
            return lambda parts: folds.arranged(parts, dealt, number, digests, self.options.split_seed,
                                                self.options.val_fraction, self.data.heads)

        return [arrangement(number) for number in range(self.repeats)]

    def result(self) -> dict[str, Any]:
        """Everything that strategies.json says: trains what is not trained yet, judges, and examines the winner.

        Raises:
            TrainingError: no strategy could be trained.
        """
        self._train()
        answers = [self._answers(arm) for arm in self.arms]
        table = strategy_table.rows(answers, folds=not self.crossed)
        trained = [row for row in table if row.reason is None]
        if not trained:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())
            raise TrainingError(f"None of the strategies could be trained: {reasons}")
        pairs = strategy_table.pairs(answers, [row.strategy for row in trained], folds=not self.crossed)
        verdict = strategy_table.verdict(trained, pairs, measured_on=self._measured_on(answers),
                                         quick=self.options.prefer == "quick", score=self.score)
        rundir.write_json(self.folder / CHOSEN, {"recommended": verdict.recommended, "failed": self.failed})
        test = self._examined(next(arm for arm in self.arms if arm.name == verdict.recommended))
        self._tidy()
        return self._described(table, pairs, verdict, test)

    # ------------------------------------------------------------------------------------------------- trainings

    def _train(self) -> None:
        """Every strategy once, then every one again: what is broken off has about as many of each."""
        for number in range(self.repeats):
            for place, arm in enumerate(self.arms):
                folder = self.place(arm, number)
                if arm.name in self.failed or weights.is_run(folder):
                    continue
                count = f"{number * len(self.arms) + place + 1} of {self.repeats * len(self.arms)}"
                self._note(f"{arm.name}, {self._repeat(number)} ({count})")
                self._train_one(arm, number, folder)

    def _train_one(self, arm: Arm, number: int, folder: Path) -> None:
        """One training; that it failed is kept as the strategy's result."""
        options = dataclasses.replace(arm.options, seed=self._seed(number), out=str(folder), resume=True)
        watch = Watch(self.listener)
        with rundir.explained(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._finetune(options, watch, self.arrangements[number])
        except OutputError:  # no fault of the strategy
            raise
        except EdgetlError as problem:
            self.failed[arm.name] = problem.message
            self._warn(f"{arm.name} failed: {problem.message}")
            return
        finally:
            key = folder.relative_to(self.folder / RUNS).as_posix()
            self.times[key] = self.times.get(key, 0.0) + watch.seconds()
            rundir.write_json(self.folder / TIMES, self.times)
        if not (self.crossed or self.options.keep_runs):  # the winner is trained again, on all images
            (folder / rundir.MODEL).unlink(missing_ok=True)

    def _finetune(self, options: Finetune, listener: Listener, arranged: setting.Arranged | None) -> None:
        teacher.finetune(options, listener=listener, arranged=arranged)
        self._settle(Path(options.out))

    def _settle(self, folder: Path) -> None:
        """Lets the record of a RUN say where it will lie, and not where it was built."""
        record = weights.read_record(folder)
        final = Path(self.options.out) / folder.relative_to(self.folder)
        options = {**record["options"], "out": str(final), "resume": False}
        rundir.write_json(folder / rundir.RUN, {**record, "options": options})

    def place(self, arm: Arm, number: int) -> Path:
        """Folder of one training."""
        name = f"seed-{self._seed(number)}" if self.crossed else f"fold-{number + 1}"
        return self.folder / RUNS / arm.folder / name

    def _seed(self, number: int) -> int:
        return (self.options.seed + number) % (MOST_SEED + 1) if self.crossed else self.options.seed

    def _repeat(self, number: int) -> str:
        return f"seed {self._seed(number)}" if self.crossed else f"fold {number + 1}"

    # -------------------------------------------------------------------------------------------------- answers

    def _answers(self, arm: Arm) -> Answers:
        places = [self.place(arm, number) for number in range(self.repeats)]
        keys = [place.relative_to(self.folder / RUNS).as_posix() for place in places]
        seconds = tuple(self.times.get(key) for key in keys)
        if arm.name in self.failed:
            return Answers(arm.name, arm.own, seconds=seconds, reason=self.failed[arm.name])
        split = "val" if self.crossed else "test"  # of a fold's training, the fold
        return Answers(arm.name, arm.own, self._all_said(places, split), seconds)

    def _all_said(self, places: Sequence[Path], split: str) -> tuple[Predictions, ...] | tuple[Said, ...]:
        """What RUNs answered to the images of a split."""
        asked = self.data.heads
        if asked:
            return tuple(_said(task_scores.read(place, asked), place, split) for place in places)
        return tuple(_said(predictions.read(place), place, split) for place in places)

    def _measured_on(self, answers: Sequence[Answers]) -> str:
        one = next(one for one in answers if one.reason is None)
        if self.crossed:
            seeds = f" over {self.repeats} seeds" if self.repeats > 1 else ""
            return f"{len(one.found[0].keys)} validation images{seeds}"
        return f"{sum(len(part.keys) for part in one.found)} images in {self.repeats} folds"

    # --------------------------------------------------------------------------------------------------- winner

    def _examined(self, arm: Arm) -> dict[str, Any] | None:
        """What the winner answers on the test split, which nothing has seen before; None where there is none."""
        self._note(f"{arm.name} is recommended; the test split is looked at now, by it alone")
        winner = self.folder / WINNER
        seeds = [self.place(arm, number) for number in range(self.repeats)] if self.crossed else []
        try:
            for number, place in enumerate(seeds):
                self._measure_test(arm, number, place)
            if not self.crossed:
                self._train_on_all(arm, None)
        except DataError as problem:  # hours of training are not lost over a test image that cannot be read
            self._warn(f"the test split cannot be measured: {problem.message}")
            if not self.crossed:
                self._train_on_all(arm, _without_test)
            self._crown(seeds)
            return {"strategy": arm.name, "reason": problem.message}
        self._crown(seeds)
        if not self.parts.test:
            return None
        found = self._all_said(seeds or [winner], "test")
        share = strategy_table.share(found)
        return {"strategy": arm.name, "images": len(found[0].keys), "accuracy": share.mean, "low": share.low,
                "high": share.high, "accuracies": list(strategy_table.values_of(found)),
                "trainings": len(found), "reason": None}

    def _train_on_all(self, arm: Arm, arranged: setting.Arranged | None) -> None:
        """Trains the winner of a cross-validation on the data's own splits, as `edgetl finetune` does."""
        folder = self.folder / WINNER
        if not weights.is_run(folder):
            options = dataclasses.replace(arm.options, seed=self.options.seed, out=str(folder), resume=True)
            self._finetune(options, self.listener, arranged)

    def _measure_test(self, arm: Arm, number: int, folder: Path) -> None:
        """Adds to a RUN what `edgetl finetune` would have measured on the test split."""
        record = weights.read_record(folder)
        if "test" in record["metrics"] or not self.parts.test:
            return
        options = dataclasses.replace(arm.options, seed=self._seed(number), out=str(folder))
        seed.seed_everything(options.seed)
        place = setting.prepare(options, folder, "finetune", self.listener)
        network = weights.load(folder, any_task=True).network
        network.module.to(place.device)
        found = setting.measured(place, network, folder)
        both = {**record, "metrics": {**record["metrics"], **found}, **tta.measured(place, network)}
        rundir.write_json(folder / rundir.RUN, both)

    def _crown(self, places: Sequence[Path]) -> None:
        """Makes OUT/winner a copy of the seed that is best on validation, of equals the first."""
        target = self.folder / WINNER
        if weights.is_run(target) or not places:
            return
        scores = [head_metrics.of_card(weights.read_record(place)["metrics"]["val"]) or -math.inf for place in places]
        best = places[scores.index(max(scores))]
        with rundir.explained(target):
            shutil.copytree(best, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(rundir.RUN))
        record = weights.read_record(best)
        final = str(Path(self.options.out) / WINNER)
        rundir.write_json(target / rundir.RUN, {**record, "options": {**record["options"], "out": final}})

    def _tidy(self) -> None:
        if not self.options.keep_runs:
            for path in (self.folder / RUNS).glob(f"*/*/{rundir.MODEL}"):
                path.unlink()
        for path in (self.folder / RUNS).glob("*/.*.partial"):  # of trainings that failed
            shutil.rmtree(path)

    def _described(self, table: Sequence[Row], pairs: Sequence[strategy_table.Pair], verdict: Verdict,
                   test: Mapping[str, Any] | None) -> dict[str, Any]:
        trained = [row for row in table if row.reason is None]
        return {
            "schema": SCHEMA,
            "kind": "strategies",
            **({} if self.score is None else {"score": self.score}),
            "repeats": {"kind": "seeds" if self.crossed else "folds", "count": self.repeats},
            "epochs": self.options.epochs,
            "data": {"name": self.data.name, "fingerprint": self.parts.fingerprint, "rule": dict(self.parts.rule),
                     "images": {split: len(self.parts.of(split)) for split in datasets.SPLITS}},
            "rows": [_plain(row) for row in table],
            "pairs": [{**_plain(pair), "significant": pair.significant, "alike": pair.alike} for pair in pairs],
            "verdict": _plain(verdict),
            "test": test,
            "test_sentence": strategy_table.tested(test, self.score),
            "notes": list(strategy_table.notes(trained, repeats=self.repeats, folds=not self.crossed,
                                               score=self.score)),
            "winner": WINNER,
            "options": json.loads(json.dumps(dataclasses.asdict(self.options))),
            "environment": rundir.environment(),
        }

    def _note(self, text: str) -> None:
        self.listener(Event(STAGE, "note", {"text": text}))

    def _warn(self, text: str) -> None:
        self.listener(Event(STAGE, "warning", {"text": text}))


class Watch:
    """A listener that passes on what it hears, and times a training without the phases that prepare its images."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.begun_s = timing.now_s()
        self.apart_s = 0.0
        self.phase_s: float | None = None  # when preparing began

    def __call__(self, event: Event) -> None:
        if event.kind == "begin" and event.values["what"] in PREPARING:
            self.phase_s = timing.now_s()
        elif event.kind == "end" and event.values["what"] in PREPARING and self.phase_s is not None:
            self.apart_s += timing.now_s() - self.phase_s
            self.phase_s = None
        self.listener(event)

    def seconds(self) -> float:
        """Seconds of training since the watch began."""
        return timing.now_s() - self.begun_s - self.apart_s


def _require(options: Finetune) -> None:
    """Raises EdgetlError where the options of a row contradict one another, as its training would."""
    strategies.require(options)
    objective.require(options)
    beforehand.require_frozen(options)


def _inputs(arm: Arm) -> dict[str, Any]:
    """What the training of a strategy reads besides the data, for a later --resume."""
    return dict(strategies.inputs(arm.options))


def _without_test(parts: Splits) -> Splits:
    return dataclasses.replace(parts, test=())


def _plain(value: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(value)))
    return plain


def _said(found: Mapping[str, Of], place: Path, split: str) -> Of:
    if split not in found:
        raise TrainingError(f"{place} has no answers to the {split} images.", hint="Start again with --overwrite.")
    return found[split]
