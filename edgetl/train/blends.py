"""Two images as one: mixup and cutmix, drawn as numbers.

- Mixup (Zhang et al. 2018, arXiv:1710.09412): share * x + (1 - share) * partner, share ~ Beta(alpha, alpha).
- Cutmix (Yun et al. 2019, arXiv:1905.04899): a box of the partner is laid into the image. With lambda ~ Beta(alpha,
  alpha) its sides are sqrt(1 - lambda) of the image's and its middle is anywhere; what lies outside the image is cut
  off, and the share is that of the pixels which are left of the image itself.

The labels are mixed with the same share. Where both are wanted, each has its half of the draws, as in timm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edgetl.recipe_fields import TrainFields

Box = tuple[int, int, int, int]  # top, left, height, width in pixels


@dataclass(frozen=True)
class Blend:
    """How much of an image is left beside its partner, and where the partner is."""

    share: float
    box: Box | None = None  # None: everywhere, with 1 - share


def wanted(options: TrainFields) -> bool:
    """Whether images are mixed at all."""
    return options.mixup > 0 or options.cutmix > 0


def drawn(
    mix: np.random.Generator, cut: np.random.Generator, options: TrainFields, size_hw: tuple[int, int]
) -> Blend:
    """A blend of images of `size_hw` pixels; mixup and cutmix draw from generators of their own."""
    which, row, column = cut.random(3).tolist()
    if options.cutmix > 0 and (options.mixup <= 0 or which < 0.5):
        return cut_blend(float(cut.beta(options.cutmix, options.cutmix)), row, column, size_hw)
    return Blend(float(mix.beta(options.mixup, options.mixup)))


def cut_blend(share: float, row: float, column: float, size_hw: tuple[int, int]) -> Blend:
    """Cutmix with a box around the middle (row, column), both in [0, 1), that would leave the image `share`."""
    half = 0.5 * math.sqrt(1 - share)
    (top, bottom), (left, right) = (
        (max(int(at * side) - int(half * side), 0), min(int(at * side) + int(half * side), side))
        for at, side in zip((row, column), size_hw, strict=True)
    )
    height, width = bottom - top, right - left
    return Blend(1 - height * width / (size_hw[0] * size_hw[1]), (top, left, height, width))


def mixed(values: torch.Tensor, share: float) -> torch.Tensor:
    """share * values + (1 - share) * the batch in reverse order."""
    return values.mul(share).add_(values.flip(0), alpha=1 - share)


def mixed_apart(values: torch.Tensor, share: float, first: int) -> torch.Tensor:
    """`mixed`, the first images among themselves and the others among themselves."""
    parts = [mixed(part, share) for part in (values[:first], values[first:]) if len(part)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def blended_apart(images: torch.Tensor, blend: Blend, first: int) -> torch.Tensor:
    """Images [N, C, H, W] with their partners in the reversed batch, as in `mixed_apart`; may change its argument."""
    if blend.box is None:
        return mixed_apart(images, blend.share, first)
    top, left, height, width = blend.box
    patch = images[:, :, top : top + height, left : left + width]
    patch.copy_(torch.cat([patch[:first].flip(0), patch[first:].flip(0)]))
    return images


def shares_of(blends: Sequence[Blend]) -> torch.Tensor:
    """[N]: what is left of each image."""
    return torch.tensor([blend.share for blend in blends])


def with_partners(images: torch.Tensor, partners: torch.Tensor, blends: Sequence[Blend]) -> torch.Tensor:
    """Images [N, C, H, W] with a chosen partner and a blend for each."""
    shares = torch.tensor([blend.share if blend.box is None else 1.0 for blend in blends], device=images.device)
    images = blended(images, partners, shares)
    for image, partner, blend in zip(images, partners, blends, strict=True):
        if blend.box is not None:
            top, left, height, width = blend.box
            here = slice(top, top + height), slice(left, left + width)
            image[:, *here] = partner[:, *here]
    return images


def blended(values: torch.Tensor, partners: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """shares * values + (1 - shares) * partners, with a share [N] for each image."""
    return torch.lerp(partners, values, shares.to(values.dtype).view(-1, *[1] * (values.dim() - 1)))
