"""`open_data`: what --data may say, and one sentence for everything that is wrong with it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from edgetl import plugins
from edgetl.datasets import DataSet, open_data
from edgetl.datasets._png import encode
from edgetl.errors import DataError, EdgetlError


def sentence(spec: str | Path) -> str:
    """Message and hint of the DataError that opening `spec` must raise."""
    with pytest.raises(DataError) as caught:
        open_data(str(spec))
    assert caught.value.hint, "every error says what to do"
    assert "\n" not in caught.value.message
    return f"{caught.value.message} | {caught.value.hint}"


def splits_of(data: DataSet) -> dict[str | None, int]:
    found = [item.split for item in data.items]
    return {split: found.count(split) for split in dict.fromkeys(found)}


def write(path: Path, content: bytes = b"image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ----------------------------------------------------------------------------------------------------- what --data says

def test_a_name_with_a_typing_error_suggests_the_nearest() -> None:
    assert "Did you mean 'elpv'?" in sentence("elpw")
    assert "Did you mean 'fashion-mnist'?" in sentence("fashion_mnst")
    assert "digits" in sentence("nothing-like-it")


@pytest.mark.parametrize("spec", ["no/such/folder", "./nothing", "~/nothing", "../nothing"])
def test_a_missing_folder_is_called_missing(spec: str) -> None:
    assert f"{spec} does not exist" in sentence(spec)


def test_an_empty_spec() -> None:
    assert "--data is empty" in sentence(" ")


def test_a_file_where_a_folder_was_expected(tmp_path: Path) -> None:
    file = write(tmp_path / "photos.csv")
    assert f"{file} is a file" in sentence(file)
    assert f"csv:{file}" in sentence(file)


def test_a_home_that_does_not_exist() -> None:
    assert "cannot be looked up" in sentence("~nobody-of-this-name/photos")


def test_a_path_that_is_too_long() -> None:
    assert "cannot be looked up" in sentence("x" * 5000)


@settings(deadline=None, max_examples=100)
@given(spec=st.text(max_size=12) | st.from_regex(r"(csv|elpv|digits|folder|x\.y):?[a-z.]{0,3}", fullmatch=True))
def test_whatever_is_said_opens_or_is_explained(empty_folder: Path, spec: str) -> None:
    if Path(spec).exists():  # '.', '/', ...: what is there is no business of this test
        return
    try:
        assert open_data(spec).items
    except EdgetlError as problem:
        assert problem.hint


@pytest.fixture(scope="module")
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("empty")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a/1.png", "b/deep/1.png"):
        write(tmp_path / key)
    plain = os.scandir

    def scandir(path: str | Path) -> object:
        if str(path).endswith("deep"):  # root may read everything, so permissions alone would not do
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert f"{tmp_path}/b/deep cannot be read: Permission denied" in sentence(tmp_path)


def test_an_existing_folder_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("elpv/a/1.png", "elpv/b/1.png"):
        write(tmp_path / key)
    monkeypatch.chdir(tmp_path)
    assert open_data("elpv").labels == ("a", "b")


def test_the_source_is_what_was_said(tmp_path: Path) -> None:
    for key in ("a/1.png", "b/1.png"):
        write(tmp_path / key)
    assert open_data(str(tmp_path)).source == str(tmp_path)
    assert open_data("digits").source == "digits"


def test_the_users_own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "myparts" / "__init__.py", b"")
    write(tmp_path / "myparts" / "bolts.py", b"from edgetl.datasets import DataSet\n"
          b"def load(argument):\n    return DataSet(argument, ('a', 'b'), (), lambda item: b'')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_data("myparts.bolts:big").name == "big"
    sys.modules.pop("myparts", None)


@pytest.mark.parametrize("name", ["folder", "csv"])
def test_sets_that_need_a_path(name: str) -> None:
    assert "needs a" in sentence(name)


def test_every_data_set_has_load() -> None:
    assert {"folder", "csv", "elpv", "digits", "fashion-mnist", "cifar10"} <= set(plugins.names("datasets"))
    for name in plugins.names("datasets"):
        assert callable(plugins.load("datasets", name).load)


# ------------------------------------------------------------------------------------------------------------- folders

def test_class_folders_to_be_split(tmp_path: Path) -> None:
    for key in ("b/2.PNG", "b/sub/1.jpeg", "a/1.JPG", "a/.hidden.jpg", ".git/x.jpg", "a/Thumbs.db", "loose.jpg"):
        write(tmp_path / key, key.encode())
    data = open_data(str(tmp_path))
    assert data.labels == ("a", "b")
    assert [(item.key, item.label, item.split) for item in data.items] == [
        ("a/1.JPG", 0, None), ("b/2.PNG", 1, None), ("b/sub/1.jpeg", 1, None)]
    assert [data.read(item) for item in data.items] == [b"a/1.JPG", b"b/2.PNG", b"b/sub/1.jpeg"]
    assert any("a/Thumbs.db" in note for note in data.notes)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_folders_of_splits(tmp_path: Path, val: str) -> None:
    for part in ("train", val, "test", "extra"):
        for key in ("a/1.png", "b/1.png"):
            write(tmp_path / part / key)
    data = open_data(str(tmp_path))
    assert splits_of(data) == {"test": 2, "train": 2, "val": 2}
    assert {item.key for item in data.items if item.split == "val"} == {f"{val}/a/1.png", f"{val}/b/1.png"}
    assert any("extra" in note for note in data.notes)
    assert any(f"'{val}'" in note for note in data.notes) == (val != "val")


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    for key in ("train/1.png", "bus/1.png", "test/1.png"):
        write(tmp_path / key)
    data = open_data(str(tmp_path))
    assert data.labels == ("bus", "test", "train")
    assert splits_of(data) == {None: 3}


BAD_FOLDERS = {
    "nothing": ([], "no class folders and no images"),
    "loose images": (["1.jpg"], "images without a class folder (such as 1.jpg)"),
    "no images": (["a/1.txt", "b/2.txt"], "holds no images"),
    "an empty class folder": (["a/1.png", "empty/"], "empty holds no images"),
    "a class of hidden files": (["a/1.png", "b/.1.png"], "b holds no images"),
    "one class": (["a/1.png", "a/2.png"], "one class only ('a')"),
    "one class in train": (["train/a/1.png"], "one class only ('a')"),
    "a class that train lacks": (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "val has the class 'c'"),
    "an empty class in val": (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/"], "b holds no images"),
    "no train": (["val/a/1.png", "test/a/1.png"], "no 'train'"),
    "two names for val": (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"], "mean the same split"),
    "a split without classes": (["train/a/1.png", "train/b/1.png", "test/1.png"], "test holds no class folders"),
}


@pytest.mark.parametrize(("keys", "expected"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_bad_folders(tmp_path: Path, keys: list[str], expected: str) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for key in keys:
        if key.endswith("/"):
            (root / key).mkdir(parents=True)
        else:
            write(root / key)
    found = sentence(root)
    assert expected in found
    assert str(root) in found


def test_an_image_that_vanished(tmp_path: Path) -> None:
    for key in ("a/1.png", "b/1.png"):
        write(tmp_path / key)
    data = open_data(str(tmp_path))
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(DataError, match=r"a/1\.png cannot be read"):
        data.read(data.items[0])


# ----------------------------------------------------------------------------------------------------------------- csv

def table(tmp_path: Path, text: str, *, encoding: str = "utf-8") -> str:
    for name in ("1.png", "2.png", "3.png", "with, comma.png"):
        write(tmp_path / "images" / name, name.encode())
    file = tmp_path / "labels.csv"
    file.write_text(text, encoding=encoding)
    return f"csv:{file}"


def test_a_table(tmp_path: Path) -> None:
    data = open_data(table(tmp_path, "path,label,split,weight,camera\nimages/2.png,cat,train,0.5,x\n"
                           "images/1.png,dog,train,,y\n\n\"images/with, comma.png\",cat,valid,1,z\n"))
    assert data.labels == ("cat", "dog")
    assert [(item.key, item.label, item.split, item.weight) for item in data.items] == [
        ("images/1.png", 1, "train", 1.0), ("images/2.png", 0, "train", 0.5), ("images/with, comma.png", 0, "val", 1.0)]
    assert data.read(data.items[0]) == b"1.png"
    assert any("camera" in note for note in data.notes)


def test_a_table_from_a_spreadsheet(tmp_path: Path) -> None:
    spec = table(tmp_path, "Path,Label\r\nimages/1.png,10\r\nimages/2.png,9\r\n", encoding="utf-8-sig")
    assert open_data(spec).labels == ("9", "10"), "whole numbers sort as numbers"


BAD_TABLES = {
    "empty": ("", "line 1 has no column 'path'"),
    "no header": ("images/1.png,cat\n", "line 1 has no column 'path'; found: images/1.png, cat"),
    "no label": ("path,class\nimages/1.png,cat\n", "no column 'label'"),
    "twice the same column": ("path,label,label\n", "'label' twice"),
    "only a header": ("path,label\n", "lists no images"),
    "too few cells": ("path,label\nimages/1.png,cat\nimages/2.png\n", "line 3 has 1 cells, expected 2"),
    "missing image": ("path,label\nimages/1.png,a\nimages/9.png,b\n", "line 3: the image 'images/9.png' does not"),
    "empty label": ("path,label\nimages/1.png,\n", "line 2: 'label' is empty"),
    "two lines": ("path,label\nimages/1.png,a\nimages/1.png,b\n", "line 3: 'images/1.png' is listed in line 2 already"),
    "unknown split": ("path,label,split\nimages/1.png,a,dev\n", "'split' is 'dev', expected train, val or test"),
    "split missing": ("path,label,split\nimages/1.png,a,train\nimages/2.png,b,\n", "line 3: 'split' is ''"),
    "bad weight": ("path,label,weight\nimages/1.png,a,heavy\n", "'weight' is 'heavy', expected a number above 0"),
    "weight of nothing": ("path,label,weight\nimages/1.png,a,0\n", "'weight' is '0'"),
    "weight that is not finite": ("path,label,weight\nimages/1.png,a,inf\n", "'weight' is 'inf'"),
    "one class": ("path,label\nimages/1.png,a\nimages/2.png,a\n", "one class only ('a')"),
    "untrained class": ("path,label,split\nimages/1.png,a,train\nimages/2.png,b,test\n", "no training image of the"),
    "open quote": ('path,label\n"images/1.png,a\n', "is not CSV"),
}


@pytest.mark.parametrize(("text", "expected"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables(tmp_path: Path, text: str, expected: str) -> None:
    found = sentence(table(tmp_path, text))
    assert expected in found
    assert "labels.csv" in found


def test_all_lines_are_looked_at(tmp_path: Path) -> None:
    assert "2 more line(s)" in sentence(table(tmp_path, "path,label\nx.png,a\ny.png,b\nz.png,c\n"))


def test_a_missing_table(tmp_path: Path) -> None:
    assert "nothing.csv cannot be read" in sentence(f"csv:{tmp_path / 'nothing.csv'}")


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", b"path,label\n\xff\xfe,\x80\n")
    assert "is not UTF-8 text" in sentence(f"csv:{file}")


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: ("path,label\n" + text).encode()))
def test_any_bytes_are_a_table_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = write(tmp_path_factory.mktemp("any") / "x.csv", content)
    with pytest.raises(EdgetlError):
        open_data(f"csv:{file}")


# ---------------------------------------------------------------------------------------------------------- named sets

@settings(deadline=None, max_examples=50)
@given(pixels=arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))
                            | st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_png_gives_back_the_pixels(pixels: np.ndarray) -> None:
    with Image.open(io.BytesIO(encode(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_png_larger_than_one_block() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 250, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_png_bytes_are_the_same_everywhere() -> None:
    # Fingerprints of data sets depend on these bytes: a change here is a change of every recorded fingerprint.
    assert encode(np.array([[7]], np.uint8)).hex() == (
        "89504e470d0a1a0a0000000d4948445200000001000000010800000000" "3a7e9b55"
        "0000000d49444154" "7801" "010200fdff" "0007" "00090008" "b9ac8687" "0000000049454e44ae426082")


def test_digits() -> None:
    data = open_data("digits")
    assert (len(data.items), data.labels) == (1797, tuple("0123456789"))
    with Image.open(io.BytesIO(data.read(data.items[0]))) as image:
        assert (image.size, image.mode) == ((8, 8), "L")
        assert np.asarray(image).max() == 239  # grey level 15 of 16
    assert "no argument" in sentence("digits:x")


def test_elpv_counts_and_weights() -> None:
    data = open_data("elpv")
    found = [(data.labels[item.label], round(item.weight, 3)) for item in data.items]
    assert {one: found.count(one) for one in set(found)} == {
        ("functional", 1.0): 1508, ("defective", 0.333): 295, ("defective", 0.667): 106, ("defective", 1.0): 715}
    assert data.read(data.items[0]).startswith(b"\x89PNG")
    assert any("CC BY-NC-SA 4.0" in note for note in data.notes)
    assert any("module" in note for note in data.notes)


def test_elpv_by_majority() -> None:
    data = open_data("elpv:majority")
    found = [(data.labels[item.label], round(item.weight, 3)) for item in data.items]
    assert {one: found.count(one) for one in set(found)} == {
        ("functional", 1.0): 1508, ("functional", 0.667): 295, ("defective", 0.667): 106, ("defective", 1.0): 715}
    assert "elpv:majority" in sentence("elpv:most")


def test_elpv_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EdgetlError, match="elpv-dataset") as caught:
        open_data("elpv")
    assert "pip install elpv-dataset" in str(caught.value.hint)


def test_a_class_name_that_is_no_text_is_refused_and_a_file_name_is_not(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", classes=2, images=2)
    odd = os.fsdecode(b"caf\xe9.png")
    (photos / "amber" / "000.png").rename(photos / "amber" / odd)
    assert f"amber/{odd}" in {item.key for item in open_data(str(photos)).items}
    (photos / "amber").rename(photos / os.fsdecode(b"\xe9clair"))
    with pytest.raises(DataError, match=r"\\udce9clair is not UTF-8 text"):
        open_data(str(photos))
