"""From an encoded image to the array a graph takes. One definition: training's evaluation and the device run this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its image: declared by the model family, stored in the manifest.

    The value of a pixel p in 0..255 becomes (p * scale - mean[c]) / std[c].
    """

    size_hw: tuple[int, int]
    kind: str = "image"
    resize_mode: str = "shortest"  # "shortest": short side, then centre crop | "squash" | "letterbox"
    crop_fraction: float = 0.875  # centre crop's share of the resized short side ("shortest" only)
    interpolation: str = "bicubic"  # "nearest" | "bilinear" | "bicubic" | "lanczos"
    antialias: bool = True
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    color: str = "rgb"  # "rgb" | "bgr" | "gray"
    alpha_background: tuple[int, int, int] = (255, 255, 255)  # what shows through transparent pixels
    exif: bool = True  # rotate as the EXIF orientation says
    layout: str = "NCHW"  # of the graph's input


def decode(source: Any, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Pixels [H, W, C] uint8 of an image: EXIF applied, alpha laid on the background, in `preprocess.color` order."""
    raise NotImplementedError


def resize(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Pixels [size_h, size_w, C] uint8: resized and cropped as `preprocess` says."""
    raise NotImplementedError


def normalize(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """[N, C, H, W] (or [N, H, W, C]) float32 from a stack [N, H, W, C] of uint8."""
    raise NotImplementedError


def to_dict(preprocess: Preprocess) -> dict[str, Any]:
    """Plain JSON values."""
    raise NotImplementedError


def from_dict(values: Any, *, where: str) -> Preprocess:
    """The Preprocess that `to_dict` wrote; unknown fields are ignored; each wrong field is a BundleError naming it."""
    raise NotImplementedError
