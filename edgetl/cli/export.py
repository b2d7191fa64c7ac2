"""`edgetl export`."""

from __future__ import annotations

from pathlib import Path

from edgetl.errors import GateFailed
from edgetl.recipe import Export

EXAMPLE = """\
edgetl export runs/student --out bundle --precision fp32,int8 --max-drop 0.5
edgetl export runs/student --out bundle --target x86-vnni,tensorrt --precision fp16,int8
"""


def export(options: Export, as_json: bool) -> None:
    """Export a RUN to a verified bundle of ONNX graphs.

    Every variant is checked against the RUN; exit 3 when one fails its gate, and fp32 is kept.
    """
    from edgetl import ledger, pipeline, rundir
    from edgetl.cli import present, progress

    rundir.require_place(Path(options.out))
    before = ledger.digest(Path(options.out))
    try:
        with progress.shown() as listener:
            folder = pipeline.export_with(options, listener)
    except GateFailed:
        if ledger.digest(Path(options.out)) not in (None, before):  # a variant fell, and the rest was written
            _show(Path(options.out), as_json)
        raise
    _show(folder, as_json)
    present.hint(f"next: edgetl verify {folder}; edgetl bench {folder} --out REPORT")


def _show(folder: Path, as_json: bool) -> None:
    from edgetl.cli import present
    from edgetl.cli.inspect import read_bundle

    values, manifest = read_bundle(folder)
    if as_json:
        present.document({"bundle": str(folder), **values})
        return
    present.pairs(present.bundle_pairs(folder, manifest))
    present.variants(manifest)
