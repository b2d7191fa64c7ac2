"""Named sets of options that a recipe may start from: `preset = "patient"` in [distill], or --preset patient.

What the recipe or a flag says itself wins over the preset. What is recorded are the resolved values, so that a later
version with another preset of that name runs an old recipe as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Options, and in one line what they are for."""

    summary: str
    values: Mapping[str, Any]


PRESETS = {
    # Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022, arXiv:2106.05237: a
    # student is brought to the teacher's function, by looking at the same views for very long. The numbers are those of
    # the authors' own configuration for ImageNet, but for the two that cost time.
    "patient": Preset(
        "consistent views, mixup, T = 1, no labels and a long schedule (Beyer et al. 2022)",
        {
            # The teacher's function is all there is to match: labels pull elsewhere on crops that do not show the
            # object. T = 1, since nothing is to be brought out of answers that are matched as they are.
            "loss": ("kd:1;temperature=1",),
            # Beta(1, 1), which is uniform: the function is matched between the images, too.
            "mixup": 1.0,
            # From crops of a twentieth of the image up: where teacher and student see the same crop, none is too small.
            "crop_scale": 0.05,
            # The authors draw new views for ever and let the teacher look at all of them; 8, which the store keeps,
            # cost the teacher 8 looks an image and not 100.
            "views": 8,
            # They show 300 to 9600 epochs of ImageNet and find no end; 100 of a small data set are patient for a CPU.
            "epochs": 100,
        },
    ),
}


def resolved(values: Mapping[str, Any], said: Collection[str] | None = None) -> dict[str, Any]:
    """Options with those of the preset that they name, if any.

    Args:
        values: by name; of known names and types.
        said: the names that a person gave, which win over the preset; None is all of `values`.
    """
    named = values.get("preset")
    given = values if said is None else said
    laid = {} if named is None else {name: one for name, one in PRESETS[named].values.items() if name not in given}
    return {**values, **laid}
