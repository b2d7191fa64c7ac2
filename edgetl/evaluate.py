"""Accuracy, agreement and latency of whatever answers with logits: a session, a torch model, a function.

Images come through `runtime.preprocess`, so that a model is judged on the very arrays that the device will give it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import calibration, metrics, timing
from edgetl.datasets import Item
from edgetl.errors import DataError, DataGone, EdgetlError
from edgetl.runtime.preprocess import Preprocess, decode, normalize, resize
from edgetl.runtime.session import Session

Images = NDArray[np.float32]  # [n, C, H, W], normalised
Predict = Callable[[Images], NDArray[Any]]  # Images -> logits [n, K]
Read = Callable[[Item], bytes]

BATCH = 32


@dataclass(frozen=True)
class Answers:
    """What a model answered, image by image."""

    logits: NDArray[np.float32]  # [N, K]
    labels: NDArray[np.int64]  # [N]
    weights: NDArray[np.float64]  # [N], Item.weight


@dataclass(frozen=True)
class Evaluation:
    """What a model answered on a split. Shares in 0..1; `accuracy_low` and `accuracy_high` bound 95 %."""

    n: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    weighted_accuracy: float | None  # by Item.weight; None where every weight is 1
    ece: float
    nll: float  # mean negative log-likelihood, nats
    brier: float
    confusion: NDArray[np.int64]  # [K, K], rows are the true class
    logits: NDArray[np.floating[Any]]  # [N, K], float32 as the model gives them
    labels: NDArray[np.int64]  # [N]
    keys: tuple[str, ...]
    agreement: float | None = None  # with a reference, by `with_reference`

    @property
    def score_name(self) -> str:
        """What it is judged by."""
        return "accuracy"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the arrays that have a row for each image."""
        names = (field.name for field in dataclasses.fields(self))
        plain = {name: getattr(self, name) for name in names if name not in ("logits", "labels", "keys", "confusion")}
        return {**plain, "confusion": self.confusion.tolist()}


@dataclass(frozen=True)
class Comparison:
    """A model against a reference on the same images. Points are percent of accuracy, reference minus model."""

    n: int
    agreement: float
    drop_points: float
    drop_low: float  # 95 % score interval of the paired difference
    drop_high: float
    lost: int  # images that only the reference got right
    gained: int  # images that only the model got right
    p_value: float  # McNemar's exact test

    @property
    def score_name(self) -> str:
        """What the points are of."""
        return "accuracy"

    @property
    def image_points(self) -> float:
        """Points that one image is worth: nothing smaller can be seen."""
        return 100 / self.n

    def sentence(self) -> str:
        """The comparison in words, with what so many images can resolve."""
        return (f"{-self.drop_points:+.2f} points (95 %: {-self.drop_high:+.2f} to {-self.drop_low:+.2f}), agreement "
                f"{100 * self.agreement:.2f} %, {self.lost} lost and {self.gained} gained of {self.n} images; "
                f"one image is {self.image_points:.2f} points")


def pixel_batches(items: Sequence[Item], read: Read, preprocess: Preprocess, batch: int = BATCH,
                  ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64]]]:
    """Batches of (pixels [n, H, W, C], labels [n], weights [n]) in the order of `items`; the last may be shorter.

    Raises:
        DataError: an image cannot be read; names it.
    """
    for begin in range(0, len(items), batch):
        part = items[begin:begin + batch]
        pixels = np.stack([pixels_of(item, read, preprocess) for item in part])
        labels = np.array([item.label for item in part], np.int64)
        weights = np.array([item.weight for item in part], np.float64)
        yield pixels, labels, weights


def prepared(items: Sequence[Item], read: Read, preprocess: Preprocess,
             batch: int = BATCH) -> Iterator[tuple[Images, NDArray[np.int64], NDArray[np.float64]]]:
    """The batches of `pixel_batches` with images [n, C, H, W], normalised, in place of pixels, and its errors."""
    for pixels, labels, weights in pixel_batches(items, read, preprocess, batch):
        yield normalize(pixels, preprocess), labels, weights


def images(items: Sequence[Item], read: Read, preprocess: Preprocess, batch: int = BATCH) -> Iterator[Images]:
    """The images of `prepared` alone."""
    for tensors, _, _ in prepared(items, read, preprocess, batch):
        yield tensors


def pixels_of(item: Item, read: Read, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Pixels [H, W, C] of one image, decoded, resized and cropped as the device would.

    Raises:
        DataError: the file is gone or is no image; names it.
        DataGone: the data cannot be reached any more.
    """
    try:
        return resize(decode(read(item), preprocess, name=item.key), preprocess)
    except (DataError, DataGone):
        raise  # the data set has named the file already
    except EdgetlError as problem:
        raise DataError(str(problem), hint="Remove or replace the file, then run the same command again.") from problem
    except OSError as problem:
        raise DataError(f"'{item.key}' cannot be read: {problem.strerror}.",
                        hint="Remove or replace the file, then run the same command again.") from problem


def session_predict(session: Session, *, image: str = "image", logits: str = "logits") -> Predict:
    """A function from images to logits over an opened graph with these names."""
    def predict(batch: Images) -> NDArray[Any]:
        return session.run({image: batch})[logits]
    return predict


def evaluate(predict: Predict, items: Sequence[Item], read: Read, preprocess: Preprocess, *, classes: int,
             batch: int = BATCH, normalized: bool = True) -> Evaluation:
    """What `predict` answers on `items`, summed up; arguments and errors are those of `answers`."""
    found = answers(predict, items, read, preprocess, classes=classes, batch=batch, normalized=normalized)
    return summarize(found.logits, found.labels, tuple(item.key for item in items), found.weights)


def answers(predict: Predict, items: Sequence[Item], read: Read, preprocess: Preprocess, *, classes: int,
            batch: int = BATCH, normalized: bool = True) -> Answers:
    """What `predict` answers on `items`; needs numpy alone, where a summary needs scipy too.

    Args:
        predict: images to logits.
        items: which images.
        read: bytes of an item.
        preprocess: what prepares them.
        classes: how many there are.
        batch: images handed to `predict` at once, at most.
        normalized: False hands out pixels, uint8 [n, H, W, C], to one who normalises them himself.

    Raises:
        DataError: no items, or an image that cannot be read.
        EdgetlError: the logits are not [n, classes] or not finite.
    """
    logits: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float64]] = []
    batches: Callable[..., Iterator[tuple[NDArray[Any], Any, Any]]] = prepared if normalized else pixel_batches
    for tensors, own_labels, own_weights in batches(items, read, preprocess, batch):
        logits.append(_checked(predict(tensors), len(tensors), classes))
        labels.append(own_labels)
        weights.append(own_weights)
    if not logits:
        raise DataError("There is no image to evaluate on.", hint="Give data that has images in this split.")
    return Answers(np.concatenate(logits), np.concatenate(labels), np.concatenate(weights))


def _checked(answer: NDArray[Any], n: int, classes: int) -> NDArray[np.float32]:
    logits = np.asarray(answer, dtype=np.float32)
    if logits.shape != (n, classes):
        raise EdgetlError(f"The model answered with an array {list(logits.shape)}; expected logits [{n}, {classes}].",
                          hint="The data's classes and the model's differ; give the data it was trained on.")
    if not np.isfinite(logits).all():
        raise EdgetlError("The model answered with logits that are not finite numbers.",
                          hint="Its weights or its graph are damaged; train or export it again.")
    return logits


def summarize(logits: NDArray[np.float32], labels: NDArray[np.int64], keys: tuple[str, ...],
              weights: NDArray[np.float64] | None = None) -> Evaluation:
    """The evaluation of answers that are there: logits [N, K], labels [N], one key an image."""
    right = logits.argmax(axis=1) == labels
    n, correct = len(labels), int(right.sum())
    if len(keys) != n:
        raise ValueError(f"{len(keys)} keys for {n} images")
    low, high = metrics.wilson_interval(correct, n)
    matrix = metrics.confusion(logits.argmax(axis=1), labels, logits.shape[1])
    weighted = None if weights is None or np.all(weights == 1) else metrics.weighted_accuracy(right, weights)
    return Evaluation(n=n, correct=correct, accuracy=correct / n, accuracy_low=low, accuracy_high=high,
                      macro_f1=metrics.macro_f1(matrix), weighted_accuracy=weighted, ece=metrics.ece(logits, labels),
                      nll=calibration.nll(logits, labels), brier=calibration.brier(logits, labels), confusion=matrix,
                      logits=logits, labels=labels, keys=keys)


def scaled(found: Evaluation, temperature: float | None) -> Evaluation:
    """The evaluation of logits over a temperature, in float64 as the runtime divides them; None leaves it as it is."""
    if temperature is None:
        return found
    logits = found.logits.astype(np.float64) / temperature
    return dataclasses.replace(found, logits=logits, ece=metrics.ece(logits, found.labels),
                               nll=calibration.nll(logits, found.labels),
                               brier=calibration.brier(logits, found.labels))


def compare(model: Evaluation, reference: Evaluation) -> Comparison:
    """`model` against `reference`, image by image."""
    if model.keys != reference.keys:
        raise ValueError("two evaluations of different images cannot be paired")
    right = model.logits.argmax(axis=1) == model.labels
    reference_right = reference.logits.argmax(axis=1) == reference.labels
    lost, gained = int((reference_right & ~right).sum()), int((right & ~reference_right).sum())
    low, high = metrics.paired_interval(lost, gained, model.n)
    return Comparison(n=model.n, agreement=metrics.agreement(model.logits, reference.logits),
                      drop_points=100 * (lost - gained) / model.n, drop_low=100 * low, drop_high=100 * high,
                      lost=lost, gained=gained, p_value=metrics.mcnemar(lost, gained))


def with_reference(model: Evaluation, reference: Evaluation) -> Evaluation:
    """`model` with its agreement with `reference` filled in."""
    return dataclasses.replace(model, agreement=compare(model, reference).agreement)


def latencies(calls: Mapping[str, Callable[[], Any]], *, rounds: int = 5, block: int = 60,
              dropped: int = timing.DROPPED, seed: int = 0) -> dict[str, tuple[float, ...]]:
    """Seconds of each kept call, by name: back to back in blocks, the blocks of all cases interleaved in rounds.

    The first `dropped` calls of a block are not kept, see `timing.block`. The order of the cases within a round is
    random, so that no case always follows the same one.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = np.random.default_rng(seed)
    for _ in range(rounds):
        for place in order.permutation(len(calls)):
            name = list(calls)[place]
            samples[name] += _block_s(calls[name], block, dropped)
    return {name: tuple(kept) for name, kept in samples.items()}


def _block_s(call: Callable[[], Any], n: int, dropped: int) -> tuple[float, ...]:
    return timing.block(lambda _: call(), n, dropped=dropped).seconds
