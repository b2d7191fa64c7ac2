"""How right answers with several labels, or with values, are: numpy in, float out. What is not known is left out.

Intervals of 95 % are those of `scorecard`: Wilson's for shares, and percentiles of draws of the images for the rest
(B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate, metrics, scorecard
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Head, places
from edgetl.scorecard import LEVEL, SEED, Figure, Interval

DRAWS = 400  # of the images; an interval's ends are then those of 10 draws each
CHOSEN = {CLASSIFY: "mean_accuracy", MULTILABEL: "map", REGRESS: "r2"}  # in the record of a split
Floats = NDArray[np.float64]
Drawn = Callable[[Floats], Floats]  # from how often each image counts, [D, N], to a figure for each draw, [D]


def average_precision(scores: Floats, has: NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """sum over thresholds of (recall gained there) x (precision there), for each draw [D]; NaN where no image has it.

    Images of the same score stand at one threshold, as in scikit-learn; no interpolation.

    Args:
        scores: [N].
        has: which images have the label [N].
        weights: [D, N], how often each image counts; None: once, D = 1.
    """
    order = np.argsort(-scores, kind="stable")
    counts = np.ones((1, len(scores))) if weights is None else weights
    counts, own = counts[:, order], has[order]
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last place of each score
    seen, hits = np.cumsum(counts, axis=1)[:, ends], np.cumsum(counts * own, axis=1)[:, ends]
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    gained = np.diff(hits, axis=1, prepend=0.0)
    total = hits[:, -1]
    found: Floats = np.divide((gained * precision).sum(axis=1), total, out=np.full(len(total), math.nan),
                              where=total > 0)
    return found


def mean_average_precision(scores: Floats, truth: Floats, weights: Floats | None = None) -> Floats:
    """The mean over labels of their average precision, for each draw [D]; labels that no image has are left out.

    Args:
        scores: [N, K].
        truth: 1, 0 or NaN [N, K].
        weights: [D, N], how often each image counts; None: once, D = 1.
    """
    draws = np.ones((1, len(scores))) if weights is None else weights
    known = np.isfinite(truth)
    each = np.stack([average_precision(scores[known[:, k], k], truth[known[:, k], k] == 1, draws[:, known[:, k]])
                     for k in range(truth.shape[1]) if (truth[:, k] == 1).any()] or [np.full(len(draws), math.nan)])
    return _mean(each)


def _mean(each: Floats) -> Floats:
    """[D] of [K, D], without what is NaN; NaN where nothing is left."""
    known = np.isfinite(each)
    count = known.sum(axis=0)
    total = np.where(known, each, 0).sum(axis=0)
    found: Floats = np.divide(total, count, out=np.full(each.shape[1], math.nan), where=count > 0)
    return found


def label_counts(said: NDArray[np.bool_], truth: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Hits, misses and false alarms of each label in each draw, [D, K] each.

    Args:
        said: [N, K] which labels were answered.
        truth: 1, 0 or NaN [N, K].
        weights: [D, N].
    """
    has, lacks = truth == 1, truth == 0
    return weights @ (said & has), weights @ (~said & has), weights @ (said & lacks)


def f1(hits: Floats, misses: Floats, false_alarms: Floats) -> Floats:
    """2 tp / (2 tp + fp + fn); NaN where nothing is there and nothing was said."""
    total = 2 * hits + misses + false_alarms
    found: Floats = np.divide(2 * hits, total, out=np.full(np.shape(total), math.nan), where=total > 0)
    return found


def value_errors(values: Floats, truth: Floats, weights: Floats) -> dict[str, Floats]:
    """Mean absolute error, root of the mean squared error, and R2 in each draw [D].

    R2 = 1 - sum (z - y)^2 / sum (y - mean y)^2: 1 is perfect, 0 is as good as saying the mean of these images always;
    NaN where their values do not differ.

    Args:
        values: [N], in the unit of the table.
        truth: [N], all known.
        weights: [D, N].
    """
    n = np.where(weights.sum(axis=1) > 0, weights.sum(axis=1), math.nan)
    error, centred = values - truth, truth - truth.mean()  # digits are lost where the mean is far from 0
    about = weights @ centred**2
    spread = about - (weights @ centred) ** 2 / n
    squares = weights @ error**2
    # Rounding is what is left where all values are one: in the whole table, or in a draw of one image again and again.
    floor = 1e-24 * (weights @ truth**2) + 1e-12 * about + 1e-300
    r2 = np.divide(squares, spread, out=np.full(len(n), math.nan), where=spread > floor)
    return {"mae": weights @ np.abs(error) / n, "rmse": np.sqrt(squares / n), "r2": 1 - r2}


def score(heads: Sequence[Head], answers: Floats, truth: Floats, weights: Floats | None = None) -> Floats:
    """The one figure by which two trainings of a task are compared, for each draw [D]: see `CHOSEN`.

    Args:
        heads: what is asked.
        answers: [N, outputs], logits, or values in the unit of the table.
        truth: [N, outputs]; NaN where nothing is known.
        weights: [D, N], how often each image counts; None: once, D = 1.
    """
    if heads[0].kind == MULTILABEL:
        return mean_average_precision(answers, truth, weights)
    if heads[0].kind == REGRESS:
        return mean_r2(answers, truth, weights)
    return mean_accuracy(heads, answers, truth, weights)


def of_card(found: Mapping[str, Any]) -> float | None:
    """That figure in what a record says of one split; of one class an image it is the accuracy."""
    value = found.get(CHOSEN[found["task"]] if "task" in found else "accuracy")
    return None if value is None else float(value)


def drawn(n: int, of: Drawn, *, draws: int = DRAWS, seed: int = SEED) -> Figure | None:
    """A figure of `n` images with its interval; None where it cannot be told.

    Draws in which it cannot be told are left out.

    Args:
        n: how many images.
        of: the figure.
        draws: how many.
        seed: of the draws.
    """
    value = float(of(np.ones((1, n)))[0])
    if not math.isfinite(value):
        return None
    again = of(resampled(n, draws, seed))
    again = again[np.isfinite(again)]
    low, high = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if not low < high:  # draws know nothing of errors that were not seen
        return Figure(value)
    return Interval(value, float(min(low, value)), float(max(high, value)))


def resampled(n: int, draws: int = DRAWS, seed: int = SEED) -> Floats:
    """How often each of `n` images is drawn, [draws, n]."""
    picked = np.random.default_rng(seed).integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(picked.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def card(heads: Sequence[Head], answers: Mapping[str, Floats], truth: Mapping[str, Floats]) -> dict[str, Any]:
    """What the record tells of each split, by its name, as plain JSON values.

    Args:
        heads: what is asked.
        answers: of each split [N, outputs]: logits, or values in the unit of the table.
        truth: of each split [N, outputs]; NaN where nothing is known.
    """
    kind = heads[0].kind
    if kind not in (MULTILABEL, REGRESS):
        return _of_classes(heads, answers, truth)
    one = labels_card if kind == MULTILABEL else values_card
    return {split: one(heads[0].labels, answers[split], truth[split]) for split in answers}


def labels_card(labels: Sequence[str], logits: Floats, truth: Floats) -> dict[str, Any]:
    """mAP, F1 and exact matches of answers that may have several labels; a label is answered from a logit of 0 on."""
    n, known, said = len(truth), np.isfinite(truth), logits >= 0
    whole = known.all(axis=1)
    exact = int((said == (truth == 1)).all(axis=1)[whole].sum())

    def micro(weights: Floats) -> Floats:
        return f1(*(one.sum(axis=1) for one in label_counts(said, truth, weights)))

    figures = {
        "map": drawn(n, lambda weights: mean_average_precision(logits, truth, weights)),
        "micro_f1": drawn(n, micro),
        "macro_f1": drawn(n, lambda weights: _mean(f1(*label_counts(said, truth, weights)).T)),
        "exact_match": _share(exact, int(whole.sum())),
    }
    rows = [_label_row(label, logits[known[:, k], k], truth[known[:, k], k]) for k, label in enumerate(labels)]
    return {"task": MULTILABEL, "n": n, **_flat(figures), "labels": rows,
            "sentence": _sentence("mAP", figures["map"], n)}


def _label_row(label: str, logits: Floats, truth: Floats) -> dict[str, Any]:
    has, said, n = truth == 1, logits >= 0, len(truth)
    hits, misses, alarms = int((has & said).sum()), int((has & ~said).sum()), int((~has & said).sum())
    figures = {
        "ap": drawn(n, lambda weights: average_precision(logits, has, weights)) if has.any() else None,
        "precision": _share(hits, hits + alarms),
        "recall": _share(hits, hits + misses),
        "f1": Interval(2 * hits / (2 * hits + misses + alarms), *metrics.f1_interval(hits, misses, alarms))
        if hits + misses + alarms else None,
    }
    return {"label": label, "n": n, "with_label": hits + misses, **_flat(figures)}


def values_card(columns: Sequence[str], values: Floats, truth: Floats) -> dict[str, Any]:
    """MAE, RMSE and R2 of each column, and the mean of R2 over them."""
    rows = []
    for k, column in enumerate(columns):
        known = np.isfinite(truth[:, k])
        given, right = values[known, k], truth[known, k]
        figures = {name: drawn(len(right), lambda weights, name=name, given=given, right=right:  # type: ignore[misc]
                               value_errors(given, right, weights)[name]) if known.any() else None
                   for name in ("mae", "rmse", "r2")}
        rows.append({"column": column, "n": int(known.sum()), **_flat(figures)})
    mean = drawn(len(truth), lambda weights: mean_r2(values, truth, weights))
    return {"task": REGRESS, "n": len(truth), **_flat({"r2": mean}), "columns": rows,
            "sentence": _sentence("R2", mean, len(truth))}


def mean_r2(values: Floats, truth: Floats, weights: Floats | None = None) -> Floats:
    """The mean over columns of R2 in each draw [D]; columns whose known values do not differ are left out."""
    draws = np.ones((1, len(truth))) if weights is None else weights
    known = np.isfinite(truth)
    each = [value_errors(values[known[:, k], k], truth[known[:, k], k], draws[:, known[:, k]])["r2"]
            for k in range(truth.shape[1]) if known[:, k].any()]
    return _mean(np.stack(each or [np.full(len(draws), math.nan)]))


def _of_classes(heads: Sequence[Head], answers: Mapping[str, Floats], truth: Mapping[str, Floats]) -> dict[str, Any]:
    """Each head's own figures, those of one class an image, and the mean of their accuracies."""
    of_head: dict[str, dict[str, Any]] = {}
    for head, part in places(heads):
        found = {}
        for split in answers:
            known = np.isfinite(truth[split][:, part]).all(axis=1)
            if known.any():
                rows, right = answers[split][known][:, part], truth[split][known][:, part].argmax(axis=1)
                keys = tuple(map(str, np.flatnonzero(known)))
                found[split] = evaluate.summarize(rows.astype(np.float32), right, keys)
        of_head[head.name] = scorecard.of_splits(found) if found else {}
    told: dict[str, Any] = {}
    for split in answers:
        own = {name: one[split] for name, one in of_head.items() if split in one}
        mean = drawn(len(truth[split]), lambda weights, split=split:  # type: ignore[misc]
                     mean_accuracy(heads, answers[split], truth[split], weights))
        told[split] = {"task": "classify", "n": len(truth[split]), **_flat({"mean_accuracy": mean}), "heads": own,
                       "sentence": _sentence("mean accuracy of the heads", mean, len(truth[split]))}
    temperatures = {name: one["temperature"] for name, one in of_head.items() if "temperature" in one}
    return {**told, "temperatures": temperatures}


def mean_accuracy(heads: Sequence[Head], logits: Floats, truth: Floats, weights: Floats | None = None) -> Floats:
    """The mean over heads of their accuracy on the images that are known, in each draw [D]."""
    draws = np.ones((1, len(truth))) if weights is None else weights
    return _mean(np.stack([_accuracy(logits[:, part], truth[:, part], draws) for _, part in places(heads)]))


def _accuracy(logits: Floats, truth: Floats, weights: Floats) -> Floats:
    known = np.asarray(np.isfinite(truth).all(axis=1))
    right = (logits.argmax(axis=1) == np.where(known[:, None], truth, 0).argmax(axis=1)) & known
    count = weights @ known
    found: Floats = np.divide(weights @ right, count, out=np.full(len(count), math.nan), where=count > 0)
    return found


def _share(part: int, n: int) -> Figure | None:
    return Interval(part / n, *metrics.wilson_interval(part, n)) if n else None


def _flat(figures: Mapping[str, Figure | None]) -> dict[str, float | None]:
    """Each figure with its ends under its name; None where it cannot be told."""
    none = {"": None, "_low": None, "_high": None}
    return {key: value for name, one in figures.items() for key, value in
            (one.to_json(name) if one is not None else {name + end: gone for end, gone in none.items()}).items()}


def _sentence(name: str, figure: Figure | None, n: int) -> str:
    if figure is None:
        return f"{name} cannot be told on {n} images"
    ends = f", 95 % interval {figure.low:.3f} to {figure.high:.3f}" if isinstance(figure, Interval) else ""
    return f"{name} {figure.value:.3f} on {n} images{ends}"
