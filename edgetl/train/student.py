"""Distillation: a compact student learns from the teacher's answers on the very views it sees."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetl import losses, weights
from edgetl.allocator import set_allocator
from edgetl.errors import EdgetlError
from edgetl.events import Listener, ignore
from edgetl.models import Network
from edgetl.recipe import Distill
from edgetl.recipe_teacher import GraphTeacher, Named
from edgetl.train import (
    asking,
    beforehand,
    channels,
    choosing,
    control,
    distributed,
    engines,
    inherit,
    loader,
    repeats,
    setting,
    slim_steps,
    softness,
    task_losses,
    teachers,
    unlabelled,
)
from edgetl.train.distributed import World
from edgetl.train.engines import GraphOf
from edgetl.train.setting import Setting
from edgetl.train.slimming import Cutter, LatencyShare, starting_student
from edgetl.train.task import ClassifierTask, looks_at_features
from edgetl.train.teachers import Teacher


def distill(
    options: Distill,
    *,
    listener: Listener = ignore,
    graph_of: GraphOf | None = None,
    latency_share: LatencyShare | None = None,
) -> Path:
    """The RUN folder of a student taught as the options say; with `control`, OUT/control holds its untaught twin.

    Args:
        options: the recipe.
        listener: told what is done and found.
        graph_of: makes the ONNX graph with which another engine than torch can run the teacher, and on which
            multiplications are counted; None: torch runs it.
        latency_share: measures what --slim-by latency cuts to.

    Raises:
        DataError, UnknownName, OutputError, TrainingError: see the sentences.
        EdgetlError: the student brings its own weights and --weights is given, or a teacher cannot do what is asked.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
    """
    weights.require_read(options.student, options.weights)
    inherit.require_heir(options)
    options = task_losses.resolved(options, teachers.asked(options))
    set_allocator()
    with distributed.joined(choosing.choose_device(options.device)) as world:
        return _distill(options, world, world.listening(listener), graph_of, latency_share)


def _distill(
    options: Distill,
    world: World,
    listener: Listener,
    graph_of: GraphOf | None,
    latency_share: LatencyShare | None,
) -> Path:
    if world.decided(lambda: setting.finished(options, listener, "distill")):
        return Path(options.out)
    asked, terms = teachers.asked(options), losses.parse(options.loss)  # before anything costs time
    unlabelled.require_use(options.unlabeled, terms)
    loader.require_refresh(options.views, options.refresh_views)
    named = teachers.named(options)
    teachers.require_task(named, asked)
    task_losses.require_options(options, asked)
    require_lookable(options, named, terms)
    beforehand.require_layers(options, named, terms)
    with world.building(Path(options.out), resume=options.resume, overwrite=options.overwrite) as folder:
        rule = teachers.recorded_rule(named, listener, "distill")
        place = setting.prepare(options, folder, "distill", listener, recorded=rule)
        if not setting.complete(place):
            terms = terms if place.aim is None else task_losses.of_task(options.loss, place.aim.heads)
            school = asking.examined(teachers.opened(named, place), place)
            repeats.over_seeds(place, options, lambda one, own: train(one, own, school, terms, graph_of, latency_share))
        repeats.sweep(folder)
    return Path(options.out)


def train(
    options: Distill,
    place: Setting,
    school: tuple[Teacher, ...],
    terms: tuple[losses.Term, ...],
    graph_of: GraphOf | None,
    latency_share: LatencyShare | None = None,
) -> None:
    """Trains student and control from the start or from a checkpoint, and writes the model and its record."""
    softness.settle(terms, options, place, school)
    cutter = Cutter.of(options, school[0].network, place, graph_of, latency_share)
    student = starting_student(options, school[0].network, place, cutter)
    if place.aim is not None:
        place.aim.require(student)
    place.require_test_images(student.preprocess)
    untaught = copy.deepcopy(student) if options.control else None

    def task_of(network: Network) -> ClassifierTask:
        return taught_task(options, place, network, school, terms, graph_of)

    student, steps = slim_steps.fit(place, student, task_of, place.folder, "distill", cutter)
    control.finish(place, student, untaught, described(school, student, options) | steps, cutter)


def taught_task(
    options: Distill,
    place: Setting,
    student: Network,
    school: tuple[Teacher, ...],
    terms: tuple[losses.Term, ...],
    graph_of: GraphOf | None,
) -> ClassifierTask:
    """The student on its losses; a teacher answers live where they look at its features, else as is quickest.

    Of several teachers the first shows its features, and all together give the logits.

    Raises:
        BackendUnavailable: the engine that shall run the teacher cannot run here.
    """
    corpus = losses.Corpus([item.label for item in place.parts.train])
    shown = channels.shown(student.preprocess, [teacher.preprocess for teacher in school])
    looked_at = school[0].require_network() if looks_at_features(terms) else None
    if looked_at is not None and len(school) == 1:
        return ClassifierTask(student, terms, looked_at, corpus, aim=place.aim, shown=shown)
    with distributed.current().agreeing(place.choices):
        source = asking.source(options, place, dataclasses.replace(student, preprocess=shown), school, graph_of)
    return ClassifierTask(student, terms, looked_at, corpus, source, aim=place.aim, shown=shown)


def require_lookable(options: Distill, named: Sequence[Named], terms: tuple[losses.Term, ...]) -> None:
    """Returns when the options that look into the teacher, beyond its logits, have one that can be looked into.

    Raises:
        EdgetlError: a loss looks at features, or slim:R cuts the teacher, and there is no such teacher.
    """
    looking = next((term.name for term in terms if looks_at_features([term])), None)
    if looking is not None and isinstance(named[0].said, GraphTeacher):
        raise EdgetlError(
            f"The loss '{looking}' looks at the features of the first teacher, and {named[0].name} is a black box that "
            "only answers.",
            hint="Use losses on logits (labels, kd, dkd, dist), or put a RUN or FAMILY/VARIANT first.",
        )
    if looking is not None and len(named) == 1 and options.teacher_engine not in ("auto", engines.TORCH):
        raise EdgetlError(
            f"--teacher-engine {options.teacher_engine}: a loss looks at the teacher's features, which only torch has.",
            hint="Leave --teacher-engine out.",
        )
    if options.student.startswith("slim:") and isinstance(named[0].said, GraphTeacher):
        raise EdgetlError(
            f"--student {options.student} is cut out of the first teacher, and {named[0].name} is a black box.",
            hint="Name another student, e.g. timm/mobilenetv4_conv_small, or put a RUN first among the teachers.",
        )


def described(school: tuple[Teacher, ...], student: Network, options: Distill) -> dict[str, Any]:
    """What the record says of teachers and student; `kept` is the share of the first teacher's parameters."""
    told = [asking.described(teacher) for teacher in school]
    theirs = told[0]["parameters"]
    several = {"teachers": told, "teacher_mix": options.teacher_mix, "teacher_weight": asking.shares(options)}
    return {
        "teacher": told[0],
        **(several if len(told) > 1 else {}),
        "student": options.student,
        **({"kept": weights.parameter_count(student.module) / theirs} if theirs else {}),
    }
