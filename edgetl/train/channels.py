"""Which channels the training views have, and how each network gets those that it wants of them.

Views are drawn in RGB for networks that want RGB or BGR, and in grey for those that want grey. Where a teacher wants
the one and its student the other, they are drawn in RGB, of which a grey network sees the luma. Images with more
channels (rgba, planes) look the same to all networks of a training, or it is refused: nobody can say which of them are
colours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from edgetl.errors import EdgetlError
from edgetl.runtime.planes import COLORS as MORE
from edgetl.runtime.preprocess import Preprocess
from edgetl.train.augment import LUMA, gray

RGB, GRAY = "rgb", "gray"


def kept(preprocess: Preprocess) -> Preprocess:
    """How images are kept for a network: as it wants them, but RGB where that is BGR, which it swaps for itself."""
    return dataclasses.replace(preprocess, color=RGB) if preprocess.color == "bgr" else preprocess


def shown(student: Preprocess, teachers: Sequence[Preprocess]) -> Preprocess:
    """How the views are drawn that a student and its teachers look at; all but the channels is the student's.

    Raises:
        EdgetlError: they want images that have nothing to do with one another.
    """
    for one in teachers:
        if {student.color, one.color} & set(MORE) and (student.color, student.channels) != (one.color, one.channels):
            raise EdgetlError(
                f"The student takes {student.color} images ({student.channels} channels) and a teacher {one.color} "
                f"images ({one.channels}); both must see the same.",
                hint=f"Give --in-channels {one.channels}, or a teacher that was fine-tuned with --in-channels "
                f"{student.channels}.",
            )
    if student.color == GRAY and any(one.channels == len(LUMA) for one in teachers):
        return dataclasses.replace(student, color=RGB, mean=student.mean * len(LUMA), std=student.std * len(LUMA))
    return student


def converted(images: torch.Tensor, wants: Preprocess) -> torch.Tensor:
    """The images [N, C, H, W] with the channels that a network wants: luma of RGB, grey three times, or as they are.

    Raises:
        ValueError: they cannot be had.
    """
    found = images.shape[1]
    if found == len(LUMA) and wants.color == GRAY:
        return gray(images)
    if found == 1 and wants.channels == len(LUMA):
        return images.expand(-1, len(LUMA), -1, -1)
    if found != wants.channels:
        raise ValueError(f"images of {found} channels are no {wants.color} images of {wants.channels}")
    return images.flip(1) if wants.color == "bgr" else images
