"""Test-time augmentation: several views of an image, one answer. It changes no model, only what is reported beside it.

    hflip      the image and its mirror image
    five-crop  the four corners and the centre (Krizhevsky, Sutskever and Hinton, NIPS 2012), each as large as the
               network's input, of an image that is resized to 1 / 0.875 of it

The answer is the mean of the views' probabilities, as its logarithm, so that softmax gives it back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate
from edgetl.models import Network
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import setting
from edgetl.train.loop import Precision
from edgetl.train.objective import asked
from edgetl.train.setting import Setting

CROP = 0.875  # side of a crop as a share of the image's, as in 224 of 256

Images = NDArray[np.float32]  # [n, C, H, W]


def measured(place: Setting, network: Network) -> dict[str, Any]:
    """What the record says of each split with --tta; empty where it is off."""
    kind = asked(place.options).tta
    if kind == "none":
        return {}
    network.module.eval()
    predict = averaged(setting.torch_predict(network.module, place, Precision(place.device, None)), kind, network)
    found = {
        name: evaluate.evaluate(
            predict, items, place.data.read, widened(network.preprocess, kind), classes=len(place.data.labels)
        ).to_json()
        for name, items in (("val", place.parts.val), ("test", place.parts.test))
        if items
    }
    return {"tta": {"views": kind, **found}}


def widened(preprocess: Preprocess, kind: str) -> Preprocess:
    """How images are prepared of which the views are cut."""
    if kind != "five-crop":
        return preprocess
    sides = tuple(round(side / CROP) for side in preprocess.size_hw)
    return dataclasses.replace(preprocess, size_hw=(sides[0], sides[1]), crop_fraction=1.0)


def averaged(predict: evaluate.Predict, kind: str, network: Network) -> evaluate.Predict:
    """Log probabilities [n, K], averaged over the views of images [n, C, H, W]."""
    height, width = network.preprocess.size_hw
    views: Callable[[Images], list[Images]] = mirrored if kind == "hflip" else lambda one: crops(one, height, width)

    def predict_views(images: Images) -> NDArray[Any]:
        return mean_answer([predict(np.ascontiguousarray(view)) for view in views(images)])

    return predict_views


def mirrored(images: Images) -> list[Images]:
    """The images and their mirror images."""
    return [images, images[..., ::-1]]


def crops(images: Images, height: int, width: int) -> list[Images]:
    """The four corners and the centre, [n, C, height, width] each."""
    below, right = images.shape[2] - height, images.shape[3] - width
    corners = [(0, 0), (0, right), (below, 0), (below, right), (below // 2, right // 2)]
    return [images[:, :, top : top + height, left : left + width] for top, left in corners]


def mean_answer(logits: list[NDArray[Any]]) -> NDArray[np.float32]:
    """Log of the mean probabilities [n, K] of several answers [n, K]."""
    stacked = np.stack(logits).astype(np.float64)
    log_p = stacked - np.logaddexp.reduce(stacked, axis=2, keepdims=True)
    mean: NDArray[np.float32] = (np.logaddexp.reduce(log_p, axis=0) - np.log(len(logits))).astype(np.float32)
    return mean
