"""What a person says of a classifier in ONNX that edgetl did not make: `edgetl quantize`, and teachers of `distill`."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.recipe_fields import opt

NUMBERS = (r"\s*[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)(e[+-]?[0-9]+)?\s*", "numbers: 0.485,0.456,0.406")


@dataclass(frozen=True, kw_only=True)
class GraphFields:
    """What the graph takes and gives, where it does not say so itself."""

    labels: str | None = opt(
        None, "File of the graph's class names, a line each, in its order (default: what the graph itself says).",
        path=True)
    input_size: str | None = opt(
        None, "Size of the input in pixels, 224 or HEIGHTxWIDTH (default: the graph's own).",
        form=("[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?", "a side or HEIGHTxWIDTH: 224 or 48x192"))
    layout: str | None = opt(None, "Layout of the input (default: by where its channels are).",
                             choices=("NCHW", "NHWC"))
    color: str | None = opt(
        None, "Order of the channels (default: rgb).", choices=("rgb", "bgr", "gray", "rgba", "planes"))
    resize_mode: str | None = opt(
        None, "How an image comes to its size (default: shortest).", choices=("shortest", "squash", "letterbox"))
    crop_fraction: float | None = opt(
        None, "Centre crop as a share of the resized short side (default: 0.875).", low=0.1, high=1)
    interpolation: str | None = opt(None, "Filter of the resize (default: bilinear).",
                                    choices=("nearest", "bilinear", "bicubic", "lanczos"))
    scale: float | None = opt(None, "What a pixel 0..255 is multiplied by before mean and std (default: 1/255).",
                              low=1e-6, high=1)
    mean: tuple[str, ...] = opt((), "Mean of each channel, after the scale, e.g. 0.485,0.456,0.406.", split=True,
                                form=NUMBERS)
    std: tuple[str, ...] = opt((), "Standard deviation of each channel, e.g. 0.229,0.224,0.225.", split=True,
                               form=NUMBERS)
