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
    found: dict[str, Any] = {}
    if source := getattr(options, "source", None):
        data = datasets.open_data(source)
        found["source fingerprint"] = splits.fingerprint_of(data, splits.content_digests(data))
    if getattr(options, "strategy", None) == "feature-copy":
        found["features from"] = [_digest(model) for model in named_models(getattr(options, "features_from", None))]
    return found


def _digest(model: str) -> str:
    """Of a RUN; FAMILY/VARIANT is its own."""
    path = Path(model)
    return rundir.sha256((path / rundir.MODEL).read_bytes()) if weights.is_run(path) else model
