"""`shards:`: what tar files hold, where each image lies, and one sentence for everything that is wrong with them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import splits
from edgetl.datasets import DataSet, _braces, _places, _shard_index, open_data
from edgetl.errors import DataError, DataGone, MissingDependency, OutputError
from edgetl.events import Event
from edgetl.recipe_fields import DataFields

Members = Sequence[tuple[str, bytes]]

# What webdataset.TarWriter 1.0.2 wrote of two samples (jpg, cls, json and png, cls, txt), compressed, in base 85.
WEBDATASET = (
    "c-rmSK~94}7=~fio`P@yI{(Z7#l*y=ORs<hD{6t1F(EPDT}%^=!Rm^s%KL2Ev?N`9c{{Z6DqdY)7sFLml+`|%g*rI)sFblE&);4br9}tf"
    "5P0y^yJA0ne6UP<9qwGct1cwV6Qd>9c`Vi_N!Moq{=M$5b#1>oEHB<X_A~9@T6=u|N&-pDcu}TAWZb_oHVZ=KbN@H>wk%w6^tzwk|D%Kn"
    "ELu$e>HoC<VslIX7uWy$ZhMmcCzJjsn*RH6Tkm_v4Cwz!`){WG7y9p||Jj%Q*ILN`0{h>$%?bK1ll~{;<@Dc!=jfqs%IG|dhUkSk(0|VV"
    "od3uE=b7dUz{2`3zv%vdqUgU5iV4tv`cMBq_unKr{a;@HyXG|a|I<nTQ~K{kUv1i^WC!%0{?q^W{#(&0{a;-F-QZ^0|M&O*C+B~w`2U|5"
    "MYt(CSI_aY4*&oF000000000006cgFPz5A{"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tar(members: Members) -> bytes:
    """A tar file as the webdataset library writes it: one member after the other, no folders."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w|") as opened:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    return held.getvalue()


def samples(count: int, classes: int = 2, *, begin: str = "s") -> list[tuple[str, bytes]]:
    """`count` images, which are short texts, with their numbers modulo `classes` as labels."""
    found = []
    for place in range(count):
        found += [(f"{begin}{place:03d}.cls", b"%d" % (place % classes)), (f"{begin}{place:03d}.jpg", b"%d" % place)]
    return found


def write(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar(members))
    return path


def sentence(spec: str) -> str:
    with pytest.raises(DataError) as caught:
        open_data(spec)
    assert caught.value.hint and "\n" not in caught.value.message
    return caught.value.message


def read_all(data: DataSet) -> dict[str, tuple[str, bytes]]:
    return {item.key: (data.labels[item.label], data.read(item)) for item in data.items}


# ------------------------------------------------------------------------------------------------------ what is in them

def test_images_are_read_by_their_range_in_any_order(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"train-{number:03d}.tar", samples(4, begin=f"{number}-"))
    data = open_data(f"shards:{tmp_path}/train-{{000..002}}.tar")
    assert (len(data.items), data.labels, data.name) == (12, ("0", "1"), tmp_path.name)
    assert [item.key for item in data.items] == sorted(item.key for item in data.items)
    item = data.items[7]
    assert (item.key, data.read(item), item.label) == ("train-001.tar/1-003.jpg", b"3", 1)
    assert data.digest is not None
    for one in reversed(data.items):
        assert data.digest(one) == hashlib.sha256(data.read(one)).hexdigest()


def test_a_shard_that_the_webdataset_library_wrote(tmp_path: Path) -> None:
    shard = tmp_path / "w.tar"
    shard.write_bytes(zlib.decompress(base64.b85decode(WEBDATASET)))
    assert read_all(open_data(f"shards:{shard}")) == {
        "w.tar/photos/000000.jpg": ("1", b"first"), "w.tar/photos/000001.png": ("0", b"second")}


def test_wildcards_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.tar", samples(2))
    write(tmp_path / "b.tar", samples(2))
    monkeypatch.chdir(tmp_path)
    keys = [item.key for item in open_data("shards:*.tar").items]
    assert keys == [item.key for item in open_data("shards:{a,b}.tar").items]
    assert keys[0] == "a.tar/s000.jpg" and keys[-1] == "b.tar/s001.jpg"


def test_splits_of_their_own(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 4)):
        write(tmp_path / split / "0.tar", samples(count))
    data = open_data(f"shards:train={tmp_path}/train/0.tar;valid={tmp_path}/val/*.tar;test={tmp_path}/test/0.tar")
    assert [item.split for item in data.items] == ["test"] * 4 + ["train"] * 6 + ["val"] * 2
    assert data.items[0].key == "test/0.tar/s000.jpg"


@pytest.mark.parametrize(("ending", "data"), [("cls", b"cat\n"), ("txt", b" cat "), ("json", b'{"label": "cat"}')])
def test_labels_are_read_from_each_kind_of_member(tmp_path: Path, ending: str, data: bytes) -> None:
    shard = write(tmp_path / "a.tar", [("1.png", b"1"), (f"1.{ending}", data), ("2.cls", b"dog"), ("2.png", b"2")])
    assert read_all(open_data(f"shards:{shard}")) == {"a.tar/1.png": ("cat", b"1"), "a.tar/2.png": ("dog", b"2")}


def test_a_caption_beside_a_class_is_no_label_and_json_fields_have_names(tmp_path: Path) -> None:
    said = [{"label": 1, "kind": "b"}, {"label": 0, "kind": "a"}]
    members = [(f"{place}.{ending}", data) for place, one in enumerate(said) for ending, data in
               (("txt", b"a caption %d" % place), ("json", json.dumps(one).encode()), ("JPG", b"%d" % place))]
    shard = write(tmp_path / "a.tar", members)
    assert [item.label for item in open_data(f"shards:{shard}").items] == [1, 0]
    assert open_data(f"shards:{shard};label=kind").labels == ("a", "b")
    assert open_data(f"shards:{shard};label=other").labels == ("a caption 0", "a caption 1")


def test_numbers_sort_as_numbers_and_classes_txt_names_them(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", samples(22, classes=11))
    assert open_data(f"shards:{shard}").labels[-2:] == ("9", "10")
    names = [f"class {place}" for place in range(12)]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    data = open_data(f"shards:{shard}")
    assert data.labels == tuple(names) and data.items[10].label == 10
    (tmp_path / "classes.txt").write_text("\n".join(names[:5]))
    assert sentence(f"shards:{shard}") == "The label '10' is none of the 5 classes that are listed."
    other = tmp_path / "other.txt"
    other.write_text("\n".join(reversed(names)))
    assert open_data(f"shards:{shard};classes={other}").labels[0] == "class 11"
    assert "does not exist" in sentence(f"shards:{shard};classes={tmp_path}/none.txt")
    assert "names 2 files" in sentence(f"shards:{shard};classes={tmp_path}/*.txt")


def test_names_beside_classes_txt(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", [("1.png", b"1"), ("1.cls", b"dog"), ("2.png", b"2"), ("2.cls", b"cat")])
    (tmp_path / "classes.txt").write_text("dog\ncow\ncat\n")
    assert [item.label for item in open_data(f"shards:{shard}").items] == [0, 2]
    (tmp_path / "classes.txt").write_text("dog\ncow\n")
    assert "label 'cat' is none of the 2" in sentence(f"shards:{shard}")
    (tmp_path / "classes.txt").write_text("dog\ndog\n")
    assert "lists the class 'dog' twice" in sentence(f"shards:{shard}")


def test_an_array_is_an_image_unless_it_stands_beside_one(tmp_path: Path) -> None:
    both = write(tmp_path / "a.tar", [("1.npy", b"known of it"), ("1.jpg", b"x"), ("1.cls", b"a"),
                                      ("2.cls", b"b"), ("2.jpg", b"y")])
    assert sorted(read_all(open_data(f"shards:{both}")).values()) == [("a", b"x"), ("b", b"y")]
    alone = write(tmp_path / "b.tar", [("1.npy", b"x"), ("1.cls", b"a"), ("2.npy", b"y"), ("2.cls", b"b")])
    assert sorted(read_all(open_data(f"shards:{alone}")).values()) == [("a", b"x"), ("b", b"y")]


def test_what_is_no_sample_is_left_out(tmp_path: Path) -> None:
    odd = [("__meta__/1.jpg", b"1"), ("README", b"x"), ("._1.jpg", b"x"), ("alone.cls", b"7")]
    data = open_data(f"shards:{write(tmp_path / 'a.tar', [*odd, *samples(2)])}")
    assert [item.key for item in data.items] == ["a.tar/s000.jpg", "a.tar/s001.jpg"]
    assert data.notes == ("1 sample(s) without an image were left out.",)


def test_names_that_lead_out_of_a_folder_are_only_names(tmp_path: Path) -> None:
    shard = write(tmp_path / "in" / "a.tar", [("../../x.jpg", b"1"), ("../../x.cls", b"0"), ("/y.jpg", b"2"),
                                              ("/y.cls", b"1")])
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    data = open_data(f"shards:{shard}")
    assert read_all(data) == {"a.tar/../../x.jpg": ("0", b"1"), "a.tar//y.jpg": ("1", b"2")}
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


def test_long_and_foreign_names(tmp_path: Path) -> None:
    long = "f/" * 100 + "ü.jpg"
    shard = write(tmp_path / "a.tar", [(long, b"1"), (long.replace("jpg", "cls"), b"0"), *samples(2)])
    data = open_data(f"shards:{shard}")
    assert read_all(data)[f"a.tar/{long}"] == ("0", b"1")
    assert read_all(open_data(f"shards:{shard}")) == read_all(data)


# ------------------------------------------------------------------------------------------------------- kept and again

def test_a_shard_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(tmp_path / "a.tar", samples(300))
    heard: list[Event] = []
    first = open_data(f"shards:{shard}", listener=heard.append)
    assert [(event.kind, event.values.get("done")) for event in heard] == [
        ("begin", None), ("advance", 256), ("end", None)]
    monkeypatch.setattr(_shard_index._tar, "contents", None)  # may not be called again
    again = open_data(f"shards:{shard}", listener=heard.append)
    assert again.items == first.items and len(heard) == 3


def test_a_changed_shard_is_looked_through_again(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", samples(2))
    assert len(open_data(f"shards:{shard}").items) == 2
    write(shard, samples(4))
    assert len(open_data(f"shards:{shard}").items) == 4
    before = shard.stat()
    write(shard, samples(4, classes=4))
    assert shard.stat().st_size == before.st_size
    os.utime(shard, ns=(0, before.st_mtime_ns + 1))
    assert len(open_data(f"shards:{shard}").labels) == 4


def test_a_shard_that_changes_while_it_is_in_use(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", samples(2))
    data = open_data(f"shards:{shard}")
    write(shard, [*samples(2, begin="t"), ("u.jpg", b"")])
    shard.write_bytes(shard.read_bytes().replace(b"\x001", b"\x007"))
    with pytest.raises(DataGone, match=r"a\.tar changed after .*'a\.tar/s001\.jpg' is not what it was"):
        data.read(data.items[1])
    shard.unlink()
    with pytest.raises(DataGone, match="does not exist"):
        data.read(data.items[0])


def test_a_damaged_index_is_made_anew(tmp_path: Path, cache: Path) -> None:
    shard = write(tmp_path / "a.tar", samples(2))
    open_data(f"shards:{shard}")
    (index,) = cache.rglob("*.npz")
    for damage in (b"", b"PK", index.read_bytes()[:-40]):
        index.write_bytes(damage)
        assert len(open_data(f"shards:{shard}").items) == 2


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    shard = write(tmp_path / "a.tar", samples(2))
    cache.write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        open_data(f"shards:{shard}")


def test_the_fingerprint_needs_no_image_and_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = open_data(f"shards:{write(tmp_path / 'a.tar', samples(40))}")
    wanted = splits.content_digests(DataSet("", data.labels, data.items, data.read))
    unread = DataSet("", data.labels, data.items, lambda item: b"not read", digest=data.digest)
    assert splits.content_digests(unread) == wanted
    first, second = (splits.resolve(one, DataFields(data="")) for one in (data, unread))
    assert first.fingerprint == second.fingerprint and len(first.test) == 8


# -------------------------------------------------------------------------------------------------------- what is wrong

@pytest.mark.parametrize(("members", "message"), [
    ([("1.jpg", b"1")], "'1.jpg' has no label: expected one of 1.cls, 1.json, 1.txt"),
    ([("1.jpg", b"1"), ("1.json", b"{}")], "'1.jpg' has no label: .*with the field 'label'"),
    ([("1.jpg", b"1"), ("1.cls", b" ")], "the label in '1.cls' is empty"),
    ([("1.jpg", b"1"), ("1.cls", b"\xff")], "'1.cls' is not UTF-8"),
    ([("1.jpg", b"1"), ("1.json", b"{")], "'1.json' is not JSON"),
    ([("1.jpg", b"1"), ("1.json", b'{"label": [1]}')], r"the field 'label' of '1.json' is \[1\]"),
    ([("1.jpg", b"1"), ("1.json", b'{"label": true}')], "the field 'label' of '1.json' is true"),
    ([("1.jpg", b"1"), ("1.png", b"1"), ("1.cls", b"1")], "'1' has two images, '1.jpg' and '1.png'"),
    ([("1.jpg", b"1"), ("1.cls", b"1"), ("1.jpg", b"1")], "the member '1.jpg' is there twice"),
    ([*samples(2), *samples(1)], "the key 's000' is there twice"),
    ([], "holds no images"),
    ([("README", b"x")], "holds no images"),
    (samples(3, classes=1), "one class only"),
])
def test_one_sentence_names_the_shard_and_the_member(tmp_path: Path, members: Members, message: str) -> None:
    shard = write(tmp_path / "a.tar", members)
    found = sentence(f"shards:{shard}")
    assert re.search(message, found) and str(tmp_path) in found


def test_a_truncated_shard_at_any_byte(tmp_path: Path) -> None:
    whole = tar(samples(3))
    shard = tmp_path / "a.tar"
    content = 6 * 1024  # six members of one header and one block
    for cut in [1, 100, 511, 512, 513, 700, 1024, 2048, 4000, content - 512, content, content + 100]:
        shard.write_bytes(whole[:cut])
        assert re.search(r"is truncated|ends within", sentence(f"shards:{shard}")), cut
    shard.write_bytes(whole[:content + 512])
    assert len(open_data(f"shards:{shard}").items) == 3


def test_bytes_that_are_no_header_in_the_middle(tmp_path: Path) -> None:
    whole = bytearray(tar(samples(3)))
    whole[2048:2560] = b"x" * 512
    (tmp_path / "a.tar").write_bytes(whole)
    assert "damaged after 's000.jpg'" in sentence(f"shards:{tmp_path}/a.tar")


def test_files_that_are_no_plain_tar(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"")
    assert "is empty (0 bytes)" in sentence(f"shards:{shard}")
    shard.write_bytes(gzip.compress(tar(samples(2))))
    assert "is compressed (gzip)" in sentence(f"shards:{shard}")
    shard.write_bytes(b"no tar file at all" * 100)
    assert "truncated or no tar file" in sentence(f"shards:{shard}")


@settings(deadline=None, max_examples=40)
@given(place=st.integers(0, 8191), value=st.integers(0, 255))
def test_a_changed_byte_is_a_sentence_or_another_shard(tmp_path_factory: pytest.TempPathFactory, place: int,
                                                       value: int) -> None:
    folder = tmp_path_factory.mktemp("shard")
    whole = bytearray(tar(samples(3)))
    whole[place % len(whole)] = value
    (folder / "a.tar").write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETL_CACHE", str(folder / "cache"))
        try:
            data = open_data(f"shards:{folder}/a.tar")
        except DataError as problem:
            assert "\n" not in problem.message
        else:
            assert all(data.read(item) is not None for item in data.items)


@pytest.mark.parametrize(("argument", "message"), [
    ("", "is empty"), ("trian=x.tar", "'trian=x.tar' is not known"), ("a.tar;", "is empty"),
    ("val=a.tar", "needs one SPEC"), ("a.tar;val=b.tar", "needs one SPEC"), ("label=x", "needs one SPEC"),
    ("train=a.tar;train=b.tar", "is there twice"), ("a.tar;label=x;label=y", "is there twice"),
    ("nowhere.tar", "nowhere.tar does not exist"), ("nowhere-*.tar", "No file matches"),
    ("{a.tar", "braces in '{a.tar' do not match"), ("{1..999999}.tar", "more than 100000 names"),
])
def test_what_the_argument_may_not_say(argument: str, message: str) -> None:
    assert message in sentence(f"shards:{argument}")


def test_a_folder_and_shards_named_twice(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", samples(2))
    assert f"{tmp_path} is a folder" in sentence(f"shards:{tmp_path}")
    assert f"{shard} is named twice" in sentence(f"shards:train={shard};val={tmp_path}/*.tar")
    assert "'' is empty" in sentence("shards")


def test_a_class_without_training_images(tmp_path: Path) -> None:
    write(tmp_path / "train.tar", samples(4))
    write(tmp_path / "val.tar", samples(3, classes=3))
    assert "class '2' is in val or test, but in no training shard" in sentence(
        f"shards:train={tmp_path}/train.tar;val={tmp_path}/val.tar")


# --------------------------------------------------------------------------------------------------------------- braces

@pytest.mark.parametrize(("pattern", "names"), [
    ("a.tar", ["a.tar"]), ("{08..11}", ["08", "09", "10", "11"]), ("{8..10}", ["8", "9", "10"]),
    ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]), ("{x{1..2},y}", ["x1", "y", "x2", "y"]),
    ("{3..1}", ["3", "2", "1"]), ("{0..6..3}", ["0", "3", "6"]), ("{000..001}.tar", ["000.tar", "001.tar"]),
])
def test_braces(pattern: str, names: list[str]) -> None:
    assert _braces.expand(pattern) == names


@settings(deadline=None, max_examples=100)
@given(first=st.integers(0, 2000), count=st.integers(1, 50), width=st.integers(1, 6))
def test_a_range_is_what_formatting_its_numbers_gives(first: int, count: int, width: int) -> None:
    numbers = [f"{number:0{width}d}" for number in range(first, first + count)]
    assert _braces.expand(f"x{{{numbers[0]}..{numbers[-1]}}}.tar") == [
        f"x{one}.tar" for one in (numbers if numbers[0].startswith("0") and len(numbers[0]) > 1
                                  else [str(number) for number in range(first, first + count)])]


# ----------------------------------------------------------------------------------------------------------------- URLs

@pytest.fixture
def memory() -> Iterator[Any]:
    """The files behind memory:// of fsspec."""
    system = pytest.importorskip("fsspec").filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_shards_behind_a_url(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        memory.pipe_file(f"/set/train-{number}.tar", tar(samples(20, begin=f"{number}-")))
    memory.pipe_file("/set/classes.txt", b"zero\none\n")
    monkeypatch.setattr(_places, "BLOCK", 3000)  # images lie across its edges
    data = open_data("shards:memory://set/train-{0..1}.tar")
    assert data.labels == ("zero", "one") and data.name == "set"
    assert data.items[0].key == "train-0.tar/0-000.jpg"
    expected = {f"train-{n}.tar/{n}-{i:03d}.jpg": (data.labels[i % 2], b"%d" % i) for n in range(2) for i in range(20)}
    assert read_all(data) == expected
    assert read_all(open_data("shards:memory://set/train-*.tar")) == expected
    for item in data.items[::-7]:
        assert data.read(item) == expected[item.key][1]


def test_a_shard_behind_a_url_is_known_until_it_is_written_again(memory: Any) -> None:
    memory.pipe_file("/a.tar", tar(samples(4)))
    heard: list[Event] = []
    for _ in range(2):
        data = open_data("shards:memory://a.tar", listener=heard.append)
    assert [event.kind for event in heard] == ["begin", "end"]
    memory.pipe_file("/a.tar", tar(samples(6, begin="t")[4:]))
    with pytest.raises(DataGone, match=r"changed after .*'a\.tar/s003\.jpg'"):
        data.read(data.items[3])
    assert open_data("shards:memory://a.tar").items[0].key == "a.tar/t002.jpg"


def test_blocks_are_fetched_once_and_few_are_kept(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_places, "BLOCK", 2048)
    monkeypatch.setattr(_places, "KEPT", 2)
    memory.pipe_file("/a.tar", tar(samples(64)))
    data = open_data("shards:memory://a.tar")
    fetched: list[tuple[int, int]] = []
    original = _places.RemoteFile._fetch

    def counted(self: _places.RemoteFile, begin: int, end: int) -> bytes:
        fetched.append((begin, end))
        return original(self, begin, end)

    monkeypatch.setattr(_places.RemoteFile, "_fetch", counted)
    assert len(read_all(data)) == 64
    whole = [begin for begin, end in fetched if end - begin == 2048]
    assert len(whole) == len(set(whole)) == len(fetched) - 1  # the first image alone; then every block once
    fetched.clear()
    assert (data.read(data.items[0]), data.read(data.items[40])) == (b"0", b"40")
    assert [end - begin for begin, end in fetched] == [1, 2]  # far apart: nothing around them


def test_a_range_is_asked_for_again(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/a.tar", tar(samples(2)))
    data = open_data("shards:memory://a.tar")
    monkeypatch.setattr(_places, "WAITS_S", (0, 0))
    asked: list[int] = []

    def cat_file(path: str, start: int, end: int) -> bytes:
        asked.append(start)
        if len(asked) < 3:
            raise ConnectionResetError("reset by peer")
        return b"%d" % (len(asked) - 2)

    monkeypatch.setattr(memory, "cat_file", cat_file)
    assert data.read(data.items[1]) == b"1" and len(set(asked)) == 1
    asked.clear()
    monkeypatch.setattr(_places, "WAITS_S", (0,))
    with pytest.raises(DataGone, match=r"memory://a\.tar cannot be read: reset by peer"):
        data.read(data.items[0])


def test_urls_that_cannot_be_read(memory: Any) -> None:
    assert "memory://nothing.tar does not exist" in sentence("shards:memory://nothing.tar")
    assert "No file matches memory://none-*.tar" in sentence("shards:memory://none-*.tar")
    assert "Protocol not known: gopher" in sentence("shards:gopher://x/a.tar")
    memory.pipe_file("/empty.tar", b"")
    memory.pipe_file("/a.tar", tar(samples(2)))
    assert "names no file" in sentence("shards:memory://a.tar;classes=memory://names.txt")
    assert "is empty (0 bytes)" in sentence("shards:memory://empty.tar")


def test_local_shards_need_no_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(tmp_path / "a.tar", samples(2))
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    assert len(open_data(f"shards:file://{shard}").items) == 2
    with pytest.raises(MissingDependency, match="fsspec"):
        open_data("shards:https://example.invalid/a.tar")


class Server(BaseHTTPRequestHandler):
    """A server of one shard, with or without ranges."""

    content = b""
    ranges = True

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if not self.path.startswith("/a.tar"):
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        data = self.content
        if asked and self.ranges:
            data = data[int(asked[1]):int(asked[2]) + 1]
        self.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{len(self.content)}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", hashlib.sha256(self.content).hexdigest())
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="https:// needs aiohttp, which edgetl does not install")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as opened:
        thread = threading.Thread(target=opened.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{opened.server_port}"
        opened.shutdown()
        thread.join()


def test_shards_of_a_web_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "content", tar(samples(20)))
    data = open_data(f"shards:{server}/a.tar?key=secret")
    assert read_all(data) == {f"a.tar/s{i:03d}.jpg": (str(i % 2), b"%d" % i) for i in range(20)}
    assert f"{server}/b.tar" in sentence(f"shards:{server}/b.tar")
    monkeypatch.setattr(Server, "content", tar(samples(6)))
    assert len(open_data(f"shards:{server}/a.tar?key=secret").items) == 6


def test_a_web_server_without_ranges(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "content", tar(samples(20)))
    monkeypatch.setattr(Server, "ranges", False)
    assert "gives whole files only" in sentence(f"shards:{server}/a.tar")


def test_a_web_server_that_is_not_there() -> None:
    pytest.importorskip("aiohttp", reason="https:// needs aiohttp, which edgetl does not install")
    assert "http://127.0.0.1:1/a.tar cannot be reached" in sentence("shards:http://127.0.0.1:1/a.tar")
