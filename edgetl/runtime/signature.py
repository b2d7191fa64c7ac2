"""Who vouches for a bundle: ed25519 signatures of its manifest, in the files of minisign.

The manifest holds the digest of every graph and of the golden images, so its signature covers all that the runtime
reads (README.md and recipe.toml, which are for people, it does not). `manifest.json.minisig` lies beside it; the tool
minisign (https://jedisct1.github.io/minisign) makes and checks the same files, and its keys are used as they are, as
long as the secret one has no password (`minisign -G -W`). Only prehashed signatures ("ED", minisign's default since
0.10) are taken. The format, after minisign's page:

    untrusted comment: <text>                                              public key, secret key and signature
    base64("Ed" + key id [8] + public key [32])                            public key
    base64("Ed" + 2 x \\0 + "B2" + 48 x \\0 + key id [8] + seed [32] + public key [32] + 32 x \\0)      secret key
    base64("ED" + key id [8] + ed25519(BLAKE2b-512(file)) [64])            signature, and then two more lines:
    trusted comment: <text>
    base64(ed25519(signature [64] + trusted comment))

A signature does not say which of two signed bundles is the newer one: whoever can replace files can bring back an old
one. The arithmetic is that of the package `cryptography`, imported only where a key is configured.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl.errors import BundleError, EdgetlError, MissingDependency
from edgetl.runtime import bundle
from edgetl.runtime.limits import KEY_BYTES
from edgetl.runtime.storage import WHO_MADE_IT, open_regular, read_at_most

FILE, VARIABLE = bundle.SIGNATURE, bundle.VARIABLE

PUBLIC, PREHASHED, LEGACY = b"Ed", b"ED", b"Ed"
NO_PASSWORD, CHECKSUM = b"\0\0", b"B2"
UNTRUSTED, TRUSTED = "untrusted comment: ", "trusted comment: "
COMMENT_BYTES = 4096
KEYS = "`edgetl keygen FILE` makes a pair of keys: FILE and FILE.pub."


@dataclass(frozen=True)
class PublicKey:
    """What signatures are checked with."""

    key_id: bytes
    raw: bytes


@dataclass(frozen=True)
class SecretKey:
    """What signatures are made with."""

    key_id: bytes
    seed: bytes = field(repr=False)


@dataclass(frozen=True)
class Seal:
    """A signature that was checked."""

    key_id: str  # as minisign shows it
    comment: str  # the trusted one: it is signed too


def configured(public_key: str | os.PathLike[str] | None) -> PublicKey | None:
    """The public key that was given, or else the one that the environment names; None where there is neither.

    Raises:
        BundleError: it cannot be read. A variable that is set but empty is one: a start script whose key file is
            missing must not switch the check off.
    """
    if public_key is not None:
        return read_public_key(public_key)
    named = os.environ.get(VARIABLE)
    if named == "":
        raise BundleError(f"{VARIABLE} is set but empty; expected a public key or the path of its file.",
                          hint=f"Unset {VARIABLE} where no signature shall be asked for.")
    return None if named is None else read_public_key(named)


def read_public_key(key: str | os.PathLike[str]) -> PublicKey:
    """The key in a minisign public key (its 56 characters), or in the file of that path.

    Raises:
        BundleError: it is neither.
    """
    if isinstance(key, str) and re.fullmatch(r"[A-Za-z0-9+/]{56}", key):
        raw, where = _decoded(key.encode()), "The public key"
    else:
        raw, where = _second_line(_read(Path(key), f"The public key {key}")), f"The public key {key}"
    if len(raw) != 42 or raw[:2] != PUBLIC:
        raise BundleError(f"{where} is no minisign public key.",
                          hint="Give the file that `edgetl keygen` or `minisign -G` wrote, or the line in it that "
                               "begins with RW.")
    return PublicKey(raw[2:10], raw[10:])


def read_secret_key(path: Path) -> SecretKey:
    """The key in the file that `edgetl keygen` or `minisign -G -W` wrote.

    Raises:
        BundleError: it is no such file, or it has a password.
    """
    raw = _second_line(_read(path, f"The secret key {path}"))
    if len(raw) != 158 or raw[:2] != PUBLIC or raw[4:6] != CHECKSUM:
        raise BundleError(f"{path} is no minisign secret key.",
                          hint="Give the file that `edgetl keygen` wrote, not the one that ends in .pub.")
    if raw[2:4] != NO_PASSWORD:
        raise BundleError(f"The secret key {path} has a password; expected one without.",
                          hint=f"Sign with minisign itself: minisign -S -s {path} -m BUNDLE/manifest.json")
    return SecretKey(raw[54:62], raw[62:94])


def generate() -> tuple[bytes, bytes]:
    """A new key pair as the contents of minisign's two files, the secret one (without a password) and the public one.

    Raises:
        MissingDependency: the package `cryptography` is absent.
    """
    seed, key_id = secrets.token_bytes(32), secrets.token_bytes(8)
    public = _private(seed).public_key().public_bytes_raw()
    secret = PUBLIC + NO_PASSWORD + CHECKSUM + bytes(48) + key_id + seed + public + bytes(32)
    return (_lines(f"{UNTRUSTED}edgetl secret key {shown(key_id)}, without a password", secret),
            _lines(f"{UNTRUSTED}minisign public key {shown(key_id)}", PUBLIC + key_id + public))


def sign(manifest: bytes, key: SecretKey, comment: str) -> bytes:
    """The content of the signature's file.

    Args:
        manifest: the bytes to sign.
        key: what to sign with.
        comment: a line that is signed too and shown where the signature is checked.

    Raises:
        EdgetlError: the comment is no single line, or longer than COMMENT_BYTES.
        MissingDependency: the package `cryptography` is absent.
    """
    if not comment.isprintable() or len(comment.encode()) > COMMENT_BYTES:
        raise EdgetlError(f"The comment {comment[:40]!r} cannot be signed; expected one line of at most "
                          f"{COMMENT_BYTES} bytes, without control characters.")
    private = _private(key.seed)
    made = private.sign(hashlib.blake2b(manifest).digest())
    return (_lines(f"{UNTRUSTED}signature by the edgetl secret key {shown(key.key_id)}", PREHASHED + key.key_id + made)
            + _lines(f"{TRUSTED}{comment}", private.sign(made + comment.encode())))


def check(manifest: bytes, signature: bytes | None, key: PublicKey, *, where: str) -> Seal:
    """What the signature says, once it was found to be the key's.

    Args:
        manifest: the bytes that were read and are parsed next.
        signature: the content of the signature's file; None where there is none.
        key: the public key that was configured.
        where: what sentences call the signature's file.

    Raises:
        BundleError: there is no signature, it is damaged, or of another key or another manifest.
        MissingDependency: the package `cryptography` is absent.
    """
    if signature is None:
        raise BundleError(f"The bundle is not signed: {where} is missing, and a public key is configured.",
                          hint=f"Sign it with `edgetl sign`, or unset {VARIABLE} if no signature shall be asked for.")
    made, comment, whole = _parsed(signature, where)
    if made[2:10] != key.key_id:
        raise BundleError(f"{where} is of the key {shown(made[2:10])}; expected {shown(key.key_id)}.",
                          hint=WHO_MADE_IT)
    verifier = _public(key)
    with _refusing(f"{where} does not fit the manifest: one of them was altered, or another key signed."):
        verifier.verify(made[10:], hashlib.blake2b(manifest).digest())
    with _refusing(f"The trusted comment of {where} was altered."):
        verifier.verify(whole, made[10:] + comment)
    return Seal(shown(key.key_id), comment.decode(errors="backslashreplace"))


def _parsed(signature: bytes, where: str) -> tuple[bytes, bytes, bytes]:
    """Algorithm, key id and signature; the trusted comment; the signature of both."""
    comment, trusted = UNTRUSTED.encode(), TRUSTED.encode()
    # Where the file passed through Windows, its lines end in \r\n; minisign leaves the \r out of the comment too.
    lines = [line.removesuffix(b"\r") for line in signature.removesuffix(b"\n").split(b"\n")]
    if len(lines) != 4 or not lines[0].startswith(comment) or not lines[2].startswith(trusted):
        raise BundleError(f"{where} is no minisign signature.", hint="Sign the bundle again.")
    made, whole = _decoded(lines[1]), _decoded(lines[3])
    if made[:2] == LEGACY:
        raise BundleError(f"{where} is a signature in minisign's old format; expected one of a prehashed file.",
                          hint="Sign with `edgetl sign`, or with minisign 0.10 or newer and without -l.")
    if len(made) != 74 or len(whole) != 64 or made[:2] != PREHASHED:
        raise BundleError(f"{where} is no minisign signature.", hint="Sign the bundle again.")
    return made, lines[2].removeprefix(trusted), whole


def _read(path: Path, where: str) -> bytes:
    with open_regular(path, where, hint=KEYS) as (opened, size):
        return read_at_most(opened, KEY_BYTES, size, where)


def _second_line(content: bytes) -> bytes:
    lines = content.splitlines()
    return _decoded(lines[1]) if len(lines) >= 2 and lines[0].startswith(UNTRUSTED.encode()) else b""


def _decoded(line: bytes) -> bytes:
    """The bytes of a line in base64; none where it is something else."""
    try:
        return base64.b64decode(line.strip(), validate=True)
    except binascii.Error:
        return b""


def _lines(comment: str, content: bytes) -> bytes:
    return comment.encode() + b"\n" + base64.b64encode(content) + b"\n"


def shown(key_id: bytes) -> str:
    """The id of a key as minisign writes it."""
    return f"{int.from_bytes(key_id, 'little'):016X}"


def _private(seed: bytes) -> Any:
    with _installed("Signing a bundle"):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed)


def _public(key: PublicKey) -> Any:
    with _installed("Checking the signature of a bundle"):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    with _refusing("The public key that is configured is no point of the curve."):
        return Ed25519PublicKey.from_public_bytes(key.raw)


@contextmanager
def _installed(purpose: str) -> Iterator[None]:
    try:
        yield
    except ImportError as problem:
        raise MissingDependency("cryptography", extra="sign", purpose=purpose) from problem


@contextmanager
def _refusing(sentence: str) -> Iterator[None]:
    from cryptography.exceptions import InvalidSignature

    try:
        yield
    except (InvalidSignature, ValueError) as problem:
        raise BundleError(sentence, hint=WHO_MADE_IT) from problem
