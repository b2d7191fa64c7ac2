"""`edgetl report`."""

from __future__ import annotations

from edgetl.recipe_report import Report as Gallery

EXAMPLE = """
edgetl report reports --out benchmarks.html
edgetl report main/report.json pull-request/report.json --out both.html
edgetl report old new --out page.html --label old=v1.2@2026-05-01
"""


def report(options: Gallery, as_json: bool) -> None:
    """Draw one html page over many reports.

    Fronts of latency, accuracy and size, history, backends and distributions, each machine by itself, in one file.
    """
    from edgetl import pipeline
    from edgetl.cli import present, progress

    with progress.shown() as listener:
        made = pipeline.report_with(options, listener)
    if as_json:
        present.document({"page": str(made.path), "left_out": list(made.left_out)})
        return
    print(made.path)
