"""What a fine-tuning reads besides its data and its teacher, in digests: another one is noticed on --resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetl import datasets, rundir, splits, weights
from edgetl.recipe_fields import TrainFields
from edgetl.recipe_finetune import named_models


def inputs(options: TrainFields) -> dict[str, Any]:
    """Digests by name; empty where nothing else is read.

    Raises:
        DataError: the source data set cannot be read.
    """
    source, features_from = (getattr(options, name, None) for name in ("source", "features_from"))
    found = {}
    if source:
        data = datasets.open_data(source)
        found["source fingerprint"] = splits.fingerprint_of(data, splits.content_digests(data))
    for place, model in enumerate(named_models(features_from), 2):
        path = Path(model)
        known = rundir.sha256((path / rundir.MODEL).read_bytes()) if weights.is_run(path) else model
        found[f"features {place}"] = known
    return found
