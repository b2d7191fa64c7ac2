"""Signatures: minisign's own are taken, ours are minisign's, and nothing passes that the key did not sign."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import edit_manifest, make_bundle

from edgetl.errors import BundleError, EdgetlError, MissingDependency
from edgetl.runtime import archive, load, signature, verify
from edgetl.runtime.bundle import open_bundle

ROOT = Path(__file__).parents[2]

# Made by the tool minisign 0.11: `minisign -G -W`, and `minisign -S` of a file that holds "hello\n".
PUBLIC = "RWSgcjLtRTpjB0UdSGBFGM9xbPPIc3f43zanDE3D/J/Y0dnjAHhsgB8+"
PUBLIC_FILE = f"untrusted comment: minisign public key 7633A45ED3272A0\n{PUBLIC}\n"
SECRET_FILE = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAoHIy7UU6Ywdu7RTcKe3lWmPdlbn8GYW3lcpaU64SWmbDyu\
4TTdpyG0UdSGBFGM9xbPPIc3f43zanDE3D/J/Y0dnjAHhsgB8+AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
HELLO = b"hello\n"
SIGNED = b"""untrusted comment: signature from minisign secret key
RUSgcjLtRTpjB2seqUSUAxFJdQUYqs7K1HODv/RzDlDZktiF+lLOGt1VaGrQ0QXXgZpIZA16i2GrOLN5sDc2viJ9WjEdXtPbiwE=
trusted comment: a comment
Kl/AQ2bKIN5pdpzKAPuqJOeMS7AgIsgHz8cGRXxB29sX+I527YQKgwfU7OUVNFSuGpfmkcLc6VHsD80IVBFTDw==
"""
SIGNED_LEGACY = b"""untrusted comment: signature from minisign secret key
RWSgcjLtRTpjB251kE8Nsrkin16HrN2bhZTj3Mh7TESkV7cqfeYD7d/hk1SmdqmEax4jEQIM8raOYiNq20wUF2qlcxxpJPcj/AU=
trusted comment: old
emgs7keddR7KPBI5PW+NEeKz0fCCwLNIGQjpSbcAmktixgqTyuNRZBzVmFowVuI56JLfQcfQ41x78jr7x6fvBg==
"""
KEY = signature.read_public_key(PUBLIC)


def check(manifest: bytes, content: bytes | None, key: signature.PublicKey = KEY) -> signature.Seal:
    return signature.check(manifest, content, key, where="m.minisig")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Files of minisign's key pair."""
    secret, public = tmp_path / "release.key", tmp_path / "release.pub"
    secret.write_text(SECRET_FILE)
    public.write_text(PUBLIC_FILE)
    return secret, public


@pytest.fixture
def signed(tmp_path: Path, keys) -> Path:
    bundle = make_bundle(tmp_path / "bundle")
    sign(bundle, signature.read_secret_key(keys[0]))
    return bundle


def sign(bundle: Path, key: signature.SecretKey) -> None:
    content = signature.sign((bundle / "manifest.json").read_bytes(), key, "release 1")
    (bundle / signature.FILE).write_bytes(content)


def test_what_minisign_signed_is_taken():
    assert check(HELLO, SIGNED) == signature.Seal("07633A45ED3272A0", "a comment")
    assert check(HELLO, SIGNED.replace(b"\n", b"\r\n")).comment == "a comment"
    assert check(HELLO, SIGNED.rstrip(b"\n")).comment == "a comment"


def test_what_is_signed_is_what_minisign_signs(keys):
    """ed25519 is deterministic: the same key, file and comment give the same signature."""
    made = signature.sign(HELLO, signature.read_secret_key(keys[0]), "a comment")
    assert made.splitlines()[1:] == SIGNED.splitlines()[1:]


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed")
def test_the_tool_takes_what_is_signed(signed, keys):
    subprocess.run(["minisign", "-Vm", str(signed / "manifest.json"), "-p", str(keys[1])], check=True)


def test_another_file_another_key_and_no_signature():
    with pytest.raises(BundleError, match="does not fit the manifest"):
        check(HELLO + b" ", SIGNED)
    _, public = signature.generate()
    other = signature.read_public_key(public.decode().splitlines()[1])
    with pytest.raises(BundleError, match="is of the key 07633A45ED3272A0; expected"):
        check(HELLO, SIGNED, other)
    with pytest.raises(BundleError, match="does not fit the manifest"):
        check(HELLO, SIGNED, signature.PublicKey(KEY.key_id, other.raw))
    with pytest.raises(BundleError, match="is not signed"):
        check(HELLO, None)


def test_the_old_format_is_refused_with_a_way_out():
    with pytest.raises(BundleError, match="old format") as caught:
        check(HELLO, SIGNED_LEGACY)
    assert "without -l" in caught.value.hint


def test_the_trusted_comment_is_signed_too():
    with pytest.raises(BundleError, match=r"trusted comment of m\.minisig was altered"):
        check(HELLO, SIGNED.replace(b"a comment", b"b comment"))
    assert check(HELLO, SIGNED.replace(b"from minisign", b"by anybody")).comment == "a comment"


@pytest.mark.parametrize("content", [
    b"", b"\n\n\n\n", b"{}", SIGNED + b"more\n", SIGNED + SIGNED, b"\n".join(SIGNED.splitlines()[:2]),
    SIGNED.replace(b"RUSg", b"RXSg"), SIGNED.replace(b"RUSg", b"!!!!"), SIGNED.replace(b"trusted", b"rusted", 2),
    SIGNED.replace(b"TDw==", b"")])
def test_what_is_no_signature(content):
    with pytest.raises(BundleError):
        check(HELLO, content)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, len(SIGNED) - 1), st.integers(0, 255))
def test_no_change_of_what_is_signed_passes(place, value):
    changed = SIGNED[:place] + bytes([value]) + SIGNED[place + 1:]
    try:
        found = check(HELLO, changed)
    except BundleError:
        return
    # Only the untrusted comment, bits of base64 that carry nothing, and the ends of lines may differ.
    assert found == signature.Seal("07633A45ED3272A0", "a comment")


# --------------------------------------------------------------------------------------------------------- bundles


def test_a_signed_bundle_is_loaded_in_both_forms(signed, keys, tmp_path, monkeypatch):
    packed = tmp_path / "b.edgetl"
    with packed.open("wb") as stream:
        archive.write(open_bundle(signed), stream)
    for bundle in (signed, packed):
        for key in (PUBLIC, keys[1], str(keys[1])):
            load(bundle, threads=1, public_key=key).close()
            seal = open_bundle(bundle, key).seal
            assert seal == signature.Seal("07633A45ED3272A0", "release 1")
        report = verify(bundle, threads=1, public_key=PUBLIC)
        assert report.checks[0].note == "signed by 07633A45ED3272A0: release 1"
        monkeypatch.setenv(signature.VARIABLE, str(keys[1]))
        assert open_bundle(bundle).seal == seal
        assert open_bundle(bundle, public_key=False).seal is None
        monkeypatch.delenv(signature.VARIABLE)
        assert open_bundle(bundle).seal is None


def test_a_changed_manifest_is_refused_before_it_is_parsed(signed, keys):
    (signed / "manifest.json").write_text("not even JSON")
    with pytest.raises(BundleError, match="does not fit the manifest"):
        load(signed, public_key=keys[1])


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_unsigned_bundles_are_refused_where_a_key_is_configured(tmp_path, keys, monkeypatch, way):
    bundle = make_bundle(tmp_path / "plain")
    monkeypatch.setenv(signature.VARIABLE, PUBLIC) if way == "environment" else None
    more = {"public_key": PUBLIC} if way == "argument" else {}
    for attempt in (load, verify, open_bundle):
        with pytest.raises(BundleError, match="is not signed"):
            attempt(bundle, **more)


def test_a_graph_of_a_signed_bundle_that_was_exchanged(signed, keys):
    (signed / "fp32.onnx").write_bytes(b"x" * (signed / "fp32.onnx").stat().st_size)
    with pytest.raises(BundleError, match="was altered"):
        load(signed, public_key=PUBLIC)
    edit_manifest(signed, "variants", 0, "sha256", value="0" * 64)
    with pytest.raises(BundleError, match="does not fit the manifest"):
        load(signed, public_key=PUBLIC)


def test_a_key_that_is_empty_or_missing_never_switches_the_check_off(signed, monkeypatch, tmp_path):
    (tmp_path / "empty").touch()
    for key in ("", "  ", "no such file", str(tmp_path), str(tmp_path / "empty"), PUBLIC[:-1], SECRET_FILE[46:102]):
        with pytest.raises(BundleError, match="public key"):
            load(signed, public_key=key)
        monkeypatch.setenv(signature.VARIABLE, key)
        with pytest.raises(BundleError, match="public key"):
            load(signed)


def test_a_key_that_is_no_point_of_the_curve(signed):
    raw = base64.b64decode(PUBLIC)[:10] + b"\xff" * 32
    with pytest.raises(BundleError):
        load(signed, public_key=base64.b64encode(raw).decode())


def test_a_signature_that_leaves_the_bundle_or_never_ends(signed, tmp_path):
    file = signed / signature.FILE
    outside = tmp_path / "outside"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(BundleError, match="leaves the bundle"):
        load(signed, public_key=PUBLIC)
    file.unlink()
    with file.open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(BundleError, match="has more than 16384 bytes"):
        load(signed, public_key=PUBLIC)


# ------------------------------------------------------------------------------------------------------------ keys


def test_generated_keys_sign_and_check(tmp_path):
    secret, public = signature.generate()
    (tmp_path / "k").write_bytes(secret)
    (tmp_path / "k.pub").write_bytes(public)
    key = signature.read_public_key(tmp_path / "k.pub")
    made = signature.sign(HELLO, signature.read_secret_key(tmp_path / "k"), "ü")
    assert check(HELLO, made, key).comment == "ü"
    assert signature.generate()[0] != secret
    assert secret.decode().splitlines()[1] not in repr(signature.read_secret_key(tmp_path / "k"))


def test_a_secret_key_with_a_password_is_refused_with_a_way_out(tmp_path):
    raw = bytearray(base64.b64decode(SECRET_FILE.splitlines()[1]))
    raw[2:4] = b"Sc"
    path = tmp_path / "k"
    path.write_text(f"untrusted comment: minisign encrypted secret key\n{base64.b64encode(raw).decode()}\n")
    with pytest.raises(BundleError, match="has a password") as caught:
        signature.read_secret_key(path)
    assert "minisign -S" in caught.value.hint
    path.write_text(PUBLIC_FILE)
    with pytest.raises(BundleError, match="is no minisign secret key"):
        signature.read_secret_key(path)


@pytest.mark.parametrize("comment", ["two\nlines", "a\rb", "\x1b[2J", "x" * 5000, "\ud800"])
def test_comments_that_cannot_be_signed(keys, comment):
    with pytest.raises(EdgetlError, match="cannot be signed"):
        signature.sign(HELLO, signature.read_secret_key(keys[0]), comment)


def test_without_the_package_the_extra_is_named(signed, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(MissingDependency, match="needs the package 'cryptography'") as caught:
        load(signed, public_key=PUBLIC)
    assert "pip install cryptography" in caught.value.hint
    with pytest.raises(MissingDependency, match="Signing a bundle"):
        signature.generate()
    load(signed).close()  # and nobody needs it who asks for no signature


def test_cryptography_is_imported_only_where_a_key_is_configured(signed):
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from edgetl.runtime import load
load({str(signed)!r}, threads=1).close()
assert not [name for name in sys.modules if name.startswith("cryptography")]
load({str(signed)!r}, threads=1, public_key={PUBLIC!r}).close()
assert [name for name in sys.modules if name.startswith("cryptography")]
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600)
