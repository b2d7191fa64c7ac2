"""The images that accuracy is measured on, the checks that they are fair, and what the answers amount to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import evaluate, metrics, recipe, splits
from edgetl.bench import report
from edgetl.bench.cases import Case, Subject
from edgetl.datasets import DataSet, Item, open_data
from edgetl.errors import DataError
from edgetl.evaluate import Evaluation
from edgetl.events import Event, Listener
from edgetl.recipe_tune import Tune
from edgetl.runtime.heads import asked

MISTAKES = 12  # of the most confident wrong answers, kept with the report


@dataclass(frozen=True)
class Exam:
    """Test images, and the record of them for the report."""

    data: DataSet
    items: tuple[Item, ...]
    record: report.Data

    def why_not(self, subject: Subject) -> str | None:
        """Why a case cannot sit the exam; None when it can."""
        if subject.preprocess is None:
            return "an ONNX file carries no preprocessing"
        return None

    def read_answers(self, file: Path) -> Evaluation:
        """What a worker wrote."""
        with np.load(file, allow_pickle=False) as found:
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
        DataError: a case says something else than one class an image, the data cannot be opened, its labels are not
            the cases', it has no images in the split, or images that a case was trained on might be among them.
    """
    if options.data is None:
        return None
    _require_one_class(cases)
    data = open_data(options.data)
    graded = list(dict.fromkeys(case.subject.source for case in cases if case.subject.labels is not None))
    subjects = [next(case.subject for case in cases if case.subject.source == source) for source in graded]
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
    return Exam(data, items, record)


def _require_one_class(cases: Sequence[Case]) -> None:
    other = next((case.subject for case in cases if case.subject.heads), None)
    if other is not None:
        raise DataError(f"{other.source} says {asked(other.heads)}, and --data judges one class an image only.",
                        hint="Leave out --data: what its variants answer rightly stands in the bundle's manifest "
                             "(`edgetl inspect`).")


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
