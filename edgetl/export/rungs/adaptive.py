"""AdaRound, see `compress.adapt`: on all layers, and then with groups in float as on the rung `mixed`."""

from __future__ import annotations

import dataclasses

from edgetl.compress import adapt, rounding
from edgetl.export.ladder import Attempt, Ladder, Plan
from edgetl.export.rungs import mixed


def climb(ladder: Ladder) -> Attempt | None:
    """All layers in INT8 where that is within the limits, else the mixture that is; None where none is."""
    import onnx

    base = ladder.best_whole().plan
    batches = ladder.batches(adapt.IMAGES)
    if sum(len(batch[ladder.spec.inputs[0].name]) for batch in batches) < 2:
        ladder.subject.note(f"{ladder.name}: AdaRound needs two calibration images at least.")
        return None
    greatest = rounding.GREATEST_REDUCED if ladder.scheme["reduce_range"] else rounding.GREATEST
    int8 = onnx.load_from_string(ladder.written(base).graph)
    found = adapt.adapt(base.source.ready, int8, batches, greatest=greatest, seed=ladder.subject.seed,
                        note=lambda text: ladder.subject.note(f"{ladder.name}: {text}"))
    ladder.record["adapted"] = list(found.layers)
    if not found.steps:
        ladder.subject.note(f"{ladder.name}: AdaRound makes no layer's answers better, and so the graph no other.")
        return None
    plan = _plan(base, found)
    attempt = ladder.attempt(plan)
    return attempt if attempt.passed else mixed.search(ladder, plan)


def _plan(base: Plan, found: adapt.Adapted) -> Plan:
    return dataclasses.replace(base, steps={**(base.steps or {}), **found.steps}, told=f"AdaRound ({base.told})")
