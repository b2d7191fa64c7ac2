"""Where an image comes to lie in what a model sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import InputError

if TYPE_CHECKING:
    from edgetl.runtime.preprocess import Preprocess

RESIZED_PIXELS = 50e6  # the most that a narrow image may become before it is cut

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Fit(NamedTuple):
    """The whole image is resized to `inner_hw`, of which `cut_hw` from `cut_at` on stands at `place` of the result."""

    inner_hw: tuple[int, int]
    cut_at: tuple[int, int]  # top, left
    cut_hw: tuple[int, int]
    place: tuple[int, int]  # top, left

    def box(self, height: int, width: int) -> Box:
        """The part of an image of `height` x `width` that is seen, left, top, right and bottom in its pixels."""
        (inner_h, inner_w), (top, left), (cut_h, cut_w) = self.inner_hw, self.cut_at, self.cut_hw
        down, across = height / inner_h, width / inner_w
        return left * across, top * down, min(width, (left + cut_w) * across), min(height, (top + cut_h) * down)

    def cut_of(self, inner: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What is seen of the resized whole, a view [cut_h, cut_w, C]."""
        (top, left), (height, width) = self.cut_at, self.cut_hw
        return inner[top:top + height, left:left + width]


def fit(height: int, width: int, preprocess: Preprocess) -> Fit:
    """Where an image of `height` x `width` goes; see `preprocess.resize`.

    Raises:
        InputError: an image so narrow that its resized long side would exceed the limit of megapixels.
    """
    box = preprocess.size_hw
    if preprocess.resize_mode == "squash":
        return Fit(box, (0, 0), box, (0, 0))
    return (_shortest if preprocess.resize_mode == "shortest" else _letterbox)(height, width, preprocess)


def _shortest(height: int, width: int, preprocess: Preprocess) -> Fit:
    crop_h, crop_w = preprocess.size_hw
    cover_h, cover_w = round(crop_h / preprocess.crop_fraction), round(crop_w / preprocess.crop_fraction)
    # The side that needs the larger factor meets its size exactly; the other is cut as torchvision cuts, by int().
    if cover_h * width >= cover_w * height:
        cover_w = max(cover_w, int(cover_h * width / height))
    else:
        cover_h = max(cover_h, int(cover_w * height / width))
    if cover_h * cover_w > RESIZED_PIXELS:
        raise InputError(f"The image of {width} x {height} pixels is too narrow for resize_mode 'shortest': "
                         f"it would become {cover_w} x {cover_h}.",
                         hint="Crop the image, or use a model with 'letterbox'.")
    return Fit((cover_h, cover_w), (round((cover_h - crop_h) / 2), round((cover_w - crop_w) / 2)), (crop_h, crop_w),
               (0, 0))


def _letterbox(height: int, width: int, preprocess: Preprocess) -> Fit:
    box_h, box_w = preprocess.size_hw
    factor = min(box_h / height, box_w / width)
    inner_h, inner_w = (min(box, max(1, round(side * factor))) for box, side in ((box_h, height), (box_w, width)))
    return Fit((inner_h, inner_w), (0, 0), (inner_h, inner_w), ((box_h - inner_h) // 2, (box_w - inner_w) // 2))


def framed(cut: NDArray[np.uint8], into: Fit, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Pixels [size_h, size_w, C]: what is seen, in its place, and round it what normalises nearest to zero."""
    if into.cut_hw == preprocess.size_hw:
        return cut
    padding = np.clip(np.rint(np.asarray(preprocess.mean) / preprocess.scale), 0, 255).astype(np.uint8)
    boxed = np.empty((*preprocess.size_hw, cut.shape[2]), np.uint8)
    boxed[:] = padding
    (top, left), (height, width) = into.place, into.cut_hw
    boxed[top:top + height, left:left + width] = cut
    return boxed
