"""`edgetl engine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetl.recipe_engine import Engine

if TYPE_CHECKING:
    from edgetl.export.engines import Outcome

EXAMPLE = """
edgetl engine bundle --out model.engine
edgetl engine bundle --variant tensorrt.fp16 --compute-capability 8.6,8.9,12.0 --out model.engine
edgetl engine model.onnx --flavor tensorrt --batches 1,8,64 --timing-cache timing.cache --out model.engine
"""
CACHES = {"none": "no timing cache: this flavor keeps none", "not kept": "no timing cache", "new": "a new timing cache",
          "reused": "with the timing cache", "refused": "without the timing cache, which does not fit"}


def engine(options: Engine, as_json: bool) -> None:
    """Build a TensorRT engine ahead of time, for this machine's card or for others.

    TensorRT for RTX builds without a card for those that are named. Exit 3 where the precision that the variant
    promises is not in the graph.
    """
    from edgetl import pipeline
    from edgetl.cli import present, progress

    with progress.shown() as listener:
        made = pipeline.engine_with(options, listener)
    if as_json:
        present.document(made.to_json())
        return
    _show(made)


def _show(made: Outcome) -> None:
    from edgetl.cli import present

    where = f"on {made.device}, driver {made.driver}" if made.device is not None else "ahead of time, for any driver"
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in made.precisions.items())
    least, best, greatest = made.batches or (0, 0, 0)
    present.pairs({
        "wrote": f"{made.out}, {made.out}.json",
        "variant": None if made.variant is None else f"{made.variant} ({made.why})",
        "built by": f"{made.title} ({made.version})",
        "for cards": f"compute capability {', '.join(made.compute_capabilities)}, {where}",
        "batches": f"{least} to {greatest}, best at {best}" if made.batches else "fixed by the graph",
        "size": f"{made.size_bytes / 1e6:.2f} MB",
        "build time": f"{made.build_s:.1f} s ({CACHES[made.timing_cache]})",
        "precision": f"{shares or 'no layers that multiply'} of the layers that multiply, as the graph was parsed"})
