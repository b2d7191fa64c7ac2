"""Whether a classifier still sees the world it was validated on: statistics of its scores, and their comparison.

    drift = Drift(len(classifier.labels))
    drift.update(scores)                                             # [N, K], any number of times, from any thread
    if drift.compare(classifier.manifest.drift_reference).alarm: ...

Labels are not needed: inputs that the model was not made for (a wrong normalisation, a dirty lens, another product)
move its top score, the entropy of its scores, or the mix of classes that it answers with. What they cannot show is a
change that leaves all three as they were.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BundleError, InputError
from edgetl.runtime.fields import Table
from edgetl.runtime.moments import MOST, Statistics, nothing, read_counted, read_weighted, statistics_of, to_json
from edgetl.runtime.shift import EFFECT, FALSE_ALARMS, PSI, DriftVerdict, judge

SCHEMA = 1
WINDOW = 500  # images after which an answer weighs 1/e in the recent statistics
SNAPSHOT = "the drift snapshot"


class Drift:
    """Statistics of a classifier's scores since the start, and of the recent ones; safe to use from several threads.

    Means and variances by B. P. Welford, Technometrics 4 (1962) 419-420, in T. F. Chan et al.'s form for batches;
    the recent ones weigh an answer exp(-age / window). Processes have one each, and merge their snapshots.
    """

    def __init__(self, classes: int, *, window: int = WINDOW) -> None:
        """Starts empty.

        Args:
            classes: K, how many labels the classifier has.
            window: images after which an answer weighs 1/e among the recent ones.

        Raises:
            InputError: either is less than 1.
        """
        if classes < 1 or window < 1:
            raise InputError(f"Drift was given {classes} classes and a window of {window} images; expected at least 1 "
                             "of each.")
        self.classes, self.window = classes, window
        self._lock = threading.Lock()
        self._whole = nothing(classes)
        self._recent = nothing(classes)
        self._weight_squares = 0.0  # sum of the squared recent weights: tells how many images they are worth

    def update(self, scores: NDArray[np.floating[Any]]) -> None:
        """Takes the scores [N, K] of N images, the oldest first; none is fine.

        Raises:
            InputError: not [N, K], or rows that are no probabilities.
        """
        checked = _checked(scores, self.classes)
        if not len(checked):
            return
        weights = np.exp(-np.arange(len(checked) - 1, -1, -1) / self.window)  # the last weighs 1
        whole = statistics_of(checked, np.ones(len(checked)))
        recent = whole if len(checked) == 1 else statistics_of(checked, weights)
        decay = math.exp(-len(checked) / self.window)
        with self._lock:
            self._whole = self._whole.merged(whole)
            self._recent = self._recent.decayed(decay).merged(recent)
            self._weight_squares = self._weight_squares * decay * decay + float(weights @ weights)

    def snapshot(self) -> dict[str, Any]:
        """Everything that was counted, as plain JSON values for `restore`, `merge` and `compare`; None: no image yet.

        {schema, classes, window, count, top {mean, variance}, entropy {mean, variance} in nats, class_counts [K],
        recent {weight, weight_squares, top, entropy, class_weights [K]}}.
        """
        with self._lock:
            whole, recent, weight_squares = self._whole, self._recent, self._weight_squares
        return {"schema": SCHEMA, "classes": self.classes, "window": self.window, "count": round(whole.top.weight),
                **to_json(whole), "class_counts": [round(one) for one in whole.classes.tolist()],
                "recent": {"weight": recent.top.weight, "weight_squares": weight_squares, **to_json(recent),
                           "class_weights": recent.classes.tolist()}}

    @classmethod
    def restore(cls, snapshot: Mapping[str, Any]) -> Drift:
        """What a snapshot was taken of, e.g. before the process was started again.

        Raises:
            InputError: no snapshot, or one of a schema that this version cannot read.
        """
        classes, window = _shape_of(snapshot)
        made = cls(classes, window=window)
        made.merge(snapshot)
        return made

    def merge(self, other: Drift | Mapping[str, Any]) -> None:
        """Adds what another one has counted, e.g. on another device; both count as equally recent.

        Raises:
            InputError: it is no snapshot, or of another number of classes.
        """
        whole, recent, weight_squares = _of_snapshot(other.snapshot() if isinstance(other, Drift) else other,
                                                     self.classes)
        with self._lock:
            self._whole, self._recent = self._whole.merged(whole), self._recent.merged(recent)
            self._weight_squares += weight_squares

    def compare(self, reference: Mapping[str, Any] | None, *, false_alarms: float = FALSE_ALARMS,
                effect: float = EFFECT, psi: float = PSI) -> DriftVerdict:
        """Whether the recent answers are what the reference leads one to expect.

        An alarm needs both: a shift that counts, and one that chance does not make. The means of top score and entropy
        count from `effect` pooled standard deviations (Cohen's d) and are tested by z; the class mix counts from `psi`
        and is tested by the index's own distribution, (1/n + 1/m) times chi-square with one degree of freedom less than
        classes (B. Yurdakul, Statistical Properties of Population Stability Index, 2018). Each of the three tests has a
        sixth of `false_alarms`; the other half is a reserve, for means of skewed scores are not quite normal. They
        suppose that images are independent: of a video, give one frame a scene.

        Args:
            reference: the manifest's `drift_reference`, or a snapshot from a time when all was well.
            false_alarms: greatest share of comparisons with an alarm while nothing has changed.
            effect: least shift of a mean that counts, in standard deviations.
            psi: least population stability index that counts.

        Raises:
            InputError: the reference is absent, or does not belong to this classifier.
        """
        expected = _of_reference(reference, self.classes)
        with self._lock:
            recent, weight_squares = self._recent, self._weight_squares
        images = recent.top.weight**2 / weight_squares if weight_squares else 0.0
        return judge(recent, images, expected, false_alarms=false_alarms, effect=effect, psi=psi)


def reference_of(scores: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """The statistics of scores [N, K] as a reference: {count, top, entropy, class_counts}, plain JSON values.

    Raises:
        InputError: not [N, K] with N and K above 0, or rows that are no probabilities.
    """
    counted = Drift(scores.shape[1] if scores.ndim == 2 else 0)
    counted.update(scores)
    whole = counted.snapshot()
    if not whole["count"]:
        raise InputError("A drift reference needs the scores of at least one image.")
    return {name: whole[name] for name in ("count", "top", "entropy", "class_counts")}


def prometheus(snapshot: Mapping[str, Any], labels: tuple[str, ...], *, prefix: str = "edgetl") -> str:
    """A snapshot in Prometheus' text format: images, classes answered, and the recent means; no line for what is None.

    Raises:
        InputError: it is no snapshot, or of another number of classes.
    """
    _of_snapshot(snapshot, len(labels))
    lines = [f"# TYPE {prefix}_images_total counter", f"{prefix}_images_total {snapshot['count']}",
             f"# TYPE {prefix}_answers_total counter"]
    lines += [f'{prefix}_answers_total{{label="{_escaped(label)}"}} {count}'
              for label, count in zip(labels, snapshot["class_counts"], strict=True)]
    for name, field in (("recent_top_score", "top"), ("recent_entropy_nats", "entropy")):
        mean = snapshot["recent"][field]["mean"]
        lines += [] if mean is None else [f"# TYPE {prefix}_{name} gauge", f"{prefix}_{name} {mean!r}"]
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    text = label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return text.encode("utf-8", "backslashreplace").decode()


def _checked(scores: NDArray[np.floating[Any]], classes: int) -> NDArray[np.float64]:
    found = np.asarray(scores)
    if found.ndim != 2 or found.shape[1] != classes or found.dtype.kind != "f":
        raise InputError(f"Drift was given {found.dtype} {list(found.shape)}; expected scores [N, {classes}].")
    values = found.astype(np.float64)
    sums = values.sum(axis=1, keepdims=True)
    # Written so that NaN fails. A float32 softmax over a thousand classes sums to 1 within a few millionths.
    if not (np.all(values >= 0) and np.all(np.abs(sums - 1) < 1e-3)):
        raise InputError("Drift was given rows that are no probabilities; expected numbers from 0 up with the sum 1.",
                         hint="Logits become scores by softmax.")
    normal: NDArray[np.float64] = values / sums
    return normal


def _table(values: Any, what: str) -> Table:
    """Raises what a reader of one's own files should get: an InputError."""
    if not isinstance(values, Mapping):
        raise InputError(f"{what}: found {type(values).__name__}, expected a table.")
    return Table(values, what)


def _shape_of(snapshot: Mapping[str, Any]) -> tuple[int, int]:
    """Classes and window of a snapshot whose schema can be read."""
    table = _table(snapshot, SNAPSHOT)
    try:
        schema = table.whole("schema")
        if schema != SCHEMA:
            raise InputError(f"{SNAPSHOT} has schema {schema}; this edgetl reads {SCHEMA}.",
                             hint="Start a new one with Drift(classes).")
        return table.whole("classes", low=1, high=MOST), table.whole("window", low=1)
    except BundleError as problem:
        raise InputError(problem.message) from problem


def _of_snapshot(snapshot: Mapping[str, Any], classes: int) -> tuple[Statistics, Statistics, float]:
    """All answers, the recent ones, and the sum of their squared weights."""
    found, _ = _shape_of(snapshot)
    if found != classes:
        raise InputError(f"{SNAPSHOT} counts {found} classes; expected {classes}.")
    table = _table(snapshot, SNAPSHOT)
    try:
        if table.whole("count") == 0:
            return nothing(classes), nothing(classes), 0.0
        recent = Table(table.table("recent"), f"{SNAPSHOT}: recent")
        return read_counted(table, classes), read_weighted(recent, classes), recent.number("weight_squares", above=0)
    except BundleError as problem:
        raise InputError(problem.message) from problem


def _of_reference(reference: Mapping[str, Any] | None, classes: int) -> Statistics:
    if reference is None:
        raise InputError("There is no drift reference to compare with.",
                         hint="Export the bundle again, or compare with a snapshot from a time when all was well.")
    try:
        return read_counted(_table(reference, "the drift reference"), classes)
    except BundleError as problem:
        raise InputError(problem.message) from problem


__all__ = ["Drift", "DriftVerdict", "prometheus", "reference_of"]
