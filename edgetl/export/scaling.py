"""The temperature of each variant: fitted anew on what its own graph answers to the validation images.

A RUN's record has the temperature of the model in torch; a graph of another precision has other logits, and so its own.
The test images only tell what it does.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from edgetl import calibration
from edgetl.export.variants import Built, Stock
from edgetl.judging import TaskEvaluation
from edgetl.runtime.heads import CLASSIFY, Head


def fitted(stock: Stock, one: Built) -> Built:
    """The variant with its temperature; as it is where there are no validation images, or they show none."""
    if one.val is None:
        return one
    if isinstance(one.val, TaskEvaluation):
        return _of_heads(stock, one, one.val)
    found = calibration.fit_temperature(one.val.logits, one.val.labels)
    if found.value is None:
        stock.note(f"{one.variant.name}: its scores are left as they are, for on the {found.n} validation images "
                   f"{found.refusal}.")
        return one
    after = calibration.nll(one.val.logits, one.val.labels, found.value)
    stock.note(f"{one.variant.name}: temperature {found.value:.3g} by {found.n} validation images, whose negative "
               f"log-likelihood falls from {one.val.nll:.3f} to {after:.3f}.")
    return dataclasses.replace(one, variant=dataclasses.replace(one.variant, temperature=found.value))



def _of_heads(stock: Stock, one: Built, val: TaskEvaluation) -> Built:
    """The variant with a temperature for each head of classes, on the images whose class is known."""
    temperatures: dict[str, float] = {}
    for head in val.heads:
        found = _of_head(val, head) if head.kind == CLASSIFY else None
        if found is None:
            continue
        if found.value is None:
            stock.note(f"{one.variant.name}: the scores of '{head.name}' are left as they are, for on the {found.n} "
                       f"validation images {found.refusal}.")
        else:
            temperatures[head.name] = found.value
            stock.note(f"{one.variant.name}: '{head.name}' has the temperature {found.value:.3g} by {found.n} "
                       "validation images.")
    return dataclasses.replace(one, variant=dataclasses.replace(one.variant, temperatures=temperatures))


def _of_head(val: TaskEvaluation, head: Head) -> calibration.Temperature | None:
    """None where no image's class is known."""
    truth = val.truth[:, head.part]
    known = np.isfinite(truth).all(axis=1)
    return calibration.fit_temperature(val.logits[known][:, head.part], truth[known].argmax(axis=1)) if (
        known.any()) else None
