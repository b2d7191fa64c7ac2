"""Heads: what is known of images as a table, splits in which labels are as frequent as in the whole."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl import heads, recipe_finetune, splits, stratify
from edgetl.datasets import DataSet, Item
from edgetl.errors import EdgetlError
from edgetl.events import Event
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Asked, Head
from edgetl.recipe_fields import DataFields

NAN = math.nan
SHAPE, COLOUR = Head("shape", CLASSIFY, ("round", "flat")), Head("colour", CLASSIFY, ("red", "blue", "grey"))
LABELS = Head("labels", MULTILABEL, ("sea", "sky"))
VALUES = Head("values", REGRESS, ("mm", "g"))


def test_the_recipe_knows_the_tasks_and_asks_for_one_class_unless_told() -> None:
    assert recipe_finetune.TASKS == (CLASSIFY, MULTILABEL, REGRESS)
    options = recipe_finetune.Finetune(data="d", teacher="a/b", out="o")
    assert heads.asked(options).plain and heads.asked(DataFields(data="d")).plain
    assert heads.asked(replace(options, label_columns=("shape",))) == Asked(CLASSIFY, ("shape",))
    assert not heads.asked(replace(options, task=MULTILABEL)).plain


def test_outputs_are_named_after_their_heads() -> None:
    assert heads.outputs([LABELS]) == ("sea", "sky")
    assert heads.outputs([SHAPE, COLOUR]) == ("shape: round", "shape: flat", "colour: red", "colour: blue",
                                              "colour: grey")
    assert [part for _, part in heads.places([SHAPE, COLOUR])] == [slice(0, 2), slice(2, 5)]


def test_truth_is_one_hot_by_head_with_nan_for_what_nobody_said() -> None:
    found = heads.truth([SHAPE, COLOUR], [(1.0, 0.0), (NAN, 2.0)])
    assert np.array_equal(found, [[0, 1, 1, 0, 0], [NAN, NAN, 0, 0, 1]], equal_nan=True)
    assert np.array_equal(heads.truth([VALUES], [(3.0, NAN)]), [[3.0, NAN]], equal_nan=True)
    assert heads.missing([SHAPE, COLOUR], [(1.0, 0.0), (NAN, 2.0)]) == {"shape": 1, "colour": 0}
    assert heads.missing([LABELS], [(1.0, NAN), (0.0, NAN)]) == {"sea": 0, "sky": 2}


def test_strata_are_classes_by_head_labels_or_quarters_of_values() -> None:
    assert heads.strata([SHAPE, COLOUR], [(1.0, 2.0), (NAN, 0.0)]) == [(1, 4), (2,)]
    assert heads.strata([LABELS], [(1.0, 1.0), (0.0, NAN), (0.0, 1.0)]) == [(0, 1), (), (1,)]
    found = heads.strata([VALUES], [(float(i), NAN if i < 4 else -float(i)) for i in range(8)])
    assert [one[0] for one in found] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [one[1:] for one in found] == [(), (), (), (), (7,), (6,), (5,), (4,)]


def test_heads_survive_a_record_and_others_refuse_it() -> None:
    record = {"heads": heads.to_json([SHAPE, COLOUR])}
    assert heads.of_record(record) == (SHAPE, COLOUR) and heads.of_record({}) == ()
    heads.require_one_class({}, "runs/a")
    with pytest.raises(EdgetlError, match=r"runs/a was trained on 2 classes an image \(shape, colour\)"):
        heads.require_one_class(record, "runs/a")


# --------------------------------------------------------------------------------------------------- stratification


def test_the_rarest_label_is_dealt_out_first_and_to_who_lacks_most() -> None:
    strata = [(0,)] * 8 + [(0, 1), (0, 1)]
    found = stratify.dealt(strata, {"test": 5, "train": 5})
    assert Counter(found) == {"test": 5, "train": 5}
    assert sorted(found[8:]) == ["test", "train"]


@given(st.lists(st.sets(st.integers(0, 4)).map(lambda one: tuple(sorted(one))), min_size=3, max_size=60),
       st.integers(1, 10))
def test_splits_have_their_sizes_and_about_their_share_of_every_label(strata: list[tuple[int, ...]], k: int) -> None:
    held = max(1, len(strata) * k // 20)
    sizes = {"test": held, "train": len(strata) - held}
    found = stratify.dealt(strata, sizes)
    assert Counter(found) == Counter({name: size for name, size in sizes.items() if size})
    assert found == stratify.dealt(strata, sizes)
    rarest = min(Counter(one for labels in strata for one in labels).items(), key=lambda pair: (pair[1], pair[0]),
                 default=None)
    if rarest is not None:  # dealt out first, while every split has room
        own = sum(rarest[0] in labels for labels, split in zip(strata, found, strict=True) if split == "test")
        assert abs(own - rarest[1] * held / len(strata)) <= 1


def test_sizes_must_add_up() -> None:
    with pytest.raises(ValueError, match="does not add up to 2 images"):
        stratify.dealt([(0,), ()], {"train": 1})


# ------------------------------------------------------------------------------------------------------------ splits


def data_of(answers: list[tuple[float, ...]], asked: tuple[Head, ...], own: str | None = None) -> DataSet:
    items = tuple(Item(f"{place:03}.png", 0, own, answers=one) for place, one in enumerate(answers))
    return DataSet("d", heads.outputs(asked), items, lambda item: item.key.encode(), heads=asked)


def test_splits_hold_a_rare_label_and_both_ends_of_values() -> None:
    rare = [(float(place % 10 == 0), float(place % 2)) for place in range(100)]
    parts = splits.resolve(data_of(rare, (LABELS,)), DataFields(data="d"))
    assert [sum(item.answers[0] for item in parts.of(split)) for split in ("test", "val", "train")] == [2, 1, 7]
    assert parts.rule["method"] == "iterative-sha256" and [len(parts.of(s)) for s in ("test", "val")] == [20, 8]
    values = splits.resolve(data_of([(float(i), 1.0 - i) for i in range(80)], (VALUES,)), DataFields(data="d"))
    quarters = Counter(int(item.answers[0] // 20) for item in values.test)
    assert quarters == {0: 4, 1: 4, 2: 4, 3: 4}


def test_the_fingerprint_sees_answers_and_what_they_are_to() -> None:
    answers = [(float(i % 2), 1.0 - i % 2) for i in range(20)]
    options = DataFields(data="d")
    prints = [splits.resolve(data, options).fingerprint for data in (
        data_of(answers, (LABELS,)), data_of(answers, (VALUES,)), data_of([*answers[:-1], (NAN, 0.0)], (LABELS,)))]
    assert len(set(prints)) == 3
    assert splits.resolve(data_of(answers, (LABELS,)), options).fingerprint == prints[0]


def test_a_rule_of_another_method_is_not_followed() -> None:
    data = data_of([(float(i % 2), 1.0) for i in range(20)], (LABELS,))
    rule = {**splits.resolve(data, DataFields(data="d")).rule, "method": "stratified-sha256"}
    with pytest.raises(EdgetlError, match=r"'stratified-sha256'.*expected 'iterative-sha256'"):
        splits.resolve(data, DataFields(data="d"), recorded=rule)


def test_labels_that_a_split_lacks_are_told() -> None:
    told: list[Event] = []
    data = data_of([(float(i == 0), 1.0) for i in range(10)], (LABELS,))
    splits.resolve(data, DataFields(data="d"), listener=told.append)
    assert sum("No image of sea is in the" in str(one.values.get("text")) for one in told) == 2
