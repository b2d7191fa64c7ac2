"""Strategies compared on several heads, labels and values: the task's own score, in seeds and in folds."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from edgetl import contrasts, head_metrics, task_scores, weights
from edgetl.cli.app import main
from edgetl.datasets import Item
from edgetl.errors import DataError, EdgetlError, RecipeError
from edgetl.heads import MULTILABEL, REGRESS, Head
from edgetl.recipe import build
from edgetl.recipe_compare_strategies import CompareStrategies
from edgetl.splits import Duplicates, Splits
from edgetl.task_scores import Said
from edgetl.train import contest, folds, gain, strategy_table
from edgetl.train.strategy_table import Answers

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import task_gain_coverage

LABELS = (Head("labels", MULTILABEL, ("x", "y")),)
VALUES = (Head("values", REGRESS, ("mm",)),)


def said(good: float, n: int = 60, seed: int = 0, asked: tuple[Head, ...] = VALUES, noise: int = 1) -> Said:
    """Answers that lie `good` of the way from chance to the truth."""
    truth = np.random.default_rng(seed).normal(size=(n, len(asked[0].labels)))
    truth = (truth > 0).astype(np.float64) if asked is LABELS else truth
    guess = np.random.default_rng([seed, noise]).normal(size=truth.shape)
    return Said(asked, np.array([f"{seed}-{place}" for place in range(n)]), good * truth + (1 - good) * guess, truth)


# ------------------------------------------------------------------------------------------------------- the interval


def test_one_seed_is_the_normal_interval_of_the_draws() -> None:
    first, second = said(0.9), said(0.5, noise=2)
    found = task_scores.over_seeds([first], [second])
    spread = np.var(first.again - second.again, ddof=1)
    half = norm.ppf(0.975) * math.sqrt(spread)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (first.value - second.value, found.mean - half, found.mean + half))
    assert found.p_value == pytest.approx(2 * norm.sf(found.mean / math.sqrt(spread)), rel=1e-6)
    assert found.low > 0 and found.p_value < 0.05
    turned = task_scores.over_seeds([second], [first])
    assert (turned.low, turned.high, turned.p_value) == pytest.approx((-found.high, -found.low, found.p_value))


def test_paired_draws_are_narrower_than_those_of_each_alone_and_never_close() -> None:
    first, second = said(0.6), said(0.58)  # with the same errors, a little more of them
    paired = task_scores.over_seeds([first], [second])
    alone = [task_scores.share([one], folds=False) for one in (first, second)]
    assert paired.high - paired.low < 0.3 * min(one.high - one.low for one in alone)
    label = said(0.6, asked=LABELS)
    same = task_scores.over_seeds([label], [label])
    assert same.mean == 0 and same.low == pytest.approx(-norm.ppf(0.975) / 60) and same.p_value == 1
    assert np.array_equal(first.again, said(0.6).again) and alone[0].high <= 1


def test_seeds_that_disagree_widen_the_interval() -> None:
    steady = contrasts.by_draws(np.array([0.10, 0.11, 0.09]), np.full(50, 0.1), 1e-4)
    shaken = contrasts.by_draws(np.array([0.30, -0.10, 0.10]), np.full(50, 0.1), 1e-4)
    assert steady.mean == pytest.approx(shaken.mean) and shaken.low < 0 < steady.low
    assert steady.p_value < 0.05 < shaken.p_value
    with_gaps = contrasts.by_draws(np.array([0.1]), np.array([0.1, math.nan, 0.2, 0.0]))
    assert math.isfinite(with_gaps.low) and with_gaps.low < 0


def test_folds_take_the_less_sure_of_two_views() -> None:
    first, second = ([said(good, 30, seed) for seed in range(4)] for good in (0.9, 0.6))
    found = task_scores.over_folds(first, second)
    values = np.array([one.value - other.value for one, other in zip(first, second, strict=True)])
    assert found.mean == pytest.approx(values.mean())
    by_folds = contrasts.folds_interval([np.array([one]) for one in values])
    assert found.low <= by_folds[0] and found.high >= by_folds[1]
    assert found.p_value >= contrasts.folds_p_value([np.array([one]) for one in values])
    assert not np.array_equal(first[0].again, first[1].again)  # each fold draws by itself


@pytest.mark.parametrize("asked", [LABELS, VALUES])
def test_the_interval_holds_a_gain_that_is_known_about_as_often_as_it_says(asked: tuple[Head, ...]) -> None:
    """Two that are equally good on 60 images, forty times: neither may be claimed to be better too often."""
    pairs = [task_scores.over_seeds([said(0.4, 60, seed, asked, 1)], [said(0.4, 60, seed, asked, 2)])
             for seed in range(40)]
    assert sum(one.low <= 0 <= one.high for one in pairs) >= 34


def test_answers_that_cannot_be_paired_or_scored_are_refused() -> None:
    with pytest.raises(ValueError, match="different images"):
        task_scores.over_seeds([said(0.5)], [said(0.5, seed=1)])
    one = said(0.5)
    flat = Said(VALUES, one.keys, one.answers, np.zeros_like(one.truth))
    with pytest.raises(DataError, match="The 60 images, 0-0 among them, do not tell one training from another"):
        _ = flat.value


def test_a_gain_names_its_score() -> None:
    found = gain.of_task([3], [said(0.9)], [said(0.5, noise=2)], "R2")
    told = found.to_json()
    assert told["score"] == "R2" and told["significant"] and told["images"] == 60
    assert f"gain {found.mean:+.3f} of R2 (95 %: {found.low:+.3f} to {found.high:+.3f})" in told["sentence"]
    assert found.differences == (found.student[0] - found.control[0],)


def test_answers_that_were_written_are_read_or_refused(tmp_path: Path) -> None:
    assert task_scores.read(tmp_path, VALUES) == {}
    one = said(0.5)
    parts: dict[str, Any] = {"val.keys": one.keys, "val.answers": one.answers, "val.truth": one.truth}
    np.savez(tmp_path / "answers.npz", **parts)
    assert task_scores.read(tmp_path, VALUES)["val"].value == one.value
    with pytest.raises(EdgetlError, match=r"arrays of other shapes than \[2 outputs\]"):
        task_scores.read(tmp_path, LABELS)
    (tmp_path / "answers.npz").write_bytes((tmp_path / "answers.npz").read_bytes()[:99])
    with pytest.raises(EdgetlError, match="cannot be read as answers"):
        task_scores.read(tmp_path, VALUES)


def test_the_figure_of_a_card_is_the_one_that_is_compared() -> None:
    one = said(0.7, asked=LABELS)
    card = head_metrics.card(LABELS, {"val": one.answers}, {"val": one.truth})["val"]
    assert head_metrics.of_card(card) == pytest.approx(one.value)
    assert head_metrics.of_card({"accuracy": 0.5}) == 0.5 and head_metrics.of_card({}) is None


def test_a_table_of_scores_names_the_best_and_says_how_it_was_compared() -> None:
    answers = [Answers("full", {}, (said(0.9),), (2.0,)), Answers("probe", {}, (said(0.3, noise=2),), (1.0,))]
    rows = strategy_table.rows(answers, folds=False)
    pairs = strategy_table.pairs(answers, ["full", "probe"], folds=False)
    assert [row.strategy for row in rows] == ["full", "probe"] and rows[0].macro_f1 is None and pairs[0].significant
    told = strategy_table.verdict(rows, pairs, measured_on="60 validation images", score="R2").sentences
    assert told[0].startswith(f"full is the most accurate of 2 strategies: R2 {rows[0].accuracy:.3f} (95 %: ")
    assert any("Compared is R2" in one for one in strategy_table.notes(rows, repeats=1, folds=False, score="R2"))


# --------------------------------------------------------------------------------------------------------------- folds


def test_folds_and_their_validation_hold_labels_alike() -> None:
    items = tuple(Item(f"{place:03d}", 0, answers=(float(place % 6 == 0), float(place % 2))) for place in range(120))
    digests = {item.key: item.key for item in items} | {"006": "012"}  # a copy
    parts = Splits(items, (), (), "", {}, Duplicates())
    dealt = folds.deal(parts, digests, 4, 0, LABELS)
    assert sorted(item.key for fold in dealt for item in fold) == [item.key for item in items]
    assert all(abs(sum(item.answers[0] for item in fold) - 5) <= 1 for fold in dealt)
    assert sum({"006", "012"} <= {item.key for item in fold} for fold in dealt) == 1
    found = folds.arranged(parts, dealt, 1, digests, 0, 0.2, LABELS)
    assert len(found.val) == 18 and sum(item.answers[0] for item in found.val) == pytest.approx(3, abs=1)
    assert not {item.key for item in found.val} & {item.key for item in (*found.train, *found.test)}
    with pytest.raises(DataError, match="200 folds need as many images"):
        folds.deal(parts, digests, 200, 0, LABELS)


# ---------------------------------------------------------------------------------------------------- the comparison


def table(folder: Path, images: int = 36) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = ["path,red,blue"]
    for place in range(images):
        red, blue = rng.uniform(0, 255, 2)
        pixels = np.full((32, 32, 3), 40, np.uint8)
        pixels[..., 0], pixels[:16, :, 2] = int(red), int(blue)
        Image.fromarray(pixels).save(folder / f"{place}.png")
        lines.append(f"{place}.png,{red},{'' if place % 7 == 0 else blue}")
    (folder / "values.csv").write_text("\n".join(lines) + "\n")


def options(folder: Path, out: str, **values: Any) -> CompareStrategies:
    said = {"data": f"csv:{folder / 'values.csv'}", "out": str(folder / out), "teacher": "timm/test_resnet",
            "pretrained": False, "image_size": 32, "epochs": 1, "batch_size": "9", "workers": 0, "threads": 1,
            "strategies": ["probe", "full"], "val_fraction": 0.3, "task": REGRESS, "crop_scale": 1.0,
            "color_jitter": 0.0}  # fmt: skip
    return build(CompareStrategies, {**said, **values}, where="test")


def test_values_are_compared_by_r2_over_seeds(tmp_path: Path) -> None:
    from edgetl.bench import strategy_page

    table(tmp_path)
    asked = options(tmp_path, "out", seeds=2, label_columns=["red", "blue"])
    found = contest.compare(asked, draw=strategy_page.write).result
    rows = {row["strategy"]: row for row in found["rows"]}
    assert found["score"] == "R2" and found["verdict"]["best"] == "probe"
    records = [weights.read_record(tmp_path / "out" / "runs" / "probe" / f"seed-{seed}") for seed in (0, 1)]
    assert rows["probe"]["accuracies"] == pytest.approx([one["metrics"]["val"]["r2"] for one in records])
    assert found["test"]["accuracy"] <= 1 and "alone: R2 " in found["test_sentence"]
    winner = weights.read_record(tmp_path / "out" / "winner")["metrics"]["test"]["r2"]
    assert any(winner == pytest.approx(one) for one in found["test"]["accuracies"])
    page = (tmp_path / "out" / strategy_page.TEXT).read_text()
    assert "| R2 % |" in page and "Compared is R2" in page and "Accuracy" not in page
    assert (tmp_path / "out" / strategy_page.PAGE).read_text().count("Accuracy of each") == 0
    assert json.loads((tmp_path / "out" / "strategies.json").read_text()) == found


def test_values_are_compared_in_folds(tmp_path: Path) -> None:
    table(tmp_path)
    found = contest.compare(options(tmp_path, "out", folds=2, keep_runs=False), draw=lambda folder, result: None).result
    assert found["repeats"] == {"kind": "folds", "count": 2} and len(found["rows"][0]["accuracies"]) == 2
    assert found["pairs"][0]["low"] <= found["pairs"][0]["difference"] <= found["pairs"][0]["high"]
    assert weights.read_record(tmp_path / "out" / "winner")["metrics"]["test"]["r2"] is not None


def test_the_task_is_the_same_for_all_and_bad_inputs_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError, match="'task' is the same for all strategies; give it as --task"):
        options(tmp_path, "out", strategies=["probe", "full;task=multilabel"]).arms(lambda one: None)
    table(tmp_path)
    line = ["compare-strategies", "--data", f"csv:{tmp_path / 'values.csv'}", "--teacher", "timm/test_resnet", "--out",
            str(tmp_path / "no")]  # fmt: skip
    assert main([*line, "--task", "multilabel"]) == 1 and "expected 0, 1, or nothing" in capsys.readouterr().err
    assert main([*line, "--task", "regress", "--strategies", "probe,full", "--loss", "focal"]) == 1
    assert "'focal', which is no loss for --task regress" in capsys.readouterr().err
    assert main([*line, "--task", "regress", "--label-columns", "green"]) == 1
    assert "has no column 'green' to learn" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_the_benchmark_of_the_intervals_counts_how_often_zero_is_held() -> None:
    row = task_gain_coverage.coverage("heads", "seeds differ", 3, 40, repetitions=15, seed=0)
    assert row["coverage"] >= 0.8 and row["median_half_width"] > 0 and row["task"] == "heads"
    row = task_gain_coverage.coverage("values", "seeds are alike", 1, 40, repetitions=15, seed=0)
    assert row["coverage_low"] <= row["coverage"] <= row["coverage_high"]
