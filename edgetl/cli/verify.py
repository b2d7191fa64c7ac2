"""`edgetl verify`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from edgetl.cli.options import Json, Threads

EXAMPLE = """
edgetl verify bundle --backend openvino
edgetl verify model.edgetl --public-key release.key.pub
"""


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle, folder or packed.", metavar="BUNDLE")],
    backend: Annotated[str, typer.Option(help="Backend to check on.")] = "auto",
    threads: Threads = 0,
    public_key: Annotated[str | None, typer.Option(
        help="Public key, or its file, that must have signed the bundle (EDGETL_PUBLIC_KEY).", metavar="KEY",
        show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Check that a bundle answers here as training did.

    Images to tensor, tensor to logits, for each variant within its tolerance; exit 3 when one is outside.
    """
    from edgetl import runtime
    from edgetl.cli import present

    report = runtime.verify(bundle, backend=backend, threads=threads, public_key=public_key)
    if as_json:
        present.document(dataclasses.asdict(report))
        return
    present.pairs({"bundle": report.bundle, "golden": f"{report.images} {report.kind}"})
    present.table(("check", "status", "worst", "limit", "note"),
                  [(one.name, one.status, _figure(one.measured), _figure(one.limit, one.unit), one.note)
                   for one in report.checks], numeric=(False, False, True, True))


def _figure(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.3g} {unit}".rstrip()
