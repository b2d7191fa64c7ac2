"""The image files whose way to a label is timed: test images where there are some, else drawn ones."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from edgetl import recipe
from edgetl.bench.exam import Exam
from edgetl.errors import EdgetlError
from edgetl.runtime import planes
from edgetl.runtime.decode import MAX_MEGAPIXELS
from edgetl.runtime.preprocess import Preprocess

QUALITY = 90  # of drawn JPEGs
OCTAVES = range(2, 9)  # details of 2**octave to a side


@dataclass(frozen=True)
class Photos:
    """Image files, and what they are in words."""

    encoded: tuple[str, ...]  # the bytes of each in base64, as a message to a worker carries them
    described: str


def choose(options: recipe.Bench, paper: Exam | None, preprocess: Preprocess | None = None) -> Photos | None:
    """So many files as `options.photos` says: of the test images at random, or drawn; None for 0.

    Args:
        options: photos, photo_size and seed are used.
        paper: the test images, where there are some.
        preprocess: of what is measured; where it takes neither colour nor grey images, arrays are drawn.

    Raises:
        EdgetlError: the size asked for is larger than the runtime reads.
    """
    if not options.photos:
        return None
    generator = np.random.default_rng(options.seed)
    if paper is not None:
        chosen = generator.permutation(len(paper.items))[:options.photos]
        files = [paper.data.read(paper.items[place]) for place in chosen]
        return _made(files, f"test images of {paper.data.name}")
    width, height = map(int, options.photo_size.split("x"))
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise EdgetlError(f"--photo-size {options.photo_size} is {width * height / 1e6:.0f} megapixels; the runtime "
                          f"reads up to {MAX_MEGAPIXELS:.0f}.", hint="Give a smaller one, e.g. 4000x3000.")
    if preprocess is not None and preprocess.color in planes.COLORS:
        shape = height, width, preprocess.channels
        arrays = [planes.to_file(generator.integers(0, 256, shape, np.uint8)) for _ in range(options.photos)]
        return _made(arrays, f"drawn .npy files of {width} x {height} pixels and {preprocess.channels} channels")
    return _made([drawn(width, height, generator) for _ in range(options.photos)],
                 f"drawn JPEG files of {width} x {height} pixels")


def _made(files: list[bytes], kind: str) -> Photos:
    size = float(np.median([len(file) for file in files]))
    return Photos(tuple(base64.b64encode(file).decode() for file in files),
                  f"{len(files)} {kind}, median {size / 1e3:.3g} kB")


def drawn(width: int, height: int, generator: np.random.Generator) -> bytes:
    """A JPEG file with details of every size, as photos have: noise of octaves that get weaker as they get finer."""
    from PIL import Image

    layers = np.zeros((height, width, 3), np.float32)
    for octave in OCTAVES:
        blocks = generator.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8)
        smooth = Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)
        layers += np.asarray(smooth, np.float32) / 1.6**octave
    layers -= layers.min()
    target = io.BytesIO()
    Image.fromarray(np.uint8(255 * layers / layers.max())).save(target, "JPEG", quality=QUALITY)
    return target.getvalue()
