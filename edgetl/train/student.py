"""Distillation: a compact student learns from the teacher's answers on the very views it sees."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from edgetl import losses, rundir, weights
from edgetl.allocator import set_allocator
from edgetl.errors import DataError, EdgetlError
from edgetl.events import Listener, ignore
from edgetl.models import Network
from edgetl.recipe import Distill
from edgetl.train import control, engines, repeats, seed, setting, softlabels
from edgetl.train.engines import Engine, GraphOf
from edgetl.train.setting import Setting
from edgetl.train.slimming import starting_student
from edgetl.train.softlabels import Live, SoftLabels
from edgetl.train.task import ClassifierTask, looks_at_features


def distill(options: Distill, *, listener: Listener = ignore, graph_of: GraphOf | None = None) -> Path:
    """The RUN folder of a student taught as the options say; with `control`, OUT/control holds its untaught twin.

    Args:
        options: the recipe.
        listener: told what is done and found.
        graph_of: makes the ONNX graph with which another engine than torch can run the teacher; None: torch runs it.

    Raises:
        DataError, UnknownName, OutputError, TrainingError: see the sentences.
        EdgetlError: the student brings its own weights and --weights is given.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
    """
    weights.require_read(options.student, options.weights)
    set_allocator()
    if setting.finished(options, listener, "distill"):
        return Path(options.out)
    terms = losses.parse(options.loss)  # before anything costs time
    teacher = weights.load(Path(options.teacher))
    with rundir.building(Path(options.out), resume=options.resume, overwrite=options.overwrite) as folder:
        place = setting.prepare(options, folder, "distill", listener, recorded=teacher.record["data"]["rule"])
        check_labels(teacher.labels, place)
        if not setting.complete(place):
            repeats.over_seeds(place, options, lambda one, own: train(one, own, teacher, terms, graph_of))
        repeats.sweep(folder)
    return Path(options.out)


def train(
    options: Distill, place: Setting, teacher: weights.Run, terms: tuple[losses.Term, ...], graph_of: GraphOf | None
) -> None:
    """Trains student and control from the start or from a checkpoint, and writes the model and its record."""
    student = setting.adjusted(starting_student(options, teacher.network, place), options)
    place.require_test_images(student.preprocess)
    untaught = copy.deepcopy(student) if options.control else None
    more = described(teacher, student, options)
    seed.seed_everything(options.seed)
    task = taught_task(options, place, student, teacher, terms, graph_of)
    setting.fit(place, task, student, place.folder, "distill")
    control.finish(place, student, untaught, more)


def taught_task(
    options: Distill,
    place: Setting,
    student: Network,
    teacher: weights.Run,
    terms: tuple[losses.Term, ...],
    graph_of: GraphOf | None,
) -> ClassifierTask:
    """The student on its losses; the teacher answers live where they look at features, else as is quickest.

    Raises:
        BackendUnavailable: the engine that shall run the teacher cannot run here.
        EdgetlError: --teacher-engine is given, and only torch has features.
    """
    corpus = losses.Corpus([item.label for item in place.parts.train])
    if looks_at_features(terms):
        if options.teacher_engine not in ("auto", engines.TORCH):
            raise EdgetlError(
                f"--teacher-engine {options.teacher_engine}: a loss looks at the teacher's features, which only torch "
                "has.", hint="Leave --teacher-engine out.",
            )  # fmt: skip
        return ClassifierTask(student, terms, teacher.network, corpus)
    stored = options.views > 0 and options.softlabels == "auto"
    engine = teachers_engine(options, place, student, teacher, graph_of, options.views if stored else options.epochs)
    source = opened_store(options, place, student, teacher, engine) if stored else Live(engine.ask)
    return ClassifierTask(student, terms, corpus=corpus, source=source)


def teachers_engine(
    options: Distill, place: Setting, student: Network, teacher: weights.Run, graph_of: GraphOf | None, looks: int
) -> Engine:
    """What runs the teacher, recorded so that a resume takes the same."""
    teacher.network.module.to(place.device)
    engine = engines.choose(
        engines.recorded(place.choices, options.teacher_engine),
        teacher.network,
        teacher.labels,
        place.precision,
        asked=min(looks, options.epochs) * len(place.parts.train),
        batch=setting.CPU_BATCH,
        size_hw=student.preprocess.size_hw,
        threads=place.choices["threads"],
        graph_of=graph_of,
    )
    if engine.trial:
        tried = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in engine.trial.items())
        place.note(f"{engine.name} runs the teacher: {tried} for {setting.CPU_BATCH} images.")
    if "teacher_engine" not in place.choices:
        place.choices["teacher_engine"] = {
            "name": engine.name, "version": engine.version, "seconds_a_batch": dict(engine.trial)
        }  # fmt: skip
    return engine


def opened_store(
    options: Distill, place: Setting, student: Network, teacher: weights.Run, engine: Engine
) -> SoftLabels:
    """The store of what the teacher says to the views."""
    identity = softlabels.Identity(
        teacher=rundir.sha256((teacher.folder / rundir.MODEL).read_bytes()),
        teacher_preprocess=teacher.network.preprocess,
        student_preprocess=student.preprocess,
        fingerprint=place.parts.fingerprint,
        keys=tuple(item.key for item in place.parts.train),
        options=dataclasses.asdict(options),
        engine=f"{engine.name} {engine.version} {place.choices['amp']}",
    )
    return SoftLabels(softlabels.folder_of(identity), len(identity.keys), len(teacher.labels), engine.ask)


def check_labels(labels: tuple[str, ...], place: Setting) -> None:
    """Raises DataError, listing them, when the teacher's classes are not the data's."""
    if labels == place.data.labels:
        return
    lacking, extra = sorted(set(place.data.labels) - set(labels)), sorted(set(labels) - set(place.data.labels))
    differ = f"the data has {lacking} that the teacher lacks, the teacher has {extra} that the data lacks"
    raise DataError(
        f"The teacher's classes are not the data's: {differ if lacking or extra else 'their order differs'}.",
        hint="Give the data that the teacher was fine-tuned on, or fine-tune a teacher on this data.",
    )


def described(teacher: weights.Run, student: Network, options: Distill) -> dict[str, Any]:
    """What the record says of teacher and student."""
    tensors = (teacher.folder / rundir.MODEL).read_bytes()
    ours, theirs = weights.parameter_count(student.module), weights.parameter_count(teacher.network.module)
    return {
        "teacher": {
            "model": teacher.network.model,
            "sha256": rundir.sha256(tensors),
            "parameters": theirs,
            "metrics": teacher.record["metrics"],
        },
        "student": options.student,
        "kept": ours / theirs,
    }
