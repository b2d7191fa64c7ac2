"""The packed form: the same bytes every time, what unzip unpacks, loaded in place; and no zip that is anything else."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import make_bundle, make_photo

from edgetl.errors import BundleError
from edgetl.runtime import archive, load, verify
from edgetl.runtime.bundle import is_bundle, open_bundle

MEMBERS = ["README.md", "fp32.onnx", "golden.npz", "manifest.json", "other.onnx"]


def pack(bundle: Path, out: Path) -> Path:
    with out.open("wb") as stream:
        archive.write(open_bundle(bundle), stream)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    bundle = make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", second={})
    (bundle / "README.md").write_text("a card")
    (bundle / "notes.txt").write_text("is no part of the bundle")
    return bundle


@pytest.fixture(scope="module")
def packed(folder) -> bytes:
    return pack(folder, folder.with_suffix(".edgetl")).read_bytes()


def opened(tmp_path: Path, data: bytes):
    path = tmp_path / "x.edgetl"
    path.write_bytes(data)
    return open_bundle(path)


def read_all(tmp_path: Path, data: bytes) -> dict[str, bytes]:
    return dict(opened(tmp_path, data).parts())


def test_packed_and_folder_answer_alike(folder, packed, tmp_path):
    path = tmp_path / "model.edgetl"
    path.write_bytes(packed)
    photo = make_photo(1)
    with load(path, threads=1) as one, load(folder, threads=1) as other:
        assert one.predict(photo) == other.predict(photo)
        assert one.info() == {**other.info(), "bundle": str(path)}
    report = verify(path, threads=1)
    assert [check.name for check in report.checks] == [check.name for check in verify(folder, threads=1).checks]
    assert open_bundle(path).digest == open_bundle(folder).digest
    assert is_bundle(path) and is_bundle(folder) and not is_bundle(folder / "fp32.onnx")


def test_the_same_bundle_gives_the_same_bytes(folder, packed, tmp_path):
    copy = tmp_path / "copied at another time under another name"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    (copy / "fp32.onnx").chmod(0o755)
    assert pack(copy, tmp_path / "again.edgetl").read_bytes() == packed
    path = tmp_path / "first.edgetl"
    path.write_bytes(packed)
    assert pack(path, tmp_path / "packed again.edgetl").read_bytes() == packed


def test_members_are_stored_as_they_are_and_others_stay_out(folder, packed):
    with zipfile.ZipFile(io.BytesIO(packed)) as found:
        assert found.namelist() == MEMBERS
        assert found.testzip() is None
        for one in found.infolist():
            assert (one.compress_type, one.date_time, one.extra, one.comment) == (0, (1980, 1, 1, 0, 0, 0), b"", b"")
            assert one.external_attr >> 16 == 0o100644
            assert found.read(one) == (folder / one.filename).read_bytes()
            assert packed.count((folder / one.filename).read_bytes()) >= 1


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_unzip_unpacks_the_bundle(packed, tmp_path):
    path = tmp_path / "x.edgetl"
    path.write_bytes(packed)
    subprocess.run(["unzip", "-q", str(path), "-d", str(tmp_path / "out")], check=True)
    verify(tmp_path / "out", threads=1)


def test_a_damaged_bundle_is_not_packed(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "other.onnx").write_bytes(b"x" + (copy / "other.onnx").read_bytes()[1:])
    with pytest.raises(BundleError, match=r"other\.onnx was altered"):
        pack(copy, tmp_path / "x")


def test_a_flipped_byte_of_a_graph_is_refused(packed, folder, tmp_path):
    place = packed.index((folder / "fp32.onnx").read_bytes()) + 100
    data = bytearray(packed)
    data[place] ^= 1
    path = tmp_path / "x.edgetl"
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"x\.edgetl: fp32\.onnx was altered"):
        load(path, variant="fp32")
    load(path, variant="other").close()


def test_a_missing_member(packed, tmp_path):
    renamed = bytearray(packed)
    for place in (packed.index(b"other.onnx\x08"), packed.rindex(b"other.onnx")):  # at its place, and in the table
        renamed[place:place + 10] = b"othes.onnx"
    bundle = opened(tmp_path, bytes(renamed))
    assert bundle.store.has("othes.onnx") and not bundle.store.has("other.onnx")
    with pytest.raises(BundleError, match=r"x\.edgetl: other\.onnx is missing"):
        list(bundle.parts())


def test_a_flipped_bit_of_the_manifest_is_noticed(packed, tmp_path):
    """In a folder nothing but a signature would notice it."""
    assert packed.count(b'"tiny"') == 1
    with pytest.raises(BundleError, match=r"manifest\.json was altered: its CRC-32"):
        opened(tmp_path, packed.replace(b'"tiny"', b'"tinz"'))


# -------------------------------------------------------------------------------------------------- other zip files


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED, **changes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, archive.DAY)
            info.compress_type = method
            for field, value in changes.items():
                setattr(info, field, value)
            made.writestr(info, data)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def members(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in MEMBERS}


def entry(data: bytes, name: bytes) -> int:
    """Where the table describes a member."""
    return data.rindex(name) - archive.ENTRY.size


def patched(data: bytes, place: int, kind: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(kind, changed, place, value)
    return bytes(changed)


def test_a_zip_made_by_others_in_the_plain_form_is_taken(members, tmp_path):
    assert read_all(tmp_path, zipped(members)) == members
    reordered = dict(reversed(members.items()))
    assert read_all(tmp_path, zipped(reordered)) == members


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members(members, tmp_path, method):
    with pytest.raises(BundleError, match="is compressed, encrypted or of an unknown kind"):
        opened(tmp_path, zipped(members, method))


@pytest.mark.parametrize("flag", [0x1, 0x8, 0x40, 0x2000])
def test_encrypted_members_and_other_flags(packed, tmp_path, flag):
    data = patched(packed, entry(packed, b"fp32.onnx") + 8, "<H", flag)
    with pytest.raises(BundleError, match="is compressed, encrypted or of an unknown kind"):
        opened(tmp_path, data)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "C:x", "a\\x", "a/", "./x", "a//b", "x\n", "..",
                                  "a\u202eb", "y" * 300])
def test_names_that_leave(members, tmp_path, name):
    with pytest.raises(BundleError, match="would leave the bundle"):
        opened(tmp_path, zipped(members | {name: b"data"}))


def test_names_that_are_no_text(packed, tmp_path):
    with pytest.raises(BundleError, match="is no text"):
        opened(tmp_path, packed.replace(b"other.onnx", b"oth\xff\xfe.onnx"[:10].ljust(10, b"x")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(members, tmp_path):
    buffer = io.BytesIO(zipped(members))
    with zipfile.ZipFile(buffer, "a") as made:
        made.writestr(zipfile.ZipInfo("fp32.onnx", archive.DAY), b"another graph")
    with pytest.raises(BundleError, match=r"two members 'fp32\.onnx'"):
        opened(tmp_path, buffer.getvalue())


@pytest.mark.parametrize("pair", [("a", "a/b"), ("a/b/c", "a/b")])
def test_a_file_that_is_a_folder_too(members, tmp_path, pair):
    with pytest.raises(BundleError, match="two members"):
        opened(tmp_path, zipped(members | dict.fromkeys(pair, b"x")))


def test_members_on_top_of_one_another(packed, tmp_path):
    place = entry(packed, b"other.onnx") + 42
    first = entry(packed, b"fp32.onnx") + 42
    same = patched(packed, place, "<L", struct.unpack_from("<L", packed, first)[0])
    with pytest.raises(BundleError, match="does not follow the one before"):
        opened(tmp_path, same)


@pytest.mark.parametrize("size", [0, 5, 2**31, 2**32 - 1])
def test_sizes_that_lie(packed, tmp_path, size):
    place = entry(packed, b"fp32.onnx") + 20
    data = patched(patched(packed, place, "<L", size), place + 4, "<L", size)
    with pytest.raises(BundleError, match=r"is not where the table says|does not follow"):
        opened(tmp_path, data)


@pytest.mark.parametrize("field", range(4, 30))
def test_a_member_that_is_described_otherwise_at_its_place(packed, tmp_path, field):
    """Whatever differs between the two descriptions, some reader believes the other one."""
    data = bytearray(packed)
    data[field] ^= 0x10
    with pytest.raises(BundleError):
        opened(tmp_path, bytes(data))


def test_the_name_at_the_place_differs(packed, tmp_path):
    with pytest.raises(BundleError, match="is not where the table says"):
        opened(tmp_path, packed.replace(b"README.md", b"README.MD", 1))


@pytest.mark.parametrize("before, after, says", [
    (b"#!/bin/sh\n", b"", "does not begin"),
    (b"PK\x03\x04", b"", "contradicts its size"),
    (b"", b"junk", "does not end"),
    (b"", b"\0", "does not end"),
    (b"", b"PK\x05\x06" + bytes(18), "contradicts its size"),
])
def test_something_before_or_after(packed, tmp_path, before, after, says):
    with pytest.raises(BundleError, match=says):
        opened(tmp_path, before + packed + after)


def test_two_packed_files_in_one(packed, tmp_path):
    with pytest.raises(BundleError, match="contradicts its size"):
        opened(tmp_path, packed + packed)


def test_a_comment_or_something_between(packed, members, tmp_path):
    buffer = io.BytesIO(packed)
    with zipfile.ZipFile(buffer, "a") as made:
        made.comment = b"hello"
    with pytest.raises(BundleError, match="something follows"):
        opened(tmp_path, buffer.getvalue())
    start = struct.unpack_from("<L", packed, len(packed) - 6)[0]
    gap = packed[:start] + b"hidden" + packed[start:]
    with pytest.raises(BundleError, match="between the last member and the table"):
        opened(tmp_path, patched(gap, len(gap) - 6, "<L", start + 6))
    with pytest.raises(BundleError, match="carries more than its bytes"):
        opened(tmp_path, zipped(members, extra=b"\x99\x99\x02\x00ab"))
    with pytest.raises(BundleError, match="carries more than its bytes"):
        opened(tmp_path, zipped(members, comment=b"a comment"))


def test_too_many_members(members, tmp_path):
    many = members | {f"f{number}": b"" for number in range(archive.MAX_MEMBERS)}
    with pytest.raises(BundleError, match="261 members"):
        opened(tmp_path, zipped(many))


def test_a_long_table_is_not_read(packed, tmp_path):
    table = b"x" * (archive.MAX_TABLE_BYTES + 1)
    end = archive.END.pack(archive.END_MARK, 0, 0, 1, 1, len(table), 100, 0)
    with pytest.raises(BundleError, match="of which at most"):
        opened(tmp_path, archive.LOCAL_MARK.ljust(100, b"\0") + table + end)


@pytest.mark.parametrize("size", [0, 3, 4, 21, 22, 60])
def test_what_is_too_short(packed, tmp_path, size):
    with pytest.raises(BundleError, match="is a file, but no packed bundle"):
        opened(tmp_path, packed[:size])


def test_every_cut_is_noticed(packed, tmp_path):
    for size in range(0, len(packed), 97):
        with pytest.raises(BundleError):
            opened(tmp_path, packed[:size])


def test_a_giant_is_refused_by_its_size(packed, tmp_path):
    path = tmp_path / "x.edgetl"
    path.write_bytes(packed)
    with path.open("r+b") as file:
        file.truncate(3 << 30)
    with pytest.raises(BundleError, match="of which at most 2147483647 are read"):
        open_bundle(path)


def test_a_bundle_without_a_manifest(members, tmp_path):
    with pytest.raises(BundleError, match=r"x\.edgetl: manifest\.json is missing"):
        opened(tmp_path, zipped({name: data for name, data in members.items() if name != "manifest.json"}))


def test_a_file_that_is_replaced_between_table_and_member(packed, tmp_path):
    """The bytes that were read are those that are compared, wherever they came from."""
    bundle = opened(tmp_path, packed)
    variant = bundle.manifest.variants[0]
    (tmp_path / "x.edgetl").write_bytes(bytes(len(packed)))
    with pytest.raises(BundleError, match="was altered"):
        bundle.read(variant.file, variant.sha256, variant.size_bytes)
    (tmp_path / "x.edgetl").write_bytes(b"")
    with pytest.raises(BundleError, match="has 0 bytes"):
        bundle.read(variant.file, variant.sha256, variant.size_bytes)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_change_is_the_bundle_or_a_sentence(folder, packed, tmp_path_factory, data):
    """A reader that is led astray would give other bytes than those whose digest was compared, or another error."""
    changed = bytearray(packed)
    places = st.tuples(st.integers(0, len(packed) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, max_size=6)):
        changed[place] = value
    path = tmp_path_factory.getbasetemp() / "changed.edgetl"
    path.write_bytes(changed)
    try:
        found = dict(open_bundle(path).parts())
    except BundleError:
        return
    for name in ("fp32.onnx", "golden.npz", "other.onnx"):
        if name in found:
            assert found[name] == (folder / name).read_bytes()


def test_arrays_of_a_packed_bundle_are_those_of_the_folder(folder, packed, tmp_path):
    photo = np.zeros((30, 30, 3), np.uint8)
    path = tmp_path / "model.edgetl"
    path.write_bytes(packed)
    with load(path, variant="other", threads=1) as one, load(folder, variant="other", threads=1) as other:
        assert np.array_equal(one.logits([photo]), other.logits([photo]))
