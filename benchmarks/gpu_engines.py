"""TensorRT engines of benchmarks/gpu.py: built without and with a timing cache, and what precision they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpu_models import opened
from gpu_plan import NOT_RUN, Plan, Rows

from edgetl.backends import _tensorrt_build, _tensorrt_flavor
from edgetl.backends._tensorrt_flavor import Flavor

NO_CACHE = "this flavor keeps no timing cache."


def engines(plan: Plan, rows: Rows) -> None:
    """A row for every model, precision and installed TensorRT; without a card, engines are built ahead of time."""
    flavors = _tensorrt_flavor.installed()
    if not flavors:
        rows.add(NOT_RUN, flavor="TensorRT", reason="No TensorRT is installed.")
    greatest = max(plan.batches)
    cards = () if plan.device == "cuda" else (plan.capability,)
    how = _tensorrt_build.How(batches=(1, 1, greatest), compute_capabilities=cards)
    for name in plan.models:
        for precision in plan.precisions:
            for flavor in flavors:
                rows.attempt(building(plan, name, precision, flavor, how), model=name, precision=precision,
                             flavor=flavor.title)


def building(plan: Plan, name: str, precision: str, flavor: Flavor,
             how: _tensorrt_build.How) -> Callable[[], dict[str, Any]]:
    """What builds an engine twice, the second time with what the first learned, and says how long each took."""
    def build() -> dict[str, Any]:
        graph, spec, _ = opened(plan, name, precision)
        first = _tensorrt_build.build(graph, spec, flavor, how)
        row = {"build_s": first.build_s, "size_bytes": len(first.plan), "precisions": dict(first.precisions),
               "batches": list(how.batches), "for": list(how.compute_capabilities) or "this card"}
        if first.timing_cache is None:
            return {**row, "cached_build_s": None, "cache": NO_CACHE}
        second = _tensorrt_build.build(graph, spec, flavor, how, timing_cache=first.timing_cache)
        return {**row, "cached_build_s": second.build_s, "timing_cache_bytes": len(first.timing_cache)}
    return build
