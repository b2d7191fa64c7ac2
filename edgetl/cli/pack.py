"""`edgetl pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgetl.cli.options import Json
from edgetl.errors import EdgetlError, OutputError

EXAMPLE = """
edgetl pack bundle
edgetl pack bundle --out model.edgetl && edgetl predict model.edgetl photo.jpg
unzip model.edgetl -d bundle
"""


def pack(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", metavar="BUNDLE")],
    out: Annotated[Path | None, typer.Option(help="File to write (BUNDLE.edgetl).", metavar="FILE",
                                             show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.",
                                            show_default=False)] = False,
    as_json: Json = False,
) -> None:
    """Pack a bundle into one file, which every command and edgetl.load take as it is.

    The file is a zip without compression: the manifest, its graphs, the golden images, and if they are there the
    signature, README.md and recipe.toml, nothing else. The same bundle always gives the same bytes. To unpack it, use
    unzip.
    """
    from edgetl import rundir
    from edgetl.cli import present
    from edgetl.runtime import archive, signature
    from edgetl.runtime.bundle import open_bundle

    if bundle.is_file():
        raise EdgetlError(f"{bundle} is a file; expected the folder of a bundle.",
                          hint="A packed bundle is used as it is; unzip unpacks it.")
    opened = open_bundle(bundle, public_key=False)
    place = out or bundle.resolve().with_name(f"{bundle.resolve().name}{archive.SUFFIX}")
    if place.is_dir() or (place.exists() and not overwrite):
        raise OutputError(f"{place} exists already.",
                          hint="Choose another --out" + ("." if place.is_dir() else ", or give --overwrite."))
    with rundir.explained(place), rundir.replacing(place) as temporary:
        with temporary.open("wb") as stream:
            archive.write(opened, stream)
        packed = open_bundle(temporary, public_key=False)
        names = [name for name, _ in packed.parts()]  # what is handed out has been read back and compared
        size = temporary.stat().st_size
    found = {"packed": str(place), "size_bytes": size, "digest": packed.digest, "files": names,
             "signed": signature.FILE in names}
    if as_json:
        present.document(found)
        return
    present.pairs({**found, "files": ", ".join(names), "signed": "yes" if found["signed"] else "no"})
    present.hint(f"next: edgetl verify {place}")
