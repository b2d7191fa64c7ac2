"""What a comparison of strategies says: a row for each, a paired test for each two, and which to take.

Of one class an image they are compared by accuracy, of other tasks by their own score, see `task_scores`.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import contrasts, metrics, task_scores
from edgetl.contrasts import Contrast, Share
from edgetl.predictions import Predictions
from edgetl.task_scores import Said

SIGNIFICANT = 0.05  # of p-values that are adjusted
BUDGET = ("epochs", "image_size", "batch_size", "accumulate", "patience", "teacher")  # what makes a training longer


@dataclass(frozen=True)
class Row:
    """One strategy. Shares in 0..1; lists have an entry a training; None is what is not known.

    Of another task than one class an image its score stands where accuracy does.
    """

    strategy: str
    own: Mapping[str, Any]  # options that only this row has
    reason: str | None = None  # why there is no result
    accuracies: tuple[float, ...] = ()
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    macro_f1: float | None = None
    seconds: tuple[float | None, ...] = ()  # of training
    median_s: float | None = None


@dataclass(frozen=True)
class Pair:
    """Two strategies on the same images: by how much the first is right more often."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p_value: float
    adjusted: float  # the p-value, by Holm's way over all pairs

    @property
    def significant(self) -> bool:
        """Whether the difference may be claimed, beside all others that were looked for."""
        return self.adjusted < SIGNIFICANT

    @property
    def alike(self) -> bool:
        """Whether even a test of this pair alone cannot tell the two apart."""
        return self.p_value >= SIGNIFICANT


@dataclass(frozen=True)
class Answers:
    """What the trainings of one strategy said to the images that they are compared on."""

    strategy: str
    own: Mapping[str, Any]
    found: tuple[Predictions, ...] | tuple[Said, ...] = ()  # of each training
    seconds: tuple[float | None, ...] = ()
    reason: str | None = None  # why a training failed


@dataclass(frozen=True)
class Verdict:
    """Which strategy is best, which cannot be told apart from it, and which to take."""

    best: str
    alike: tuple[str, ...]  # the best among them; those between them and the significantly worse are in neither
    recommended: str
    sentences: tuple[str, ...] = field(default=())


def rows(answers: Sequence[Answers], *, folds: bool) -> tuple[Row, ...]:
    """A row for each strategy, the most accurate first and those that failed last.

    Args:
        answers: of each strategy.
        folds: whether the trainings are the folds of a cross-validation, and not seeds.
    """
    made = [_row(one, folds) for one in answers]
    return tuple(sorted(made, key=lambda row: -1.0 if row.accuracy is None else row.accuracy, reverse=True))


def _row(one: Answers, folds: bool) -> Row:
    known = [seconds for seconds in one.seconds if seconds is not None]
    median_s = statistics.median(known) if known else None
    if one.reason is not None:
        return Row(one.strategy, one.own, one.reason, seconds=one.seconds, median_s=median_s)
    said = _of_task(one.found)
    if said:
        scores = task_scores.share(said, folds=folds)
        return Row(one.strategy, one.own, None, values_of(said), scores.mean, scores.low, scores.high, None,
                   one.seconds, median_s)
    right = [_right(found) for found in _of_class(one.found)]
    share = contrasts.share_over_folds(right) if folds else contrasts.share_over_seeds(np.stack(right))
    return Row(one.strategy, one.own, None, tuple(float(part.mean()) for part in right), share.mean, share.low,
               share.high, _macro_f1(_of_class(one.found), folds), one.seconds, median_s)


def _of_task(found: Sequence[Predictions] | Sequence[Said]) -> list[Said]:
    """The answers, where they are those of another task than one class an image; else none."""
    return [one for one in found if isinstance(one, Said)]


def _of_class(found: Sequence[Predictions] | Sequence[Said]) -> list[Predictions]:
    return [one for one in found if isinstance(one, Predictions)]


def values_of(found: Sequence[Predictions] | Sequence[Said]) -> tuple[float, ...]:
    """Accuracy, or the score of another task, of each training."""
    return tuple(one.value if isinstance(one, Said) else float(one.right.mean()) for one in found)


def _right(found: Predictions) -> NDArray[np.float64]:
    return found.right.astype(np.float64)


def _macro_f1(found: Sequence[Predictions], folds: bool) -> float:
    """Over all images of a cross-validation; with seeds the mean of theirs."""
    classes = 1 + max(int(max(one.labels.max(), one.predicted.max())) for one in found)
    matrices = [metrics.confusion(one.predicted, one.labels, classes) for one in found]
    if folds:
        return metrics.macro_f1(np.sum(matrices, axis=0))
    return statistics.fmean(metrics.macro_f1(matrix) for matrix in matrices)


def pairs(answers: Sequence[Answers], order: Sequence[str], *, folds: bool) -> tuple[Pair, ...]:
    """Every two strategies that were trained, paired image by image; p-values adjusted over all of them.

    Over all, and not only over those with the best: which one is the best was seen in the same figures.

    Args:
        answers: of each strategy.
        order: names, the most accurate first; those that are not in it are left out.
        folds: see `rows`.

    Raises:
        ValueError: two were shown different images.
    """
    by_name = {one.strategy: one for one in answers}
    named = list(itertools.combinations(order, 2))
    found = [_contrast(by_name[first], by_name[second], folds) for first, second in named]
    adjusted = contrasts.holm([one.p_value for one in found])
    return tuple(Pair(*names, one.mean, one.low, one.high, one.p_value, fair)
                 for names, one, fair in zip(named, found, adjusted, strict=True))


def _contrast(first: Answers, second: Answers, folds: bool) -> Contrast:
    said = _of_task(first.found), _of_task(second.found)
    if said[0]:
        return task_scores.over_folds(*said) if folds else task_scores.over_seeds(*said)
    both = list(zip(_of_class(first.found), _of_class(second.found), strict=True))
    if any(not np.array_equal(one.keys, other.keys) for one, other in both):
        raise ValueError(f"{first.strategy} and {second.strategy} answered different images, which cannot be paired")
    differences = [_right(one) - _right(other) for one, other in both]
    return contrasts.over_folds(differences) if folds else contrasts.over_seeds(np.stack(differences))


def verdict(
    found: Sequence[Row], compared: Sequence[Pair], *, measured_on: str, quick: bool = True, score: str | None = None
) -> Verdict:
    """The best, those that the paired tests cannot tell apart from it, and which of these to take.

    A difference is claimed by its adjusted p-value. To take the quicker one in place of the best is the other risk, of
    missing a difference, so that needs more: a test that cannot tell the two apart even without the adjustment.

    Args:
        found: rows of strategies that were trained, the most accurate first.
        compared: every two of them.
        quick: whether to take the quickest to train, and not the best itself.
        measured_on: how many images of which split, and how often trained, in words.
        score: what is compared; None: accuracy.
    """
    best = found[0]
    against = {pair.second: pair for pair in compared if pair.first == best.strategy}
    alike = [row for row in found if row is best or against[row.strategy].alike]
    taken = min(alike, key=lambda row: float("inf") if row.median_s is None else row.median_s) if quick else best
    assert best.accuracy is not None and best.low is not None and best.high is not None
    mean = (f"{_percent(best.accuracy)} % (95 %: {_percent(best.low)} to {_percent(best.high)}) of"
            if score is None else f"{score} {best.accuracy:.3f} (95 %: {best.low:.3f} to {best.high:.3f}) on")
    sentences = [f"{best.strategy} is the most accurate of {len(found)} strategies: {mean} {measured_on}."]
    same = [_beside(against[row.strategy]) for row in alike if row is not best]
    between = [_beside(pair) for pair in against.values() if not (pair.alike or pair.significant)]
    worse = [_beside(pair) for pair in against.values() if pair.significant]
    told = {"Not distinguishable from it": same, "Significantly worse": worse,
            "Worse by a test of the pair alone, but not beside all others": between}
    sentences += [f"{words}: {', '.join(names)}." for words, names in told.items() if names]
    sentences.append(_recommendation(best, taken, alike, against) if quick else f"Recommended: {best.strategy}.")
    return Verdict(best.strategy, tuple(row.strategy for row in alike), taken.strategy, tuple(sentences))


def _recommendation(best: Row, taken: Row, alike: Sequence[Row], against: Mapping[str, Pair]) -> str:
    if len(alike) == 1:
        return f"Recommended: {best.strategy}, which no other is like."
    if taken is best:
        return (f"Recommended: {best.strategy}, which is also the quickest to train of those that cannot be told "
                f"apart{_a_run(best)}.")
    # The pair is the best less the one taken.
    most = 100 * max(0.0, against[taken.strategy].high)
    return (f"Recommended: {taken.strategy}, the quickest to train of those that cannot be told apart"
            f"{_a_run(taken)}{_a_run(best, 'against', best.strategy)}. Not distinguishable is not equal: it may be up "
            f"to {most:.1f} points less accurate; more seeds or images would tell.")


def _a_run(row: Row, word: str = "", name: str = "") -> str:
    if row.median_s is None:
        return ""
    told = f"{duration(row.median_s)} a training"
    return f" {word} {told} of {name}" if word else f", {told}"


def _beside(pair: Pair) -> str:
    """`probe (-3.2 points, 95 % -5.0 to -1.4, p 0.003)`: the second less the first."""
    return (f"{pair.second} ({-100 * pair.difference:+.1f} points, 95 % {-100 * pair.high:+.1f} to "
            f"{-100 * pair.low:+.1f}, {chance(pair.adjusted)} adjusted)")


def chance(p_value: float) -> str:
    """A p-value in words that do not pretend to more digits than it has: `p 0.03`, `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p {p_value:.3f}" if p_value < 0.1 else f"p {p_value:.2f}"


def duration(seconds: float) -> str:
    """`4.2 s`, `83 s` or `12 min`."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def share(found: Sequence[Predictions] | Sequence[Said]) -> Share:
    """How often a strategy's trainings with several seeds are right on one split, or their score; seeds and images."""
    said = _of_task(found)
    if said:
        return task_scores.share(said, folds=False)
    return contrasts.share_over_seeds(np.stack([_right(one) for one in _of_class(found)]))


def tested(test: Mapping[str, Any] | None, score: str | None) -> str:
    """What the test split says of the strategy that was chosen, in words."""
    if test is None:
        return "There are no test images, so nothing is said of them."
    if test["reason"] is not None:
        return f"The test split could not be measured: {test['reason']}"
    several = f", the mean of {test['trainings']} seeds" if test["trainings"] > 1 else ""
    told = (f"{100 * test['accuracy']:.1f} % (95 %: {100 * test['low']:.1f} to {100 * test['high']:.1f}) of"
            if score is None else f"{score} {test['accuracy']:.3f} (95 %: {test['low']:.3f} to {test['high']:.3f}) on")
    return (f"The test split was touched once, after the choice and by {test['strategy']} alone: {told} "
            f"{test['images']} images{several}.")


def notes(found: Sequence[Row], *, repeats: int, folds: bool, score: str | None = None) -> tuple[str, ...]:
    """What a reader of the table must know of how it was made."""
    told = [f"P-values are adjusted for {len(found) * (len(found) - 1) // 2} comparisons (Holm), all pairs of "
            "strategies."]
    if score is not None:
        told.append(f"Compared is {score}; percent and points are its hundredths. It is no mean over images, so images "
                    "are drawn anew with repetition, the same for all: intervals and tests take the spread over the "
                    "draws where accuracy has Wilson's, Tango's and McNemar's.")
    if folds:
        told.append(f"Cross-validation over training and validation images in {repeats} stratified folds, the same for "
                    "all; a training chooses its epoch on images held out of the other folds. Intervals and tests are "
                    "the less sure of two: over images (Wilson, Tango, McNemar) and over folds (Nadeau and Bengio).")
    else:
        told.append("A training chooses its epoch on the validation images that it is then compared on, which flatters "
                    "all of them; --folds compares on images that nothing was chosen on.")
        told.append("One seed says nothing of the spread over seeds: intervals and tests cover the images alone."
                    if repeats == 1 else
                    "Intervals and tests cover seeds and images (crossed, Howe), so that two seeds prove very little.")
    other = [f"{row.strategy} ({', '.join(_flags(row))})" for row in found if _flags(row)]
    told.append("The same budget for all: epochs, image size and batch size." if not other else
                f"Not the same budget: {'; '.join(other)}.")
    told.append("Seconds are those of a training from its first step to its last evaluation, preparing the training "
                "images left out; the median where there are several.")
    return tuple(told)


def _flags(row: Row) -> list[str]:
    return [f"--{name.replace('_', '-')} {value}" for name, value in row.own.items() if name in BUDGET]
