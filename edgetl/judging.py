"""What judges a graph, whatever it says of an image: one class, several, labels or values.

One class is judged by `evaluate`; everything else by the figure that its training is judged by (`heads.SCORES`), and by
how many of its answers agree with a reference's, as `runtime.heads.agreeing` says what agrees.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate as of_one_class
from edgetl import head_metrics, heads
from edgetl.datasets import Item
from edgetl.errors import DataError
from edgetl.evaluate import BATCH, Comparison, Evaluation, Predict, Read
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, SCORES
from edgetl.runtime.heads import THRESHOLD, Head, agreeing
from edgetl.runtime.preprocess import Preprocess
from edgetl.scorecard import Interval

Floats = NDArray[np.float64]
DETAILED = 100  # outputs; the figures of more would fill the manifest


@dataclass(frozen=True)
class TaskEvaluation:
    """What a model answered on a split, where that is something else than one class an image."""

    heads: tuple[Head, ...]
    n: int
    score_name: str
    score: float | None  # 1 is perfect; None where these images cannot tell
    score_low: float | None  # 95 %; None where no draw of the images differs
    score_high: float | None
    logits: NDArray[np.floating[Any]]  # [N, outputs], logits or values
    truth: Floats  # [N, outputs]; NaN where nothing is known
    keys: tuple[str, ...]
    agreement: float | None = None  # with a reference, by `with_reference`

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for a row of the manifest."""
        names = ("n", "score_name", "score", "score_low", "score_high", "agreement")
        return {**{name: getattr(self, name) for name in names}, "details": self.details()}

    def details(self) -> dict[str, float | dict[str, float | None] | None]:
        """Of each head its accuracy, of each label its F1 at its threshold, or of each value its errors in its unit.

        Empty where there are more outputs than `DETAILED`.
        """
        if len(self.truth[0]) > DETAILED:
            return {}
        asked, logits, once = self.heads, self.logits.astype(np.float64), np.ones((1, self.n))
        if asked[0].kind == CLASSIFY:
            return {one.name: _told(head_metrics.score((plain((one,))), logits[:, one.part], self.truth[:, one.part]))
                    for one in asked}
        if asked[0].kind == MULTILABEL:
            found = head_metrics.f1(*head_metrics.label_counts(logits >= asked[0].cuts, self.truth, once))[0]
            return {label: _told(found[place:]) for place, label in enumerate(asked[0].labels)}
        known = np.isfinite(self.truth)
        return {label: {name: _told(value) for name, value in head_metrics.value_errors(
                    logits[known[:, k], k], self.truth[known[:, k], k], once[:, known[:, k]]).items()}
                for k, label in enumerate(asked[0].labels) if known[:, k].any()}


@dataclass(frozen=True)
class TaskComparison:
    """A model against a reference on the same images. Points are hundredths of the score, reference minus model."""

    n: int
    score_name: str
    agreement: float
    drop_points: float
    drop_low: float  # 95 %, of draws of the images, the same for both
    drop_high: float

    @property
    def image_points(self) -> float:
        """Points that one image is worth in an accuracy, for comparison."""
        return 100 / self.n

    def sentence(self) -> str:
        """The comparison in words."""
        gain, low, high = (0.0 - points for points in (self.drop_points, self.drop_high, self.drop_low))
        return (f"{gain:+.2f} points of {self.score_name} (95 %: {low:+.2f} to {high:+.2f}), agreement "
                f"{100 * self.agreement:.2f} %, {self.n} images")


Judged = Evaluation | TaskEvaluation
Judgement = Comparison | TaskComparison


def plain(asked: Sequence[Head]) -> tuple[heads.Head, ...]:
    """The heads as training knows them."""
    return tuple(heads.Head(one.name, one.kind, one.labels) for one in asked)


def of_training(asked: Sequence[heads.Head], train: Sequence[Item], threshold: float = THRESHOLD) -> tuple[Head, ...]:
    """The heads as a bundle tells of them.

    Args:
        asked: of the RUN.
        train: the training images, whose values say how far apart two answers may be.
        threshold: the probability from which a label is said.
    """
    found = []
    for head, part in heads.places(asked):
        spreads: tuple[float, ...] = ()
        if head.kind == REGRESS:
            spreads = tuple(np.nanstd(heads.truth(asked, [one.answers for one in train]), axis=0).tolist())
        thresholds = (threshold,) * len(head.labels) if head.kind == MULTILABEL else ()
        found.append(Head(head.name, head.kind, head.labels, (part.start, part.stop), thresholds, spreads))
    return tuple(found)


def of_run(record: Mapping[str, Any]) -> tuple[Head, ...]:
    """The heads of a RUN's record as a bundle of it tells of them by default; none where it says one class an image."""
    found, spreads = [], tuple(record.get("standardised", {}).get("scale", ()))
    for head, part in heads.places(heads.of_record(record)):
        thresholds = (THRESHOLD,) * len(head.labels) if head.kind == MULTILABEL else ()
        found.append(Head(head.name, head.kind, head.labels, (part.start, part.stop), thresholds,
                          spreads if head.kind == REGRESS else ()))
    return tuple(found)


def of_table(asked: Sequence[Head], columns: Sequence[str] = ()) -> heads.Asked:
    """What a table is asked for, so that it holds what is known of these heads.

    Args:
        asked: the heads; none: one class an image.
        columns: what the training named, where that is known.
    """
    return heads.asked_again({"heads": heads.to_json(plain(asked)), "label_columns": tuple(columns)})


def evaluate(predict: Predict, items: Sequence[Item], read: Read, preprocess: Preprocess, *, classes: int,
             asked: Sequence[Head] = (), batch: int = BATCH, normalized: bool = True) -> Judged:
    """What `predict` answers on `items`, summed up.

    Args:
        predict: images to outputs.
        items: which images.
        read: bytes of an item.
        preprocess: what prepares them.
        classes: how many outputs there are.
        asked: the heads; none: one class an image.
        batch: images handed to `predict` at once, at most.
        normalized: False hands out pixels.

    Raises:
        DataError, EdgetlError: as `evaluate.answers`.
    """
    found = of_one_class.answers(predict, items, read, preprocess, classes=classes, batch=batch, normalized=normalized)
    keys = tuple(item.key for item in items)
    if not asked:
        return of_one_class.summarize(found.logits, found.labels, keys, found.weights)
    return summarize(asked, found.logits, heads.truth(plain(asked), [item.answers for item in items]), keys)


def summarize(asked: Sequence[Head], logits: NDArray[np.floating[Any]], truth: Floats,
              keys: tuple[str, ...]) -> TaskEvaluation:
    """The evaluation of outputs [N, outputs] that are there, beside what is known of the images [N, outputs]."""
    known = plain(asked)
    figure = head_metrics.drawn(len(truth), lambda weights: head_metrics.score(
        known, logits.astype(np.float64), truth, weights))
    low, high = (figure.low, figure.high) if isinstance(figure, Interval) else (None, None)
    return TaskEvaluation(tuple(asked), len(truth), SCORES[asked[0].kind], None if figure is None else figure.value,
                          low, high, logits, truth, keys)


def compare(model: Judged, reference: Judged) -> Judgement:
    """`model` against `reference`, image by image.

    Raises:
        DataError: these images cannot be scored.
    """
    if isinstance(model, Evaluation) and isinstance(reference, Evaluation):
        return of_one_class.compare(model, reference)
    if not (isinstance(model, TaskEvaluation) and isinstance(reference, TaskEvaluation)) or (
            model.keys != reference.keys or model.heads != reference.heads):
        raise ValueError("two evaluations of different images or heads cannot be paired")
    known = plain(model.heads)

    def drop(weights: Floats) -> Floats:
        ours, theirs = (head_metrics.score(known, one.logits.astype(np.float64), one.truth, weights)
                        for one in (model, reference))
        return 100 * (theirs - ours)

    figure = head_metrics.drawn(model.n, drop)
    if figure is None:
        raise DataError(f"The {model.n} images cannot judge a graph: their {model.score_name} is not defined.",
                        hint="Give data with more images, or with more labels, in the val split.")
    low, high = (figure.low, figure.high) if isinstance(figure, Interval) else (figure.value, figure.value)
    same = float(agreeing(model.heads, model.logits, reference.logits).mean())
    return TaskComparison(model.n, model.score_name, same, figure.value, low, high)


def is_known(found: Judged) -> bool:
    """Whether these images can tell the figure that it is judged by."""
    return isinstance(found, Evaluation) or found.score is not None


def with_reference(model: Judged, reference: Judged) -> Judged:
    """`model` with its agreement with `reference` filled in."""
    if isinstance(model, Evaluation) and isinstance(reference, Evaluation):
        return of_one_class.with_reference(model, reference)
    if not (isinstance(model, TaskEvaluation) and isinstance(reference, TaskEvaluation)):
        raise ValueError("evaluations of different tasks cannot be paired")
    same = agreeing(model.heads, model.logits, reference.logits)
    return dataclasses.replace(model, agreement=float(same.mean()))


def of_classes(found: Judged) -> Evaluation:
    """The same evaluation, where only one of one class an image can be."""
    if not isinstance(found, Evaluation):
        raise TypeError(f"found an evaluation of {found.score_name}, expected one of one class an image")
    return found


def figure(found: Judged) -> dict[str, float | None]:
    """The figure that it is judged by, by the name that a row of a table has for it: accuracy, or else score."""
    return {"accuracy": found.accuracy} if isinstance(found, Evaluation) else {"score": found.score}


def score_words(found: Judged) -> str:
    """`88.17 % (84.50 to 91.10)`, or `mAP 0.812 (0.700 to 0.900)`, with the interval of 95 % where there is one."""
    if isinstance(found, Evaluation):
        return (f"{100 * found.accuracy:.2f} % ({100 * found.accuracy_low:.2f} to "
                f"{100 * found.accuracy_high:.2f})")
    if found.score is None:
        return f"{found.score_name} not defined"
    ends = "" if found.score_low is None else f" ({found.score_low:.3f} to {found.score_high:.3f})"
    return f"{found.score_name} {found.score:.3f}{ends}"


def _told(values: Floats) -> float | None:
    """The first of some figures; None where it is no number."""
    value = float(values[0])
    return value if math.isfinite(value) else None
