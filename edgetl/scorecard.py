"""Everything that is told of a model's answers on a split, each figure with its 95 % interval, as plain JSON values.

Shares have Wilson's interval. The others are drawn again: the images, with replacement, as they would be if others of
the same kind were collected (B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993). The classes are drawn
with them: with the number of images of each class held fixed, the interval of macro-F1 is too narrow wherever a class
is rare. How often the intervals hold the truth: benchmarks/metric_intervals.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import calibration, metrics
from edgetl.calibration import BINS, Temperature
from edgetl.evaluate import Evaluation

DRAWS = 1000
LEVEL = 0.95
SEED = 0
TOP = 5
FEWEST = 10  # wrong answers, from which on draws tell how far likelihood and Brier score may be off
AT_ONCE = 1_000_000  # images of draws that are held in memory

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A figure that the images cannot bound."""

    value: float

    def to_json(self, name: str) -> dict[str, float | None]:
        """Three values under `name`, `name`_low and `name`_high; None where there is no end."""
        ends = {f"{name}_{end}": getattr(self, end, None) for end in ("low", "high")}
        return {name: self.value, **ends}


@dataclass(frozen=True)
class Interval(Figure):
    """A figure and the ends of its interval."""

    low: float
    high: float


def of_splits(found: Mapping[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """What is told of each split, and under "temperature" what one that is fitted on "val" does for all of them.

    Args:
        found: what was answered on "val" and "test"; without "val" there is no temperature.
    """
    told = {name: of(one) for name, one in found.items()}
    if "val" not in found:
        return told
    fitted = calibration.fit_temperature(found["val"].logits, found["val"].labels)
    return {**told, "temperature": scaling(fitted, found)}


def of(found: Evaluation) -> dict[str, Any]:
    """What `Evaluation.to_json` tells, and beside it: the 5 best labels, each class, and the calibration."""
    logits, labels = found.logits, found.labels
    f1, error, likelihood, squares = drawn_intervals(logits, labels)
    return {**found.to_json(), **_top(found), **f1.to_json("macro_f1"), **error.to_json("ece"),
            "ece_chance": chance(logits, labels).mean, "ece_equal_mass": calibration.ece_equal_mass(logits, labels),
            **likelihood.to_json("nll"), **squares.to_json("brier"), "classes": classes(found.confusion)}


def _top(found: Evaluation) -> dict[str, float | None]:
    """The share whose label is among the best 5; nothing where there are not more than 5 labels."""
    if found.logits.shape[1] <= TOP:
        return {}
    share = metrics.topk(found.logits, found.labels, TOP)
    low, high = metrics.wilson_interval(round(share * found.n), found.n, LEVEL)
    return Interval(share, low, high).to_json("top5")


def classes(confusion: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Recall, precision and F1 of each class of a confusion matrix [K, K], with intervals; None without any image."""
    answered = confusion.sum(axis=0)
    return [one_class(int(row[place]), int(row.sum()), int(answered[place])) for place, row in enumerate(confusion)]


def one_class(hits: int, images: int, answered: int) -> dict[str, Any]:
    """The figures of a class.

    Args:
        hits: images of the class that were answered with it.
        images: images of the class.
        answered: images that were answered with it.
    """
    found: dict[str, Any] = {"images": images, "answered": answered}
    for name, n in (("recall", images), ("precision", answered)):
        found |= _measured(name, n, lambda n=n: (hits / n, *metrics.wilson_interval(hits, n, LEVEL)))  # type: ignore[misc]
    return found | _measured("f1", images + answered, lambda: (
        2 * hits / (images + answered), *metrics.f1_interval(hits, images - hits, answered - hits, LEVEL)))


def _measured(name: str, n: int, measure: Callable[[], tuple[float, float, float]]) -> dict[str, float | None]:
    if n:
        return {**Interval(*measure()).to_json(name)}
    return {name: None, f"{name}_low": None, f"{name}_high": None}


def drawn_intervals(logits: metrics.Logits, labels: metrics.Labels, temperature: float = 1.0, *, draws: int = DRAWS,
                    seed: int = SEED) -> tuple[Interval, Interval, Figure, Figure]:
    """Macro-F1, ECE, negative log-likelihood and Brier score, each with its interval, over the same draws.

    Draws know nothing of errors that were not seen, so they are helped where there are few. Macro-F1 has the
    percentiles of the draws, widened to what the intervals of its classes amount to (see `f1_by_class`). Likelihood and
    Brier score, which one unseen error may move by any amount, have the percentiles from FEWEST wrong answers on, and
    below that no interval.

    The ECE is a sum of absolute values, so that chance alone makes it too great, and in the draws by as much again: the
    lower end is moved down by twice what the draws' mean lies above the figure, and is 0 where the figure is what
    chance gives a calibrated model (see `chance`). The upper end stays, which is a little too high, and is no less than
    the gap between the mean score and any accuracy in Wilson's interval: no ECE is smaller than that.

    Args:
        logits: [N, K].
        labels: [N].
        temperature: what logits are divided by; macro-F1 does not see it.
        draws: how many.
        seed: of the draws.
    """
    whole, again = drawn_figures(logits, labels, temperature, draws=draws, seed=seed)
    low, high = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    by_class = f1_by_class(metrics.confusion(logits.argmax(axis=1), labels, logits.shape[1]))
    low[0], high[0] = min(low[0], by_class.low), max(high[0], by_class.high)
    confidence, hits = calibration.confidences(logits, labels, temperature)
    n, right = len(labels), int(hits.sum())
    by_chance = whole[1] <= chance(logits, labels, temperature, draws=draws, seed=seed).most
    low[1] = 0.0 if by_chance else max(0.0, low[1] - 2 * (again[:, 1].mean() - whole[1]))
    accuracies = metrics.wilson_interval(right, n, LEVEL)
    high[1] = max(high[1], *(abs(float(confidence.mean()) - end) for end in accuracies))
    f1, error, likelihood, squares = (Interval(float(value), float(min(value, down)), float(max(value, up)))
                                      for value, down, up in zip(whole, low, high, strict=True))
    if n - right < FEWEST:
        return f1, error, Figure(likelihood.value), Figure(squares.value)
    return f1, error, likelihood, squares


def f1_by_class(confusion: NDArray[np.int64]) -> Interval:
    """Macro-F1 of a confusion matrix [K, K] with the interval that those of its classes amount to.

    The distances of the classes' ends from their F1 add up as independent errors do: G. Y. Zou, A. Donner, Construction
    of Confidence Limits About Effect Measures, Statistics in Medicine 27 (2008) 1693-1702. They are not independent, so
    that alone it would be too narrow; but it never closes where no error was seen.
    """
    found = [one for one in classes(confusion) if one["f1"] is not None]
    value = float(np.mean([one["f1"] for one in found]))
    down, up = (float(np.sqrt(np.sum([(one[f"f1_{end}"] - one["f1"]) ** 2 for one in found]))) / len(found)
                for end in ("low", "high"))
    return Interval(value, max(0.0, value - down), min(1.0, value + up))


def drawn_figures(logits: metrics.Logits, labels: metrics.Labels, temperature: float = 1.0, *, draws: int = DRAWS,
                  seed: int = SEED) -> tuple[Floats, Floats]:
    """Macro-F1, ECE, negative log-likelihood and Brier score [4] of the images, and of each draw of them [draws, 4].

    Takes what `drawn_intervals` takes.
    """
    table, n = _Table.of(logits, labels, temperature), len(labels)
    generator, most = np.random.default_rng(seed), max(1, AT_ONCE // n)
    again = [table.figures(_drawn(generator, n, min(most, draws - begin))) for begin in range(0, draws, most)]
    return table.figures(np.ones((1, n)))[0], np.concatenate(again)


def _drawn(generator: np.random.Generator, n: int, draws: int) -> Floats:
    """How often each of `n` images was drawn in `n` draws, so many times: [draws, n]."""
    picked = generator.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(picked.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


@dataclass(frozen=True)
class _Table:
    """What each image adds to the figures, so that those of a draw are weighted sums of it."""

    terms: Any  # sparse [S, N]: gap in its bin, likelihood, Brier score, hits of its class, half its images + answers
    classes: int

    @classmethod
    def of(cls, logits: metrics.Logits, labels: metrics.Labels, temperature: float) -> _Table:
        """The table of some answers."""
        confidence, right = calibration.confidences(logits, labels, temperature)
        images, found, k = np.arange(len(labels)), np.asarray(logits).argmax(axis=1), logits.shape[1]
        ones, hits, seen = np.ones(len(labels)), BINS + 2, BINS + 2 + k
        rows = [calibration.places(confidence), np.full(len(labels), BINS), np.full(len(labels), BINS + 1),
                hits + labels, seen + labels, seen + found]
        values = [right - confidence, calibration.nlls(logits, labels, temperature),
                  calibration.briers(logits, labels, temperature), right * ones, ones / 2, ones / 2]
        return cls(_sparse(rows, [images] * len(rows), values, (seen + k, len(labels))), k)

    def figures(self, weights: Floats) -> Floats:
        """[D, 4] macro-F1, ECE, likelihood and Brier score of images that count so often in each draw [D, N]."""
        sums, n = (self.terms @ weights.T).T, weights.sum(axis=1)
        hits, seen = sums[:, BINS + 2:-self.classes], sums[:, -self.classes:]
        f1 = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0).sum(axis=1) / (seen > 0).sum(axis=1)
        return np.stack([f1, np.abs(sums[:, :BINS]).sum(axis=1) / n, sums[:, BINS] / n, sums[:, BINS + 1] / n], axis=1)


def _sparse(rows: Sequence[NDArray[Any]], columns: Sequence[NDArray[Any]], values: Sequence[NDArray[Any]],
            shape: tuple[int, int]) -> Any:
    from scipy.sparse import csr_array

    return csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)


@dataclass(frozen=True)
class Chance:
    """The ECE that a calibrated model with the same scores shows on as many images."""

    mean: float
    most: float  # what it exceeds with probability 1 - LEVEL


def chance(logits: metrics.Logits, labels: metrics.Labels, temperature: float = 1.0, *, draws: int = DRAWS,
           seed: int = SEED) -> Chance:
    """The ECE where each answer is right with the probability that is its score, and nothing else.

    Consistency resampling: J. Brocker, L. A. Smith, Increasing the Reliability of Reliability Diagrams, Weather and
    Forecasting 22 (2007) 651-661; for classifiers J. Vaicenavicius et al., AISTATS 2019, arXiv:1902.06977.
    """
    confidence, _ = calibration.confidences(logits, labels, temperature)
    n, generator = len(confidence), np.random.default_rng(seed)
    bins = _sparse([calibration.places(confidence)], [np.arange(n)], [np.ones(n)], (BINS, n))
    most = max(1, AT_ONCE // n)
    found = np.concatenate([_error(bins, (generator.random((min(most, draws - begin), n)) < confidence) - confidence)
                            for begin in range(0, draws, most)])
    return Chance(float(found.mean()), float(np.quantile(found, LEVEL)))


def _error(bins: Any, gaps: Floats) -> Floats:
    """The ECE [D] of gaps [D, N] whose images lie in these bins, sparse [BINS, N]."""
    found: Floats = np.abs(bins @ gaps.T).sum(axis=0) / gaps.shape[1]
    return found


def scaling(fitted: Temperature, splits: Mapping[str, Evaluation]) -> dict[str, Any]:
    """What a temperature that was fitted on validation does for each split.

    Args:
        fitted: the temperature.
        splits: what was answered on each split, by its name.
    """
    return {"value": fitted.value, "fitted_on": "val", "n": fitted.n, "refusal": fitted.refusal,
            "splits": {name: _scaled(found, fitted) for name, found in splits.items()}}


def _scaled(found: Evaluation, fitted: Temperature) -> dict[str, Any]:
    """The calibration of a split after scaling, and both reliability diagrams."""
    logits, labels = found.logits, found.labels
    before = {"before": calibration.reliability(logits, labels).to_json()}
    if fitted.value is None:
        return {"reliability": before}
    _, error, likelihood, squares = drawn_intervals(logits, labels, fitted.value)
    return {**error.to_json("ece"), "ece_chance": chance(logits, labels, fitted.value).mean,
            **likelihood.to_json("nll"), **squares.to_json("brier"),
            "reliability": {**before, "after": calibration.reliability(logits, labels, fitted.value).to_json()}}
