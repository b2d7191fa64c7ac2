"""What the names of a model's layers decide, said before the images are looked at, which may take minutes.

The models are built without their published weights and for two classes: only their layers are asked for. What cannot
be known so (whether the weights fit, how wide a layer is) is said where it comes up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetl import models, weights
from edgetl.losses import Term
from edgetl.models import Network
from edgetl.recipe import Distill, Finetune
from edgetl.recipe_teacher import GraphTeacher, Named, NetworkTeacher
from edgetl.train.features import Layers, chosen
from edgetl.train.freezing import frozen
from edgetl.train.task import looks_at_features

CLASSES = 2


def require_frozen(options: Finetune) -> None:
    """Returns when --freeze names layers that the network has, and leaves it something to learn.

    Raises:
        EdgetlError: see `edgetl.train.freezing.frozen`.
    """
    if options.freeze:
        frozen(_network(options.teacher, options.image_size, options.in_channels), options.freeze)


def require_layers(options: Distill, named: Sequence[Named], terms: Sequence[Term]) -> None:
    """Returns when student and teacher have the layers that losses look at.

    Args:
        options: the recipe.
        named: the teachers, of which the first shows its features.
        terms: the losses.

    Raises:
        EdgetlError: see `edgetl.train.features.chosen`.
    """
    looking = [term for term in terms if looks_at_features([term])]
    said = named[0].said
    if not looking or isinstance(said, GraphTeacher):
        return
    teacher = _network(named[0].name, said.image_size if isinstance(said, NetworkTeacher) else None, None)
    student = teacher  # slim:R has the layers of what it is cut out of
    if not options.student.startswith("slim:"):
        channels = options.in_channels if options.in_channels is not None else teacher.preprocess.channels
        student = _network(options.student, options.image_size, channels)
    ours, theirs = Layers(student, "student"), Layers(teacher, "teacher")
    for term in looking:
        chosen(term.loss, ours, theirs)


def _network(model: str, image_size: int | None, channels: int | None) -> Network:
    """The model of a RUN, or one of a family as its library draws it."""
    if Path(model).is_dir():
        return weights.load(Path(model), any_task=True).network
    return models.create(model, classes=CLASSES, pretrained=False, image_size=image_size, channels=channels)
