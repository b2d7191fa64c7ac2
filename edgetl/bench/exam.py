"""The images that accuracy is measured on, the checks that they are fair, and what the answers amount to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import evaluate, heads, judging, metrics, recipe, splits
from edgetl.bench import report
from edgetl.bench.cases import Case, Subject
from edgetl.datasets import DataSet, Item, open_data
from edgetl.errors import DataError
from edgetl.evaluate import Evaluation
from edgetl.events import Event, Listener
from edgetl.heads import Asked
from edgetl.judging import Judged, TaskEvaluation
from edgetl.recipe_tune import Tune
from edgetl.runtime.heads import Head
from edgetl.runtime.heads import asked as said

MISTAKES = 12  # of the most confident wrong answers, kept with the report


@dataclass(frozen=True)
class Exam:
    """Test images, and the record of them for the report."""

    data: DataSet
    items: tuple[Item, ...]
    record: report.Data
    asked: Asked = heads.ONE_CLASS  # of a table, to open it again
    heads: tuple[Head, ...] = ()  # what is said of an image; none: one class

    def why_not(self, subject: Subject) -> str | None:
        """Why a case cannot sit the exam; None when it can."""
        if subject.preprocess is None:
            return "an ONNX file carries no preprocessing"
        return None

    def read_answers(self, file: Path) -> Judged:
        """What a worker wrote."""
        with np.load(file, allow_pickle=False) as found:
            if self.heads:
                truth = heads.truth(judging.plain(self.heads), [item.answers for item in self.items])
                return judging.summarize(self.heads, found["logits"], truth, tuple(item.key for item in self.items))
            return evaluate.summarize(found["logits"], found["labels"], tuple(item.key for item in self.items),
                                      found["weights"])


def prepare(options: recipe.Bench | Tune, cases: Sequence[Case], listener: Listener, *,
            split: str = "test") -> Exam | None:
    """A split of `--data` by the rule that the cases were trained with; None without `--data`.

    Args:
        options: data, fractions and seed are used.
        cases: what is going to be examined.
        listener: hears of warnings.
        split: "test" for a report; a choice is made on "val".

    Raises:
        DataError: the cases say different things of an image, the data cannot be opened, its labels are not the
            cases', it has no images in the split, or images that a case was trained on might be among them.
    """
    if options.data is None:
        return None
    graded = list(dict.fromkeys(case.subject.source for case in cases if case.subject.labels is not None))
    subjects = [next(case.subject for case in cases if case.subject.source == source) for source in graded]
    judged = _common_heads(subjects)
    asked = judging.of_table(judged, next((one.columns for one in subjects if one.columns), ()))
    data = open_data(options.data, asked=asked)
    _check_labels(data, subjects)
    own = any(item.split == split for item in data.items)
    recorded = None if own else _common_rule(subjects)
    parts = splits.resolve(data, options, recorded=recorded, listener=listener)
    for subject in subjects:  # where the split is the data's own, its rule was not asked for
        if subject.trained_on.get("fingerprint") == parts.fingerprint:
            parts = splits.without(parts, subject.trained_on.get("rule", {}).get(splits.LEFT_OUT, {}))
    items = parts.of(split)
    if not items:
        raise DataError(f"The data {options.data} has no {split} images.",
                        hint=f"Give data with a {split} split, or leave out --data.")
    for subject in subjects:
        _check_fingerprint(subject, parts.fingerprint, split, own, listener)
    record = report.Data(data.name, options.data, data.labels, len(items), parts.fingerprint, dict(parts.rule),
                         data.notes)
    return Exam(data, items, record, asked, judged)


def _common_heads(subjects: Sequence[Subject]) -> tuple[Head, ...]:
    """The heads of all cases; those of a bundle, which may have thresholds of its own, go before those of a RUN.

    Raises:
        DataError: two cases say different things of an image.
    """
    chosen: Subject | None = None
    for subject in subjects:
        if judging.plain(subject.heads) != judging.plain(subjects[0].heads):
            raise DataError(f"{subject.source} says {said(subject.heads)}, and {subjects[0].source} says "
                            f"{said(subjects[0].heads)}: no images can judge both.",
                            hint="Measure them in two runs, or leave out --data.")
        chosen = subject if chosen is None or (subject.kind == "bundle" != chosen.kind) else chosen
    return () if chosen is None else chosen.heads


def _check_labels(data: DataSet, subjects: Sequence[Subject]) -> None:
    for subject in subjects:
        if subject.labels != data.labels:
            raise DataError(f"The labels of {subject.source} are {_few(subject.labels or ())}, but those of the data "
                            f"are {_few(data.labels)}.", hint="Give the data that the case was trained on, same order.")


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels[:5]) + (f", ... ({len(labels)})" if len(labels) > 5 else "")


def _common_rule(subjects: Sequence[Subject]) -> Mapping[str, Any] | None:
    """The split rule that all cases recorded; None where none did."""
    rules = [(subject, subject.trained_on["rule"]) for subject in subjects if subject.trained_on.get("rule")]
    for subject, rule in rules:
        if rule != rules[0][1]:
            raise DataError(f"{subject.source} and {rules[0][0].source} were trained on different splits of the data, "
                            "so the test images of one may be training images of the other.",
                            hint="Measure them in two runs, or give data with a test split of its own.")
    return rules[0][1] if rules else None


def _check_fingerprint(subject: Subject, fingerprint: str, split: str, own: bool, listener: Listener) -> None:
    recorded = subject.trained_on.get("fingerprint")
    if recorded == fingerprint:
        return
    known = f"recorded {str(recorded)[:12]}" if recorded else "nothing recorded"
    found = (f"The data is not the one that {subject.source} was trained on "
             f"(fingerprint {fingerprint[:12]}, {known})")
    if not own:
        raise DataError(f"{found}, and its {split} split is an automatic one: training images might be among the "
                        f"{split} images.",
                        hint=f"Give the same --data, unchanged, or data with a {split} split of its own.")
    listener(Event("bench", "warning", {"text": f"{found}; its own {split} split is used."}))


def grade(found: Evaluation, reference: Evaluation | None, labels: Sequence[str]) -> report.Accuracy:
    """What the answers of a case amount to, and how they compare with the reference's on the same images."""
    return report.Accuracy(
        n=found.n, correct=found.correct, accuracy=found.accuracy, accuracy_low=found.accuracy_low,
        accuracy_high=found.accuracy_high, macro_f1=found.macro_f1, weighted_accuracy=found.weighted_accuracy,
        confusion=tuple(tuple(int(count) for count in row) for row in found.confusion),
        mistakes=mistakes(found, labels), **({} if reference is None else _compared(found, reference)))


def score(found: TaskEvaluation, reference: TaskEvaluation | None) -> report.Score:
    """As `grade`, of what says something else than one class an image."""
    compared: dict[str, Any] = {}
    if reference is not None:
        compared = {"agreement": judging.with_reference(found, reference).agreement}
    if reference is not None and judging.is_known(found) and judging.is_known(reference):
        pair = judging.compare(found, reference)
        compared |= {"difference": -pair.drop_points / 100, "difference_low": -pair.drop_high / 100,
                     "difference_high": -pair.drop_low / 100}
    return report.Score(found.score_name, found.n, found.score, found.score_low, found.score_high, found.details(),
                        **compared)


def _compared(found: Evaluation, reference: Evaluation) -> dict[str, Any]:
    pair = evaluate.compare(found, reference)
    # evaluate counts points that the model loses; a report says what it gains, as a share.
    return {"agreement": pair.agreement, "only_case_right": pair.gained, "only_reference_right": pair.lost,
            "difference": (pair.gained - pair.lost) / pair.n, "difference_low": -pair.drop_high / 100,
            "difference_high": -pair.drop_low / 100}


def mistakes(found: Evaluation, labels: Sequence[str]) -> tuple[report.Mistake, ...]:
    """The wrong answers with the highest scores."""
    scores = metrics.softmax(found.logits)
    predicted = found.logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != found.labels)
    worst = wrong[np.argsort(-scores[wrong, predicted[wrong]], kind="stable")][:MISTAKES]
    return tuple(report.Mistake(found.keys[i], labels[found.labels[i]], labels[predicted[i]],
                                float(scores[i, predicted[i]])) for i in worst)


def collecting(listener: Listener, texts: list[str]) -> Callable[[Event], None]:
    """A listener that also keeps what it is warned of, for the notes of the report."""
    def listen(event: Event) -> None:
        if event.kind == "warning":
            texts.append(str(event.values["text"]))
        listener(event)
    return listen
