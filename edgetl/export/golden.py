"""The golden images: encoded files, the tensors they must become, and what the torch model made of them.

With them a device proves, without labels and without torch, that it decodes, resizes, normalises and computes as the
training's own evaluation did.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate
from edgetl.compress.calibrate import choose
from edgetl.datasets import DataSet, Item
from edgetl.runtime import planes
from edgetl.runtime.preprocess import Preprocess, decode, normalize, resize

MODES = ("RGB", "L", "RGBA", "P", "RGB", "CMYK", "LA", "RGB")  # CMYK is written as JPEG, the others as PNG
DRAWN_BESIDE_PHOTOS = 3  # one in colour, one grey, one with alpha


@dataclass(frozen=True)
class Golden:
    """G images on their whole way from file to logits."""

    kind: str  # "photos" | "synthetic"
    sources: tuple[bytes, ...]
    tensor: NDArray[np.float32]  # [G, C, H, W]
    logits: NDArray[np.float32]  # [G, K], by torch
    drawn: int = 0  # how many of the images, the last ones, are no photos
    features: NDArray[np.float32] | None = None  # [G, D], by torch; None: the bundle gives none

    def outputs(self) -> dict[str, NDArray[np.float32]]:
        """The torch model's outputs by role."""
        return {"logits": self.logits} | ({} if self.features is None else {"features": self.features})


def make(kind: str, count: int, seed: int, *, items: Sequence[Item], data: DataSet, preprocess: Preprocess,
         outputs: Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]]) -> Golden:
    """The golden images of a model.

    Args:
        kind: "photos" takes them from `items` and adds a few drawn ones, "synthetic" draws them all.
        count: number of images, the drawn ones beside photos not counted.
        seed: of the choice.
        items: TRAINING images, each class by its share: no test image may leave with a bundle.
        data: what reads `items`.
        preprocess: from file to tensor.
        outputs: of the torch model by name, images [N, C, H, W] -> logits [N, K], features [N, D] if it gives them.

    Raises:
        DataError: there is no image to choose from, or one cannot be read.
    """
    if kind == "synthetic":
        drawn = sources = synthetic(count, seed, preprocess)
        pixels = [resize(decode(source, preprocess), preprocess) for source in sources]
    else:
        chosen = choose(items, count, seed)
        # Photos may all be grey, opaque or of one size, which would hide swapped channels or a lost background.
        drawn = synthetic(DRAWN_BESIDE_PHOTOS, seed, preprocess)
        pixels = [evaluate.pixels_of(item, data.read, preprocess) for item in chosen]
        pixels += [resize(decode(source, preprocess), preprocess) for source in drawn]
        sources = (*map(data.read, chosen), *drawn)
    tensor = normalize(np.stack(pixels), preprocess)
    found = outputs(tensor)
    return Golden(kind, sources, tensor, found["logits"], len(drawn), found.get("features"))


def synthetic(count: int, seed: int, preprocess: Preprocess | None = None) -> tuple[bytes, ...]:
    """Pictures that show nobody anything: blocks of colour in several sizes and modes, the same for the same seed.

    Coloured, not noise, and not symmetric, so that a swapped channel, a mirrored axis or another resize is seen. Where
    the preprocessing takes neither colour nor grey images they are arrays, `.npy` files, of its channels.
    """
    chance = np.random.default_rng(seed)
    if preprocess is not None and preprocess.color in planes.COLORS:
        return tuple(_array(preprocess.channels, chance) for _ in range(count))
    return tuple(_picture(MODES[place % len(MODES)], chance) for place in range(count))


def _picture(mode: str, chance: np.random.Generator) -> bytes:
    from PIL import Image

    height, width = (int(side) for side in chance.integers(40, 400, size=2))
    blocks = chance.integers(0, 256, size=(int(chance.integers(2, 7)), int(chance.integers(2, 7)), 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize((width, height)))
    picture.convert(mode).save(buffer, "jpeg" if mode == "CMYK" else "png")
    return buffer.getvalue()


def _array(channels: int, chance: np.random.Generator) -> bytes:
    from PIL import Image

    height, width = (int(side) for side in chance.integers(40, 400, size=2))
    shape = int(chance.integers(2, 7)), int(chance.integers(2, 7)), channels
    blocks = chance.integers(0, 256, size=shape, dtype=np.uint8)
    return planes.to_file(planes.by_plane(blocks, lambda one: one.resize((width, height), Image.Resampling.BILINEAR)))


def to_npz(golden: Golden) -> bytes:
    """golden.npz: `source_000`, ... (the files' bytes), `tensor`, `logits`, and `features` where there are some."""
    sources = {f"source_{place:03d}": np.frombuffer(source, np.uint8) for place, source in enumerate(golden.sources)}
    arrays: dict[str, Any] = {**sources, "tensor": golden.tensor, **golden.outputs()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
