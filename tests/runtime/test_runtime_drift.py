"""Drift: exact statistics from any thread in any batches, few false alarms, and alarms for a world that has changed."""

import json
import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.errors import InputError
from edgetl.runtime import drift, shift
from edgetl.runtime.classifier import softmax
from edgetl.runtime.drift import Drift, prometheus, reference_of


def scores(count, classes=4, *, sure=4.0, seed=0):
    """Scores [count, classes] of a classifier; `sure` is how far its logits are apart."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (count, classes))
    logits[np.arange(count), rng.integers(0, classes, count)] += sure
    return softmax(logits)


def close(one, other):
    """Equal but for the last digits of floats."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == other if one is None else one == pytest.approx(other, rel=1e-9, abs=1e-12)


def test_the_statistics_are_those_of_numpy():
    given_scores = scores(700)
    counted = Drift(4, window=50)
    counted.update(given_scores)
    found = counted.snapshot()
    top, entropy = given_scores.max(1), -(given_scores * np.log(given_scores)).sum(1)
    assert found["count"] == 700
    assert found["class_counts"] == np.bincount(given_scores.argmax(1), minlength=4).tolist()
    for name, values in (("top", top), ("entropy", entropy)):
        assert found[name]["mean"] == pytest.approx(values.mean())
        assert found[name]["variance"] == pytest.approx(values.var())
        weights = np.exp(-np.arange(699, -1, -1) / 50)
        assert found["recent"][name]["mean"] == pytest.approx(np.average(values, weights=weights))
    assert found["recent"]["weight"] == pytest.approx(weights.sum())
    assert found["recent"]["weight_squares"] == pytest.approx((weights**2).sum())


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 60), max_size=6), classes=st.integers(2, 6), window=st.integers(1, 200))
def test_batches_and_single_images_count_alike(cuts, classes, window):
    given_scores = scores(60, classes, seed=len(cuts))
    at_once, in_parts = Drift(classes, window=window), Drift(classes, window=window)
    at_once.update(given_scores)
    for part in np.split(given_scores, sorted(cuts)):
        in_parts.update(part.astype(np.float64))
    assert close(at_once.snapshot(), in_parts.snapshot())


def test_nothing_yet_is_none_and_not_zero():
    found = Drift(3).snapshot()
    assert found["count"] == 0 and found["top"] == {"mean": None, "variance": None}
    assert close(Drift.restore(found).snapshot(), found)
    assert Drift(3).compare(reference_of(scores(200, 3))).status == "undecided"


def test_one_class_never_drifts():
    counted = Drift(1)
    counted.update(np.ones((300, 1)))
    assert close(Drift.restore(counted.snapshot()).snapshot(), counted.snapshot())
    assert counted.compare(reference_of(np.ones((300, 1)))).status == "stable"


def test_a_sure_answer_has_no_entropy():
    counted = Drift(3)
    counted.update(np.array([[0.0, 1.0, 0.0]], np.float32))
    assert counted.snapshot()["entropy"] == {"mean": 0.0, "variance": 0.0}


def test_a_snapshot_is_json_and_comes_back():
    counted = Drift(4, window=80)
    counted.update(scores(300))
    text = json.dumps(counted.snapshot(), allow_nan=False)
    again = Drift.restore(json.loads(text))
    assert again.window == 80 and close(again.snapshot(), counted.snapshot())
    more = scores(100, seed=9)
    counted.update(more)
    again.update(more)
    assert close(again.snapshot(), counted.snapshot())


def test_two_devices_count_together():
    first, second, both = Drift(4), Drift(4), Drift(4)
    first.update(scores(200, seed=1))
    second.update(scores(300, seed=2))
    for part in (scores(200, seed=1), scores(300, seed=2)):
        both.update(part)
    first.merge(second)
    merged, expected = first.snapshot(), both.snapshot()
    for name in ("count", "top", "entropy", "class_counts"):
        assert close(merged[name], expected[name])
    assert merged["recent"]["weight"] > expected["recent"]["weight"]  # the other device's are as recent


def test_threads_lose_nothing():
    counted, parts = Drift(4), [scores(40, seed=seed) for seed in range(8)]

    def work(part):
        for row in part:
            counted.update(row[None])

    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found, expected = counted.snapshot(), reference_of(np.concatenate(parts))
    assert close({name: found[name] for name in expected}, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 4)),
        np.full((1, 4), np.nan),
        np.array([[0.5, 0.7, -0.2, 0.0]]),
        np.array([[3.0, -1.0, 0.5, 0.2]]),
        np.ones((2, 3)) / 3,
        np.ones(4) / 4,
        np.array([[1, 0, 0, 0]]),
        np.full((1, 4), np.inf),
    ],
)
def test_what_are_no_scores_is_refused_and_not_counted(wrong):
    counted = Drift(4)
    with pytest.raises(InputError, match="Drift was given"):
        counted.update(wrong)
    assert counted.snapshot()["count"] == 0


def broken(*keys, value):
    counted = Drift(3)
    counted.update(scores(10, 3))
    whole = counted.snapshot()
    place = whole
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return whole


@pytest.mark.parametrize(
    "snapshot, says",
    [
        ([], "expected a table"),
        ({}, "'schema' is missing"),
        (broken("schema", value=2), "has schema 2; this edgetl reads 1"),
        (broken("classes", value=0), "'classes' is 0"),
        (broken("count", value=9), "'class_counts' is"),
        (broken("class_counts", value=[10, 0]), "'class_counts'"),
        (broken("top", "mean", value=1.5), "top: 'mean' is 1.5"),
        (broken("entropy", "variance", value=-1), "entropy: 'variance' is -1"),
        (broken("recent", "weight", value=0), "recent: 'weight' is 0"),
        (broken("recent", "class_weights", value=[1.0, 2.0]), "recent: 'class_weights'"),
        (broken("recent", value=None), "'recent' is None"),
        (broken("top", "mean", value=None), "'mean' is None"),
    ],
)
def test_damaged_snapshots_are_named(snapshot, says):
    with pytest.raises(InputError, match=says) as caught:
        Drift.restore(snapshot)
    assert caught.value.message.startswith("the drift snapshot")


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(InputError, match="counts 3 classes; expected 4"):
        Drift(4).merge(Drift(3))
    with pytest.raises(InputError, match="'class_counts'"):
        Drift(4).compare(reference_of(scores(200, 3)))
    with pytest.raises(InputError, match="no drift reference"):
        Drift(4).compare(None)
    with pytest.raises(InputError, match="0 classes"):
        reference_of(np.ones(5))
    with pytest.raises(InputError, match="window of 0 images"):
        Drift(3, window=0)
    with pytest.raises(InputError, match="at least one image"):
        reference_of(np.ones((0, 3)))


@pytest.mark.parametrize("classes, sure, known, seen", [(3, 3.0, 100, 250), (10, 4.0, 100, 250), (2, 6.0, 300, 600)])
def test_while_nothing_changes_alarms_stay_below_the_stated_rate(classes, sure, known, seen):
    """Fresh reference and fresh answers each time; one in a thousand is stated."""
    trials, alarms = 400, 0
    for trial in range(trials):
        counted = Drift(classes)
        counted.update(scores(seen, classes, sure=sure, seed=2 * trial))
        verdict = counted.compare(reference_of(scores(known, classes, sure=sure, seed=2 * trial + 1)))
        assert verdict.status != "undecided"
        alarms += verdict.alarm
    assert alarms <= 3  # of a rate of 0.001, four or more of 400 have a probability below 0.001


def test_looking_often_makes_no_storm():
    """One device, one reference, a look after every 50 images: the share of looks with an alarm is what is stated."""
    looks = alarms = 0
    for device in range(10):
        reference, counted = reference_of(scores(200, seed=1000 + device)), Drift(4)
        stream = scores(10_000, seed=2000 + device)
        for part in np.split(stream, 200):
            counted.update(part)
            looks += 1
            alarms += counted.compare(reference).alarm
    assert looks == 2000 and alarms <= 12  # looks at overlapping windows alarm together


@pytest.fixture(scope="module")
def digits():
    """A linear classifier of real digits, its reference, and unseen images with their labels."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order] / 16, labels[order]
    model = LogisticRegression(max_iter=500, C=10).fit(images[:900], labels[:900])
    return model, reference_of(model.predict_proba(images[900:1200])), images[1200:], labels[1200:]


NOISE = np.random.default_rng(7).normal(0, 0.4, (597, 64))


@pytest.mark.parametrize(
    "name, change, status",
    [
        ("nothing", lambda images: images, "stable"),
        ("hardly any noise", lambda images: images + 0.1 * NOISE, "stable"),
        ("divided by 255 in place of 16", lambda images: images * 16 / 255, "drifted"),
        ("half the contrast", lambda images: images / 2, "drifted"),
        ("black for white", lambda images: 1 - images, "drifted"),
        ("noise", lambda images: images + NOISE, "drifted"),
        ("turned", lambda images: images.reshape(-1, 8, 8).transpose(0, 2, 1).reshape(-1, 64), "drifted"),
        ("one column aside", lambda images: np.roll(images.reshape(-1, 8, 8), 1, axis=2).reshape(-1, 64), "drifted"),
    ],
)
def test_a_changed_world_is_noticed(digits, name, change, status):
    model, reference, images, labels = digits
    counted = Drift(10)
    counted.update(model.predict_proba(change(images)))
    verdict = counted.compare(reference)
    lost = model.score(images, labels) - model.score(change(images), labels)
    assert verdict.status == status, (name, verdict, lost)
    assert (lost > 0.1) == verdict.alarm  # what cost accuracy was noticed, and nothing else
    assert bool(verdict.reasons) == verdict.alarm
    assert json.loads(json.dumps(verdict.to_json()))["alarm"] is verdict.alarm


def test_another_mix_of_classes_is_noticed(digits):
    model, reference, images, labels = digits
    counted = Drift(10)
    counted.update(model.predict_proba(images[labels < 6]))
    verdict = counted.compare(reference)
    assert verdict.alarm and "other shares" in " ".join(verdict.reasons)


def test_the_recent_images_decide_however_many_came_before(digits):
    model, reference, images, _ = digits
    counted = Drift(10, window=150)
    for _ in range(20):
        counted.update(model.predict_proba(images))
    assert not counted.compare(reference).alarm
    counted.update(model.predict_proba(images[:300] / 2))
    assert counted.compare(reference).alarm


def test_too_few_images_decide_nothing():
    counted = Drift(4)
    counted.update(scores(shift.LEAST_IMAGES - 1))
    verdict = counted.compare(reference_of(scores(50, seed=3)))
    assert verdict.status == "undecided" and not verdict.alarm and verdict.class_psi is None
    assert [reason.split(" hold ")[0] for reason in verdict.reasons] == ["the recent answers", "the reference"]


def test_a_model_that_is_sure_of_everything_is_not_drifted_by_a_hair():
    sure = np.tile([[0.0, 1.0]], (200, 1))
    counted = Drift(2)
    counted.update(np.tile([[0.002, 0.998]], (200, 1)))
    assert counted.compare(reference_of(sure)).status == "stable"
    counted = Drift(2)
    counted.update(np.tile([[0.3, 0.7]], (200, 1)))
    assert counted.compare(reference_of(sure)).alarm


@pytest.mark.parametrize("degrees", [1, 2, 9, 99])
def test_chi_square_quantiles_are_near_scipys(degrees):
    from scipy.stats import chi2

    for confidence in (0.95, 0.999, 1 - 1e-4):
        assert shift._chi_square_quantile(confidence, degrees) == pytest.approx(chi2.ppf(confidence, degrees), rel=0.1)


def test_the_index_is_the_textbooks_where_every_class_is_common():
    rows = np.repeat(np.eye(2), [300, 100], axis=0), np.repeat(np.eye(2), [200, 200], axis=0)
    counted = Drift(2, window=10**9)
    counted.update(rows[0])
    expected = (0.75 - 0.5) * math.log(0.75 / 0.5) + (0.25 - 0.5) * math.log(0.25 / 0.5)
    assert counted.compare(reference_of(rows[1])).class_psi == pytest.approx(expected, rel=0.01)


def test_prometheus_text():
    counted = Drift(2)
    labels = ('a "quoted"\\', "two\nlines")
    assert "recent" not in prometheus(counted.snapshot(), labels)
    counted.update(np.array([[0.25, 0.75], [0.9, 0.1]]))
    lines = prometheus(counted.snapshot(), labels).splitlines()
    assert "edgetl_images_total 2" in lines
    assert 'edgetl_answers_total{label="a \\"quoted\\"\\\\"} 1' in lines
    assert 'edgetl_answers_total{label="two\\nlines"} 1' in lines
    assert sum(line.startswith("# TYPE") for line in lines) == 4
    with pytest.raises(InputError, match="counts 2 classes; expected 1"):
        prometheus(counted.snapshot(), ("one",))


def test_every_public_name_is_there():
    assert drift.__all__ == ["Drift", "DriftVerdict", "prometheus", "reference_of"]
