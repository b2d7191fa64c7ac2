"""Micro-batching: images that several callers wait for at the same time go through the graph together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from edgetl.errors import EdgetlError, InputError, Overloaded
from edgetl.runtime.feeding import Image
from edgetl.runtime.prediction import Prediction
from edgetl.runtime.session import usable_threads

Answer = Prediction | EdgetlError
Prepare = Callable[[Any], Image]
Run = Callable[[list[Image], list[int]], list[Answer]]


@dataclass(frozen=True)
class Batching:
    """How `Classifier.submit` forms batches."""

    max_batch: int = 8  # images that go through the graph at once
    # How long the first image of a batch waits for others, in seconds. With 0 the images that came while the last batch
    # was run make the next one, and an idle classifier answers at once: on processors waiting longer rarely pays.
    max_delay_s: float = 0.0
    max_waiting: int = 64  # images handed in and not yet answered; one more is Overloaded
    workers: int = 0  # threads that decode; 0 takes what this process may use, at most 4

    def __post_init__(self) -> None:
        for name, least in (("max_batch", 1), ("max_delay_s", 0), ("max_waiting", 1), ("workers", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}.")


@dataclass(eq=False)
class _Job:
    source: Any
    top: int
    future: Future[Prediction] = field(default_factory=Future)
    image: Image | None = None
    ready_at_s: float = 0.0  # when its image was prepared, by time.monotonic


class Batcher:
    """Threads that decode what is submitted, and one that runs it in batches; they end when there is nothing to do."""

    def __init__(self, prepare: Prepare, run: Run, batching: Batching) -> None:
        self._prepare = prepare
        self._run = run
        self._batching = batching
        self._jobs: set[_Job] = set()  # handed in and not yet answered
        self._ready: deque[_Job] = deque()  # prepared
        self._changed = threading.Condition()  # guards what stands above and below
        self._draining = False  # whether a thread is at work on `_ready`
        self._closed: EdgetlError | None = None
        self._inside = threading.local()  # tells whether a thread is one of these
        self._decoders = ThreadPoolExecutor(batching.workers or min(4, usable_threads()), "edgetl-decode")
        self._runner = ThreadPoolExecutor(1, "edgetl-run")

    def submit(self, source: Any, top: int) -> Future[Prediction]:
        """See `Classifier.submit`."""
        job = _Job(source, top)
        with self._changed:
            if self._closed is not None:
                raise self._closed
            if len(self._jobs) >= self._batching.max_waiting:
                raise Overloaded(f"{len(self._jobs)} images are waiting already, the most that may "
                                 f"(max_waiting={self._batching.max_waiting}).",
                                 hint="Wait for answers before handing in more, or allow more with Batching.")
            self._jobs.add(job)
            self._decoders.submit(self._decode, job)
        return job.future

    def close(self, why: EdgetlError) -> None:
        """Waits for the batch that is being run; everything that still waits gets `why` as its exception."""
        with self._changed:
            self._closed = why
            self._changed.notify_all()
        # A callback of a future runs in one of these threads, which cannot wait for itself.
        outside = not getattr(self._inside, "here", False)
        self._decoders.shutdown(wait=outside, cancel_futures=True)
        self._runner.shutdown(wait=outside, cancel_futures=True)
        with self._changed:
            left = list(self._jobs)
            self._jobs.clear()
        for job in left:
            _settle(job, why)

    def _decode(self, job: _Job) -> None:
        self._inside.here = True
        if job.future.cancelled():
            self._finish(job, None)
            return
        try:
            job.image = self._prepare(job.source)
        except Exception as problem:  # noqa: BLE001 (whoever waits for the future gets it, with its traceback)
            self._finish(job, problem)
            return
        job.source, job.ready_at_s = None, time.monotonic()
        with self._changed:
            self._ready.append(job)
            self._changed.notify_all()
            if not self._draining and self._closed is None:
                self._draining = True
                self._runner.submit(self._drain)

    def _drain(self) -> None:
        self._inside.here = True
        while batch := self._next():
            self._answer(batch)

    def _next(self) -> list[_Job]:
        """The next batch; an empty one when there is nothing to do, and then this thread's work is done."""
        most, delay_s = self._batching.max_batch, self._batching.max_delay_s
        with self._changed:
            if self._ready and delay_s:
                self._changed.wait_for(lambda: self._closed is not None or len(self._ready) >= most,
                                       self._ready[0].ready_at_s + delay_s - time.monotonic())
            if self._closed is not None or not self._ready:
                self._draining = False
                return []
            return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def _answer(self, batch: list[_Job]) -> None:
        wanted = [job for job in batch if not job.future.cancelled()]
        answers: list[Any]
        try:
            images = [job.image for job in wanted if job.image is not None]
            answers = list(self._run(images, [job.top for job in wanted])) if wanted else []
        except Exception as problem:  # noqa: BLE001 (as above)
            answers = [problem] * len(wanted)
        for job in batch:
            self._finish(job, answers.pop(0) if job in wanted else None)

    def _finish(self, job: _Job, answer: Prediction | Exception | None) -> None:
        """Its place is free before the answer is told: a callback may submit the next image."""
        with self._changed:
            self._jobs.discard(job)
        _settle(job, answer)


def _settle(job: _Job, answer: Prediction | Exception | None) -> None:
    """Tells the answer, unless nobody wants it any more; None is for cancelled jobs."""
    if answer is None or not job.future.set_running_or_notify_cancel():
        return
    if isinstance(answer, Exception):
        job.future.set_exception(answer)
    else:
        job.future.set_result(answer)
