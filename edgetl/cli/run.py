"""`edgetl run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.options import Json

if TYPE_CHECKING:
    from edgetl.pipeline import Outcome

EXAMPLE = "edgetl run recipe.toml --out runs/photos --set finetune.epochs=3"

Out = Annotated[Path, typer.Option(help="Folder to write teacher, student, bundle and report to.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", show_default=False,
                                               help="Override a key of the recipe; may be repeated.")]
Resume = Annotated[bool, typer.Option("--resume", show_default=False, help="Keep what is finished and unchanged, "
                                      "continue what was interrupted, build the rest again.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", show_default=False, help="Build every stage again.")]


def run(recipe: Annotated[Path, typer.Argument(help="The recipe, see `edgetl init`.", metavar="RECIPE.toml")], out: Out,
        set_: Set = None, resume: Resume = False, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Walk the whole path of a recipe.

    Fine-tunes, distils, exports and benchmarks into OUT/teacher, student, bundle and report. Exit 3 when the recipe's
    [gate] says no.
    """
    from edgetl import pipeline
    from edgetl.cli import progress

    with progress.shown() as listener:
        outcome = pipeline.walk(recipe, out=out, overrides=set_ or (), resume=resume, overwrite=overwrite,
                                listener=listener)
    show(outcome, as_json)
    outcome.insist()


def show(outcome: Outcome, as_json: bool, **more: object) -> None:
    """Prints what a run made: the benchmark's tables and where things are."""
    from edgetl.bench import report
    from edgetl.cli import present

    made = report.read(outcome.report)
    places = {name: str(getattr(outcome, name)) for name in ("teacher", "student", "bundle", "report")}
    shown = {**places, **{name: str(value) for name, value in more.items()}}
    if as_json:
        present.document({**shown, "kept": list(outcome.kept), "gate": list(outcome.gate),
                          "rows": report.to_json(made)["rows"]})
        return
    present.report(made)
    print()
    present.pairs({**shown, "report": str(outcome.report / report.HTML)})
