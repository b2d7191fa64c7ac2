"""The temperature of each variant: fitted anew on what its own graph answers to the validation images.

A RUN's record has the temperature of the model in torch; a graph of another precision has other logits, and so its own.
The test images only tell what it does.
"""

from __future__ import annotations

import dataclasses

from edgetl import calibration
from edgetl.export.variants import Built, Stock


def fitted(stock: Stock, one: Built) -> Built:
    """The variant with its temperature; as it is where there are no validation images, or they show none."""
    if one.val is None:
        return one
    found = calibration.fit_temperature(one.val.logits, one.val.labels)
    if found.value is None:
        stock.note(f"{one.variant.name}: its scores are left as they are, for on the {found.n} validation images "
                   f"{found.refusal}.")
        return one
    after = calibration.nll(one.val.logits, one.val.labels, found.value)
    stock.note(f"{one.variant.name}: temperature {found.value:.3g} by {found.n} validation images, whose negative "
               f"log-likelihood falls from {one.val.nll:.3f} to {after:.3f}.")
    return dataclasses.replace(one, variant=dataclasses.replace(one.variant, temperature=found.value))

