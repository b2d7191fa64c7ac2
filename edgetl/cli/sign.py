"""`edgetl sign` and `edgetl keygen`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgetl.cli.options import Json
from edgetl.errors import EdgetlError, OutputError

EXAMPLE = """
edgetl keygen release.key
edgetl sign bundle --key release.key
EDGETL_PUBLIC_KEY=release.key.pub edgetl verify bundle
"""
EXAMPLE_KEYGEN = "edgetl keygen release.key"
EXTRA = {"extra": "sign", "purpose": "Signing a bundle"}


def sign(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", metavar="BUNDLE")],
    key: Annotated[Path, typer.Option(help="Secret key, made by `edgetl keygen` or `minisign -G -W`.", metavar="FILE",
                                      show_default=False)],
    comment: Annotated[str | None, typer.Option(help="A line that is signed too (the bundle's name).", metavar="TEXT",
                                                show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Sign a bundle, so that devices which know the public key take it and no other.

    Writes manifest.json.minisig into the bundle; it covers the manifest, and with it every graph and the golden images.
    `minisign -V` checks it too. Devices ask for it when EDGETL_PUBLIC_KEY holds the public key or the path of its file.
    """
    from edgetl import extras, rundir
    from edgetl.cli import present
    from edgetl.runtime import signature
    from edgetl.runtime.bundle import open_bundle

    extras.require("cryptography", **EXTRA)
    if bundle.is_file():
        raise EdgetlError(f"{bundle} is a packed bundle, which cannot be changed.",
                          hint="Sign the folder, then pack it: edgetl pack BUNDLE --overwrite")
    opened = open_bundle(bundle, public_key=False)
    for _ in opened.parts():
        pass  # nobody shall vouch for a bundle that is damaged
    secret = signature.read_secret_key(key)
    said = f"edgetl bundle {opened.manifest.name}"[:200] if comment is None else comment
    rundir.write_bytes(bundle / signature.FILE, signature.sign(opened.manifest_bytes(), secret, said))
    found = {"signature": str(bundle / signature.FILE), "key": signature.shown(secret.key_id), "comment": said,
             "digest": opened.digest}
    if as_json:
        present.document(found)
    else:
        present.pairs(found)


def keygen(
    key: Annotated[Path, typer.Argument(help="File for the secret key; the public one gets the ending .pub.",
                                        metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Make a pair of keys for `edgetl sign`, in the files of minisign.

    The secret key has no password: whoever can read its file can sign.
    """
    from edgetl import extras, rundir
    from edgetl.cli import present
    from edgetl.runtime import signature

    extras.require("cryptography", **EXTRA)
    public = key.with_name(f"{key.name}.pub")
    for one in (key, public):
        if os.path.lexists(one):
            raise OutputError(f"{one} exists already.", hint="Choose another name; a key is never replaced.")
    secret, shared = signature.generate()
    with rundir.explained(key), os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    rundir.write_bytes(public, shared)
    found = {"secret_key": str(key), "public_key_file": str(public), "public_key": shared.decode().splitlines()[1]}
    if as_json:
        present.document(found)
        return
    present.pairs(found)
    present.hint(f"next: edgetl sign BUNDLE --key {key}; on devices: EDGETL_PUBLIC_KEY={found['public_key']}")
