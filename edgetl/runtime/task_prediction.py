"""From outputs to what is said of an image where that is more, or something else, than one class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import InputError
from edgetl.runtime.heads import MULTILABEL, REGRESS, Head, asked
from edgetl.runtime.prediction import Answers, Prediction
from edgetl.runtime.preprocess import EXACT

if TYPE_CHECKING:
    from edgetl.runtime.drift import Drift
    from edgetl.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True)
class LabelsPrediction:
    """Which labels one image has."""

    labels: tuple[str, ...]  # those whose probability reaches their threshold, the most probable first; maybe none
    scores: tuple[tuple[str, float], ...]  # every label with its probability: those that are said first, best first


@dataclass(frozen=True, slots=True)
class ValuesPrediction:
    """The values of one image."""

    values: Mapping[str, float]  # by column, in the unit that the column had in training


@dataclass(frozen=True, slots=True)
class HeadsPrediction:
    """The classes of one image, one a head."""

    heads: Mapping[str, Prediction]  # by the head's name; `Prediction.index` counts within the head


TaskPrediction = LabelsPrediction | ValuesPrediction | HeadsPrediction
OfRow = Callable[[NDArray[np.float32], int], TaskPrediction | None]


class TaskAnswers:
    """Makes of a graph's outputs what the bundle's task says."""

    def __init__(self, heads: Sequence[Head], temperatures: Mapping[str, float]) -> None:
        """Keeps the heads.

        Args:
            heads: of the manifest, at least one.
            temperatures: of the variant, by head.
        """
        kind = heads[0].kind
        self._of: OfRow = (_labels(heads[0]) if kind == MULTILABEL else _values(heads[0]) if kind == REGRESS
                           else _classes(heads, temperatures))

    def __call__(self, logits: NDArray[np.float32], tops: Sequence[int]) -> list[Any]:
        """An answer for each row of [N, outputs]; None where the row is not finite.

        Args:
            logits: of the graph; values where it says values.
            tops: how many classes each head shows; labels and values are all shown always.
        """
        return [self._of(logits[place], top) for place, top in enumerate(tops)]


def _labels(head: Head) -> OfRow:
    cuts, names = head.cuts, head.labels

    def of(row: NDArray[np.float32], top: int) -> LabelsPrediction | None:
        logits = row.astype(np.float64)
        if not np.isfinite(logits).all():
            return None
        said = logits >= cuts  # as the figures of the export count them
        with np.errstate(over="ignore"):  # exp() of a great number is infinite, and the probability 0
            scores = (1 / (1 + np.exp(-logits))).tolist()
        order = np.lexsort((-logits, ~said)).tolist()
        shown = tuple((names[place], scores[place]) for place in order)
        return LabelsPrediction(tuple(label for label, _ in shown[:int(said.sum())]), shown)

    return of


def _values(head: Head) -> OfRow:
    def of(row: NDArray[np.float32], top: int) -> ValuesPrediction | None:
        return ValuesPrediction(dict(zip(head.labels, row.tolist(), strict=True))) if np.isfinite(row).all() else None

    return of


def _classes(heads: Sequence[Head], temperatures: Mapping[str, float]) -> OfRow:
    each = [(head, Answers(head.labels, temperature=temperatures.get(head.name))) for head in heads]

    def of(row: NDArray[np.float32], top: int) -> HeadsPrediction | None:
        found: dict[str, Prediction] = {}
        for head, answers in each:
            one = answers(row[None, head.part], (top,))[0]
            if one is None:
                return None
            found[head.name] = one
        return HeadsPrediction(found)

    return of


def require_plain(manifest: Manifest, drift: Drift | None, decode: str) -> None:
    """Returns when nothing is asked for that only one class an image has.

    Raises:
        InputError: drift is to be counted, or images are to be read in less time.
    """
    said = asked(manifest.heads)
    if drift is not None:
        raise InputError(f"Drift counts the answers of one class an image; '{manifest.name}' says {said}.",
                         hint="Load it without drift.")
    if decode != EXACT:
        raise InputError(f"decode='{decode}' decides close calls between two classes anew; '{manifest.name}' says "
                         f"{said}.", hint=f"Load it with decode='{EXACT}'.")


def cells(answer: Prediction | TaskPrediction, share: Callable[[float], str]) -> list[str]:
    """What a line says of an image, in parts, e.g. `["sea 98.1 %"]`; `["-"]` where no label is said.

    Args:
        answer: of `Classifier.predict`.
        share: how a probability is written.
    """
    if isinstance(answer, Prediction):
        return [f"{label} {share(score)}" for label, score in answer.top]
    if isinstance(answer, LabelsPrediction):
        return [f"{label} {share(score)}" for label, score in answer.scores[:len(answer.labels)]] or ["-"]
    if isinstance(answer, ValuesPrediction):
        return [f"{column} {value:.6g}" for column, value in answer.values.items()]
    return [f"{head}: {', '.join(cells(one, share))}" for head, one in answer.heads.items()]


__all__ = ["HeadsPrediction", "LabelsPrediction", "TaskAnswers", "TaskPrediction", "ValuesPrediction", "cells",
           "require_plain"]
