"""The fp16 and bf16 variants of a bundle: written, held against the limits on the validation split, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgetl import evaluate, judging
from edgetl.compress import calibrate
from edgetl.errors import DataError, EdgetlError
from edgetl.export import half, reach, variants
from edgetl.export.ladder import Limits, Rejected
from edgetl.export.variants import BACKEND, Built, Stock
from edgetl.judging import Judged, Judgement
from edgetl.targets import Target

RANGE_IMAGES = 32  # training images that show how far the values of a network reach
ROOM = 8.0  # what other images may exceed them by
# Of the greatest logit: what another machine's order of adding may do beside twice the difference that was found.
MARGINS = {"fp16": 0.005, "bf16": 0.04, "int8": 0.02}


def build_half(stock: Stock, target: Target, precision: str, fp32: Built) -> Built | Rejected:
    """The target's variant in half precision, if it passes the gate on the validation split.

    Raises:
        DataError: there are no validation images to hold the gate with.
    """
    if fp32.val is None:
        raise DataError(f"There are no validation images, so the accuracy of {precision} cannot be held against its "
                        "limit.", hint="Give data with a val split, or train with --val-fraction above 0.")
    name = f"{target.name}.{precision}"
    try:
        great = too_great(stock, fp32, precision)
        made = half.to_half(fp32.graph, precision, keep=great)
    except EdgetlError as problem:
        return Rejected(name, (), f"{name} cannot be written: {problem.message.rstrip('.')}")
    spec = dataclasses.replace(fp32.spec, precision=precision)
    variant = variants.variant_of(name, target.name, precision, target.backends, made.graph, spec, made.opset)
    how = {"method": "cast", "split": "train", "images": len(_range_items(stock)), "casts": made.casts,
           "float_layers": list(made.kept), "too_great": list(great)}
    variant = dataclasses.replace(variant, requires=target.requires.get(precision, ()), calibration=how)
    return answering(stock, Built(variant, made.graph, spec, None), fp32.val)


def too_great(stock: Stock, fp32: Built, precision: str) -> tuple[str, ...]:
    """The results of nodes that make or read values near the greatest of half, and so had better stay in float32."""
    items = _range_items(stock)
    if not items:
        return ()
    images = np.concatenate(list(evaluate.images(items, stock.data.read, stock.network.preprocess)))
    return reach.touched(fp32.graph, fp32.spec.inputs[0].name, images, half.kind_of(precision).greatest / ROOM)


def _range_items(stock: Stock) -> Sequence[Any]:
    return calibrate.choose(stock.splits.train, RANGE_IMAGES, stock.options.seed)


def confirmed(stock: Stock, one: Built | Rejected, fp32: Built) -> Built | Rejected:
    """The same variant as its own backend answers, where that can run here and is not what has judged it already."""
    if isinstance(one, Rejected) or one.judge in one.variant.backends or fp32.val is None:
        return one
    own = variants.own_backend(one.variant.backends, one.variant.requires)
    return one if own is None else answering(stock, one, fp32.val, own)


def answering(stock: Stock, one: Built, reference: Judged, judge: str = BACKEND) -> Built | Rejected:
    """The variant with its answers on the validation images and its tolerances, if they are within the limits."""
    name = one.variant.name
    options = stock.options
    try:
        val = judging.with_reference(variants.judged(stock, one.graph, one.spec, "val", judge), reference)
    except DataError:
        raise
    except EdgetlError as problem:  # it cannot be opened there, or gives logits that are no numbers
        return Rejected(name, (), f"{name} cannot be judged on {judge}: {problem.message.rstrip('.')}")
    found = judging.compare(val, reference)
    passed = Limits(options.max_drop, options.min_agreement).hold(found)
    stock.note(f"{name} on {judge}: {found.sentence()}; {'passed' if passed else 'outside the limits'}.")
    if not passed:
        rung = {"method": f"cast, on {judge}", "passed": False, **dataclasses.asdict(found)}
        return Rejected(name, (rung,), _refusal(name, found, options.max_drop, options.min_agreement))
    margin = MARGINS[one.variant.precision]
    allowed = variants.tolerances(stock, one.graph, one.spec,
                                  lambda difference, reach_: 2 * difference + margin * reach_, judge)
    allowed = {key: max(value, getattr(one.variant, key) or 0.0) for key, value in allowed.items()}
    return dataclasses.replace(one, variant=dataclasses.replace(one.variant, **allowed), val=val, against_fp32=found,
                               judge=judge)


def _refusal(name: str, found: Judgement, max_drop: float, min_agreement: float) -> str:
    return (f"{name} is outside the limits: against fp32 it loses {found.drop_points:.2f} points of validation "
            f"{found.score_name} (95 %: {found.drop_low:.2f} to {found.drop_high:.2f}) with "
            f"{100 * found.agreement:.2f} % agreement ({found.n} images); allowed are {max_drop:g} points and at least "
            f"{min_agreement:g} %")
