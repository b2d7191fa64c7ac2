"""No pretrained weights: the architecture as its family initialises it, the baseline that shows what transfer is worth.

He et al., "Rethinking ImageNet pre-training", ICCV 2019, arXiv:1811.08883: with enough images and much longer training
a network from scratch catches up; with few images it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetl import models, weights
from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.recipe import Finetune
from edgetl.train.setting import Setting
from edgetl.train.steps import trained


def require(options: Finetune) -> None:
    """Returns when no weights are named that would not be read.

    Raises:
        EdgetlError: the teacher is a RUN, or --weights is given.
    """
    named = f"--weights {options.weights}" if options.weights else f"the RUN {options.teacher}"
    if options.weights or weights.is_run(Path(options.teacher)):
        raise EdgetlError(
            f"--strategy scratch starts from no weights, and {named} would bring some.",
            hint="Give a FAMILY/VARIANT as --teacher and no --weights, or --strategy full.",
        )


def start(options: Finetune, place: Setting) -> Network:
    """The architecture with the weights that its family draws, whatever --pretrained says.

    Raises:
        UnknownName: no such model.
    """
    network = models.create(
        options.teacher, classes=len(place.data.labels), pretrained=False, image_size=options.image_size,
        channels=options.in_channels,
    )  # fmt: skip
    place.note(f"{network.model}: no pretrained weights, all are drawn with seed {options.seed}")
    return network


def fit(options: Finetune, place: Setting, network: Network) -> Mapping[str, Any]:
    """Moves everything."""
    return trained(place, network)
