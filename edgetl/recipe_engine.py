"""The options of `edgetl engine`. They are no table of a recipe: an engine belongs to cards, not to a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.recipe_fields import REQUIRED, opt

SIZE = (r"[1-9][0-9]{0,8}\s*(KiB|MiB|GiB)", "a size with a unit: 512MiB or 2GiB")
BATCHES = (r"[1-9][0-9]{0,5},[1-9][0-9]{0,5},[1-9][0-9]{0,5}", "three whole numbers from 1: 1,8,32")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """`edgetl engine`."""

    source: str = opt(REQUIRED, "A bundle, or a graph in ONNX.", positional=True, given=True)
    out: str = opt(REQUIRED, "The .engine file to write; what it was built from stands in a .json beside it.",
                   given=True)
    variant: str | None = opt(None, "Variant of the bundle (default: the first that is made for TensorRT, else fp32).")
    compute_capability: tuple[str, ...] = opt(
        (), "Cards to build for ahead of time, e.g. 8.6,8.9 (default: the card of this machine).", split=True,
        form=(r"[1-9][0-9]?[.][0-9]", "a compute capability: 8.9"))
    flavor: str = opt("auto", "TensorRT, or TensorRT for RTX, which alone builds for cards that are named.",
                      choices=("auto", "tensorrt", "rtx"))
    batches: str = opt("1,1,32", "Least, best and greatest batch, where the graph leaves it free.", form=BATCHES)
    input_size: str | None = opt(
        None, "Height and width where an ONNX graph leaves them free: 224 or HEIGHTxWIDTH.",
        form=("[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?", "a side or HEIGHTxWIDTH: 224 or 48x192"))
    workspace: str | None = opt(None, "The most memory of the card that a layer may use, e.g. 1GiB (default: all).",
                                form=SIZE)
    optimization_level: int | None = opt(
        None, "0 builds soon, 5 searches longest (default: TensorRT's own, 3).", low=0, high=5)
    timing_cache: str | None = opt(
        None, "File of what builds learn of kernels, to begin from and to add to; not for rtx.", path=True)
    version_compatible: bool = opt(
        False, "Let later versions of the same major number open the engine; not for rtx.", given=True)
    hardware_compatible: str = opt(
        "none", "Other cards that may open it; not for rtx.",
        choices=("none", "ampere-plus", "same-compute-capability"))
    overwrite: bool = opt(False, "Replace --out if it exists.", given=True)
