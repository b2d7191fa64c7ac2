"""From whatever `predict` takes to the array that one graph takes: [N, C, H, W] prepared, or [N, H, W, C] of pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import BackendUnavailable, InputError
from edgetl.runtime import fast_decode
from edgetl.runtime.decode import MAX_MEGAPIXELS
from edgetl.runtime.manifest import Variant
from edgetl.runtime.preprocess import EXACT, Preprocess, normalize, prepare_pixels

Image = NDArray[Any]  # one image: uint8 pixels [H, W, C], or what `prepare` makes of them, float32 [C, H, W]
F32, U8 = np.dtype(np.float32), np.dtype(np.uint8)
IDLE_BUFFERS = 32  # kept for calls of one image; more at once are made and dropped


class Feeder:
    """Prepares images for one variant. Methods may be called from several threads."""

    def __init__(self, preprocess: Preprocess, variant: Variant, decode: str = EXACT,
                 max_megapixels: float = MAX_MEGAPIXELS) -> None:
        """Looks up what does not change from image to image.

        Args:
            preprocess: of the manifest.
            variant: says whether its graph takes pixels.
            decode: see `preprocess.prepare_pixels`.
            max_megapixels: larger images are refused before they are decoded.

        Raises:
            UnknownName: no such way to decode.
            MissingDependency: the library that `decode` names is not installed.
        """
        if decode != EXACT:
            fast_decode.require(decode)
        self.takes_pixels = variant.embeds_preprocess
        self.exact = decode == EXACT
        self._preprocess, self._decode, self._max_megapixels = preprocess, decode, max_megapixels
        self._variant = variant.name
        self._shape = preprocess.input_shape  # of one prepared image
        self._unchanged = _unchanged_shape(preprocess)
        height, width = preprocess.size_hw
        self._row = (height, width, preprocess.channels) if self.takes_pixels else self._shape
        self._idle: list[NDArray[np.float32]] = []

    def prepare(self, source: Any, name: str | None = None) -> Image:
        """One image as `batch` takes it.

        Args:
            source: what `Classifier.predict` takes.
            name: what error messages call an image that has no path.

        Raises:
            InputError: the image cannot be used; names the file.
        """
        if type(source) is np.ndarray:
            if source.dtype == F32:
                return self.prepared(source)
            if source.dtype == U8 and source.shape == self._unchanged:
                return source
        return prepare_pixels(source, self._preprocess, name=name, decode=self._decode,
                              max_megapixels=self._max_megapixels)

    def prepared(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """A view [C, H, W] of an array [C, H, W] or [1, C, H, W] that is prepared already.

        Raises:
            InputError: it has another shape, or this variant's graph takes pixels.
        """
        expected = list(self._shape)
        if self.takes_pixels:
            raise InputError(f"The array is prepared (float32); variant '{self._variant}' prepares its images itself.",
                             hint="Give it the image: a path, bytes, a Pillow image or uint8 pixels [H, W, C].")
        if array.shape == self._shape:
            return array
        if array.shape == (1, *self._shape):
            view: NDArray[np.float32] = array[0]
            return view
        raise InputError(f"The array is float32 {list(array.shape)}; expected {expected} or {[1, *expected]}, as "
                         "`preprocess.prepare` makes it, or uint8 pixels [H, W, C].",
                         hint="Several prepared images at once, [N, C, H, W], go to Classifier.logits().")

    def batch(self, images: Sequence[Image]) -> NDArray[Any]:
        """What the graph takes, [N, ...], of N images; a single one that is prepared already is not copied.

        Raises:
            BackendUnavailable: there is no memory for so many.
        """
        first = images[0]
        if len(images) == 1 and (first.dtype == F32 or self.takes_pixels):
            return first[None]
        made = self._take(len(images))
        for place, one in enumerate(images):
            if one.dtype == F32 or self.takes_pixels:
                made[place] = one
            else:
                normalize(one[None], self._preprocess, out=made[place:place + 1])
        return made

    def _take(self, count: int) -> NDArray[Any]:
        if count == 1:
            try:
                return self._idle.pop()  # two threads never get the same one
            except IndexError:  # all are in use
                pass
        try:
            return np.empty((count, *self._row), U8 if self.takes_pixels else F32)
        except MemoryError as problem:
            raise BackendUnavailable(f"There is no memory for {count} images of {list(self._row)}.",
                                     hint="A smaller batch needs less memory.") from problem

    def give_back(self, batch: NDArray[Any], images: Sequence[Image]) -> None:
        """Lets a later call write into what `batch` returned for `images`, which nothing reads any more.

        Large arrays are new pages from the system for each call, which take longer to be touched than to be filled.
        """
        if len(images) == 1 and images[0].dtype == U8 and not self.takes_pixels and len(self._idle) < IDLE_BUFFERS:
            self._idle.append(batch)


def _unchanged_shape(preprocess: Preprocess) -> tuple[int, int, int] | None:
    """Shape of pixels that decoding and resizing return as they are; None where there is none.

    Arrays are RGB or gray, so "bgr" turns them around; "shortest" enlarges an image of the very size before it cuts
    the margin off, unless there is no margin.
    """
    height, width = preprocess.size_hw
    cover = tuple(round(side / preprocess.crop_fraction) for side in preprocess.size_hw)
    enlarged = preprocess.resize_mode == "shortest" and cover != (height, width)
    filtered = preprocess.antialias or preprocess.interpolation == "nearest"
    return None if enlarged or preprocess.color == "bgr" or not filtered else (height, width, preprocess.channels)


def name_of(source: Any, index: int, whole: str) -> str | None:
    """A name for images that carry none: their place in `whole`."""
    has_name = isinstance(source, str | os.PathLike) or bool(getattr(source, "filename", ""))
    return None if has_name else f"Image {index} of the {whole}"
