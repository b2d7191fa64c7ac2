"""Every figure with its interval: written out in loops, and held against made-up models whose truth is known."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from test_calibration import answers

from edgetl import calibration, evaluate, metrics, scorecard

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import metric_intervals


def summarized(logits, labels):
    return evaluate.summarize(logits, labels, tuple(map(str, range(len(labels)))))


@pytest.fixture(scope="module")
def card():
    return scorecard.of(summarized(*answers(400, classes=7)))


def test_every_figure_lies_in_its_interval_and_is_plain_json(card):
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    for name in ("accuracy", "top5", "macro_f1", "ece", "nll", "brier"):
        assert card[f"{name}_low"] <= card[name] <= card[f"{name}_high"], name
        assert card[f"{name}_low"] < card[f"{name}_high"], name
    assert all(one[f"{name}_low"] <= one[name] <= one[f"{name}_high"]
               for one in card["classes"] for name in ("recall", "precision", "f1"))


def test_the_figures_are_those_of_the_formulas(card):
    logits, labels = answers(400, classes=7)
    predicted = logits.argmax(1)
    assert card["macro_f1"] == pytest.approx(metrics.macro_f1(metrics.confusion(predicted, labels, 7)))
    assert card["ece"] == pytest.approx(metrics.ece(logits, labels))
    assert card["nll"] == pytest.approx(calibration.nll(logits, labels))
    assert card["brier"] == pytest.approx(calibration.brier(logits, labels))
    assert card["ece_equal_mass"] == pytest.approx(calibration.ece_equal_mass(logits, labels))
    hits = round(metrics.topk(logits, labels, 5) * 400)
    assert (card["top5_low"], card["top5_high"]) == metrics.wilson_interval(hits, 400)
    third = card["classes"][3]
    tp, said, there = sum((predicted == 3) & (labels == 3)), sum(predicted == 3), sum(labels == 3)
    assert (third["recall"], third["precision"]) == (tp / there, tp / said)
    assert third["f1"] == pytest.approx(2 * tp / (said + there))
    assert (third["recall_low"], third["recall_high"]) == metrics.wilson_interval(int(tp), int(there))


def test_the_intervals_are_the_percentiles_of_images_drawn_again(monkeypatch):
    logits, labels = answers(40, classes=3)
    generator, drawn = np.random.default_rng(scorecard.SEED), []
    picks = generator.integers(0, 40, (60, 40))
    for rows in picks:
        picked, own = logits[rows], labels[rows]
        drawn.append((metrics.macro_f1(metrics.confusion(picked.argmax(1), own, 3)), metrics.ece(picked, own),
                      calibration.nll(picked, own), calibration.brier(picked, own)))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    by_class = scorecard.f1_by_class(metrics.confusion(logits.argmax(1), labels, 3))
    for at_once in (scorecard.AT_ONCE, 7 * 40):  # in one piece, and in nine
        monkeypatch.setattr(scorecard, "AT_ONCE", at_once)
        f1, error, likelihood, squares = scorecard.drawn_intervals(logits, labels, draws=60)
        assert (likelihood.low, squares.low) == pytest.approx(tuple(low[2:]))
        assert (error.high, likelihood.high, squares.high) == pytest.approx(tuple(high[1:]))
        assert f1.low == pytest.approx(min(low[0], by_class.low))
        assert f1.high == pytest.approx(max(high[0], by_class.high))
    # Chance makes an ECE too great, and the draws add as much again.
    assert error.low < low[1]


def test_macro_f1_by_class_is_the_square_root_of_sums_and_never_closes():
    found = scorecard.f1_by_class(np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]]))  # nobody knows of the third class
    first, second = metrics.f1_interval(8, 2, 1), metrics.f1_interval(9, 1, 2)
    ones = (16 / 19, 18 / 21)
    assert found.value == pytest.approx(sum(ones) / 2)
    for end, sign in ((0, -1), (1, 1)):
        reach = math.hypot(first[end] - ones[0], second[end] - ones[1]) / 2
        assert (found.low, found.high)[end] == pytest.approx(found.value + sign * reach)
    right = scorecard.f1_by_class(np.diag([30, 30]))
    assert right.high == right.value == 1 and 0.9 < right.low < 0.97


def test_where_hardly_an_error_was_seen_no_interval_pretends_to_know_them():
    """All of 200 answers are right: draws of them would close every interval."""
    labels = np.arange(200) % 3
    found = scorecard.of(summarized(12 * np.eye(3)[labels] + 1.0, labels))
    assert found["accuracy"] == found["macro_f1"] == found["macro_f1_high"] == 1
    assert found["macro_f1_low"] < 0.995
    assert found["ece_low"] == 0 and found["ece_high"] >= 1 - found["accuracy_low"] - 1e-4
    assert found["nll_low"] is None and found["brier_high"] is None and found["nll"] > 0
    for wrong, known in ((9, False), (10, True)):
        logits = 3 * np.eye(3)[np.r_[(labels[:wrong] + 1) % 3, labels[wrong:]]]
        assert (scorecard.of(summarized(logits, labels))["nll_high"] is not None) == known


def test_a_calibrated_model_shows_an_ece_by_chance_and_its_interval_reaches_zero():
    logits, labels = answers(200, sharpness=1)
    error = scorecard.drawn_intervals(logits, labels)[1]
    expected = scorecard.chance(logits, labels)
    assert error.low == 0 < error.value <= expected.most
    assert 0.01 < expected.mean < expected.most
    # All answers have the score 1/2 of two labels: the ECE is |share of right ones - 1/2|, a folded binomial's mean.
    even = scorecard.chance(np.zeros((100, 2)), np.zeros(100, int), draws=4000)
    assert even.mean == pytest.approx(math.sqrt(2 / (math.pi * 400)), rel=0.05)
    wrong, labels = answers(200, sharpness=4)
    assert scorecard.drawn_intervals(wrong, labels)[1].low > 0.02


def test_a_class_that_nobody_named_has_dashes_and_few_classes_no_top5():
    found = scorecard.of(summarized(np.array([[2.0, 1, 0], [0.0, 1, 0]]), np.array([0, 0])))
    assert "top5" not in found and "top5_low" not in found
    first, second, third = found["classes"]
    assert (first["recall"], first["precision"]) == (0.5, 1.0)
    assert (second["images"], second["recall"], second["precision"], second["f1"]) == (0, None, 0.0, 0.0)
    assert third == {"images": 0, "answered": 0, **{f"{name}{end}": None for name in ("recall", "precision", "f1")
                                                    for end in ("", "_low", "_high")}}


def test_a_temperature_is_told_before_and_after_on_each_split():
    (val, test) = (summarized(*answers(600, seed=seed)) for seed in (1, 2))
    fitted = calibration.fit_temperature(val.logits, val.labels)
    found = scorecard.scaling(fitted, {"val": val, "test": test})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["value"], found["fitted_on"], found["n"], found["refusal"]) == (fitted.value, "val", 600, None)
    for name, split in (("val", val), ("test", test)):
        told = found["splits"][name]
        assert told["nll"] == pytest.approx(calibration.nll(split.logits, split.labels, fitted.value))
        assert told["nll"] < split.nll
        assert told["ece"] < split.ece and told["ece_low"] <= told["ece"] <= told["ece_high"]
        assert told["reliability"]["before"] == calibration.reliability(split.logits, split.labels).to_json()
        assert told["reliability"]["after"] != told["reliability"]["before"]


def test_without_a_temperature_the_diagram_is_told_and_the_reason():
    right = summarized(10 * np.eye(3), np.arange(3))
    found = scorecard.scaling(calibration.fit_temperature(right.logits, right.labels), {"val": right})
    assert found["value"] is None and found["refusal"] == calibration.ALL_RIGHT
    assert list(found["splits"]["val"]) == ["reliability"] and list(found["splits"]["val"]["reliability"]) == ["before"]


def test_the_splits_of_a_run_have_one_temperature_from_validation_alone():
    val, test = (summarized(*answers(100, seed=seed)) for seed in (1, 2))
    found = scorecard.of_splits({"val": val, "test": test})
    assert list(found) == ["val", "test", "temperature"] and found["val"] == scorecard.of(val)
    assert found["temperature"]["value"] == calibration.fit_temperature(val.logits, val.labels).value
    other = scorecard.of_splits({"val": val, "test": summarized(*answers(100, seed=3))})
    assert other["temperature"]["value"] == found["temperature"]["value"]
    assert list(scorecard.of_splits({"test": test})) == ["test"]


def test_the_simulation_knows_the_truth_and_how_often_intervals_hold_it(monkeypatch):
    monkeypatch.setattr(metric_intervals, "TRUTH", 50_000)
    monkeypatch.setattr(scorecard, "DRAWS", 200)
    # A calibrated classifier has no gap, and nobody's likelihood is better than the entropy.
    true, logits = metric_intervals.WORLDS["six classes, calibrated"].images(np.random.default_rng(0), 20_000)
    f1, error, likelihood, squares = metric_intervals.WORLDS["six classes, calibrated"].truth(0)
    assert error < 1e-9
    assert likelihood == pytest.approx(-(true * np.log(true)).sum(axis=1).mean(), rel=0.03)
    assert squares == pytest.approx((1 - (true**2).sum(axis=1)).mean(), rel=0.03)
    assert f1 == pytest.approx(true.max(axis=1).mean(), abs=0.01)  # six classes of one size, alike
    assert np.array_equal(logits.argmax(1), true.argmax(1))
    row = metric_intervals.coverage("six classes, calibrated", 100, repetitions=40, seed=3)
    assert row["ece"]["stated"]["covered"] >= 0.85 > 0.1 >= row["ece"]["plain"]["covered"]
    assert row["macro_f1"]["stated"]["covered"] >= 0.85 and row["macro_f1"]["stated"]["stated_in"] == 40
    assert row["nll"]["stated"]["stated_in"] < 40  # hardly an error was seen
    right = metric_intervals.coverage("six classes, nearly all right", 100, repetitions=10, seed=0)
    assert right["macro_f1"]["stated"]["covered"] == 1 > 0.5 > right["macro_f1"]["plain"]["covered"]
    assert "stated" not in right["nll"]


def test_the_page_tells_of_every_figure():
    page = (Path(__file__).parents[1] / "docs/figures.md").read_text()
    named = {name for line in page.splitlines() if line.startswith("|")
             for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    logits, labels = answers(50, classes=7)
    told = scorecard.of_splits({"val": summarized(logits, labels)})
    figures = {name for name in told["val"] if not name.endswith(("_low", "_high"))}
    assert named == figures | set(told["temperature"])
    inner = told["temperature"]["splits"]["val"]
    words = {*inner, *inner["reliability"], *inner["reliability"]["before"], *told["val"]["classes"][0]}
    assert all(f"`{name}`" in page for name in words if not name.endswith(("_low", "_high")))
