"""The student before it is taught: another model, or one that is cut out of its teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from edgetl import models, rundir, weights
from edgetl.compress import cost, prune
from edgetl.errors import EdgetlError
from edgetl.events import Event
from edgetl.models import Network
from edgetl.recipe import Distill
from edgetl.runtime.preprocess import normalize
from edgetl.train import seed, store
from edgetl.train.setting import Setting
from edgetl.train.teacher import network_of_run

TAYLOR_IMAGES = 512


def starting_student(options: Distill, teacher: Network, place: Setting) -> Network:
    """The student before training, the same for the same options.

    Raises:
        UnknownName: no such model.
        EdgetlError: slim:R is malformed or cannot be reached.
    """
    seed.seed_everything(options.seed)
    if options.student.startswith("slim:"):
        return slim_student(options, teacher, place)
    if weights.is_run(Path(options.student)):
        return network_of_run(Path(options.student), place.data.labels, options.image_size)
    return models.create(
        options.student,
        classes=len(place.data.labels),
        pretrained=options.pretrained,
        weights=Path(options.weights) if options.weights else None,
        image_size=options.image_size,
    )


def slim_student(options: Distill, teacher: Network, place: Setting) -> Network:
    """The teacher cut to the fraction R of its parameters, as `slim:R` says."""
    try:
        ratio = float(options.student.removeprefix("slim:"))
    except ValueError as problem:
        raise EdgetlError(
            f"--student is '{options.student}', expected slim:R with a number R between 0 and 1."
        ) from problem
    gradients = taylor_gradients(teacher, place) if options.importance == "taylor" else None
    place.listener(Event(place.stage, "begin", {"what": "cut the teacher", "total": None, "unit": "trials"}))
    found = prune.slim(
        teacher,
        ratio,
        importance=options.importance,
        round_to=options.round_to,
        gradients=gradients,
        cost=options.prune_cost,
        tried=lambda trials: place.listener(Event(place.stage, "advance", {"done": trials})),
    )
    place.listener(Event(place.stage, "end", {"what": "cut the teacher"}))
    ours, theirs = weights.parameter_count(found.network.module), weights.parameter_count(teacher.module)
    size = teacher.preprocess.size_hw
    work = cost.image_macs(found.network.module, size) / cost.image_macs(teacher.module, size)
    place.note(
        f"slim: {ours:,} of {theirs:,} parameters kept ({found.kept:.1%}) and {work:.1%} of the multiplications, "
        f"channels ranked by {options.importance}"
        + (f" over {options.prune_cost}" if options.importance == "taylor" else "")
    )
    if options.image_size:
        wants = dataclasses.replace(teacher.preprocess, size_hw=(options.image_size, options.image_size))
        return dataclasses.replace(found.network, preprocess=wants)
    return found.network


def taylor_gradients(teacher: Network, place: Setting) -> Callable[[nn.Module], None]:
    """Leaves the gradients of the mean cross-entropy over some training images in a module's parameters."""
    items = sorted(place.parts.train, key=lambda item: rundir.sha256(item.key.encode(errors="surrogateescape")))[
        :TAYLOR_IMAGES
    ]
    pixels = store.evaluation_pixels(place.data, items, place.parts.fingerprint, teacher.preprocess)
    labels = torch.tensor([item.label for item in items])

    def accumulate(module: nn.Module) -> None:
        for start in range(0, len(items), 64):
            images = torch.from_numpy(normalize(pixels[start : start + 64], teacher.preprocess))
            F.cross_entropy(module(images), labels[start : start + 64], reduction="sum").div(len(items)).backward()  # type: ignore[no-untyped-call]

    return accumulate
