"""`edgetl report`."""

from __future__ import annotations

from edgetl.recipe_report import Report as Gallery

EXAMPLE = """
edgetl report reports --out benchmarks.html
edgetl report main/report.json pull-request/report.json --out both.html
edgetl report old new --out page.html --label old=v1.2@2026-05-01
edgetl report runs/student --out student.html
"""


def report(options: Gallery, as_json: bool) -> None:
    """Draw one html page over many reports, or about one RUN.

    Fronts of latency, accuracy and size, history, backends and distributions, each machine by itself, in one file. Of
    a RUN: its curves, the gain over its control, what it confuses, its worst mistakes and its recipe.
    """
    from edgetl import pipeline
    from edgetl.cli import present, progress

    with progress.shown() as listener:
        made = pipeline.report_with(options, listener)
    if as_json:
        present.document({"page": str(made.path), "left_out": list(made.left_out),
                          **({} if made.beside is None else {"markdown": str(made.beside)})})
        return
    print(made.path)
    if made.beside is not None:
        print(made.beside)
