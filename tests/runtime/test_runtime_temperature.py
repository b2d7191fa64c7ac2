"""The temperature of a variant: scores are the softmax of logits over it, answers and logits stay what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import PREPROCESS, edit_manifest, make_bundle, make_photo, reference_logits

from edgetl.errors import BundleError
from edgetl.runtime import load, verify
from edgetl.runtime.drift import Drift
from edgetl.runtime.manifest import OLDEST, SCALED, SCHEMA, Variant, from_json, schema_of
from edgetl.runtime.prediction import Answers, softmax
from edgetl.runtime.preprocess import prepare

LABELS = ("cat", "dog", "fox", "owl")


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "tiny", second={"backends": ("cpu",)})


def scores(photo, temperature):
    return softmax(reference_logits(prepare(photo, PREPROCESS)[None]) / temperature)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_scores_are_over_the_variants_own_temperature(bundle, temperature):
    photo = make_photo(2)
    plain = load(bundle, variant="fp32").predict(photo, top=3)
    edit_manifest(bundle, "variants", 0, "temperature", value=temperature)
    with load(bundle, variant="fp32") as classifier, load(bundle, variant="other") as other:
        assert classifier.info()["temperature"] == temperature and other.info()["temperature"] is None
        found, expected = classifier.predict(photo, top=3), np.sort(scores(photo, temperature))[::-1]
        assert [score for _, score in found.top] == pytest.approx(expected, abs=1e-5)
        assert [label for label, _ in found.top] == [label for label, _ in plain.top]
        assert other.predict(photo, top=3) == plain
        assert np.array_equal(classifier.logits([photo]), other.logits([photo]))
    assert verify(bundle, backend="cpu").images == 2


def test_what_is_rejected_is_told_by_the_scaled_score(bundle):
    photo = make_photo(2)
    sure, unsure = (float(scores(photo, temperature).max()) for temperature in (1, 4))
    edit_manifest(bundle, "reject_below", value=(sure + unsure) / 2)
    assert not load(bundle, variant="fp32").predict(photo).rejected
    edit_manifest(bundle, "variants", 0, "temperature", value=4)
    assert load(bundle, variant="fp32").predict(photo).rejected


def test_drift_is_given_the_scaled_scores():
    logits = np.random.default_rng(0).normal(0, 4, (60, 4)).astype(np.float32)
    drift, expected = Drift(4), Drift(4)
    Answers(LABELS, None, drift, 2.5)(logits, [1] * 60)
    expected.update(softmax(logits.astype(np.float64) / 2.5))
    assert drift.snapshot() == expected.snapshot()


@given(st.floats(1e-3, 1e3), st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_any_temperature_gives_probabilities_and_the_same_order(temperature, seed):
    logits = np.random.default_rng(seed).normal(0, 10, (3, 4)).astype(np.float32)
    answers = Answers(LABELS, temperature=temperature)(logits, [4] * 3)
    for scaled, plain in zip(answers, Answers(LABELS)(logits, [4] * 3), strict=True):
        assert [label for label, _ in scaled.top] == [label for label, _ in plain.top]
        assert sum(score for _, score in scaled.top) == pytest.approx(1)
        assert sorted((score for _, score in scaled.top), reverse=True) == [score for _, score in scaled.top]


def test_a_manifest_without_a_temperature_is_of_the_old_schema_and_read(bundle):
    values = json.loads((bundle / "manifest.json").read_text())
    plain = from_json(json.dumps({**values, "schema": OLDEST}), where="here")
    assert plain.schema == OLDEST == schema_of(plain.variants) and plain.variants[0].temperature is None
    for variant in values["variants"]:
        del variant["temperature"]  # as it was written before there were any
    assert from_json(json.dumps({**values, "schema": OLDEST}), where="here") == plain


def test_a_temperature_needs_the_new_schema(bundle):
    values = json.loads((bundle / "manifest.json").read_text())
    values["variants"][0]["temperature"] = 2
    made = from_json(json.dumps({**values, "schema": SCHEMA}), where="here")
    assert made.variants[0].temperature == 2.0 and schema_of(made.variants) == SCALED == 2
    with pytest.raises(BundleError, match="'temperature' is there, which belongs to schema 2; found schema 1"):
        from_json(json.dumps({**values, "schema": OLDEST}), where="here")


@pytest.mark.parametrize("wrong", [0, -1, 1e-4, 1e4, "2", True, [2]])
def test_a_temperature_that_is_none_is_refused(bundle, wrong):
    edit_manifest(bundle, "variants", 0, "temperature", value=wrong)
    with pytest.raises(BundleError, match=r"variants\[0\]: 'temperature' is .*expected a finite number"):
        load(bundle)


def test_an_older_reader_says_that_it_is_too_old(bundle, monkeypatch):
    edit_manifest(bundle, "variants", 0, "temperature", value=2.0)
    edit_manifest(bundle, "schema", value=SCALED)
    copied = Path(shutil.copytree(bundle, bundle.parent / "copy"))
    monkeypatch.setattr("edgetl.runtime.manifest.SCHEMA", OLDEST)
    with pytest.raises(BundleError, match="has schema 2, newer than this edgetl can read") as refused:
        load(copied)
    assert refused.value.hint == "Update edgetl on this machine."


def test_the_field_is_optional():
    assert {one.name: one.default for one in Variant.__dataclass_fields__.values()}["temperature"] is None
