"""`edgetl bench`."""

from __future__ import annotations

from edgetl.recipe import Bench

EXAMPLE = """
edgetl bench runs/teacher bundle --backend cpu,openvino,torch --data photos --out report
edgetl bench bundle --device ssh://pi@raspberrypi.local --out report-of-the-board
"""


def bench(options: Bench, as_json: bool) -> None:
    """Measure bundles, ONNX files and RUNs side by side.

    Start-up, latency, throughput, memory, size and accuracy: terminal, json, html, markdown, csv and JUnit XML.
    """
    from pathlib import Path

    from edgetl import pipeline, rundir
    from edgetl.bench.connection import Lost
    from edgetl.cli import present, progress

    try:
        with progress.shown() as listener:
            made = pipeline.bench_with(options, listener)
    except (KeyboardInterrupt, Lost):
        kept = rundir.partial(Path(options.out))
        if rundir.reported(kept):
            present.hint(f"measured so far: {kept / rundir.REPORT}")
        raise
    if as_json:
        from edgetl.bench import report

        present.document(report.to_json(made))
        return
    present.report(made)
    present.hint(f"report: {Path(options.out) / 'report.html'}")
