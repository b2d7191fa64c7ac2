"""The INT8 graph learns to answer as the float graph does: quantization-aware distillation, see `compress.qat`.

Tried first where every layer is rounded, for that is the fastest graph; then, where layers had to go back to float and
even that was not enough, with those in float.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.allocator import set_allocator
from edgetl.compress import calibrate, quantize, views
from edgetl.compress.course import Course, Untrainable
from edgetl.errors import MissingDependency
from edgetl.export.ladder import Attempt, Ladder, Plan
from edgetl.export.variants import BACKEND
from edgetl.runtime.heads import asked
from edgetl.runtime.session import open_session

NAME = "distilled"
BATCH = 32  # training images of an update
IMAGES = 4096  # of an epoch, at most


def climb(ladder: Ladder) -> Attempt | None:
    """The first of at most two attempts within the limits; None where none is, or where none can be made.

    A graph that says something else than one class an image is left to the other rungs.
    """
    if not ladder.subject.qat_epochs:
        return None
    if ladder.subject.heads:  # its loss is a softmax over all outputs
        ladder.subject.note(f"{ladder.name}, {NAME}: not tried. It teaches the scores of one class an image, and this "
                            f"graph says {asked(ladder.subject.heads)}.")
        return None
    try:
        return next((one for plan in starts(ladder) if (one := attempt(ladder, plan)).passed), None)
    except (MissingDependency, Untrainable) as problem:
        ladder.subject.note(f"{ladder.name}, {NAME}: not tried. {problem.message} {problem.hint}")
        return None


def starts(ladder: Ladder) -> list[Plan]:
    """The best plan with all layers in INT8, and the best of all where that has some in float."""
    best = ladder.best()
    whole = max((one for one in ladder.tried if not one.plan.floats), key=lambda one: one.found.agreement, default=best)
    return [whole.plan, best.plan] if best.plan.floats and best is not whole else [whole.plan]


def attempt(ladder: Ladder, plan: Plan) -> Attempt:
    """The graph of a plan, trained and judged; adds a row to the table.

    Raises:
        MissingDependency: torch is not installed.
        Untrainable: see `qat.distilled`.
    """
    epochs = ladder.subject.qat_epochs
    told = f"{NAME} ({plan.told}, {epochs} epoch{'s' if epochs > 1 else ''})"
    made = _trained(ladder, plan)
    return ladder.judge(dataclasses.replace(plan, told=told), made)


def _trained(ladder: Ladder, plan: Plan) -> quantize.Quantized:
    """The graph of a plan after its training."""
    subject = ladder.subject
    set_allocator()
    qat = _qat()
    made = ladder.written(plan)
    batch = subject.batch if subject.fixed else min(BATCH, len(subject.train))
    updates = min(IMAGES, len(subject.train)) // batch
    with _teacher(ladder) as teacher:
        course = Course(subject.qat_epochs, updates, lambda epoch: _images(ladder, epoch, batch), teacher,
                        ladder.spec.outputs[0].name, subject.threads, subject.note)
        trained: quantize.Quantized = qat.distilled(made, plan.source.ready, ladder.scheme_of(plan), course,
                                                    fixed=frozenset(ladder.known(plan)))
    return trained


def _qat() -> Any:
    """`compress.qat`, which needs torch; the rest of the ladder does not.

    Raises:
        MissingDependency: torch is not installed.
    """
    try:
        from edgetl.compress import qat
    except ModuleNotFoundError as problem:
        raise MissingDependency(problem.name or "torch", extra="train",
                                purpose="Quantization-aware distillation") from problem
    return qat


def _images(ladder: Ladder, epoch: int, batch: int) -> Iterator[NDArray[np.float32]]:
    """The views of an epoch; other images in each where there are more than one shows."""
    subject = ladder.subject
    chosen = calibrate.choose(subject.train, IMAGES, subject.seed + epoch)
    return views.views(chosen, subject.read, subject.preprocess, batch, np.random.default_rng([subject.seed, epoch]))


@contextlib.contextmanager
def _teacher(ladder: Ladder) -> Iterator[Any]:
    """What the float32 graph answers."""
    subject = ladder.subject
    session = open_session(BACKEND, subject.graph, subject.spec, threads=subject.threads)
    try:
        yield lambda images: session.run({subject.spec.inputs[0].name: images})[subject.spec.outputs[0].name]
    finally:
        session.close()
