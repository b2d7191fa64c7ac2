"""The options of `edgetl quantize`. They are no table of a recipe: the graph may come from anywhere."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.recipe_fields import MOST_SEED, MOST_THREADS, REQUIRED, DataFields, opt
from edgetl.recipe_graph import GraphFields


@dataclass(frozen=True, kw_only=True)
class Quantize(GraphFields, DataFields):
    """`edgetl quantize`."""

    model: str = opt(REQUIRED, "A float32 classifier in ONNX, of whatever origin.", positional=True, given=True)
    out: str = opt(REQUIRED, "The .onnx file to write.", given=True)
    target: str | None = opt(None, "Where it shall run, e.g. x86-vnni (default: this machine).")
    max_drop: float = opt(
        0.5, "Greatest loss of validation accuracy against fp32 in percentage points.", low=0, high=100)
    min_agreement: float = opt(
        98.0, "Least share of validation images, in percent, with the same answer as fp32.", low=0, high=100)
    quantizer: str = opt(
        "edgetl", "Who writes INT8: edgetl, or NNCF where it is installed (for processors alone).",
        choices=("edgetl", "nncf"))
    calibration_images: int = opt(256, "Training images that calibrate.", low=1)
    qat_epochs: int = opt(
        2, "Epochs in which an INT8 graph is trained to answer as fp32 does, where nothing cheaper keeps the limits; "
        "0: never.", low=0, high=1000)
    labels: str | None = opt(
        None, "File of the graph's class names, a line each, in its order (default: what the graph itself says; "
        "without either, only agreement is judged).", path=True)
    threads: int = opt(0, "Threads of evaluation; 0 takes what the machine allows.", low=0, high=MOST_THREADS)
    seed: int = opt(0, "Seed of the choice of calibration images.", low=0, high=MOST_SEED)
    overwrite: bool = opt(False, "Replace --out if it exists.", given=True)
