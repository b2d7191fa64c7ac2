"""What a RUN tells of its training: the record, the curves, the recipe, and the answers on the test split."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from edgetl import dataspec, heads, predictions, rundir, task_scores, weights
from edgetl.bench import task_mistakes
from edgetl.bench.report import Mistake
from edgetl.bench.task_mistakes import Hard
from edgetl.errors import EdgetlError
from edgetl.heads import SCORES, Head
from edgetl.predictions import Predictions
from edgetl.task_scores import Said

CONTROL = "control"  # folder of the control inside a student's, and the name of its part of the metrics
SHOWN = 12  # mistakes

Curve = tuple[Mapping[str, float], ...]  # one row an epoch, "epoch" counting on through the steps of a cut


@dataclass(frozen=True)
class Trained:
    """A RUN folder, read. `metrics` and `record` are those of run.json."""

    name: str
    record: Mapping[str, Any]
    metrics: Mapping[str, Any]
    curve: Curve
    control_curve: Curve  # empty where there is no control
    recipe: str  # without the places where things lie on the machine
    test: Predictions | None  # None where there are no test images, or an earlier version wrote the RUN
    heads: tuple[Head, ...] = ()  # what it says of an image; none: one class
    said: Said | None = None  # with heads, what `test` is without

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        return tuple(self.record["labels"])

    @property
    def teachers(self) -> tuple[Mapping[str, Any], ...]:
        """What is told of each teacher; none of a fine-tuned model."""
        alone = [self.record["teacher"]] if "teacher" in self.record else []
        return tuple(self.record.get("teachers", alone))

    @property
    def score(self) -> str | None:
        """What it is judged by, where that is not accuracy."""
        return SCORES[self.heads[0].kind] if self.heads else None

    @property
    def hardest(self) -> tuple[Hard, ...]:
        """With heads, the answers that are furthest from what is known."""
        return () if self.said is None else task_mistakes.hardest(self.said, SHOWN)

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """The wrong answers with the highest scores."""
        if self.test is None:
            return ()
        found = self.test
        return tuple(Mistake(str(found.keys[row]), self.labels[found.labels[row]], self.labels[found.predicted[row]],
                             float(found.score[row])) for row in found.hardest(SHOWN))


def read(folder: Path) -> Trained:
    """A RUN folder.

    Raises:
        EdgetlError: it is none, or one of its files is damaged.
    """
    record = weights.read_record(folder)
    asked = heads.of_record(record)
    recipe = folder / rundir.RECIPE
    return Trained(folder.absolute().name, record, record.get("metrics", {}), _curve(folder), _curve(folder / CONTROL),
                   _without_places(recipe.read_text(errors="surrogateescape") if recipe.is_file() else ""),
                   None if asked else predictions.read(folder).get("test"), asked,
                   task_scores.read(folder, asked).get("test") if asked else None)


def _curve(folder: Path) -> Curve:
    path = folder / rundir.METRICS
    lines = path.read_text().splitlines() if path.is_file() else []
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as problem:
        raise EdgetlError(f"{path} cannot be read: {problem}.", hint="Train again.") from problem
    # Where the student was cut in steps, epochs are counted anew after each cut; a curve counts on.
    return tuple({name: float(value) for name, value in row.items() if value is not None} | {"epoch": float(place)}
                 for place, row in enumerate(rows, start=1))


def _without_places(recipe: str) -> str:
    """A recipe in which absolute paths are their last names: the page is shown to others."""
    short = re.sub(r'(?<=")shards:[^"]*(?=")', lambda found: dataspec.without_folders(found[0]), recipe)
    return re.sub(r'(?<=")(csv:)?(/[^"]*)(?=")', lambda found: (found[1] or "") + PurePath(found[2]).name, short)
