"""Files to pixels in less time: decoded and reduced by whole numbers before the filter, for `decode="fast"`.

The pixels differ from the exact path's, by 0.3 to 0.9 grey levels on average. That turns the answer only where two
labels are almost level; such images are decoded once more, exactly (`settled`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import UnknownName
from edgetl.runtime.decode import Opened, as_array, from_pixels, pillow, plain
from edgetl.runtime.flatten import orientation, turned
from edgetl.runtime.geometry import Box, fit, framed

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgetl.runtime.preprocess import Preprocess

FAST = "fast"  # by Pillow; the names of jpeg_decoders have another library reduce JPEG files
# What decoders of JPEG divide the sides by, and how many times the wanted size they must leave to the filter. From 2 on
# the pixels are 0.27 grey levels from the exact ones on average (photos of a megapixel for a model of 128 pixels), at
# 1.45 it is 0.85. The step to 8 saves little, while a second look at a photo that large costs much.
SCALES = ((8, 2.0), (4, 1.45), (2, 1.45))
LEAVE, LEAVE_OF_HALF = 2.0, 1.45  # the same where Pillow reduces what had to be decoded as it is
# Two best logits that lie closer than this, and than the rounding of the variant can move them, are decided exactly.
# In float32, 341 photos and two models, the difference of the two moved by 0.19 in 99 of 100, by 0.31 at most.
CLOSE = 0.4
CLOSE_OF_LITTLE = 0.7  # where less than 2 is left: 0.56 in 99 of 100, 0.95 at most, 0.45 where the answer changed

Exactly = Callable[[], NDArray[np.uint8]]
Outputs = Mapping[str, NDArray[Any]]


class Approximate(np.ndarray[Any, Any]):
    """Pixels [H, W, C] of the fast path that remember how to be made exactly, and when they should be."""

    exactly: Exactly
    close: float  # difference of the two best logits below which they are


def require(decode: str) -> None:
    """Returns where images can be decoded in that way.

    Raises:
        UnknownName: there is no such way.
        MissingDependency: it needs a library that is not installed.
    """
    if decode == FAST:
        return
    from edgetl.runtime import jpeg_decoders  # here: they are seldom asked for

    if decode not in jpeg_decoders.DECODERS:
        raise UnknownName("way to decode", decode, ["exact", FAST, *jpeg_decoders.DECODERS])
    jpeg_decoders.decoder(decode)


def leads(logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """By how much the best logit leads the second best [N]; infinite where there is only one label."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf)
    second, best = np.partition(logits, -2, axis=1)[:, -2:].T
    lead: NDArray[np.floating[Any]] = best - second
    return lead


def settled(outputs: Outputs, images: Sequence[NDArray[Any]], run: Callable[[Sequence[NDArray[Any]]], Outputs],
            logits: str, tolerance: float) -> Outputs:
    """The outputs for `images`, those of close calls replaced by what exact pixels give.

    Args:
        outputs: of `images`, by name, [N, ...] each.
        images: of either path; only `Approximate` ones are made again.
        run: from images to outputs.
        logits: the name of the output that decides.
        tolerance: the variant's, by which rounding in its graph may move a logit.
    """
    found = outputs[logits]
    if found.ndim != 2 or len(found) != len(images):
        return outputs  # no logits; whoever asked for them says so
    close = {row: image for row, (image, lead) in enumerate(zip(images, leads(found), strict=True))
             if isinstance(image, Approximate) and lead < image.close + tolerance}
    if not close:
        return outputs
    merged = {name: values.copy() for name, values in outputs.items()}  # before a session writes over its answers
    again = run([image.exactly() for image in close.values()])
    for name, values in merged.items():
        values[list(close)] = again[name]
    return merged


def pixels(opened: Opened, preprocess: Preprocess, decode: str, exactly: Exactly) -> NDArray[np.uint8] | None:
    """Pixels [size_h, size_w, C], `Approximate`; None where there is nothing to reduce. Call it within `guarded`.

    Args:
        opened: as `open_image` returned it. Where None is returned, the exact path can go on with it.
        preprocess: as `preprocess.decode` and `preprocess.resize` use it.
        decode: "fast", or a name of `jpeg_decoders`.
        exactly: makes the exact pixels of the same image.

    Raises:
        InputError: as `preprocess.resize`.
    """
    if preprocess.interpolation == "nearest":  # it picks pixels, and a reduced image has others
        return None
    image = opened.image
    is_jpeg = opened.encoded is not None and image.format in ("JPEG", "MPO")
    if not is_jpeg:
        image.load()  # TIFF files are turned, PNG files know their orientation only now
    way = orientation(image) if preprocess.exif else 1
    stored_wh = image.size
    width, height = stored_wh if way < 5 else stored_wh[::-1]
    into = fit(height, width, preprocess)
    factor = min(height / into.inner_hw[0], width / into.inner_hw[1])
    if factor < 2 * LEAVE_OF_HALF:
        return None
    scale = next(one for one, leave in SCALES if one * leave <= factor) if is_jpeg else 1
    gap = LEAVE if is_jpeg or factor >= 2 * LEAVE else LEAVE_OF_HALF
    reduced = plain(_reduced(opened, scale, decode, preprocess.color) if is_jpeg else image, preprocess.color,
                    preprocess.alpha_background, opened.where)
    size = into.cut_hw[::-1] if way < 5 else into.cut_hw
    box = _within(_stored(into.box(height, width), way, height, width), scale, reduced)
    small = reduced.resize(size, pillow().Resampling[preprocess.interpolation.upper()], box=box, reducing_gap=gap)
    made = framed(as_array(turned(small, way), preprocess.color), into, preprocess).view(Approximate)
    made.exactly, left = exactly, factor / (scale if is_jpeg else int(factor / gap))
    made.close = CLOSE if left >= LEAVE else CLOSE_OF_LITTLE
    return made


def _reduced(opened: Opened, scale: int, decode: str, color: str) -> Image:
    """The JPEG file at 1/`scale` of its size."""
    image, gray = opened.image, color == "gray"
    if decode == FAST or image.mode not in ("RGB", "L"):
        image.draft("L" if gray else None, (image.width // scale, image.height // scale))
        image.load()
        return image
    from edgetl.runtime import jpeg_decoders

    assert opened.encoded is not None
    found = jpeg_decoders.decoder(decode)(opened.encoded, scale, gray)
    return from_pixels(found[:, :, 0] if gray else found)


def _stored(box: Box, way: int, height: int, width: int) -> Box:
    """The box of an upright image of `height` x `width` as it lies in the file, whose EXIF orientation is `way`."""
    left, top, right, bottom = box
    if way in (2, 3, 6, 7):
        left, right = width - right, width - left
    if way in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return (left, top, right, bottom) if way < 5 else (top, left, bottom, right)


def _within(box: Box, scale: int, image: Image) -> Box:
    """The box in the reduced image, without what rounding put outside of it."""
    left, top, right, bottom = (side / scale for side in box)
    return max(0.0, left), max(0.0, top), min(float(image.width), right), min(float(image.height), bottom)
