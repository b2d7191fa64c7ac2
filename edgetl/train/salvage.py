"""What is left of a training that cannot go on, said in the hint of its error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgetl import weights
from edgetl.errors import TrainingError
from edgetl.recipe_fields import TrainFields
from edgetl.train.loop import BEST


@contextlib.contextmanager
def salvaging(options: TrainFields, folder: Path) -> Iterator[None]:
    """Adds to the hint of a training that cannot go on how another one can start from its best weights."""
    try:
        yield
    except TrainingError as problem:
        best = folder / BEST
        model = str(getattr(options, "student", None) or getattr(options, "teacher", ""))
        if weights.brings_weights(model) or not best.is_file():
            raise
        hint = f"{problem.hint} Its best weights so far: --weights {best} --out ANOTHER starts from them."
        raise TrainingError(problem.message, hint=hint) from problem
