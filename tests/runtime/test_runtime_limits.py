"""Absurd manifests and golden files end in a sentence, quickly and in little memory."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import LABELS, edit_manifest, make_bundle

from edgetl.errors import BundleError, EdgetlError
from edgetl.runtime import limits, load, strict_json
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.fields import has_control, stays_inside
from edgetl.runtime.golden import read_golden
from edgetl.runtime.manifest import from_json


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    return (make_bundle(tmp_path_factory.mktemp("bundles") / "tiny") / "manifest.json").read_text()


def changed(text: str, *keys, value) -> str:
    table = json.loads(text)
    place = table
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return json.dumps(table)


@pytest.mark.parametrize("text, says", [
    ('{"a": 1, "a": 2}', "names 'a' twice"),
    ('[{"b": 1, "c": {"x": 0, "y": 0, "x": 1}}]', "names 'x' twice"),
    ("[NaN]", "NaN is no JSON number"),
    ("[-Infinity]", "-Infinity is no JSON number"),
    ("[1e999]", "1e999 is beyond the range of numbers"),
    ("[-1e999]", "beyond the range"),
    ("1" * 5000, "digits"),
    ("[" * 65 + "]" * 65, "nested more than 64 deep"),
    ("[" * 100_000, "nested too deep"),
    ('{"a":' * 100_000, "nested too deep"),
    ("[1] x", "Extra data"),
    ("\ufeff{}", "BOM"),
    ("", "Expecting value"),
])
def test_json_that_others_may_read_otherwise(text, says):
    with pytest.raises(ValueError, match=says):
        strict_json.parse(text)


def test_json_that_everybody_reads_alike():
    text = '{"a": [1, -2.5, 1e300, "\\u00e9", true, null, {"b": {}}], "c": ""}'
    assert strict_json.parse(text) == json.loads(text)
    deep = "[" * 64 + "]" * 64
    assert strict_json.parse(deep) == json.loads(deep)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@settings(deadline=None, max_examples=50)
@given(JSON)
def test_whatever_json_writes_is_read(value):
    assert strict_json.parse(json.dumps(value)) == value


@pytest.mark.parametrize("keys, value, says", [
    (("labels",), [str(i) for i in range(limits.LABELS + 1)], "'labels'.* at most 100000 texts, not 100001"),
    (("variants",), [{}] * (limits.VARIANTS + 1), "at most 64 tables, not 65"),
    (("variants", 0, "backends"), ["cpu"] * 17, "1 to 16 names"),
    (("variants", 0, "inputs"), [{}] * 17, "at most 16 tables"),
    (("variants", 0, "inputs", 0, "shape"), [1] * 9, "at most 8 whole numbers"),
    (("variants", 0, "inputs", 0, "shape"), [2**31], "'shape'"),
    (("variants", 0, "size_bytes"), 2**31, "from 0 to 2147483647"),
    (("variants", 0, "size_bytes"), 10**4000, "'size_bytes'"),
    (("golden", "size_bytes"), 2**40, "'size_bytes'"),
    (("golden", "count"), 513, "from 1 to 512"),
    (("preprocess", "size_hw"), [8192, 8192], "at most 16777216 pixels together"),
    (("preprocess", "scale"), 1e-300, "'scale'"),
    (("preprocess", "scale"), 1e300, "'scale'"),
    (("preprocess", "std"), [1, 1, 1e-300], "'std'"),
    (("preprocess", "std"), [1, 1, 1e300], "'std'"),
    (("preprocess", "mean"), [1, 1, -1e300], "'mean'"),
    (("name",), "x" * 1001, "'name' is .* expected at most 1000 characters"),
    (("labels",), ["a", "b", "x" * 1001], "'labels' is"),
    (("variants", 0, "outputs", 0, "name"), "x" * 1001, "expected at most 1000 characters"),
    (("name",), "a\x1b[2J", r"the name 'a\\x1b\[2J' holds a control character"),
    (("labels",), ["a", "b\n", "c"], "the label"),
    (("labels",), ["a", "b", "\ud800"], "the label"),
    (("variants", 0, "name"), "\r", "the variant"),
    (("variants", 0, "evaluations"), [{"accuracy": "high"}], r"evaluations\[0\]: 'accuracy' is 'high'"),
    (("variants", 0, "evaluations"), [{"agreement": 98}], r"'agreement' is 98"),
    (("variants", 0, "evaluations"), [{"split": 3}], r"'split' is 3, expected a text"),
    (("variants", 0, "file"), "./fp32.onnx", "plain relative path"),
    (("variants", 0, "file"), "a//b", "plain relative path"),
    (("variants", 0, "file"), "\ud800", "plain relative path"),
    (("variants", 0, "file"), "x" * 256, "plain relative path"),
    (("variants", 0, "file"), "a\u202eb", "plain relative path"),
    (("variants", 0, "requires"), ["avx1024"], "'requires' names 'avx1024'"),
])
def test_absurd_values(whole, keys, value, says):
    with pytest.raises(BundleError, match=says) as caught:
        from_json(changed(whole, *keys, value=value), where="m")
    assert len(caught.value.message) < 500


def test_limits_are_no_hindrance(whole):
    many = changed(changed(whole, "labels", value=[f"l{i}" for i in range(limits.LABELS)]),
                   "variants", 0, "outputs", 0, "shape", value=["N", limits.LABELS])
    assert len(from_json(many, where="m").labels) == limits.LABELS
    large = changed(changed(whole, "preprocess", "size_hw", value=[4096, 4096]), "variants", 0, "size_bytes",
                    value=limits.GRAPH_BYTES)
    assert from_json(large, where="m").preprocess.size_hw == (4096, 4096)


FILLS = ("[],", "{},", '{"":0},', "0,", '"",', "1.5,")


def full_of(fill: str, whole: str) -> str:
    """A manifest with a mebibyte of this."""
    return whole.rstrip()[:-1] + f', "later": [{fill * ((1 << 20) // len(fill))}0]}}'


@pytest.mark.parametrize("fill", FILLS)
def test_a_manifest_full_of_nothing_takes_no_more_work_than_it_has_parts(whole, fill):
    def calls_of(text: str) -> int:
        calls = [0]

        def count(frame, event, what):
            calls[0] += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            assert from_json(text, where="m").labels == LABELS
        finally:
            sys.setprofile(before)
        return calls[0]

    assert calls_of(full_of(fill, whole)) < calls_of(whole) + 10 * (1 << 20) / len(fill)


@pytest.mark.slow  # how long that takes is for a machine that is not busy
@pytest.mark.parametrize("fill", FILLS)
def test_a_manifest_full_of_nothing_takes_seconds_at_most(whole, fill):
    begin = time.process_time()
    assert from_json(full_of(fill, whole), where="m").labels == LABELS
    assert time.process_time() - begin < 2.5


@pytest.mark.parametrize("path", ["fp32.onnx", "a/b/c.onnx", "é ü.onnx", "x86-vnni.int8.onnx", ".hidden", "a..b"])
def test_names_that_stay_inside(path):
    assert stays_inside(path)


def test_control_characters():
    assert not has_control("Größe 1 µm, 漢字, caf\udce9")
    assert all(has_control(f"a{one}b") for one in "\0\x07\t\n\x1b\x7f\x9b\ud800")


# ---------------------------------------------------------------------------------------------------- golden images


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def arrays(bundle: Path) -> dict:
    with np.load(bundle / "golden.npz") as found:
        return dict(found)


def with_golden(bundle: Path, data: bytes) -> Path:
    (bundle / "golden.npz").write_bytes(data)
    edit_manifest(bundle, "golden", "sha256", value=hashlib.sha256(data).hexdigest())
    edit_manifest(bundle, "golden", "size_bytes", value=len(data))
    return bundle


def npz(members: dict[str, bytes], **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as packed:
        for name, data in members.items():
            packed.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(array: np.ndarray, **header) -> bytes:
    """The bytes of a .npy file, with a header that may lie."""
    buffer = io.BytesIO()
    plain = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(buffer, plain | header)
    return buffer.getvalue() + array.tobytes()


def members(bundle: Path) -> dict[str, bytes]:
    return {name: npy(value) for name, value in arrays(bundle).items()}


def test_golden_images_come_as_numpy_would_read_them(bundle):
    found, expected = read_golden(open_bundle(bundle)), arrays(bundle)
    assert np.array_equal(found.tensor, expected["tensor"]) and np.array_equal(found.logits, expected["logits"])
    assert [np.frombuffer(one, np.uint8).tolist() for one in found.sources] == [
        expected["source_000"].tolist(), expected["source_001"].tolist()]
    assert found.features is None
    features = np.ones((2, 5), np.float32)
    found = read_golden(open_bundle(with_golden(bundle, npz(members(bundle) | {"features": npy(features)}))))
    assert np.array_equal(found.features, features)


def test_a_zip_bomb_is_not_unpacked(bundle):
    bomb = npz(members(bundle) | {"tensor": npy(np.zeros((2, 3, 600, 600), np.float32))},
               compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1e5
    with pytest.raises(BundleError, match="members are compressed"):
        read_golden(open_bundle(with_golden(bundle, bomb)))


LYING = {
    "a petabyte": {"shape": (2, 3, 10**6, 10**8)},
    "a shape beyond 64 bits": {"shape": (2, 3, 2**40, 2**40)},
    "nothing": {"shape": (0, 3, 16, 16)},
    "a negative shape": {"shape": (-2, 3, 16, -16)},
    "objects": {"descr": "|O"},
    "texts": {"descr": "<U9999999"},
    "float64": {"descr": "<f8"},
    "records": {"descr": [("a", "<f4")]},
    "another order of axes": {"fortran_order": True},
}


@pytest.mark.parametrize("lie", LYING)
def test_headers_that_lie(bundle, lie):
    tensor = npy(arrays(bundle)["tensor"], **LYING[lie])
    data = npz(members(bundle) | {"tensor": tensor})
    with pytest.raises(BundleError, match="not a file of plain arrays"):
        read_golden(open_bundle(with_golden(bundle, data)))


@pytest.mark.parametrize("header", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x09\x00" + bytes(99),
                                    b"\x93NUMPY\x01\x00\x10\x00" + b"((((((((((((((((", bytes(200),
                                    b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': ("
                                    + b"1" * 65_000])
def test_members_that_are_no_arrays(bundle, header):
    with pytest.raises(BundleError, match="not a file of plain arrays"):
        read_golden(open_bundle(with_golden(bundle, npz(members(bundle) | {"tensor": header}))))


def test_other_arrays_than_expected(bundle):
    plain = members(bundle)
    for data, says in ((npz(plain | {"more": npy(np.zeros(3, np.float32))}), "holds"),
                       (npz({name: one for name, one in plain.items() if name != "logits"}), "holds"),
                       (npz(plain | {"logits": npy(np.zeros((2, 9), np.float32))}), "9 columns, but there are 3"),
                       (npz(plain | {"logits": npy(np.full((2, 3), np.inf, np.float32))}), "'logits' .* not finite"),
                       (npz(plain | {"tensor": npy(np.full((2, 3, 16, 16), np.nan, np.float32))}), "not finite"),
                       (npz(plain | {"tensor": npy(np.zeros((3, 3, 16, 16), np.float32))}), "and 2 images")):
        with pytest.raises(BundleError, match=says):
            read_golden(open_bundle(with_golden(bundle, data)))


def test_members_on_top_of_one_another(bundle):
    """Every entry of the table points at the same bytes, so that a small file would become a large one."""
    data = bytearray(npz(members(bundle)))
    start = data.index(b"PK\x01\x02")
    big = max(zipfile.ZipFile(io.BytesIO(data)).infolist(), key=lambda one: one.file_size)
    place = start
    while (place := data.find(b"PK\x01\x02", place)) >= 0:
        struct.pack_into("<3L", data, place + 16, big.CRC, big.file_size, big.file_size)
        struct.pack_into("<L", data, place + 42, big.header_offset)
        place += 4
    with pytest.raises(BundleError, match="not a file of plain arrays"):
        read_golden(open_bundle(with_golden(bundle, bytes(data))))


def test_a_long_name_is_not_quoted_whole(bundle):
    """Found by the fuzzer: a length in a header that is wrong made a sentence of thousands of bytes."""
    data = bytearray(npz(members(bundle)))
    struct.pack_into("<H", data, 26, 9000)  # of the first member's name
    with pytest.raises(BundleError, match="not a file of plain arrays") as caught:
        read_golden(open_bundle(with_golden(bundle, bytes(data))))
    assert len(caught.value.message) < 600


def test_a_table_without_end_is_not_read(bundle):
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    table = entry * 50_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 50_000, 50_000, len(table), 0, 0)
    with pytest.raises(BundleError, match="does not end as a file of arrays ends"):
        read_golden(open_bundle(with_golden(bundle, table + end)))


@pytest.fixture(scope="module")
def spare(tmp_path_factory) -> tuple[Path, bytes]:
    bundle = make_bundle(tmp_path_factory.mktemp("spare") / "b")
    return bundle, (bundle / "golden.npz").read_bytes()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_change_of_a_golden_file_is_arrays_or_a_sentence(spare, data):
    bundle, content = spare[0], bytearray(spare[1])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1,
                                           max_size=8)):
        content[place] = value
    cut = data.draw(st.integers(0, len(content)))
    try:
        read_golden(open_bundle(with_golden(bundle, bytes(content[:cut] if cut % 3 == 0 else content))))
    except BundleError as problem:
        assert "\n" not in problem.message


def test_an_absurd_preprocessing_is_no_warning(bundle):
    """Warnings are errors here: at the limits arithmetic stays finite or is refused as not finite."""
    for scale, mean, std in ((1e6, -1e6, 1e-6), (1e-6, 1e6, 1e6), (1e-6, 0, 1e6)):
        edit_manifest(bundle, "preprocess", "scale", value=scale)
        edit_manifest(bundle, "preprocess", "mean", value=[mean] * 3)
        edit_manifest(bundle, "preprocess", "std", value=[std] * 3)
        with load(bundle, threads=1) as classifier:
            try:
                classifier.predict(np.full((20, 20, 3), 255, np.uint8))
            except EdgetlError as problem:
                assert "not finite" in problem.message
