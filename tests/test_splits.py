"""Splits: stratified, a pure function of keys, seed and fractions, recorded, and never straddled by copies."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import splits
from edgetl.datasets import SPLITS, DataSet, Item, open_data
from edgetl.errors import DataError
from edgetl.events import Event
from edgetl.recipe_fields import DataFields

PhotoFolder = Callable[..., Path]

LETTERS = ("a", "b", "c")


def data_set(counts: Mapping[str, int], *, contents: Mapping[str, str] | None = None,
             own: Mapping[str, str] | None = None) -> DataSet:
    """`counts` images of each class with the keys a/0, a/1, ...; contents differ unless `contents` says otherwise."""
    labels = tuple(counts)
    items = tuple(Item(f"{name}/{number}", labels.index(name), (own or {}).get(f"{name}/{number}"))
                  for name in labels for number in range(counts[name]))
    return DataSet("made", labels, tuple(sorted(items, key=lambda item: item.key)),
                   lambda item: (contents or {}).get(item.key, item.key).encode())


def options(**values: object) -> DataFields:
    return DataFields(data="made", **values)  # type: ignore[arg-type]


def keys(resolved: splits.Splits) -> dict[str, list[str]]:
    return {split: [item.key for item in resolved.of(split)] for split in SPLITS}


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def texts(self, kind: str) -> str:
        return "\n".join(event.values["text"] for event in self.events if event.kind == kind)


# ------------------------------------------------------------------------------------------------------ the automatic

def test_fractions_are_kept_in_each_class() -> None:
    resolved = splits.resolve(data_set({"a": 100, "b": 40}), options(test_fraction=0.25, val_fraction=0.1))
    counts = {split: Counter(item.label for item in resolved.of(split)) for split in SPLITS}
    assert counts == {"train": {0: 67, 1: 27}, "val": {0: 8, 1: 3}, "test": {0: 25, 1: 10}}
    assert all(item.split == split for split in SPLITS for item in resolved.of(split))
    assert resolved.rule["automatic"] == ["test", "val"]


def test_the_split_is_known() -> None:
    # Ranked by sha256(seed, key); written out by hand so that a change of the rule does not pass unnoticed.
    names = [f"a/{number}" for number in range(5)]
    names.sort(key=lambda key: hashlib.sha256(b"7\0" + key.encode()).digest())
    resolved = splits.resolve(data_set({"a": 5, "b": 5}), options(split_seed=7, test_fraction=0.4, val_fraction=0.34))
    assert {item.key for item in resolved.test if item.label == 0} == set(names[:2])
    assert {item.key for item in resolved.val if item.label == 0} == {names[2]}
    assert {item.key for item in resolved.train if item.label == 0} == set(names[3:])


counts_of_classes = st.dictionaries(st.sampled_from(LETTERS), st.integers(3, 30), min_size=2)


@settings(deadline=None, max_examples=60)
@given(counts=counts_of_classes, seed=st.integers(0, 5), test=st.floats(0, 0.9), val=st.floats(0, 0.9),
       shuffle=st.randoms(use_true_random=False))
def test_any_split_is_a_partition_that_order_does_not_change(counts: dict[str, int], seed: int, test: float, val: float,
                                                             shuffle: random.Random) -> None:
    data = data_set(counts)
    chosen = options(split_seed=seed, test_fraction=test, val_fraction=val)
    resolved = splits.resolve(data, chosen)
    assert sorted(item.key for split in SPLITS for item in resolved.of(split)) == [item.key for item in data.items]
    assert {item.label for item in resolved.train} == set(range(len(counts)))
    assert bool(resolved.test) == (test > 0)
    assert bool(resolved.val) == (val > 0)
    mixed = list(data.items)
    shuffle.shuffle(mixed)
    again = splits.resolve(replace(data, items=tuple(mixed)), chosen)
    assert keys(again) == keys(resolved)
    assert again.fingerprint == resolved.fingerprint


def test_seeds_differ() -> None:
    data = data_set({"a": 30, "b": 30})
    assert keys(splits.resolve(data, options(split_seed=0))) != keys(splits.resolve(data, options(split_seed=1)))


def test_the_datas_own_splits_stay() -> None:
    own = {f"{name}/{number}": ("test" if number < 3 else "train") for name in "ab" for number in range(13)}
    resolved = splits.resolve(data_set({"a": 13, "b": 13}, own=own), options())
    assert {item.key for item in resolved.test} == {key for key, split in own.items() if split == "test"}
    assert (len(resolved.train), len(resolved.val)) == (18, 2)
    assert resolved.rule["automatic"] == ["val"]


def test_a_missing_test_split_comes_out_of_train() -> None:
    own = {f"{name}/{number}": ("val" if number < 2 else "train") for name in "ab" for number in range(10)}
    resolved = splits.resolve(data_set({"a": 10, "b": 10}, own=own), options(test_fraction=0.3))
    assert {split: len(resolved.of(split)) for split in SPLITS} == {"train": 10, "val": 4, "test": 6}


def test_no_held_out_split_where_the_fraction_is_zero() -> None:
    resolved = splits.resolve(data_set({"a": 5, "b": 5}), options(test_fraction=0, val_fraction=0))
    assert {split: len(resolved.of(split)) for split in SPLITS} == {"train": 10, "val": 0, "test": 0}


def test_a_class_too_small_for_every_split_is_warned_about() -> None:
    heard = Heard()
    resolved = splits.resolve(data_set({"a": 20, "b": 1}), options(), listener=heard)
    assert [item.key for item in resolved.train if item.label == 1] == ["b/0"]
    assert "No image of b is in the val split." in heard.texts("warning")
    assert "No image of b is in the test split." in heard.texts("warning")


@pytest.mark.parametrize(("images", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (1, 1, 2))])
def test_small_classes_fill_train_first_then_test_then_val(images: int, expected: tuple[int, int, int]) -> None:
    resolved = splits.resolve(data_set({"a": images, "b": 20}), options(test_fraction=0.9, val_fraction=0.9))
    assert tuple(sum(item.label == 0 for item in resolved.of(split)) for split in SPLITS) == expected


def test_too_few_images_for_a_split() -> None:
    with pytest.raises(DataError, match="too few images to hold out a val split"):
        splits.resolve(data_set({"a": 2, "b": 2}), options())


# ------------------------------------------------------------------------------------------------------------- copies

def automatic_copies() -> tuple[DataSet, list[str]]:
    """20 + 20 images; a/0 to a/9 have the same content."""
    same = [f"a/{number}" for number in range(10)]
    return data_set({"a": 20, "b": 20}, contents=dict.fromkeys(same, "the same photo")), same


def test_copies_across_automatic_splits_go_to_train() -> None:
    data, same = automatic_copies()
    chosen = options(test_fraction=0.4, val_fraction=0.4)
    plain = splits.resolve(data_set({"a": 20, "b": 20}), chosen)
    astray = set(same) - {item.key for item in plain.train}
    assert astray and astray != set(same), "the seed must spread the copies for this test to mean anything"
    heard = Heard()
    resolved = splits.resolve(data, replace(chosen, strict_splits=True), listener=heard)
    assert set(same) <= {item.key for item in resolved.train}
    assert resolved.duplicates == splits.Duplicates(groups=1, images=10, moved_to_train=len(astray), leaks=0,
                                                    conflicts=0, examples=(tuple(same),))
    assert not heard.texts("warning")
    for split in ("val", "test"):
        assert {item.key for item in plain.of(split)} - astray == {item.key for item in resolved.of(split)}


def own_splits_with_a_copy(label: str = "a") -> DataSet:
    own = {f"{name}/{number}": SPLITS[number % 3] for name in "ab" for number in range(9)}
    return data_set({"a": 9, "b": 9}, own=own, contents={"a/0": "same", f"{label}/2": "same"})


def test_copies_across_own_splits_are_warned_about() -> None:
    heard = Heard()
    resolved = splits.resolve(own_splits_with_a_copy(), options(), listener=heard)
    assert "1 image(s) occur in more than one of the data's own splits, such as a/0 and a/2" in heard.texts("warning")
    assert resolved.duplicates.leaks == 1
    assert "a/2" in {item.key for item in resolved.test}, "own splits stay as they are"


def test_copies_across_own_splits_are_an_error_when_strict() -> None:
    with pytest.raises(DataError, match=r"a/0 and a/2") as caught:
        splits.resolve(own_splits_with_a_copy(), options(strict_splits=True))
    assert "--strict-splits" in str(caught.value.hint)


def test_a_copy_of_the_datas_own_test_image_leaks_through_an_automatic_val() -> None:
    own = {f"{name}/{number}": ("test" if number < 3 else "train") for name in "ab" for number in range(13)}
    for trained in (key for key in own if key.startswith("a") and own[key] == "train"):
        data = data_set({"a": 13, "b": 13}, own=own, contents={"a/0": "same", trained: "same"})
        resolved = splits.resolve(data, options())
        assert resolved.duplicates.leaks == 1, trained
        assert trained in {item.key for item in resolved.train}


def test_copies_with_different_labels() -> None:
    heard = Heard()
    splits.resolve(own_splits_with_a_copy("b"), options(), listener=heard)
    assert "1 image(s) occur with different labels." in heard.texts("warning")


def test_copies_within_one_own_split_are_only_counted() -> None:
    own = {f"{name}/{number}": SPLITS[number % 3] for name in "ab" for number in range(9)}
    heard = Heard()
    resolved = splits.resolve(data_set({"a": 9, "b": 9}, own=own, contents={"a/0": "same", "a/3": "same"}),
                              options(strict_splits=True), listener=heard)
    assert (resolved.duplicates.groups, resolved.duplicates.leaks) == (1, 0)
    assert not heard.events


# ---------------------------------------------------------------------------------------------- recorded and compared

def test_a_recorded_rule_beats_the_options() -> None:
    data, _ = automatic_copies()
    first = splits.resolve(data, options(split_seed=3, test_fraction=0.3))
    recorded = json.loads(json.dumps(splits.to_json(first)))
    heard = Heard()
    second = splits.resolve(data, options(), recorded=recorded["rule"], listener=heard)
    assert keys(second) == keys(first)
    assert second.rule == first.rule
    assert "seed 3" in heard.texts("note")
    same = options(split_seed=3, test_fraction=0.3)
    third = splits.resolve(data, same, recorded=recorded["rule"], listener=(calm := Heard()))
    assert keys(third) == keys(first)
    assert not calm.events


@pytest.mark.parametrize("change", [{"schema": 2}, {"method": "random"}, {"schema": None}])
def test_a_rule_of_another_kind_is_refused(change: dict[str, object]) -> None:
    data = data_set({"a": 9, "b": 9})
    rule = {**splits.resolve(data, options()).rule, **change}
    with pytest.raises(DataError, match="recorded split was made by the rule"):
        splits.resolve(data, options(), recorded=rule)


def test_a_rule_that_the_data_outgrew_is_refused() -> None:
    rule = splits.resolve(data_set({"a": 9, "b": 9}), options()).rule
    own = {f"{name}/{number}": SPLITS[number % 3] for name in "ab" for number in range(9)}
    with pytest.raises(DataError, match="the data now has its own"):
        splits.resolve(data_set({"a": 9, "b": 9}, own=own), options(), recorded=rule)


def test_to_json_says_everything() -> None:
    resolved = splits.resolve(data_set({"a": 9, "b": 9}), options())
    written = json.loads(json.dumps(splits.to_json(resolved)))
    assert {split: written[split] for split in SPLITS} == keys(resolved)
    assert written["fingerprint"] == resolved.fingerprint
    assert written["rule"] == {"schema": 1, "method": "stratified-sha256", "seed": 0, "test_fraction": 0.2,
                               "val_fraction": 0.1, "automatic": ["test", "val"]}
    assert written["duplicates"]["groups"] == 0


def changed(data: DataSet, change: str) -> DataSet:
    first, *rest = data.items
    return {
        "content": lambda: replace(data, read=lambda item: b"new" if item == first else data.read(item)),
        "label": lambda: replace(data, items=(replace(first, label=1), *rest)),
        "class name": lambda: replace(data, labels=("x", *data.labels[1:])),
        "key": lambda: replace(data, items=(replace(first, key="a/new"), *rest)),
        "own split": lambda: replace(data, items=tuple(replace(item, split="train") for item in data.items)),
        "weight": lambda: replace(data, items=(replace(first, weight=0.5), *rest)),
        "one image less": lambda: replace(data, items=tuple(rest)),
    }[change]()


@pytest.mark.parametrize("change", ["content", "label", "class name", "key", "own split", "weight", "one image less"])
def test_every_change_of_the_data_is_noticed(change: str) -> None:
    data = data_set({"a": 9, "b": 9})
    before = splits.resolve(data, options())
    unchanged = splits.resolve(data, options(split_seed=5))
    splits.require_same_data(unchanged, before.fingerprint, recorded_by="runs/teacher")
    after = splits.resolve(changed(data, change), options())
    with pytest.raises(DataError, match="The data is not what runs/teacher was made with"):
        splits.require_same_data(after, before.fingerprint, recorded_by="runs/teacher")


# ---------------------------------------------------------------------------------------------------------- real files

def test_photos_of_a_folder(photo_folder: PhotoFolder) -> None:
    data = open_data(str(photo_folder(classes=2, images=10)))
    resolved = splits.resolve(data, options())
    assert {split: len(resolved.of(split)) for split in SPLITS} == {"train": 14, "val": 2, "test": 4}
    assert resolved.fingerprint == splits.resolve(open_data(data.source), options()).fingerprint


def test_a_file_that_is_no_image_is_left_to_the_decoder(photo_folder: PhotoFolder) -> None:
    root = photo_folder(classes=2, images=10)
    (root / "amber" / "text.jpg").write_text("not a photo")
    resolved = splits.resolve(open_data(str(root)), options())
    assert sum(len(resolved.of(split)) for split in SPLITS) == 21


def test_an_image_that_vanishes_while_it_is_read(photo_folder: PhotoFolder) -> None:
    root = photo_folder(classes=2, images=10)
    data = open_data(str(root))
    (root / "beryl" / "003.jpg").unlink()
    with pytest.raises(DataError, match=r"beryl/003\.jpg cannot be read"):
        splits.resolve(data, options())
