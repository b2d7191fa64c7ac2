"""Images that cannot be decoded: the limit, the list, and that all that follows leaves out the same."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import write_photos
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import datasets, pipeline, rundir, splits, weights
from edgetl.bench import exam
from edgetl.cli.app import main
from edgetl.errors import DataError
from edgetl.events import Event, ignore
from edgetl.recipe import Bench, build
from edgetl.recipe_fields import DataFields
from edgetl.train import damaged
from edgetl.train.unlabelled import NONE, Unlabelled

FRESH = {"image_size": 32, "batch_size": "8", "workers": 0, "threads": 1, "epochs": 1, "pretrained": False,
         "teacher": "timm/test_resnet"}  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 photos of two classes in train, val and test, of which one each in train and test is cut short."""
    root = tmp_path / "photos"
    for seed, (split, count) in enumerate((("train", 6), ("val", 3), ("test", 3))):
        write_photos(root / split, classes=2, images=count, seed=seed)
    for split in ("train", "test"):
        cut = sorted((root / split).rglob("*.*"))[0]
        cut.write_bytes(cut.read_bytes()[:60])
    return root


def splits_of(photos: Path) -> tuple[datasets.DataSet, splits.Splits]:
    data = datasets.open_data(str(photos))
    return data, splits.resolve(data, DataFields(data=str(photos)))


def looked(photos: Path, tmp_path: Path, max_bad: str, extra: Unlabelled = NONE) -> tuple[Any, Any, list[str]]:
    events: list[Event] = []
    data, parts = splits_of(photos)
    kept, others = damaged.left_out(max_bad, data, parts, extra, tmp_path, events.append, "finetune")
    return kept, others, [event.values["text"] for event in events if event.kind == "warning"]


def test_as_many_as_allowed_are_left_out_listed_and_told(photos: Path, tmp_path: Path) -> None:
    before = splits_of(photos)[1]
    parts, _, warnings = looked(photos, tmp_path, "2")
    gone = {split: {one.key for one in before.of(split)} - {one.key for one in parts.of(split)}
            for split in datasets.SPLITS}  # fmt: skip
    assert {split: len(keys) for split, keys in gone.items()} == {"train": 1, "val": 0, "test": 1}
    assert parts.rule["left_out"] == {split: sorted(keys) for split, keys in gone.items()}
    assert parts.fingerprint == before.fingerprint
    (warning,) = warnings
    assert warning.startswith("1 train image, 1 test image cannot be decoded and are left out, see bad.txt: ")
    lines = [line.split("\t") for line in (tmp_path / "bad.txt").read_text().splitlines()]
    assert [(kind, key) for kind, key, _ in lines] == [(kind, key) for kind in ("train", "test") for key in gone[kind]]
    assert all(key in why and key in warning for _, key, why in lines)


@pytest.mark.parametrize("limit", ["1", "8%", "0.01%"])
def test_more_than_allowed_are_an_error_that_names_them(photos: Path, tmp_path: Path, limit: str) -> None:
    with pytest.raises(DataError, match=rf"^2 of 24 images in .* \(1 train image, 1 test image\), and --max-bad {limit}"
                                        r" allows [01]: .*000.*; .*000"):  # fmt: skip
        looked(photos, tmp_path, limit)
    assert not (tmp_path / "bad.txt").exists()


@pytest.mark.parametrize("limit", ["0", "0%", "0.0%"])
def test_nothing_is_looked_at_where_nothing_may_be_left_out(
    photos: Path, tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damaged, "found", None)
    before = splits_of(photos)[1]
    assert looked(photos, tmp_path, limit) == (before, NONE, [])


def test_sound_images_stay_as_they_are(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "sound", classes=2, images=8)
    assert looked(root, tmp_path, "3") == (splits_of(root)[1], NONE, [])
    assert not (tmp_path / "bad.txt").exists()


def test_images_are_looked_at_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = looked(photos, tmp_path, "2")
    monkeypatch.setattr(damaged, "_searched", None)
    assert looked(photos, tmp_path, "2") == first


def test_a_split_of_which_nothing_is_left_is_an_error(photos: Path, tmp_path: Path) -> None:
    for path in (photos / "val").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="None of the 6 val images can be decoded"):
        looked(photos, tmp_path, "50%")


def test_images_without_a_label_count_too(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "loose").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "loose" / name).write_bytes(b"no picture")
    paths = {name: tmp_path / "loose" / name for name in ("a.png", "b.png")}
    extra = Unlabelled(tuple(datasets.Item(key, -1, "train") for key in paths), paths, "f", {"copies": 1})
    _, others, (warning,) = looked(photos, tmp_path, "4", extra)
    assert others.items == () and others.left_out == {"copies": 1, "unreadable": 2}
    assert "2 unlabelled images cannot" in warning


def test_a_source_that_joins_has_the_same_limit_and_a_list_of_its_own(photos: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    data, parts = splits_of(photos)
    given = data, parts.train, parts.fingerprint, tmp_path, events.append, "finetune"
    with pytest.raises(DataError, match=r"^1 of 12 images in .* \(1 source image\), and --max-bad 8% allows 0"):
        damaged.sound("8%", *given)
    assert damaged.sound("0", *given) == parts.train
    kept = damaged.sound("1", *given)
    (lost,) = set(parts.train) - set(kept)
    assert (tmp_path / "bad_of_source.txt").read_text().startswith(f"source\t{lost.key}\t")
    assert "see bad_of_source.txt: " in events[-1].values["text"]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 100_000))
def test_a_limit_is_a_count_or_a_share(count: int, images: int) -> None:
    assert damaged.allowed(str(count), images) == count
    assert damaged.allowed("100%", images) == images
    assert damaged.allowed(f"{count / 100}%", images) <= images * count / 10_000 + 1e-6


def test_a_run_says_of_how_many_images_its_figures_are_and_what_follows_leaves_out_the_same(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for name, value in FRESH.items() if name != "pretrained"
             for word in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    shared = ["finetune", "--data", str(photos), *words, "--no-pretrained"]
    assert main([*shared, "--out", str(tmp_path / "none")]) == 1
    assert "--max-bad" in capsys.readouterr().err
    assert main([*shared, "--out", str(tmp_path / "run"), "--max-bad", "10%"]) == 0
    record = weights.read_record(tmp_path / "run")
    assert record["metrics"]["test"]["n"] == 5 and record["metrics"]["val"]["n"] == 6
    assert len((tmp_path / "run" / "bad.txt").read_text().splitlines()) == 2
    kept = json.loads((tmp_path / "run" / rundir.SPLIT).read_text())
    assert len(kept["train"]) == 11 and len(kept["test"]) == 5

    again = splits.resolve(datasets.open_data(str(photos)), DataFields(data=str(photos)),
                           recorded=record["data"]["rule"], listener=ignore)
    assert [one.key for one in again.test] == kept["test"] and dict(again.rule) == record["data"]["rule"]
    taught = pipeline.distill(
        data=str(photos), teacher=str(tmp_path / "run"), student="timm/test_efficientnet",
        out=str(tmp_path / "student"), control=False,
        **{name: value for name, value in FRESH.items() if name != "teacher"})  # fmt: skip
    assert weights.read_record(taught)["metrics"]["test"]["n"] == 5


@pytest.mark.parametrize("same", [True, False])
def test_a_benchmark_leaves_out_what_its_case_left_out_of_the_same_data(
    photos: Path, tmp_path: Path, same: bool
) -> None:
    data, before = splits_of(photos)
    parts = looked(photos, tmp_path, "2")[0]
    trained_on = {"rule": dict(parts.rule), "fingerprint": parts.fingerprint if same else "of other data"}
    case: Any = types.SimpleNamespace(
        subject=types.SimpleNamespace(source="bundle", labels=data.labels, heads=(), columns=(), trained_on=trained_on))
    chosen = build(Bench, {"cases": ["bundle"], "out": "out", "data": str(photos)}, where="test")
    paper = exam.prepare(chosen, [case], ignore)
    assert paper is not None and paper.items == (parts.test if same else before.test)
    assert paper.record.n == len(paper.items)


def test_a_limit_that_is_none_is_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--data", "d", "--teacher", "t", "--out", "o", "--max-bad", "some"]) == 2
    assert "a percentage like 0.5%" in capsys.readouterr().err
