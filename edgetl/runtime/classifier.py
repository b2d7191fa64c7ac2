"""Images in, labels out: the class that an application on the device uses."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import EdgetlError, InputError
from edgetl.runtime.bundle import Bundle, open_bundle
from edgetl.runtime.choice import AUTO, Choice, check_classifier, choose
from edgetl.runtime.manifest import Manifest
from edgetl.runtime.preprocess import normalize, prepare_pixels
from edgetl.runtime.session import GraphSpec, Session, open_session


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image."""

    label: str
    index: int  # of the label in Classifier.labels
    score: float  # softmax probability, 0 to 1
    top: tuple[tuple[str, float], ...]  # the most probable labels with their scores, best first


def load(path: str | os.PathLike[str], backend: str = AUTO, variant: str = AUTO, threads: int = 0,
         options: Mapping[str, str] | None = None, cache_dir: str | os.PathLike[str] | None = None) -> Classifier:
    """A classifier from a bundle.

    Args:
        path: folder of the bundle.
        backend: "auto" takes the first of the variant's backends that can run here.
        variant: "auto" takes the first, in the manifest's order, whose requirements this processor meets.
        threads: 0 takes what the cgroup quota and the affinity allow.
        options: of the backend; see the backend's file.
        cache_dir: where a backend may keep compiled graphs between starts.

    Raises:
        BundleError: the bundle is incomplete, altered, or of a schema that cannot be read.
        UnknownName: no such backend or variant.
        BackendUnavailable: what was asked for cannot run here, with the reasons.
    """
    bundle = open_bundle(path)
    choice = choose(bundle.manifest, backend, variant)
    session = open_variant(bundle, choice, threads=threads, options=options, cache_dir=cache_dir)
    return Classifier(bundle, choice, session)


def open_variant(bundle: Bundle, choice: Choice, *, threads: int = 0, options: Mapping[str, str] | None = None,
                 cache_dir: str | os.PathLike[str] | None = None) -> Session:
    """A session of the chosen variant, opened from the bytes whose digest was compared; raises what `load` raises."""
    variant = choice.variant
    check_classifier(bundle.manifest, variant)
    graph = bundle.read(variant.file, variant.sha256, variant.size_bytes)
    spec = GraphSpec(variant.inputs, variant.outputs, variant.precision)
    return open_session(choice.backend, graph, spec, threads=threads, options=options,
                        cache_dir=None if cache_dir is None else Path(cache_dir))


class Classifier:
    """A loaded bundle. Methods may be called from several threads; use it in a `with` block or call `close`."""

    def __init__(self, bundle: Bundle, choice: Choice, session: Session) -> None:
        self.manifest: Manifest = bundle.manifest
        self.labels: tuple[str, ...] = bundle.manifest.labels
        self._bundle = bundle
        self._choice = choice
        self._session = session
        self._input = choice.variant.inputs[0].name
        self._output = next(one.name for one in choice.variant.outputs if one.role == "logits")

    def predict(self, source: Any, *, top: int = 5) -> Prediction:
        """The label of one image.

        Args:
            source: a path, the bytes of an image file, a Pillow image, or a uint8 array [H, W] or [H, W, C] in RGB.
            top: how many labels `Prediction.top` holds.

        Raises:
            InputError: the image cannot be used; names the file.
        """
        pixels = prepare_pixels(source, self.manifest.preprocess)
        return self._predictions(self._run_pixels([pixels]), top)[0]

    def predict_batch(self, sources: Iterable[Any], *, top: int = 5, batch_size: int = 32) -> list[Prediction]:
        """The labels of several images, in their order; an empty list for none.

        Args:
            sources: what `predict` takes, any number of them.
            top: how many labels each `Prediction.top` holds.
            batch_size: images that go through the graph at once.

        Raises:
            InputError: an image cannot be used; names the file, or its place in `sources`.
        """
        return [prediction for batch in self._batches(sources, batch_size)
                for prediction in self._predictions(self._run_pixels(batch), top)]

    def logits(self, images: Sequence[Any] | NDArray[np.float32], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Logits [N, K] of images, or of an array that is prepared already.

        Args:
            images: a list of what `predict` takes, or a float32 array [N, C, H, W] as `preprocess.prepare` makes it.
            batch_size: images of a list that go through the graph at once; an array goes through as it is.

        Raises:
            InputError: an image or the array cannot be used.
        """
        if isinstance(images, np.ndarray):
            return self._empty() if len(images.shape) == 4 and len(images) == 0 else self._run(images)
        return np.concatenate([self._empty(), *(self._run_pixels(one) for one in self._batches(images, batch_size))])

    def warmup(self, calls: int = 3, *, batch_size: int = 1) -> None:
        """Runs black images, so that the first real one does not pay for what a backend does only once."""
        black = np.zeros((batch_size, *self.manifest.preprocess.input_shape), np.float32)
        for _ in range(calls):
            self._run(black)

    def info(self) -> dict[str, Any]:
        """What was chosen, why, and what really runs; plain JSON values."""
        variant = self._choice.variant
        return {
            "bundle": str(self._bundle.folder),
            "name": self.manifest.name,
            "variant": variant.name,
            "backend": self._choice.backend,
            "why": self._choice.why,
            "passed_over": list(self._choice.passed_over),
            "precision": variant.precision,
            "status": variant.status,
            "size_bytes": variant.size_bytes,
            "labels": len(self.labels),
            "input": list(variant.inputs[0].shape),
            "session": dict(self._session.info()),
        }

    def close(self) -> None:
        """Releases the session; a second call does nothing."""
        self._session.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _batches(self, sources: Iterable[Any], batch_size: int) -> Iterator[list[NDArray[np.uint8]]]:
        if isinstance(sources, str | bytes | os.PathLike | np.ndarray):
            raise InputError(f"Found one image ({type(sources).__name__}); expected a list of images.",
                             hint="Put it in a list, or call predict().")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1.")
        numbered = enumerate(sources)
        while batch := list(itertools.islice(numbered, batch_size)):
            yield [prepare_pixels(one, self.manifest.preprocess, name=_name(one, index)) for index, one in batch]

    def _run_pixels(self, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return self._run(normalize(np.stack(pixels), self.manifest.preprocess))

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._session.run({self._input: images})[self._output]
        if logits.shape != (len(images), len(self.labels)) or not np.isfinite(logits).all():
            raise EdgetlError(f"Variant '{self._choice.variant.name}' gave logits {list(logits.shape)}, or some that "
                              f"are not finite; expected [{len(images)}, {len(self.labels)}] finite numbers.",
                              hint="Check the bundle with `edgetl verify`.")
        return logits

    def _empty(self) -> NDArray[np.float32]:
        return np.empty((0, len(self.labels)), np.float32)

    def _predictions(self, logits: NDArray[np.float32], top: int) -> list[Prediction]:
        scores = softmax(logits)
        # A stable order: of equal scores the label that stands first.
        ranks = np.argsort(-scores, axis=1, kind="stable")
        return [self._prediction(row, order, top) for row, order in zip(scores, ranks, strict=True)]

    def _prediction(self, scores: NDArray[np.float64], order: NDArray[np.intp], top: int) -> Prediction:
        best = int(order[0])
        shown = tuple((self.labels[int(index)], float(scores[index])) for index in order[:max(1, top)])
        return Prediction(self.labels[best], best, float(scores[best]), shown)


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Probabilities [N, K] of logits [N, K], in float64."""
    # The largest is taken off first, so that exp() cannot overflow.
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _name(source: Any, index: int) -> str | None:
    """A name for images that carry none: their place in the batch."""
    has_name = isinstance(source, str | os.PathLike) or bool(getattr(source, "filename", ""))
    return None if has_name else f"Image {index} of the batch"
