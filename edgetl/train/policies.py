"""RandAugment and TrivialAugment: which changes a view gets and how strong they are, drawn as numbers.

- RandAugment (Cubuk et al. 2020, arXiv:1909.13719): some changes one after the other, each drawn from the same list,
  all of one magnitude.
- TrivialAugment, its wide list (Mueller and Hutter 2021, arXiv:2103.10158): one change of a magnitude that is drawn.

Lists and magnitudes are those of torchvision, whose functions make the changes; what comes into the picture at its
border is the network's mean colour. Nothing here asks torch's own generator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

COLORS = 3
LEVELS = 31  # magnitudes between none and the greatest, as in torchvision
NONE, RANDAUGMENT, TRIVIALAUGMENT = "none", "randaugment", "trivialaugment"


@dataclass(frozen=True)
class Strength:
    """The magnitudes of a change, from the weakest to the strongest."""

    first: float = 0.0
    last: float = 0.0
    signed: bool = False  # also with the other sign
    whole: bool = False
    axis: int | None = None  # of the size [H, W], of which `last` is a share

    def at(self, level: int, size_hw: tuple[int, int]) -> float:
        """The magnitude of a level below `LEVELS`."""
        last = self.last * (size_hw[self.axis] if self.axis is not None else 1)
        magnitude = _levels(self.first, last)[level]
        return float(round(magnitude)) if self.whole else magnitude


@dataclass(frozen=True)
class Change:
    """One change of an image."""

    name: str
    magnitude: float


NO_STRENGTH = Strength()
SPACES: Mapping[str, Mapping[str, Strength]] = {
    RANDAUGMENT: {
        "Identity": NO_STRENGTH,
        "ShearX": Strength(0, 0.3, signed=True),
        "ShearY": Strength(0, 0.3, signed=True),
        "TranslateX": Strength(0, 150 / 331, signed=True, axis=1),
        "TranslateY": Strength(0, 150 / 331, signed=True, axis=0),
        "Rotate": Strength(0, 30, signed=True),
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), Strength(0, 0.9, signed=True)),
        "Posterize": Strength(8, 4, whole=True),
        "Solarize": Strength(1, 0),
        "AutoContrast": NO_STRENGTH,
        "Equalize": NO_STRENGTH,
    },
    TRIVIALAUGMENT: {
        "Identity": NO_STRENGTH,
        "ShearX": Strength(0, 0.99, signed=True),
        "ShearY": Strength(0, 0.99, signed=True),
        "TranslateX": Strength(0, 32, signed=True),
        "TranslateY": Strength(0, 32, signed=True),
        "Rotate": Strength(0, 135, signed=True),
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), Strength(0, 0.99, signed=True)),
        "Posterize": Strength(8, 2, whole=True),
        "Solarize": Strength(1, 0),
        "AutoContrast": NO_STRENGTH,
        "Equalize": NO_STRENGTH,
    },
}


@functools.lru_cache
def _levels(first: float, last: float) -> tuple[float, ...]:
    return tuple(torch.linspace(first, last, LEVELS).tolist())  # in float32, as torchvision's are


def chosen(
    policy: str, draws: Sequence[Sequence[float]], magnitude: int, size_hw: tuple[int, int]
) -> tuple[Change, ...]:
    """The changes of a view, in the order in which they are made.

    Args:
        policy: "none", "randaugment" or "trivialaugment", which makes the first change only.
        draws: three numbers in [0, 1) a change: which one, how strong, which sign.
        magnitude: of RandAugment, a level below `LEVELS`.
        size_hw: of the view, in pixels.
    """
    if policy == NONE:
        return ()
    space, names = SPACES[policy], tuple(SPACES[policy])
    found = []
    for which, strong, sign in draws if policy == RANDAUGMENT else draws[:1]:
        name = names[int(which * len(names))]
        level = magnitude if policy == RANDAUGMENT else int(strong * LEVELS)
        amount = space[name].at(level, size_hw)
        found.append(Change(name, -amount if space[name].signed and sign < 0.5 else amount))
    return tuple(found)


def changed(image: torch.Tensor, change: Change, fill: Sequence[float]) -> torch.Tensor:
    """The image after a change; uint8 [C, H, W].

    Args:
        image: uint8 [C, H, W]; other than three channels are recoloured one by one, as grey images.
        change: what is done.
        fill: colour of what comes in at the border, in 0..255.
    """
    if change.name in MOVES:
        moved: torch.Tensor = MOVES[change.name](image, change.magnitude, list(fill))
        return moved
    colors = image if len(image) == COLORS else image[:, None]  # a batch of grey images, each with its own contrast
    recolored: torch.Tensor = RECOLORS[change.name](colors, change.magnitude)
    return recolored.reshape(image.shape)


def _affine(
    image: torch.Tensor,
    fill: list[float],
    shear: tuple[float, float] = (0, 0),
    translate: tuple[int, int] = (0, 0),
    center: list[float] | None = None,
) -> torch.Tensor:
    moved: torch.Tensor = tv.affine(
        image,
        angle=0.0,
        translate=list(translate),
        scale=1.0,
        shear=[math.degrees(math.atan(one)) for one in shear],  # torchvision takes the tangent again
        interpolation=InterpolationMode.BILINEAR,
        fill=fill,
        center=center,
    )
    return moved


Move = Callable[[torch.Tensor, float, list[float]], torch.Tensor]
MOVES: Mapping[str, Move] = {
    "ShearX": lambda image, by, fill: _affine(image, fill, shear=(by, 0), center=[0, 0]),
    "ShearY": lambda image, by, fill: _affine(image, fill, shear=(0, by), center=[0, 0]),
    "TranslateX": lambda image, by, fill: _affine(image, fill, translate=(int(by), 0)),
    "TranslateY": lambda image, by, fill: _affine(image, fill, translate=(0, int(by))),
    "Rotate": lambda image, by, fill: tv.rotate(image, by, interpolation=InterpolationMode.BILINEAR, fill=fill),
}
RECOLORS: Mapping[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "Identity": lambda image, by: image,
    "Brightness": lambda image, by: tv.adjust_brightness(image, 1 + by),
    "Color": lambda image, by: tv.adjust_saturation(image, 1 + by),
    "Contrast": lambda image, by: tv.adjust_contrast(image, 1 + by),
    "Sharpness": lambda image, by: tv.adjust_sharpness(image, 1 + by),
    "Posterize": lambda image, by: tv.posterize(image, int(by)),
    "Solarize": lambda image, by: tv.solarize(image, 255 * by),
    "AutoContrast": lambda image, by: tv.autocontrast(image),
    "Equalize": lambda image, by: tv.equalize(image),
}
