"""The options of `edgetl quantize`. They are no table of a recipe: the graph may come from anywhere."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.recipe_fields import MOST_SEED, MOST_THREADS, REQUIRED, DataFields, opt

NUMBERS = (r"\s*[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)(e[+-]?[0-9]+)?\s*", "numbers: 0.485,0.456,0.406")


@dataclass(frozen=True, kw_only=True)
class Quantize(DataFields):
    """`edgetl quantize`."""

    model: str = opt(REQUIRED, "A float32 classifier in ONNX, of whatever origin.", positional=True, given=True)
    out: str = opt(REQUIRED, "The .onnx file to write.", given=True)
    target: str | None = opt(None, "Where it shall run, e.g. x86-vnni (default: this machine).")
    max_drop: float = opt(
        0.5, "Greatest loss of validation accuracy against fp32 in percentage points.", low=0, high=100)
    min_agreement: float = opt(
        98.0, "Least share of validation images, in percent, with the same answer as fp32.", low=0, high=100)
    calibration_images: int = opt(256, "Training images that calibrate.", low=1)
    labels: str | None = opt(
        None, "File of the graph's class names, a line each, in its order (default: what the graph itself says; "
        "without either, only agreement is judged).", path=True)
    input_size: str | None = opt(
        None, "Size of the input in pixels, 224 or HEIGHTxWIDTH (default: the graph's own).",
        form=("[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?", "a side or HEIGHTxWIDTH: 224 or 48x192"))
    layout: str | None = opt(None, "Layout of the input (default: by where its channels are).",
                             choices=("NCHW", "NHWC"))
    color: str | None = opt(None, "Order of the channels (default: rgb).", choices=("rgb", "bgr", "gray"))
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
    threads: int = opt(0, "Threads of evaluation; 0 takes what the machine allows.", low=0, high=MOST_THREADS)
    seed: int = opt(0, "Seed of the choice of calibration images.", low=0, high=MOST_SEED)
    overwrite: bool = opt(False, "Replace --out if it exists.", given=True)
