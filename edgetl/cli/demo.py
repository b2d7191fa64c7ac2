"""`edgetl demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgetl.cli.options import Json
from edgetl.cli.run import Overwrite, Set

EXAMPLE = "edgetl demo --out runs/demo"
PREDICTIONS = "predictions.png"

Out = Annotated[Path, typer.Option(help="Folder to write to; a second demo continues or keeps what is there.")]


def demo(out: Out = Path("runs/demo"), set_: Set = None, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Walk the whole path on photos of solar cells.

    The photos and the teacher's weights come with the demo extra. Takes minutes on two cores; exit 3 when the teacher
    or the student is not good enough.
    """
    from edgetl import pipeline
    from edgetl.cli import progress
    from edgetl.cli.run import show
    from edgetl.contact_sheet import draw

    recipe = pipeline.demo_recipe(set_ or ())
    with progress.shown() as listener:
        outcome = pipeline.walk(recipe, out=out, resume=not overwrite, overwrite=overwrite, listener=listener)
    drawn = {}
    try:
        drawn["predictions"] = draw(outcome.bundle, outcome.student, out / PREDICTIONS)
    finally:  # what took minutes is shown also where the picture cannot be drawn
        show(outcome, as_json, **drawn)
    outcome.insist()
