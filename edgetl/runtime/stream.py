"""Decodes, runs and hands out images one after the other, each step at work on another image."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from edgetl.errors import EdgetlError, InputError
from edgetl.runtime.feeding import Image, name_of
from edgetl.runtime.prediction import Prediction
from edgetl.runtime.session import usable_threads

Answer = Prediction | EdgetlError
Prepare = Callable[[Any, str | None], Image]
Run = Callable[[list[Image]], list[Answer]]

MOST_WORKERS = 4  # taken by itself: more decode faster than one graph answers


@dataclass(frozen=True)
class Plan:
    """How a stream is worked off."""

    batch_size: int
    workers: int  # 0 takes what this process may use, at most MOST_WORKERS
    on_error: str  # "raise" | "yield"

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"workers is {self.workers}; expected 0 (what the machine allows) or more.")
        if self.on_error not in ("raise", "yield"):
            raise InputError(f"on_error is '{self.on_error}'; expected 'raise' or 'yield'.")


def stream(sources: Iterable[Any], prepare: Prepare, run: Run, plan: Plan) -> Generator[Any, None, None]:
    """The answers to `sources` in their order; see `Classifier.predict_stream`.

    One thread runs batches; it waits for the images of its batch, which the workers prepare. `sources` is iterated by
    the caller's thread only: a camera stays in the thread that opened it, and none hangs in it when the stream closes.
    """
    workers = plan.workers or min(MOST_WORKERS, usable_threads())
    most = 2 + math.ceil(workers / plan.batch_size)  # batches: one is run, one is ready, the workers' are prepared
    waiting: deque[Future[list[Answer]]] = deque()
    with _Threads(workers, "edgetl-decode") as decoders, _Threads(1, "edgetl-run") as runner:
        try:
            for batch in _batches(sources, plan.batch_size):
                if isinstance(batch, Exception):
                    yield from _rest(waiting, plan.on_error)
                    raise batch
                images = [decoders.submit(prepare, source, name_of(source, index, "stream")) for index, source in batch]
                waiting.append(runner.submit(_answer, images, run))
                if len(waiting) >= most or waiting[0].done():
                    yield from _judged(waiting.popleft().result(), plan.on_error)
            yield from _rest(waiting, plan.on_error)
        finally:
            for future in waiting:
                future.cancel()


class _Threads(ThreadPoolExecutor):
    """Threads that drop the work that has not begun when the block is left."""

    def __exit__(self, *problem: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def _batches(sources: Iterable[Any], size: int) -> Iterator[list[tuple[int, Any]] | Exception]:
    """Numbered sources in lists; last, what `sources` raised, so that what came before it is answered first."""
    numbered = enumerate(sources)
    while True:
        batch: list[tuple[int, Any]] = []
        try:
            batch.extend(itertools.islice(numbered, size))
        except Exception as problem:  # noqa: BLE001 (raised again by `stream`)
            if batch:
                yield batch
            yield problem
            return
        if not batch:
            return
        yield batch


def _answer(images: list[Future[Image]], run: Run) -> list[Answer]:
    """The answers to a batch; an image that cannot be used has its error in its place."""
    prepared: list[Image | InputError] = []
    for future in images:
        try:
            prepared.append(future.result())
        except InputError as problem:
            prepared.append(problem)
    good = [one for one in prepared if not isinstance(one, InputError)]
    answers = iter(run(good) if good else [])
    return [one if isinstance(one, InputError) else next(answers) for one in prepared]


def _rest(waiting: deque[Future[list[Answer]]], on_error: str) -> Iterator[Any]:
    while waiting:
        yield from _judged(waiting.popleft().result(), on_error)


def _judged(answers: list[Answer], on_error: str) -> Iterator[Any]:
    for one in answers:
        if isinstance(one, EdgetlError) and not (on_error == "yield" and isinstance(one, InputError)):
            raise one
        yield one
