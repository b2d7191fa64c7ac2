"""Where the teachers' answers come from: for each of them an engine and a store of its own, then one answer of all."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgetl import evaluate
from edgetl.compress import cost
from edgetl.datasets import Item
from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.recipe import Distill
from edgetl.runtime.session import open_session
from edgetl.train import blackbox, engines, mixing, setting, softlabels, task_record
from edgetl.train.engines import Engine, GraphOf
from edgetl.train.loop import Precision
from edgetl.train.setting import Setting
from edgetl.train.softlabels import Live, SoftLabels, Source
from edgetl.train.teachers import Teacher


def source(
    options: Distill, place: Setting, student: Network, school: tuple[Teacher, ...], graph_of: GraphOf | None
) -> Source:
    """What the teachers say to each batch, live or from stores; with several, their mix.

    Raises:
        BackendUnavailable: the engine that shall run a teacher cannot run here.
        EdgetlError: torch shall run a teacher that is an ONNX graph.
    """
    keys = ("teacher_engine", *(f"teacher_engine_{number}" for number in range(2, len(school) + 1)))
    found = tuple(
        _source_of(options, place, student, teacher, graph_of, key) for key, teacher in zip(keys, school, strict=True)
    )
    return found[0] if len(found) == 1 else mixing.Mixed(
        found, options.teacher_mix, shares(options), place.data.heads
    )


def shares(options: Distill) -> tuple[float, ...]:
    """The weights of --teacher-weight; empty where they are not given."""
    return tuple(float(one) for one in options.teacher_weight)


def _source_of(
    options: Distill, place: Setting, student: Network, teacher: Teacher, graph_of: GraphOf | None, key: str
) -> Source:
    stored = options.views > 0 and options.softlabels == "auto"
    engine = engine_of(options, place, student, teacher, graph_of, options.views if stored else options.epochs, key)
    return opened_store(options, place, student, teacher, engine) if stored else Live(engine.ask)


def engine_of(
    options: Distill,
    place: Setting,
    student: Network,
    teacher: Teacher,
    graph_of: GraphOf | None,
    looks: int,
    key: str = "teacher_engine",
) -> Engine:
    """What runs a teacher, recorded under a key so that a resume takes the same."""
    wish = engines.recorded(place.choices, options.teacher_engine, key)
    trial: dict[str, Any] = {
        "asked": min(looks, options.epochs) * len(place.shown),
        "batch": setting.CPU_BATCH,
        "size_hw": student.preprocess.size_hw,
        "channels": student.preprocess.channels,
        "threads": place.choices["threads"],
    }
    if teacher.box is not None:
        engine = engines.of_black_box(wish, teacher.box, place.device, **trial)
    else:
        network = teacher.require_network()
        network.module.to(place.device)
        engine = engines.choose(wish, network, teacher.labels, place.precision, graph_of=graph_of, **trial)
    if engine.trial:
        tried = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in engine.trial.items())
        place.note(f"{engine.name} runs the teacher {teacher.model}: {tried} for {setting.CPU_BATCH} images.")
    if key not in place.choices:
        place.choices[key] = {"name": engine.name, "version": engine.version, "seconds_a_batch": dict(engine.trial)}
    return engine


def opened_store(options: Distill, place: Setting, student: Network, teacher: Teacher, engine: Engine) -> SoftLabels:
    """The store of what one teacher says to the views; it does not know of other teachers."""
    identity = softlabels.Identity(
        teacher=teacher.key,
        teacher_preprocess=teacher.preprocess,
        student_preprocess=student.preprocess,
        fingerprint=place.shown_fingerprint,
        keys=tuple(item.key for item in place.shown),
        options=dataclasses.asdict(options),
        engine=f"{engine.name} {engine.version} {place.choices['amp']}",
    )
    folder = softlabels.folder_of(identity)
    return SoftLabels(
        folder, len(identity.keys), len(teacher.labels), engine.ask, kept=options.views, note=place.note,
        whole=place.aim is not None,
    )


def examined(school: tuple[Teacher, ...], place: Setting) -> tuple[Teacher, ...]:
    """The teachers with their accuracies on this data: recorded where that was on these images, else measured.

    Wrong preprocessing shows here, before anything is trained: it costs a teacher its accuracy without any error.
    """
    return tuple(teacher if teacher.metrics else _examined(teacher, place) for teacher in school)


def _examined(teacher: Teacher, place: Setting) -> Teacher:
    if place.aim is not None:
        figures = task_record.of_teacher(place, place.aim, teacher.require_network())
        place.note(f"The teacher {teacher.model} on the validation images: {figures['val']['sentence']}.")
        return dataclasses.replace(teacher, metrics=figures)
    parts = {"val": place.parts.val, "test": place.parts.test}
    found = _measured(teacher, place, {name: items for name, items in parts.items() if items})
    right = 100 * found["val"]["accuracy"]
    place.note(f"The teacher {teacher.model} is right on {right:.1f} % of the validation images.")
    return dataclasses.replace(teacher, metrics=found)


def _measured(teacher: Teacher, place: Setting, parts: Mapping[str, Sequence[Item]]) -> dict[str, Any]:
    with _predicting(teacher, place) as predict:
        found = {
            name: evaluate.evaluate(predict, items, place.data.read, teacher.preprocess, classes=len(teacher.labels))
            for name, items in parts.items()
        }
    return {name: one.to_json() for name, one in found.items()}


def logits(options: Distill, school: Sequence[Teacher], place: Setting, items: Sequence[Item]) -> torch.Tensor:
    """What the teachers say to images as they are, without augmentation, pooled: float32 [N, K] on the CPU.

    Where the mix depends on the labels (--teacher-mix confidence) it is the plain mean here.

    Raises:
        DataError: an image cannot be read; names it.
    """
    said = []
    for teacher in school:
        with _predicting(teacher, place) as predict:
            batches = evaluate.images(items, place.data.read, teacher.preprocess)
            said.append(torch.cat([torch.from_numpy(np.asarray(predict(batch), np.float32)) for batch in batches]))
    given = torch.tensor(shares(options) if options.teacher_mix == mixing.WEIGHTED else (1.0,) * len(said))
    return mixing.pooled(torch.stack(said), given / given.sum())


@contextlib.contextmanager
def _predicting(teacher: Teacher, place: Setting) -> Iterator[evaluate.Predict]:
    """What answers a teacher's own prepared images with logits."""
    if teacher.box is None:
        module = teacher.require_network().module.to(place.device).eval()
        yield setting.torch_predict(module, place, Precision(place.device, None))
        return
    backend = next(iter(engines.usable(engines.SESSIONS)), next(iter(engines.SESSIONS)))
    session = open_session(backend, teacher.box.graph, teacher.box.spec, threads=place.choices["threads"])
    try:
        yield blackbox.logits(teacher.box, session)
    finally:
        session.close()


def described(teacher: Teacher) -> dict[str, Any]:
    """What the record says of a teacher."""
    return {
        "model": teacher.model,
        "sha256": teacher.sha256,
        "parameters": teacher.parameters,
        "macs": _macs(teacher),
        "metrics": dict(teacher.metrics or {}),
        **(blackbox.facts(teacher.box) if teacher.box is not None else {}),
    }


def _macs(teacher: Teacher) -> int | None:
    """Multiply-accumulates of one image; None of a black box in which they cannot be counted."""
    if teacher.box is not None:
        with contextlib.suppress(EdgetlError):  # a figure of the report; who cuts by them is told why not
            return cost.graph_macs(teacher.box.graph, teacher.box.spec.inputs[0].shape)
    if teacher.network is None:
        return None
    return cost.image_macs(copy.deepcopy(teacher.network.module).cpu(), teacher.preprocess.size_hw,
                           teacher.preprocess.channels)
