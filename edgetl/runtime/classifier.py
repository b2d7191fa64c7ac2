"""Images in, labels out: the class that an application on the device uses."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast, overload

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BundleError, EdgetlError, InputError
from edgetl.runtime import fast_decode
from edgetl.runtime.bundle import Bundle, PublicKey, open_bundle
from edgetl.runtime.choice import AUTO, Choice, check_classifier, choose
from edgetl.runtime.decode import MAX_MEGAPIXELS
from edgetl.runtime.feeding import Feeder, Image, name_of
from edgetl.runtime.handle import Handle
from edgetl.runtime.manifest import Manifest, Variant
from edgetl.runtime.prediction import Answers, Prediction, softmax
from edgetl.runtime.preprocess import EXACT
from edgetl.runtime.session import GraphSpec, Session, open_session, survives_damage

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from edgetl.runtime.batching import Batcher, Batching
    from edgetl.runtime.drift import Drift
    from edgetl.runtime.task_prediction import TaskAnswers


def load(path: str | os.PathLike[str], backend: str = AUTO, variant: str = AUTO, threads: int = 0,
         options: Mapping[str, str] | None = None, cache_dir: str | os.PathLike[str] | None = None, *,
         decode: str = EXACT, max_megapixels: float = MAX_MEGAPIXELS, public_key: PublicKey = None,
         drift: Drift | None = None, batching: Batching | None = None) -> Classifier:
    """A classifier from a bundle.

    Args:
        path: the folder of the bundle, or its packed file.
        backend: "auto" takes what `edgetl tune` measured as best, else the first of the variant's that can run here.
        variant: "auto" takes what `edgetl tune` measured as best, else by what this processor has, else the first in
            the manifest's order; `Classifier.info()` says which and why.
        threads: 0 takes what `edgetl tune` measured as best, else what the cgroup quota and the affinity allow.
        options: of the backend; see the backend's file.
        cache_dir: where a backend may keep compiled graphs between starts.
        decode: "exact" reads images as training's evaluation did; "fast", "turbojpeg" and "opencv" read large ones in
            less time and nearly the same, see `preprocess.prepare_pixels`.
        max_megapixels: larger images are refused before they are decoded.
        public_key: the bundle must be signed by it; None takes the environment's EDGETL_PUBLIC_KEY, if there is one.
        drift: is given the scores of every prediction.
        batching: how `Classifier.submit` forms batches; None is `Batching()`.

    Raises:
        BundleError: the bundle is incomplete, altered, not signed as asked, or of a schema that cannot be read.
        UnknownName: no such backend, variant or way to decode.
        BackendUnavailable: what was asked for cannot run here, with the reasons.
        GateFailed: an engine that was built here answers the golden images otherwise than training did.
        MissingDependency: a public key or `decode` needs a package that is not installed.
        InputError: `drift` counts another number of classes; `drift` or a `decode` other than "exact" is given for a
            bundle that says something else than one class an image.
    """
    bundle = open_bundle(path, public_key)
    from edgetl.runtime import tuned  # here: the import of edgetl.runtime is to be quick

    choice = choose(bundle.manifest, backend, variant, tuned=tuned.find(bundle.digest))
    feeder = Feeder(bundle.manifest.preprocess, choice.variant, decode, max_megapixels)
    answers = _answers(bundle.manifest, choice.variant, drift, decode)
    session = open_variant(bundle, choice, threads=threads or choice.threads, options=options, cache_dir=cache_dir)
    return Classifier(bundle, choice, session, feeder, answers, batching)


def _answers(manifest: Manifest, variant: Variant, drift: Drift | None, decode: str) -> Answers | TaskAnswers:
    if not manifest.heads:
        return Answers(manifest.labels, manifest.reject_below, drift, variant.temperature)
    from edgetl.runtime import task_prediction  # here: most bundles say one class an image

    task_prediction.require_plain(manifest, drift, decode)
    return task_prediction.TaskAnswers(manifest.heads, variant.temperatures)


def open_variant(bundle: Bundle, choice: Choice, *, threads: int = 0, options: Mapping[str, str] | None = None,
                 cache_dir: str | os.PathLike[str] | None = None) -> Session:
    """A session of the chosen variant, opened from the bytes whose digest was compared; raises what `load` raises.

    An engine that was not yet shown to be right is held against the golden images; see `edgetl.runtime.proving`.
    """
    variant = choice.variant
    check_classifier(bundle.manifest, variant)
    spec = GraphSpec(variant.inputs, variant.outputs, variant.precision)
    described = variant.file, variant.sha256, variant.size_bytes

    def make(graph: bytes) -> Session:
        return open_session(choice.backend, graph, spec, threads=threads, options=options, cache_dir=_folder(cache_dir))

    if bundle.seal is None and survives_damage(choice.backend):
        session = bundle.open_beside(*described, make)
    else:
        session = make(bundle.read(*described))
    if "proofs" in session.info():
        from edgetl.runtime import proving  # here: most backends run the graph itself, and have nothing to show

        proving.insist(bundle, variant, cast(proving.Provable, session), choice.backend)
    return session


def _folder(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None:
        return None
    from pathlib import Path  # here: it takes as long to import as half of the runtime

    return Path(path)


class Classifier:
    """A loaded bundle. Methods may be called from several threads; use it in a `with` block or call `close`.

    Where the bundle says something else than one class an image (`manifest.heads`), `predict` and its kin answer with
    that task's class in place of a `Prediction`: `LabelsPrediction`, `ValuesPrediction` or `HeadsPrediction`.

    It belongs to the process that loaded it: a forked child is told so by an error, and it cannot be sent to another.
    Sources are paths, the bytes of image files, Pillow images, uint8 arrays [H, W] or [H, W, C] in RGB, or float32
    arrays [C, H, W] as `preprocess.prepare` makes them. An array must not be written to before its answer is there.
    """

    def __init__(self, bundle: Bundle, choice: Choice, session: Session, feeder: Feeder,
                 answers: Answers | TaskAnswers, batching: Batching | None = None) -> None:
        self.manifest: Manifest = bundle.manifest
        self.labels: tuple[str, ...] = bundle.manifest.labels
        self._bundle = bundle
        self._choice = choice
        self._handle = Handle(choice.backend, session)
        self._feeder = feeder
        self._answers = answers
        self._batching = batching
        self._batcher: Batcher | None = None  # made by the first `submit`, since it keeps this object alive
        self._making = threading.Lock()
        self._input = choice.variant.inputs[0].name
        self._output = next(one.name for one in choice.variant.outputs if one.role == "logits")

    def predict(self, source: Any, *, top: int = 5) -> Prediction:
        """The label of one image.

        Args:
            source: see the class.
            top: how many labels `Prediction.top` holds.

        Raises:
            InputError: the image cannot be used; names the file.
            BackendUnavailable: the classifier is closed or a forked child's, or there is no memory left.
        """
        return _believed(self._each([self._feeder.prepare(source)], (top,))[0])

    def predict_batch(self, sources: Iterable[Any], *, top: int = 5, batch_size: int = 32) -> list[Prediction]:
        """The labels of several images, in their order; an empty list for none.

        Args:
            sources: what `predict` takes, any number of them.
            top: how many labels each `Prediction.top` holds.
            batch_size: images that go through the graph at once.

        Raises:
            InputError: an image cannot be used; names the file, or its place in `sources`.
            BackendUnavailable: as `predict`.
        """
        return [_believed(answer) for batch in self._batches(sources, batch_size)
                for answer in self._each(batch, [top] * len(batch))]

    @overload
    def predict_stream(self, sources: Iterable[Any], *, top: int = 5, batch_size: int = 1, workers: int = 0,
                       on_error: Literal["raise"] = "raise") -> Generator[Prediction, None, None]: ...

    @overload
    def predict_stream(self, sources: Iterable[Any], *, top: int = 5, batch_size: int = 1, workers: int = 0,
                       on_error: Literal["yield"]) -> Generator[Prediction | InputError, None, None]: ...

    def predict_stream(self, sources: Iterable[Any], *, top: int = 5, batch_size: int = 1, workers: int = 0,
                       on_error: Literal["raise", "yield"] = "raise") -> Generator[Any, None, None]:
        """The labels of any number of images, in their order, while later ones are decoded and run already.

        `sources` is asked for the next image by the thread that asks for the next label, at most `workers` + 2
        batches ahead; an answer that is ready is handed out before another image is asked for. Closing the generator,
        or leaving the loop over it, stops its threads.

        Args:
            sources: what `predict` takes; a camera, a list of paths, ...
            top: how many labels each `Prediction.top` holds.
            batch_size: images that go through the graph at once; with 1 no image waits for another.
            workers: threads that decode; 0 takes what the cgroup quota and the affinity allow, at most 4.
            on_error: "raise" ends with the InputError of an image that cannot be used, after the labels of those before
                it; "yield" hands the InputError out in the image's place and goes on.

        Raises:
            InputError: an image cannot be used, or an argument.
            BackendUnavailable: as `predict`.
        """
        from edgetl.runtime.stream import Plan, stream

        self._session()
        _check_many(sources, batch_size)
        return stream(sources, self._feeder.prepare, lambda images: self._each(images, [top] * len(images)),
                      Plan(batch_size, workers, on_error))

    def submit(self, source: Any, *, top: int = 5) -> Future[Prediction]:
        """The label of one image, later: images that are waiting at the same time go through the graph together.

        Args:
            source: see the class.
            top: how many labels `Prediction.top` holds.

        Returns:
            A future whose exception is an InputError for an image that cannot be used.

        Raises:
            Overloaded: as many images are waiting as `Batching.max_waiting` allows.
            BackendUnavailable: the classifier is closed or a forked child's.
        """
        from edgetl.runtime.batching import Batcher, Batching

        self._session()
        with self._making:
            if self._batcher is None:
                self._batcher = Batcher(self._feeder.prepare, self._each, self._batching or Batching())
        return self._batcher.submit(source, top)

    async def predict_async(self, source: Any, *, top: int = 5) -> Prediction:
        """`submit` for asyncio: `await classifier.predict_async(photo)`; raises what `submit` and its future raise."""
        import asyncio

        return await asyncio.wrap_future(self.submit(source, top=top))

    def logits(self, images: Sequence[Any] | NDArray[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Logits [N, K] of images, or of an array that is prepared already; values in their unit where it says values.

        Args:
            images: a list of what `predict` takes, or an array as the graph takes it: float32 [N, C, H, W] as
                `preprocess.prepare` makes it, or uint8 [N, H, W, C] for a variant that embeds its preprocessing.
            batch_size: images of a list that go through the graph at once; an array goes through as it is.

        Raises:
            InputError: an image or the array cannot be used.
            BackendUnavailable: as `predict`.
        """
        return self._wide(images, batch_size, self._output, len(self.labels))

    def features(self, images: Sequence[Any] | NDArray[Any], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Features [N, D] of images: what the last layer sees, for searching and comparing images.

        Args:
            images: what `logits` takes.
            batch_size: images of a list that go through the graph at once.

        Raises:
            BundleError: the bundle was exported without them.
            InputError: an image or the array cannot be used.
            BackendUnavailable: as `predict`.
        """
        self._session()
        output = next((one for one in self._choice.variant.outputs if one.role == "features"), None)
        if output is None:
            raise BundleError(f"Variant '{self._choice.variant.name}' gives no features.",
                              hint="Export the bundle again with --with-features.")
        return self._wide(images, batch_size, output.name, int(output.shape[-1]))

    def warmup(self, calls: int = 3, *, batch_size: int = 1) -> None:
        """Runs black images, so that the first real one does not pay for what a backend does only once."""
        height, width = self.manifest.preprocess.size_hw
        black = [np.zeros((height, width, self.manifest.preprocess.channels), np.uint8)] * batch_size
        for _ in range(calls):
            self._run_images(black)

    def info(self) -> dict[str, Any]:
        """What was chosen, why, and what really runs; plain JSON values.

        Raises:
            BackendUnavailable: the classifier is closed or a forked child's.
        """
        variant = self._choice.variant
        return {
            "bundle": self._bundle.store.path,
            "name": self.manifest.name,
            "variant": variant.name,
            "backend": self._choice.backend,
            "rule": self._choice.rule,
            "why": self._choice.why,
            "passed_over": list(self._choice.passed_over),
            "precision": variant.precision,
            "status": variant.status,
            "temperature": variant.temperature,
            **({"task": self.manifest.task, "heads": [one.name for one in self.manifest.heads],
                "temperatures": dict(variant.temperatures)} if self.manifest.heads else {}),
            "size_bytes": variant.size_bytes,
            "labels": len(self.labels),
            "input": list(variant.inputs[0].shape),
            "session": dict(self._session().info()),
        }

    def close(self) -> None:
        """Releases the session, after the images that are being run; what `submit` still holds gets an error.

        A second call does nothing.
        """
        session: Session | None = self._handle.native
        self._handle.close()
        if session is None:  # closed before, or a forked child's
            return
        if self._batcher is not None:
            self._batcher.close(self._handle.error())
        session.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise EdgetlError("A Classifier belongs to the process that loaded it; it cannot be copied or sent to another.",
                          hint="Send the path of the bundle and call edgetl.runtime.load() there.")

    def _session(self) -> Session:
        session: Session | None = self._handle.native
        if session is None:
            raise self._handle.error()
        return session

    def _batches(self, sources: Iterable[Any], batch_size: int) -> Iterator[list[Image]]:
        self._session()
        _check_many(sources, batch_size)
        numbered = enumerate(sources)
        while batch := list(itertools.islice(numbered, batch_size)):
            yield [self._feeder.prepare(one, name_of(one, index, "batch")) for index, one in batch]

    def _wide(self, images: Sequence[Any] | NDArray[Any], batch_size: int, output: str,
              width: int) -> NDArray[np.float32]:
        """One output [N, width] of the graph."""
        self._session()
        empty = np.empty((0, width), np.float32)
        if isinstance(images, np.ndarray):
            if images.ndim == 4 and len(images) == 0:
                return empty
            return self._checked(self._run(images)[output], output, width, images)
        return np.concatenate([empty, *(self._checked(self._run_images(batch)[output], output, width, batch)
                                        for batch in self._batches(images, batch_size))])

    def _run(self, images: NDArray[Any]) -> Mapping[str, NDArray[np.float32]]:
        return self._session().run({self._input: images})

    def _run_images(self, images: Sequence[Image]) -> Mapping[str, NDArray[np.float32]]:
        batch = self._feeder.batch(images)
        outputs = self._run(batch)
        self._feeder.give_back(batch, images)
        return outputs if self._feeder.exact else fast_decode.settled(outputs, images, self._run_images, self._output,
                                                                      self._choice.variant.tolerance)

    def _each(self, images: Sequence[Image], tops: Sequence[int]) -> list[Prediction | EdgetlError]:
        """An answer to each image: its prediction, or why its logits are not finite."""
        logits = self._run_images(images)[self._output]
        if logits.shape != (len(images), len(self.labels)):
            raise self._wrong(logits, self._output, len(self.labels), images)
        found = self._answers(logits, tops)
        return [self._wrong(logits[place:place + 1], self._output, len(self.labels), images[place:place + 1])
                if one is None else one for place, one in enumerate(found)]

    def _checked(self, found: NDArray[np.float32], output: str, width: int,
                 images: Sequence[Image] | NDArray[Any]) -> NDArray[np.float32]:
        if found.shape != (len(images), width) or not np.isfinite(found).all():
            raise self._wrong(found, output, width, images)
        return found

    def _wrong(self, found: NDArray[np.float32], output: str, width: int,
               images: Sequence[Image] | NDArray[Any]) -> EdgetlError:
        """What is to be said of an output that cannot be used."""
        if any(not np.isfinite(one).all() for one in images):
            return InputError("The prepared array holds values that are not finite; expected numbers.")
        return EdgetlError(f"Variant '{self._choice.variant.name}' gave '{output}' as {list(found.shape)}, or some "
                           f"that are not finite; expected [{len(images)}, {width}] finite numbers.",
                           hint="Check the bundle with `edgetl verify`.")


def _believed(answer: Prediction | EdgetlError) -> Prediction:
    if isinstance(answer, EdgetlError):
        raise answer
    return answer


def _check_many(sources: Any, batch_size: int) -> None:
    if isinstance(sources, str | bytes | os.PathLike | np.ndarray):
        raise InputError(f"Found one image ({type(sources).__name__}); expected a list of images.",
                         hint="Put it in a list, or call predict().")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected at least 1.")


__all__ = ["Classifier", "Prediction", "load", "open_variant", "softmax"]
