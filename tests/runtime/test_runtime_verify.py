"""`verify` lets a good bundle pass and says what was planted in a bad one."""

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import edit_manifest, encode, give_features, make_bundle, make_photo

from edgetl.errors import BackendUnavailable, BundleError, GateFailed
from edgetl.runtime import processor, verify
from edgetl.runtime.golden import Golden
from edgetl.runtime.preprocess import Preprocess, prepare
from edgetl.runtime.verifying import check_preprocess


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", second={"requires": ("avx2",)})


@pytest.fixture
def copy(bundle, tmp_path):
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def rewrite_golden(folder: Path, **changes):
    """Puts other arrays into golden.npz, and its new digest into the manifest."""
    with np.load(folder / "golden.npz") as arrays:
        found = {**dict(arrays), **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in found.items() if value is not None})
    replace_golden(folder, buffer.getvalue())


def replace_golden(folder: Path, data: bytes):
    (folder / "golden.npz").write_bytes(data)
    edit_manifest(folder, "golden", "sha256", value=hashlib.sha256(data).hexdigest())
    edit_manifest(folder, "golden", "size_bytes", value=len(data))


@pytest.mark.parametrize("backend", ["auto", "cpu", "openvino"])
def test_a_good_bundle_passes(bundle, backend):
    report = verify(bundle, backend=backend, threads=1)
    assert (report.images, report.kind) == (2, "synthetic")
    by_name = {check.name: check for check in report.checks}
    assert list(by_name) == ["fp32.onnx", "other.onnx", "golden.npz", "preprocess", "fp32", "other"]
    assert all(check.status == "passed" for check in report.checks)
    assert by_name["preprocess"].measured < 0.01
    assert by_name["fp32"].measured < 1e-4
    assert ("cpu" if backend == "auto" else backend) in by_name["fp32"].note


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("mean", [0.5, 0.5, 0.5], "mean, std or scale differ"),
        ("mean", [0.487, 0.456, 0.406], "mean, std or scale differ"),
        ("std", [0.25, 0.25, 0.25], "mean, std or scale differ"),
        ("scale", 1 / 128, "mean, std or scale differ"),
        ("color", "bgr", "red and blue are swapped"),
        ("interpolation", "nearest", "resizing or cropping differ"),
        ("interpolation", "bilinear", "resizing or cropping differ"),
        ("interpolation", "lanczos", "resizing or cropping differ"),
        ("resize_mode", "squash", "resizing or cropping differ"),
        ("resize_mode", "letterbox", "resizing or cropping differ"),
        ("crop_fraction", 0.9, "resizing or cropping differ"),
        ("crop_fraction", 1.0, "resizing or cropping differ"),
        ("size_hw", [24, 24], r"\[3, 16, 16\], the manifest makes \[3, 24, 24\]"),
    ],
)
def test_wrong_preprocessing_is_caught_and_named(copy, field, value, says):
    edit_manifest(copy, "preprocess", field, value=value)
    with pytest.raises(GateFailed, match=says) as caught:
        verify(copy)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("The preprocessing differs from training's")


def test_by_how_much_is_told(copy):
    edit_manifest(copy, "preprocess", "color", value="bgr")
    with pytest.raises(
        GateFailed, match=r"image 0 is \d+.* grey levels away on average and \d+.* at most, expected 0.25"
    ):
        verify(copy)


def test_one_grey_level_here_and_there_is_another_decoder_but_a_shift_is_not(copy):
    tensor = np.load(copy / "golden.npz")["tensor"]
    level = np.float32(1 / 255 / 0.226)
    few = np.random.default_rng(0).random(tensor.shape) < 0.1
    rewrite_golden(copy, tensor=tensor + few * level)
    edit_manifest(copy, "variants", 0, "tolerance", value=1.0)
    edit_manifest(copy, "variants", 1, "tolerance", value=1.0)
    checks = {check.name: check for check in verify(copy).checks}
    assert 0.9 < checks["preprocess"].measured < 1.1
    rewrite_golden(copy, tensor=tensor + level)
    with pytest.raises(GateFailed, match="on average"):
        verify(copy)


@pytest.mark.parametrize("file", ["fp32.onnx", "other.onnx", "golden.npz"])
def test_altered_files_are_a_bundle_error(copy, file):
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    with pytest.raises(BundleError, match=f"{file} was altered"):
        verify(copy)


def test_other_logits_are_caught(copy):
    logits = np.load(copy / "golden.npz")["logits"]
    wrong = logits.copy()
    wrong[1, 2] += 0.5
    rewrite_golden(copy, logits=wrong)
    with pytest.raises(
        GateFailed, match=r"Variant 'fp32' on 'cpu'.*golden image 1 is 0\.5 away, expected at most 0\.001"
    ):
        verify(copy)
    rewrite_golden(copy, logits=np.full_like(logits, np.nan))
    with pytest.raises(BundleError, match="'logits' holds numbers that are not finite"):
        verify(copy)


def test_the_second_variant_is_checked_too(copy):
    edit_manifest(copy, "variants", 1, "tolerance", value=0)
    logits = np.load(copy / "golden.npz")["logits"]
    rewrite_golden(copy, logits=logits + np.float32(1e-4))
    with pytest.raises(GateFailed, match="Variant 'other'"):
        verify(copy)


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_features_are_checked(copy, backend):
    give_features(copy)
    checks = {check.name: check for check in verify(copy, backend=backend, threads=1).checks}
    assert checks["fp32 features"].status == "passed" and checks["fp32 features"].measured < 1e-4
    assert checks["fp32 features"].unit == "feature" and "other features" not in checks


def test_other_features_are_caught_and_what_cannot_be_checked_is_told(copy):
    give_features(copy)
    features = np.load(copy / "golden.npz")["features"]
    wrong = features.copy()
    wrong[0, 1] += 0.2
    rewrite_golden(copy, features=wrong)
    with pytest.raises(GateFailed, match=r"Variant 'fp32' on 'cpu' gives other features .*: golden image 0 is 0\.2 "):
        verify(copy)
    rewrite_golden(copy, features=features[:, :3].copy())
    with pytest.raises(GateFailed, match=r"gives features \[2, 4\], golden\.npz holds \[2, 3\]"):
        verify(copy)
    edit_manifest(copy, "variants", 0, "features_tolerance", value=None)
    assert {one.name: one.note for one in verify(copy).checks}["fp32 features"].endswith("has no features_tolerance")
    rewrite_golden(copy, features=None)
    told = {check.name: check for check in verify(copy).checks}["fp32 features"]
    assert told.status == "skipped" and told.note == "golden.npz holds no features"


def test_variants_that_cannot_run_here_are_told(copy, monkeypatch):
    monkeypatch.setattr(processor, "flags", lambda cpuinfo=None: frozenset())
    checks = {check.name: check for check in verify(copy).checks}
    assert checks["fp32"].status == "passed"
    assert checks["other"].status == "skipped"
    assert "avx2" in checks["other"].note


def test_when_nothing_can_be_verified_it_does_not_pass(copy, monkeypatch):
    monkeypatch.setattr(processor, "flags", lambda cpuinfo=None: frozenset())
    edit_manifest(copy, "variants", 0, "requires", value=["vnni"])
    with pytest.raises(BackendUnavailable, match="vnni"):
        verify(copy)


def test_a_bundle_without_a_golden_file(copy):
    edit_manifest(copy, "golden", value={})
    with pytest.raises(BundleError, match="no golden file"):
        verify(copy)


def test_golden_files_that_hold_something_else(copy):
    good = (copy / "golden.npz").read_bytes()
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    for data in (b"junk", b"", buffer.getvalue(), good[: len(good) // 2]):
        replace_golden(copy, data)
        with pytest.raises(BundleError, match=r"golden\.npz is not a file of plain arrays"):
            verify(copy)
    replace_golden(copy, good)
    rewrite_golden(copy, source_001=None)
    with pytest.raises(BundleError, match=r"expected .'source_000', 'source_001'"):
        verify(copy)


def test_a_pickle_in_the_golden_file_is_never_loaded(copy):
    rewrite_golden(copy, tensor=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BundleError, match="not a file of plain arrays"):
        verify(copy)


def test_golden_arrays_of_another_shape(copy):
    rewrite_golden(copy, logits=np.zeros((5, 3), np.float32))
    with pytest.raises(BundleError, match="'logits'"):
        verify(copy)


@pytest.mark.parametrize("color, channels", [("rgb", 3), ("bgr", 3), ("gray", 1)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_every_layout_and_colour_order_is_compared(color, channels, layout):
    preprocess = Preprocess(size_hw=(12, 18), color=color, layout=layout, mean=(0.4,) * channels, std=(0.2,) * channels)
    source = encode(make_photo(4))
    tensor = prepare(source, preprocess)[None]
    golden = Golden((source,), tensor, np.zeros((1, 2), np.float32))
    assert check_preprocess(golden, preprocess).measured == 0
    with pytest.raises(GateFailed, match="mean, std or scale differ"):
        check_preprocess(Golden((source,), tensor + np.float32(0.1), golden.logits), preprocess)
    with pytest.raises(GateFailed, match="cropping differ"):
        check_preprocess(Golden((source,), tensor[:, ::-1, ::-1, ::-1].copy(), golden.logits), preprocess)
