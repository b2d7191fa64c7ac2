"""Training images as a graph takes them, a little different in each epoch: mirrored, and moved by a few pixels.

The float graph answers the very view that the INT8 graph learns from (L. Beyer et al., Knowledge Distillation: A Good
Teacher Is Patient and Consistent, CVPR 2022, arXiv:2106.05237), so that a view need not keep the label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate
from edgetl.datasets import Item
from edgetl.runtime.preprocess import Preprocess

MOVED = 1 / 16  # of a side, at most, in either direction


def views(items: Sequence[Item], read: Callable[[Item], bytes], preprocess: Preprocess, batch: int,
          chance: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Batches [batch, C, H, W] or [batch, H, W, C] of the images in a random order; a last one that is smaller is left
    out.

    Args:
        items: training images.
        read: bytes of an item.
        preprocess: what prepares them; its layout is the batches'.
        batch: images in a batch.
        chance: draws the order and the views.
    """
    order = [items[place] for place in chance.permutation(len(items))[:len(items) // batch * batch]]
    sides = (1, 2) if preprocess.layout == "NCHW" else (0, 1)
    for images in evaluate.images(order, read, preprocess, batch):
        yield np.stack([view(image, sides, chance) for image in images])


def view(image: NDArray[np.float32], sides: tuple[int, int], chance: np.random.Generator) -> NDArray[np.float32]:
    """An image mirrored or not, and moved; what comes in from outside repeats its edge.

    Args:
        image: of three axes.
        sides: which of them are height and width.
        chance: draws the view.
    """
    found = np.flip(image, sides[1]) if chance.random() < 0.5 else image
    for axis in sides:
        size, most = image.shape[axis], int(image.shape[axis] * MOVED)
        move = int(chance.integers(-most, most + 1))
        found = np.take(found, np.clip(np.arange(size) + move, 0, size - 1), axis=axis)
    return found
