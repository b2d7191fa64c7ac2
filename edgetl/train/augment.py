"""Training views: drawn as numbers once, rendered from pixels at will, so that every view can be replayed.

A view is a pure function of (seed, epoch, image), whatever the batch, the worker or the moment of a resume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from edgetl.recipe_fields import TrainFields
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import policies
from edgetl.train.blends import Box
from edgetl.train.policies import Change

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"
RATIO = (3 / 4, 4 / 3)  # aspect ratios of the random resized crop (Szegedy et al. 2015, arXiv:1409.4842)
ERASED_RATIO = (0.3, 3.3)  # of random erasing (Zhong et al. 2020, arXiv:1708.04896), as torchvision and timm have it
ERASED_SHARE = (0.02, 0.33)  # of the view's area


@dataclass(frozen=True)
class View:
    """One training view of one image: a box in pixels of the stored image, flips, changes and colour factors."""

    top: int
    left: int
    height: int
    width: int
    hflip: bool
    vflip: bool
    brightness: float
    contrast: float
    saturation: float
    changes: tuple[Change, ...] = ()  # after the flips
    erased: Box | None = None  # in pixels of the view, after the colours


def draw_view(rng: np.random.Generator, size_hw: tuple[int, int], options: TrainFields, preprocess: Preprocess) -> View:
    """A view of an image of `size_hw` pixels.

    Always draws the same count of numbers in the same order, so that one option does not move the draws of another.
    """
    area, ratio, top, left, hflip, vflip, *factors = rng.random(9).tolist()
    erasing = float(rng.random())
    where: tuple[float, float, float, float] = tuple(rng.random(4).tolist())
    draws = rng.random((options.randaugment_ops, 3)).tolist()
    if options.crop_scale < 1:
        box = random_box(*size_hw, area, ratio, top, left, (options.crop_scale, 1))
    else:
        box = whole_box(*size_hw, preprocess)
    brightness, contrast, saturation = (1 + options.color_jitter * (2 * factor - 1) for factor in factors)
    drawn = policies.chosen(options.auto_augment, draws, options.randaugment_magnitude, preprocess.size_hw)
    erased = None
    if erasing < options.random_erasing:
        erased = random_box(*preprocess.size_hw, *where, ERASED_SHARE, ERASED_RATIO)
    flips = options.hflip and hflip < 0.5, options.vflip and vflip < 0.5
    return View(*box, *flips, brightness, contrast, saturation, drawn, erased)


def random_box(
    height: int,
    width: int,
    area: float,
    ratio: float,
    top: float,
    left: float,
    shares: tuple[float, float],
    ratios: tuple[float, float] = RATIO,
) -> Box:
    """A box in an image of so many pixels.

    Its area share is uniform in `shares`, its aspect ratio log-uniform in `ratios`; one that would leave the image is
    cut to it.

    Args:
        height, width: of the image.
        area, ratio, top, left: uniform draws in [0, 1).
        shares: least and greatest share of the image's area.
        ratios: least and greatest width over height.
    """
    share = shares[0] + (shares[1] - shares[0]) * area
    aspect = math.exp(math.log(ratios[0]) + ratio * (math.log(ratios[1]) - math.log(ratios[0])))
    box_h = min(height, max(1, round(math.sqrt(height * width * share / aspect))))
    box_w = min(width, max(1, round(math.sqrt(height * width * share * aspect))))
    return int(top * (height - box_h + 1)), int(left * (width - box_w + 1)), box_h, box_w


def whole_box(height: int, width: int, preprocess: Preprocess) -> Box:
    """What evaluation would look at."""
    if preprocess.resize_mode != "shortest":
        return 0, 0, height, width
    side = max(1, round(min(height, width) * preprocess.crop_fraction))
    return (height - side) // 2, (width - side) // 2, side, side


def render(pixels: NDArray[np.uint8], view: View, preprocess: Preprocess) -> torch.Tensor:
    """uint8 [C, size_h, size_w]: the view's box of pixels [H, W, C], resized with antialias, flipped and changed."""
    smooth = InterpolationMode.BICUBIC if preprocess.interpolation == "bicubic" else InterpolationMode.BILINEAR
    image: torch.Tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    image = tv.resized_crop(
        image,
        view.top,
        view.left,
        view.height,
        view.width,
        list(preprocess.size_hw),
        interpolation=smooth,
        antialias=True,
    )
    flips = [axis for axis, wanted in ((2, view.hflip), (1, view.vflip)) if wanted]
    image = image.flip(flips) if flips else image
    for change in view.changes:
        image = policies.changed(image, change, mean_color(preprocess))
    return image


def mean_color(preprocess: Preprocess) -> tuple[float, ...]:
    """What is 0 to the network, [C] in 0..255 and RGB for bgr: nothing, rather than black, where an image is erased or
    ends.
    """
    mean = [one / preprocess.scale for one in preprocess.mean]
    return tuple(reversed(mean) if preprocess.color == "bgr" else mean)


def erase(images: torch.Tensor, boxes: Sequence[Box | None], preprocess: Preprocess) -> None:
    """Fills a box of each image [N, C, H, W] in 0..255 with the network's mean color, in place."""
    color = images.new_tensor(mean_color(preprocess)).view(-1, 1, 1)
    for image, box in zip(images, boxes, strict=True):
        if box is not None:
            tv.erase(image, *box, v=color, inplace=True)


def jitter_colors(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """float32 [N, C, H, W] in 0..255: brightness, then contrast, then saturation, each blended and clipped.

    Where there are not three channels, each has a contrast of its own, and there is no saturation.

    Args:
        images: float32 [N, C, H, W] in 0..255.
        factors: [N, 3], columns brightness, contrast, saturation; 1 changes nothing.
    """
    brightness, contrast, saturation = (factors[:, column].view(-1, 1, 1, 1) for column in range(3))
    # Plane after plane, in place: with the channels beside one another the same takes three times as long on a CPU.
    images = (images.contiguous() * brightness).clamp_(max=255)
    # The mean of the luma is the luma of the channels' means, which needs no gray image.
    mean = images.mean(dim=(2, 3), keepdim=True)
    mean = gray(mean) if images.shape[1] == len(LUMA) else mean
    images.mul_(contrast).add_(mean.mul_(1 - contrast)).clamp_(0, 255)
    if images.shape[1] != len(LUMA):
        return images
    shade = gray(images).mul_(1 - saturation)
    return images.mul_(saturation).add_(shade).clamp_(0, 255)


def gray(images: torch.Tensor) -> torch.Tensor:
    """[N, 1, H, W] luma of RGB images [N, 3, H, W]."""
    luma = images[:, 0:1] * LUMA[0]
    return luma.add_(images[:, 1:2], alpha=LUMA[1]).add_(images[:, 2:3], alpha=LUMA[2])
