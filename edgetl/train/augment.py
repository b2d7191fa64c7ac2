"""Training views: drawn as numbers once, rendered from pixels at will, so that every view can be replayed.

A view is a pure function of (seed, epoch, image), whatever the batch, the worker or the moment of a resume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from edgetl.recipe_fields import TrainFields
from edgetl.runtime.preprocess import Preprocess

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"
RATIO = (3 / 4, 4 / 3)  # aspect ratios of the random resized crop (Szegedy et al. 2015, arXiv:1409.4842)


@dataclass(frozen=True)
class View:
    """One training view of one image: a box in pixels of the stored image, flips and colour factors."""

    top: int
    left: int
    height: int
    width: int
    hflip: bool
    vflip: bool
    brightness: float
    contrast: float
    saturation: float


def draw_view(rng: np.random.Generator, size_hw: tuple[int, int], options: TrainFields, preprocess: Preprocess) -> View:
    """A view of an image of `size_hw` pixels.

    Always draws the same count of numbers, so that one option does not move the draws of another.
    """
    area, ratio, top, left, hflip, vflip, *factors = rng.random(9).tolist()
    if options.crop_scale < 1:
        box = random_box(*size_hw, area, ratio, top, left, options.crop_scale)
    else:
        box = whole_box(*size_hw, preprocess)
    brightness, contrast, saturation = (1 + options.color_jitter * (2 * factor - 1) for factor in factors)
    return View(*box, options.hflip and hflip < 0.5, options.vflip and vflip < 0.5, brightness, contrast, saturation)


def random_box(
    height: int, width: int, area: float, ratio: float, top: float, left: float, least: float
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random resized crop; all arguments but the sizes are uniform draws in [0, 1).

    The area share is uniform in [least, 1], the aspect ratio log-uniform in `RATIO`; a box that would leave the image
    is cut to it.
    """
    share = least + (1 - least) * area
    aspect = math.exp(math.log(RATIO[0]) + ratio * (math.log(RATIO[1]) - math.log(RATIO[0])))
    box_h = min(height, max(1, round(math.sqrt(height * width * share / aspect))))
    box_w = min(width, max(1, round(math.sqrt(height * width * share * aspect))))
    return int(top * (height - box_h + 1)), int(left * (width - box_w + 1)), box_h, box_w


def whole_box(height: int, width: int, preprocess: Preprocess) -> tuple[int, int, int, int]:
    """(top, left, height, width) of what evaluation would look at."""
    if preprocess.resize_mode != "shortest":
        return 0, 0, height, width
    side = max(1, round(min(height, width) * preprocess.crop_fraction))
    return (height - side) // 2, (width - side) // 2, side, side


def render(pixels: NDArray[np.uint8], view: View, preprocess: Preprocess) -> torch.Tensor:
    """uint8 [3, size_h, size_w]: the view's box of pixels [H, W, 3], resized with antialias and flipped."""
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
    return image.flip(flips) if flips else image


def jitter_colors(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """float32 [N, 3, H, W] in 0..255: brightness, then contrast, then saturation, each blended and clipped.

    Args:
        images: float32 [N, 3, H, W] in 0..255.
        factors: [N, 3], columns brightness, contrast, saturation; 1 changes nothing.
    """
    brightness, contrast, saturation = (factors[:, column].view(-1, 1, 1, 1) for column in range(3))
    images = (images * brightness).clamp_(0, 255)
    mean = gray(images).mean(dim=(1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast).clamp_(0, 255)
    return torch.lerp(gray(images).expand_as(images), images, saturation).clamp_(0, 255)


def gray(images: torch.Tensor) -> torch.Tensor:
    """[N, 1, H, W] luma of RGB images [N, 3, H, W]."""
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def mixed(values: torch.Tensor, share: float) -> torch.Tensor:
    """share * values + (1 - share) * the batch in reverse order (mixup, Zhang et al. 2018, arXiv:1710.09412)."""
    return values.mul(share).add_(values.flip(0), alpha=1 - share)


def mixed_apart(values: torch.Tensor, share: float, first: int) -> torch.Tensor:
    """`mixed`, the first images among themselves and the others among themselves."""
    parts = [mixed(part, share) for part in (values[:first], values[first:]) if len(part)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def blended(values: torch.Tensor, partners: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """shares * values + (1 - shares) * partners, with a share [N] for each image: mixup with chosen partners."""
    return torch.lerp(partners, values, shares.to(values.dtype).view(-1, *[1] * (values.dim() - 1)))
