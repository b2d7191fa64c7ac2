"""The manifest comes back as it was written, and whatever is wrong with one is said in one sentence."""

import copy
import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import LABELS, PREPROCESS, make_graph, make_variant

from edgetl.errors import BundleError
from edgetl.runtime.manifest import OLDEST, SCHEMA, Manifest, from_json, to_json

GRAPH = make_graph()
CALIBRATED = make_variant(
    "x86-vnni.int8",
    GRAPH,
    "graphs/int8.onnx",
    requires=("vnni",),
    precision="int8",
    calibration={"images": 256},
    status="measured",
    evaluations=({"backend": "cpu", "n": 10, "accuracy": 0.9},),
    tolerance=2.0,
)
CHECK = {"variant": "fp32", "split": "val", "n": 10, "accepted": 8, "coverage": 0.8, "accuracy": 1.0}
REJECTION = {
    "target_accuracy": 0.95,
    "confidence": 0.95,
    "variant": "fp32",
    "split": "val",
    "n": 10,
    "checks": [CHECK, {**CHECK, "accepted": 0, "coverage": 0.0, "accuracy": None, "accuracy_low": None}],
}
DRIFT = {
    "variant": "fp32",
    "split": "val",
    "count": 10,
    "top": {"mean": 0.9, "variance": 0.01},
    "entropy": {"mean": 0.2, "variance": 0.03},
    "class_counts": [5, 5, 0],
}
GOLDEN = {"file": "golden.npz", "sha256": "0" * 64, "size_bytes": 5, "count": 2, "kind": "photos"}
WHOLE = Manifest(
    SCHEMA,
    "söme name",
    "classify",
    LABELS,
    PREPROCESS,
    (make_variant("fp32", GRAPH, "fp32.onnx"), CALIBRATED),
    golden=GOLDEN,
    reject_below=0.7,
    rejection=REJECTION,
    drift_reference=DRIFT,
    provenance={"teacher": "x"},
)


def values() -> dict:
    return json.loads(to_json(WHOLE))


def changed(*keys, value) -> str:
    whole = values()
    place = whole
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return json.dumps(whole)


def test_what_is_written_comes_back_equal():
    assert from_json(to_json(WHOLE), where="here") == WHOLE


def test_unknown_fields_are_ignored():
    later = changed("later", value=1)
    assert from_json(later, where="here") == WHOLE
    assert from_json(changed("variants", 0, "later", value=[1]), where="here") == WHOLE


def test_too_new_and_too_old_get_different_sentences():
    with pytest.raises(BundleError, match="newer") as new:
        from_json(changed("schema", value=SCHEMA + 1), where="here")
    assert "Update edgetl" in new.value.hint
    with pytest.raises(BundleError, match="older") as old:
        from_json(changed("schema", value=OLDEST - 1), where="here")
    assert "Export" in old.value.hint


def test_the_future_is_recognised_even_when_nothing_else_fits():
    with pytest.raises(BundleError, match="newer"):
        from_json('{"schema": 99}', where="here")


def test_an_unknown_requirement_is_refused():
    with pytest.raises(BundleError, match="'requires' names 'quantum'"):
        from_json(changed("variants", 1, "requires", value=["quantum"]), where="here")


@pytest.mark.parametrize("path", ["/etc/passwd", "../fp32.onnx", "a/../../b", "", "C:x", "a\\..\\b", "a\0b", "."])
@pytest.mark.parametrize("keys", [("variants", 0, "file"), ("golden", "file")])
def test_paths_that_leave_the_bundle(path, keys):
    with pytest.raises(BundleError, match="leaves the bundle"):
        from_json(changed(*keys, value=path), where="here")


@pytest.mark.parametrize(
    "keys, value, says",
    [
        (("schema",), "1", "'schema' is '1', expected a whole number"),
        (("schema",), True, "'schema' is True"),
        (("name",), 3, "'name' is 3, expected a text"),
        (("task",), "detect", "'task' is 'detect', expected one of classify"),
        (("labels",), [], "'labels'"),
        (("labels",), ["a", "a", "b"], "twice"),
        (("labels",), ["a", "b"], "there are 2 labels"),
        (("preprocess",), None, "'preprocess'"),
        (("preprocess", "std"), [1, 1], "preprocess: 'std'"),
        (("variants",), [], "at least 1 tables"),
        (("variants", 1, "name"), "fp32", "two variants are named 'fp32'"),
        (("variants", 1, "sha256"), "A" * 64, r"variants\[1\]: 'sha256'"),
        (("variants", 0, "size_bytes"), -1, "'size_bytes' is -1"),
        (("variants", 0, "precision"), "half", "'precision' is 'half'"),
        (("variants", 0, "tolerance"), float("nan"), "NaN is no JSON number"),
        (("variants", 0, "backends"), [], "'backends'"),
        (("variants", 0, "status"), "fine", "'status' is 'fine'"),
        (("variants", 0, "inputs"), [3], "'inputs'"),
        (("variants", 0, "inputs", 0, "shape"), ["M", 3], "'shape'"),
        (("variants", 0, "inputs", 0, "dtype"), "float16", r"variants\[0\]: inputs\[0\]: 'dtype'"),
        (("variants", 0, "inputs", 0, "role"), "picture", "'role'"),
        (("variants", 0, "inputs", 0, "layout"), "CHW", "'layout'"),
        (("variants", 0, "features_tolerance"), -1, "'features_tolerance' is -1"),
        (("reject_below",), 1.5, "'reject_below' is 1.5, expected a finite number of at least 0 and of at most 1"),
        (("reject_below",), "high", "'reject_below' is 'high'"),
        (("rejection",), 3, "'rejection' is 3, expected a table"),
        (("rejection", "target_accuracy"), 95, "rejection: 'target_accuracy' is 95"),
        (("rejection", "split"), "all", "rejection: 'split' is 'all'"),
        (("rejection", "checks", 0, "accepted"), 11, r"rejection: checks\[0\]: 'accepted' is 11"),
        (("rejection", "checks", 0, "accuracy"), -1, r"checks\[0\]: 'accuracy' is -1"),
        (("drift_reference", "top", "mean"), 2, "drift_reference: top: 'mean' is 2"),
        (("drift_reference", "entropy", "variance"), None, "drift_reference: entropy: 'variance' is None"),
        (("drift_reference", "class_counts"), [5, 5], "'class_counts'"),
        (("drift_reference", "class_counts"), [5, 4, 0], "with the sum 10"),
        (("drift_reference", "split"), None, "drift_reference: 'split' is None"),
        (("golden", "count"), 0, "golden: 'count' is 0"),
        (("golden", "kind"), "drawings", "'kind' is 'drawings'"),
    ],
)
def test_every_wrong_field_is_named(keys, value, says):
    with pytest.raises(BundleError, match=says) as caught:
        from_json(changed(*keys, value=value), where="B/manifest.json")
    assert caught.value.message.startswith("B/manifest.json")
    assert "\n" not in caught.value.message


FEATURES = {"name": "features", "role": "features", "dtype": "float32", "shape": ["N", 4], "layout": "NC"}


def with_features(*outputs: list[dict]) -> str:
    """WHOLE, whose variants have these outputs beside their logits."""
    whole = values()
    for variant, more in zip(whole["variants"], outputs, strict=True):
        variant["outputs"] += more
    return json.dumps(whole)


def test_features_are_one_float_output_of_one_length():
    made = from_json(with_features([FEATURES], [FEATURES]), where="here")
    assert [one.role for one in made.variants[1].outputs] == ["logits", "features"]
    from_json(with_features([FEATURES], []), where="here")
    for wrong in ({**FEATURES, "dtype": "uint8"}, {**FEATURES, "shape": ["N", 4, 2]}, {**FEATURES, "shape": [1, 4]}):
        with pytest.raises(BundleError, match=r"variant 'fp32' gives the features .*; expected float32 \[N, D\], once"):
            from_json(with_features([wrong], []), where="here")
    with pytest.raises(BundleError, match="once"):
        from_json(with_features([FEATURES, {**FEATURES, "name": "more"}], []), where="here")
    with pytest.raises(BundleError, match=r"features of the lengths \[4, 5\]"):
        from_json(with_features([FEATURES], [{**FEATURES, "shape": ["N", 5]}]), where="here")


@pytest.mark.parametrize("field", ["reject_below", "rejection", "drift_reference"])
def test_what_was_not_asked_for_is_null_or_absent(field):
    absent = values()
    del absent[field]
    for text in (changed(field, value=None), json.dumps(absent)):
        made = from_json(text, where="here")
        assert getattr(made, field) is None and json.loads(to_json(made))[field] is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"x"', "[" * 100_000])
def test_what_is_no_manifest(text):
    with pytest.raises(BundleError, match="here"):
        from_json(text, where="here")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["..", "N", "fp32"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(node, path=()):
    yield path
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from places(node[key], (*path, key))


PLACES = [path for path in places(values()) if path]


@settings(deadline=None, max_examples=200)
@given(where=st.sampled_from(PLACES), value=ANYTHING, remove=st.booleans())
def test_any_change_is_a_manifest_or_a_sentence(where, value, remove):
    whole = copy.deepcopy(values())
    place = whole
    for key in where[:-1]:
        place = place[key]
    if remove:
        del place[where[-1]]
    else:
        place[where[-1]] = value
    try:
        made = from_json(json.dumps(whole), where="here")
    except BundleError:
        return
    assert isinstance(made, Manifest)
    assert from_json(to_json(made), where="here") == made


def test_bytes_of_file_names_that_are_no_text_survive():
    odd = dataclasses.replace(WHOLE, provenance={"data": "caf\udce9"})
    assert from_json(to_json(odd).encode().decode(), where="m") == odd
