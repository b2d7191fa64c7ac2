"""Bundles that say several classes, labels or values of an image: the manifest, the answers, and what is refused."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import (
    HEADS,
    LABELS,
    PREPROCESS,
    edit_manifest,
    encode,
    give_heads,
    make_bundle,
    make_photo,
    reference_logits,
)

from edgetl.errors import BundleError, EdgetlError, InputError
from edgetl.runtime import (
    HeadsPrediction,
    LabelsPrediction,
    Prediction,
    Slot,
    ValuesPrediction,
    __main__,
    load,
    serve,
    verify,
)
from edgetl.runtime.drift import Drift
from edgetl.runtime.heads import NEAR, Head, agreeing, asked
from edgetl.runtime.manifest import OLDEST, SCALED, SCHEMA, Manifest, Variant, from_json, schema_of, to_json
from edgetl.runtime.preprocess import prepare
from edgetl.runtime.task_prediction import TaskAnswers

TWO = [{"name": "animal", "kind": "classify", "labels": ["cat", "dog", "fox"], "outputs": [0, 3]},
       {"name": "young", "kind": "classify", "labels": ["no", "yes"], "outputs": [3, 5]}]
FIVE = ("animal: cat", "animal: dog", "animal: fox", "young: no", "young: yes")
PHOTO = make_photo(2)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {kind: give_heads(make_bundle(folder / kind), heads) for kind, heads in HEADS.items()}
    return {**made, "several": give_heads(make_bundle(folder / "several", labels=FIVE), TWO)}


def logits(classes: int = 3) -> np.ndarray:
    return reference_logits(prepare(PHOTO, PREPROCESS)[None], classes)[0]


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


# ------------------------------------------------------------------------------------------------------------- answers


def test_labels_from_their_thresholds_on_the_said_ones_first(bundles: dict[str, Path]) -> None:
    expected = dict(zip(LABELS, 1 / (1 + np.exp(-logits())), strict=True))
    with load(bundles["multilabel"]) as model:
        found = model.predict(PHOTO)
    assert isinstance(found, LabelsPrediction) and dict(found.scores) == pytest.approx(expected, abs=1e-5)
    limits = dict(zip(LABELS, (0.5, 0.9, 0.1), strict=True))
    assert set(found.labels) == {label for label in LABELS if expected[label] >= limits[label]}
    assert tuple(label for label, _ in found.scores[: len(found.labels)]) == found.labels
    for part in (found.scores[: len(found.labels)], found.scores[len(found.labels) :]):
        assert [score for _, score in part] == sorted((score for _, score in part), reverse=True)


def test_values_by_their_columns(bundles: dict[str, Path]) -> None:
    with load(bundles["regress"]) as model:
        found = model.predict(PHOTO)
        assert isinstance(found, ValuesPrediction)
        assert dict(found.values) == pytest.approx(dict(zip(LABELS, logits(), strict=True)), abs=1e-4)
        assert model.logits([PHOTO])[0].tolist() == list(found.values.values())


@pytest.mark.parametrize("temperatures", [{}, {"young": 4.0}, {"animal": 0.5, "young": 2.0}])
def test_a_class_of_each_head_over_its_own_temperature(bundles: dict[str, Path], tmp_path: Path,
                                                        temperatures: dict[str, float]) -> None:
    bundle = give_heads(make_bundle(tmp_path / "several", labels=FIVE), TWO)
    edit_manifest(bundle, "variants", 0, "temperatures", value=temperatures)
    with load(bundle) as model:
        found = model.predict(PHOTO, top=2)
        assert model.info()["temperatures"] == temperatures and model.info()["heads"] == ["animal", "young"]
    assert isinstance(found, HeadsPrediction) and list(found.heads) == ["animal", "young"]
    for head in TWO:
        scores = softmax(logits(5)[slice(*head["outputs"])] / temperatures.get(head["name"], 1.0))
        one = found.heads[head["name"]]
        assert one.label == head["labels"][int(scores.argmax())] and one.index == int(scores.argmax())
        assert one.score == pytest.approx(scores.max(), abs=1e-5) and len(one.top) == 2 and not one.rejected


@pytest.mark.parametrize("kind", ["multilabel", "regress", "classify", "several"])
def test_every_way_to_ask_gives_the_same_answer(bundles: dict[str, Path], kind: str) -> None:
    with load(bundles[kind]) as model:
        one = model.predict(PHOTO)
        photos = [PHOTO, make_photo(1), PHOTO]
        other = model.predict(photos[1])
        assert model.predict_batch(photos, batch_size=1) == [one, other, one]
        assert list(model.predict_stream(photos)) == [one, other, one]
        assert model.submit(PHOTO).result() == one
        assert asyncio.run(model.predict_async(PHOTO)) == one
    assert verify(bundles[kind], backend="cpu").images == 2


def test_the_note_of_a_verification_counts_answers(bundles: dict[str, Path]) -> None:
    told = {kind: verify(path, backend="cpu").checks[-1].note for kind, path in bundles.items()}
    assert "6 of 6 decisions about a label agree" in told["multilabel"]
    assert "6 of 6 values (within 0.1 of their standard deviation in training) agree" in told["regress"]
    assert "4 of 4 heads' top-1 answers agree" in told["several"]


@pytest.mark.parametrize("kind", ["multilabel", "regress", "several"])
def test_what_only_one_class_has_is_refused(bundles: dict[str, Path], kind: str) -> None:
    with pytest.raises(InputError, match=r"Drift counts the answers of one class an image; 'tiny' says"):
        load(bundles[kind], drift=Drift(3))
    with pytest.raises(InputError, match=r"decode='fast' decides close calls"):
        load(bundles[kind], decode="fast")


@pytest.mark.parametrize("kind", ["multilabel", "regress", "several"])
def test_outputs_that_are_no_numbers_are_told(bundles: dict[str, Path], kind: str,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    with load(bundles[kind]) as model:
        width = len(model.labels)
        for wrong in (math.nan, math.inf):
            row = np.zeros((1, width), np.float32)
            row[0, -1] = wrong
            monkeypatch.setattr(model, "_run", lambda images, row=row: {"logits": row})
            with pytest.raises(EdgetlError, match="not finite"):
                model.predict(PHOTO)


def test_a_slot_and_a_worker_for_programs(bundles: dict[str, Path], tmp_path: Path) -> None:
    slot = Slot(tmp_path / "slot")
    slot.swap(bundles["several"], backend="cpu")
    file = tmp_path / "photo.png"
    file.write_bytes(encode(PHOTO))
    with slot.load() as model:
        (tmp_path / "asked").write_text(json.dumps({"id": 1, "path": str(file), "top": 1}) + "\n")
        source = os.open(tmp_path / "asked", os.O_RDONLY)
        with serve.Stop() as stop:
            told = list(serve.answers(model, source, stop))
        os.close(source)
        expected = model.predict(file, top=1)
    assert told == [{"id": 1, **dataclasses.asdict(expected)}] and json.loads(json.dumps(told))
    assert set(told[0]["heads"]) == {"animal", "young"}


@pytest.mark.parametrize(("kind", "says"), [("multilabel", "fox 0."), ("regress", "cat "), ("several", "animal: ")])
def test_the_command_of_a_device(bundles: dict[str, Path], kind: str, says: str, tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(encode(PHOTO))
    assert __main__.main(["predict", str(bundles[kind]), str(file)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{file}\t") and says in line
    assert __main__.main(["predict", str(bundles[kind]), str(file), "--json"]) == 0
    assert "image" in json.loads(capsys.readouterr().out)
    assert __main__.main(["info", str(bundles[kind]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] in ("multilabel", "regress", "classify")


def test_a_bundle_of_one_class_answers_as_before(tmp_path: Path) -> None:
    with load(make_bundle(tmp_path / "plain")) as model:
        assert type(model.predict(PHOTO)) is Prediction and "task" not in model.info()


@given(st.integers(0, 999), st.sampled_from(["multilabel", "regress", "classify"]))
@settings(deadline=None, max_examples=40)
def test_any_finite_outputs_are_an_answer(seed: int, kind: str) -> None:
    chance = np.random.default_rng(seed)
    rows = (chance.normal(0, 1, (4, 5)) * 10.0 ** chance.integers(-3, 37)).astype(np.float32)
    heads = {"multilabel": (Head("l", kind, FIVE, (0, 5), (0.5,) * 5),), "classify": (
        Head("a", kind, FIVE[:3], (0, 3)), Head("b", kind, FIVE[3:], (3, 5))),
        "regress": (Head("v", kind, FIVE, (0, 5), (), (1.0,) * 5),)}[kind]  # fmt: skip
    for row, found in zip(rows, TaskAnswers(heads, {})(rows, [5] * 4), strict=True):
        if isinstance(found, LabelsPrediction):
            assert set(found.labels) == {label for label, one in zip(FIVE, row, strict=True) if one >= 0}
            assert all(0 <= score <= 1 for _, score in found.scores)
        elif isinstance(found, ValuesPrediction):
            assert list(found.values.values()) == row.tolist()
        else:
            assert [one.index for one in found.heads.values()] == [row[:3].argmax(), row[3:].argmax()]


def test_what_agrees() -> None:
    labels = (Head("l", "multilabel", ("a", "b"), (0, 2), (0.5, 0.9)),)
    assert agreeing(labels, np.array([[1, 1.0]]), np.array([[2, 3.0]])).tolist() == [[True, False]]  # 0.9 is at 2.197
    values = (Head("v", "regress", ("a", "b"), (0, 2), (), (1.0, 100.0)),)
    near = np.array([[NEAR * 0.99, NEAR * 101]])
    assert agreeing(values, near, np.zeros((1, 2))).tolist() == [[True, False]]
    heads = (Head("a", "classify", ("x", "y"), (0, 2)), Head("b", "classify", ("p", "q"), (2, 4)))
    assert agreeing(heads, np.array([[1, 0, 1, 0.0]]), np.array([[2, 1, 0, 1.0]])).tolist() == [[True, False]]
    assert asked(heads) == "2 classes an image (a, b)" and asked(labels) == "2 labels an image"
    assert asked(values) == "2 value(s) an image" and asked(()) == "one class an image"


# ------------------------------------------------------------------------------------------------------------ manifest


def manifest(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


@pytest.mark.parametrize("kind", ["multilabel", "regress", "classify", "several"])
def test_what_is_written_comes_back(bundles: dict[str, Path], kind: str) -> None:
    read = from_json(json.dumps(manifest(bundles[kind])), where="here")
    assert read.heads and read.schema == SCHEMA == schema_of(read.variants, read.heads)
    assert from_json(to_json(read), where="here") == read
    assert json.loads(to_json(read))["heads"] == manifest(bundles[kind])["heads"]


def test_a_manifest_of_one_class_knows_nothing_of_heads(tmp_path: Path) -> None:
    """What was written before there were heads is written to the byte as it was."""
    read = from_json((make_bundle(tmp_path / "plain") / "manifest.json").read_text(), where="here")
    text = to_json(dataclasses.replace(read, schema=OLDEST))
    assert "heads" not in text and "temperatures" not in text
    fields = [one.name for one in dataclasses.fields(Manifest) if one.name != "heads"]
    assert list(json.loads(text)) == fields
    assert list(json.loads(text)["variants"][0]) == [
        one.name for one in dataclasses.fields(Variant) if one.name != "temperatures"
    ]
    assert from_json(json.dumps({**json.loads(text), "heads": None}), where="here") == dataclasses.replace(
        read, schema=OLDEST
    )


def test_an_older_runtime_says_that_it_is_too_old(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(manifest(bundles["regress"]))
    monkeypatch.setattr("edgetl.runtime.manifest.SCHEMA", SCALED)
    with pytest.raises(BundleError, match="has schema 3, newer than this edgetl can read") as refused:
        from_json(text, where="here")
    assert refused.value.hint == "Update edgetl on this machine."


@pytest.mark.parametrize(
    "kind, keys, value, says",
    [
        ("several", ("schema",), 2, "'heads' is there, which belongs to schema 3; found schema 2"),
        ("several", ("heads",), "two", "'heads' is 'two', expected a list of at least 1 tables"),
        ("several", ("heads",), [3], "'heads' is \\[3\\]"),
        ("several", ("heads", 0, "name"), "young", "names a head twice"),
        ("several", ("heads", 0, "name"), "a\x1bb", "holds a control character"),
        ("several", ("heads", 1, "labels"), ["no"], r"heads\[1\]: 'labels' is"),
        ("several", ("heads", 1, "labels"), ["no", "no"], r"heads\[1\]: 'labels' names a label twice"),
        ("several", ("heads", 1, "labels", 0), "a\nb", "holds a control character"),
        ("several", ("heads", 1, "kind"), "detect", r"heads\[1\]: 'kind' is 'detect', expected one of classify"),
        ("several", ("heads", 1, "kind"), "regress", r"heads\[1\]: 'spreads' is missing"),
        ("several", ("heads", 1, "outputs"), [2, 4], "expected ranges next to each other from 0 to 5"),
        ("several", ("heads", 1, "outputs"), [3, 6], "'outputs' is .*expected a range of 2 outputs"),
        ("several", ("heads", 1, "outputs"), [3, -5], "'outputs' is"),
        ("several", ("heads", 1, "outputs"), [3], "'outputs' is"),
        ("several", ("heads", 1, "outputs"), [True, 5], "'outputs' is"),
        ("several", ("heads", 1, "thresholds"), [0.5], "nothing for a head of the kind classify"),
        ("several", ("labels",), list(FIVE[:4]), "from 0 to 4"),
        ("several", ("task",), "multilabel", r"heads\[0\] is of the kind classify; expected multilabel"),
        ("several", ("reject_below",), 0.5, "'reject_below' is there, which is about one class"),
        ("several", ("drift_reference",), {}, "'drift_reference' is there"),
        ("several", ("variants", 0, "temperature"), 2.0, "'temperature' is 2.0, expected nothing beside"),
        ("several", ("variants", 0, "temperatures"), {"age": 2.0}, "there is no head 'age'"),
        ("several", ("variants", 0, "temperatures"), {"young": 0}, "temperatures: 'young' is 0"),
        ("several", ("variants", 0, "temperatures"), [2.0], "'temperatures' is"),
        ("regress", ("variants", 0, "temperatures"), {"values": 2.0}, "expected none, since there are no heads of"),
        ("regress", ("heads",), [], "the task is regress, but 'heads' is missing or empty"),
        ("regress", ("heads", 0, "spreads"), [1.0, 2.0], "'spreads' is .*expected 3 numbers above 0"),
        ("regress", ("heads", 0, "spreads"), [1.0, 2.0, 0], "'spreads' is"),
        ("regress", ("heads", 0, "spreads"), None, "'spreads' is None"),
        ("multilabel", ("heads", 0, "thresholds"), [0.5, 0.5, 1.0], "expected 3 numbers above 0 and below 1"),
        ("multilabel", ("heads", 0, "thresholds"), [0.5, 0.5, "1"], "'thresholds' is"),
        ("multilabel", ("variants", 0, "evaluations"), [{"score": 1.5}], "'score' is 1.5"),
        ("multilabel", ("variants", 0, "evaluations"), [{"score_name": 3}], "'score_name' is 3"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_is_one_sentence(bundles: dict[str, Path], kind: str, keys: tuple[Any, ...], value: Any,
                                           says: str) -> None:
    values = copy.deepcopy(manifest(bundles[kind]))
    place: Any = values
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(BundleError, match=says) as refused:
        from_json(json.dumps(values), where="here")
    assert "\n" not in refused.value.message


def test_two_heads_of_labels_are_refused(bundles: dict[str, Path]) -> None:
    values = manifest(bundles["several"])
    values["task"] = "multilabel"
    for head in values["heads"]:
        head |= {"kind": "multilabel", "thresholds": [0.5] * len(head["labels"])}
    with pytest.raises(BundleError, match="there are 2 heads of the kind multilabel; expected one"):
        from_json(json.dumps(values), where="here")


def test_r2_below_zero_is_a_score(bundles: dict[str, Path]) -> None:
    values = manifest(bundles["regress"])
    values["variants"][0]["evaluations"] = [{"score_name": "R2", "score": -3.0, "score_low": -9.0, "score_high": None}]
    assert from_json(json.dumps(values), where="here").variants[0].evaluations[0]["score"] == -3.0
