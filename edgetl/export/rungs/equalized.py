"""Cross-layer equalization and bias correction, see `compress.equalize` and `compress.correct`.

Tried are the correction alone and, where channels can be scaled, the equalized network by both kinds of ranges; all
with the calibration method that came nearest to the limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from edgetl.compress import equalize, quantize
from edgetl.compress.observe import channel_ranges
from edgetl.export.ladder import Attempt, Ladder, Plan

CORRECTED = {"bias": "corrected"}


def climb(ladder: Ladder) -> Attempt | None:
    """The first of them within the limits."""
    best = ladder.best().plan
    for plan in _plans(ladder, dataclasses.replace(best, changes={**best.changes, **CORRECTED})):
        attempt = ladder.attempt(plan)
        if attempt.passed:
            return attempt
    return None


def _plans(ladder: Ladder, plan: Plan) -> Iterator[Plan]:
    """Each is made when it is tried."""
    yield dataclasses.replace(plan, told=f"biases corrected ({plan.method})")
    joints = equalize.joints_of(plan.source.ready)
    if not joints:
        ladder.subject.note(f"{ladder.name}: no layer of this graph can be equalized with the next.")
        return
    seen = channel_ranges(plan.source.ready, ladder.reader, [one.value for one in joints])
    for by in equalize.BY:
        source, done = _equalized(ladder, plan.source, joints, seen, by)
        ladder.record.setdefault("equalized", {})[by] = dataclasses.asdict(done)
        yield dataclasses.replace(plan, source=source, told=f"equalized by {by} ({plan.method})")


def _equalized(ladder: Ladder, source: quantize.Source, joints: list[equalize.Joint], seen: equalize.Ranges,
               by: str) -> tuple[quantize.Source, equalize.Equalized]:
    """The same network with other channels, seen anew."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(source.ready)
    done = equalize.equalize(model, joints, seen, by=by)
    given = onnx.load_from_string(source.graph)
    onnx.helper.set_model_props(model, {one.key: one.value for one in given.metadata_props})
    model.producer_name, model.producer_version = given.producer_name, given.producer_version
    return ladder.studied(model.SerializeToString(deterministic=True)), done
