"""Folds: stratified, the same for all, copies together, and nothing of the test split in any of them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.datasets import Item
from edgetl.errors import DataError
from edgetl.splits import Duplicates, Splits
from edgetl.train import folds


def splits_of(counts: dict[int, int], test: int = 3) -> Splits:
    """So many images of each class, a fifth of them in val."""
    named = [Item(f"{label}/{number}", label) for label, count in counts.items() for number in range(count)]
    rest = tuple(Item(f"test/{number}", 0, "test") for number in range(test))
    train = [item for place, item in enumerate(named) if place % 5 != 4]
    return Splits(tuple(train), tuple(named[4::5]), rest, "f", {"seed": 0}, Duplicates())


def own_digests(parts: Splits) -> dict[str, str]:
    return {item.key: item.key for item in (*parts.train, *parts.val)}


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.integers(0, 5), st.integers(3, 30), min_size=2, max_size=5), st.integers(2, 6),
       st.integers(0, 3))
def test_every_image_is_held_out_once_and_classes_are_spread_evenly(
    counts: dict[int, int], count: int, seed: int
) -> None:
    parts = splits_of(counts)
    dealt = folds.deal(parts, own_digests(parts), count, seed)
    assert Counter(item.key for fold in dealt for item in fold) == Counter(list(own_digests(parts)))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    for label in counts:
        held = [sum(item.label == label for item in fold) for fold in dealt]
        assert max(held) - min(held) <= 1
    assert folds.deal(parts, own_digests(parts), count, seed) == dealt


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 5), st.floats(0, 0.9))
def test_a_training_learns_every_class_and_chooses_on_none_of_its_fold(count: int, fraction: float) -> None:
    parts = splits_of({0: 4, 1: 9, 2: 21})
    digests = own_digests(parts)
    dealt = folds.deal(parts, digests, count, 0)
    for number in range(count):
        found = folds.arranged(parts, dealt, number, digests, 0, fraction)
        assert {item.key for item in found.test} == {item.key for item in dealt[number]}
        parted = [item.key for split in (found.train, found.val, found.test) for item in split]
        assert Counter(parted) == Counter(list(digests))  # and so no image of the data's own test split
        assert {item.label for item in found.train} == {item.label for item in found.val} == {0, 1, 2}
        assert [item.key for item in found.train] == sorted(item.key for item in found.train)
        assert {item.split for item in found.val} == {"val"}
        assert found.rule["fold"] == number


def test_another_seed_deals_other_folds() -> None:
    parts = splits_of({0: 20, 1: 20})
    assert folds.deal(parts, own_digests(parts), 4, 0) != folds.deal(parts, own_digests(parts), 4, 1)


def test_exact_copies_stay_in_one_fold_and_out_of_validation() -> None:
    parts = splits_of({0: 12, 1: 12})
    digests = own_digests(parts) | dict.fromkeys(("0/1", "0/7", "1/3"), "same")
    dealt = folds.deal(parts, digests, 3, 0)
    assert [sum(digests[item.key] == "same" for item in fold) for fold in dealt].count(3) == 1
    for number in range(3):
        found = folds.arranged(parts, dealt, number, digests, 0, 0.5)
        assert not any(digests[item.key] == "same" for item in found.val)


def test_a_damaged_image_that_was_left_out_does_not_come_back() -> None:
    parts = splits_of({0: 10, 1: 10})
    digests = own_digests(parts)
    dealt = folds.deal(parts, digests, 2, 0)
    less = Splits(parts.train[1:], parts.val, parts.test, "f", {}, Duplicates())
    found = folds.arranged(less, dealt, 0, digests, 0, 0.1)
    assert parts.train[0].key not in {item.key for item in (*found.train, *found.val, *found.test)}


def test_a_class_of_one_image_is_refused() -> None:
    parts = splits_of({0: 10, 1: 1})
    with pytest.raises(DataError, match="The class of 1/0 has one image only"):
        folds.deal(parts, own_digests(parts), 3, 0)


def test_more_folds_than_images_are_refused() -> None:
    parts = splits_of({0: 3, 1: 3})
    with pytest.raises(DataError, match="7 folds need as many images that differ; training and validation have 6"):
        folds.deal(parts, own_digests(parts), 7, 0)
