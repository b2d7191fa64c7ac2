"""Strategies against one another in the real loop, on tiny photos: one table, one winner, the test split untouched."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_photos
from stop_at import StopAt

from edgetl import evaluate, predictions, weights
from edgetl.datasets import Item
from edgetl.errors import DataError, EdgetlError, RecipeError, TrainingError
from edgetl.events import Event
from edgetl.predictions import Predictions
from edgetl.recipe import build
from edgetl.recipe_compare_strategies import CompareStrategies
from edgetl.recipe_finetune import Finetune
from edgetl.train import contest, setting, store, strategy_table, teacher
from edgetl.train.strategy_table import Answers

TINY = {"teacher": "timm/test_resnet", "pretrained": False, "image_size": 32, "epochs": 1, "batch_size": "8",
        "workers": 0, "lr": 3e-3, "threads": 1, "strategies": ["probe", "full"], "seeds": 2, "val_fraction": 0.3}

PhotoFolder = Callable[..., Path]
Result = Mapping[str, Any]


@pytest.fixture
def photos(photo_folder: PhotoFolder) -> Path:
    return photo_folder(classes=2, images=8)


def options(data: Path, out: Path, **values: Any) -> CompareStrategies:
    given = {**TINY, **values}
    return build(CompareStrategies, {"data": str(data), "out": str(out),
                                     **{name: one for name, one in given.items() if one is not None}}, where="test")


def no_pages(folder: Path, result: Result) -> None:
    pass


def compared(data: Path, out: Path, listener: Callable[[Event], None] = lambda event: None, **values: Any) -> Result:
    return contest.compare(options(data, out, **values), draw=no_pages, listener=listener).result


# ------------------------------------------------------------------------------------------------- what is trained


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """Photos, and a comparison of two strategies with two seeds that went through in one go."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_photos(folder / "photos", classes=2, images=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETL_CACHE", str(folder / "cache"))
        return data, folder / "out", compared(data, folder / "out")


def test_every_training_is_a_run_and_the_winner_s_keeps_its_weights(whole: tuple[Path, Path, Result]) -> None:
    _, out, found = whole
    places = [out / "runs" / name / f"seed-{seed}" for name in ("probe", "full") for seed in (0, 1)]
    for place in places:
        record = weights.read_record(place)
        assert record["options"]["out"] == str(place)
        assert not (place / "model.safetensors").exists()
        assert "val" in predictions.read(place)
    assert [weights.read_record(place)["options"]["seed"] for place in places] == [0, 1, 0, 1]
    assert found == json.loads((out / "strategies.json").read_text())
    assert {row["strategy"] for row in found["rows"]} == {"probe", "full"}
    assert all(len(row["accuracies"]) == len(row["seconds"]) == 2 for row in found["rows"])
    winner = weights.load(out / "winner")
    best = out / "runs" / found["verdict"]["recommended"]
    accuracies = [weights.read_record(best / f"seed-{seed}")["metrics"]["val"]["accuracy"] for seed in (0, 1)]
    assert winner.record["metrics"]["val"]["accuracy"] == max(accuracies)
    assert winner.record["options"]["strategy"] == found["verdict"]["recommended"]
    assert winner.record["options"]["out"] == str(out / "winner")


def test_keep_runs_keeps_the_weights_of_all(photos: Path, tmp_path: Path) -> None:
    compared(photos, tmp_path / "out", seeds=1, strategies=["probe", "probe;image-size=40"], keep_runs=True)
    for name in ("probe", "probe_image-size=40"):
        assert weights.load(tmp_path / "out" / "runs" / name / "seed-0").labels


def test_a_run_is_what_finetune_alone_makes_of_it(photos: Path, tmp_path: Path) -> None:
    compared(photos, tmp_path / "out", seeds=1, keep_runs=True)
    shared = {name: value for name, value in TINY.items() if name not in ("strategies", "seeds")}
    same = {**shared, "data": str(photos), "out": str(tmp_path / "alone")}
    alone = teacher.finetune(build(Finetune, same, where="test"))
    ours = tmp_path / "out" / "runs" / "full" / "seed-0"
    assert (ours / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    assert weights.read_record(ours)["identity"] == weights.read_record(alone)["identity"]


# ---------------------------------------------------------------------------------------- the test split untouched


def watched(monkeypatch: pytest.MonkeyPatch, seen: list[str]) -> None:
    """Writes down the keys of all images that are decoded for an evaluation or a check."""
    real = evaluate.pixels_of

    def pixels_of(item: Item, *rest: Any) -> Any:
        seen.append(item.key)
        return real(item, *rest)

    monkeypatch.setattr(evaluate, "pixels_of", pixels_of)
    monkeypatch.setattr(store, "pixels_of", pixels_of)


@pytest.mark.parametrize("repeats", [{"seeds": 2}, {"seeds": None, "folds": 2}])
def test_no_test_image_is_decoded_before_the_choice(
    repeats: dict[str, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    at_choice: list[set[str]] = []
    watched(monkeypatch, seen)

    def listener(event: Event) -> None:
        if "is recommended" in str(event.values.get("text")):
            at_choice.append(set(seen))

    found = compared(photos, tmp_path / "out", listener, **repeats)
    test = set(json.loads((tmp_path / "out" / "winner" / "split.json").read_text())["test"])
    assert len(test) == found["test"]["images"] > 0
    assert len(at_choice) == 1
    assert at_choice[0]
    assert not at_choice[0] & test
    assert test <= set(seen)
    for place in (tmp_path / "out" / "runs").glob("*/*"):  # whoever is not the winner was never shown one
        if place.parent.name != found["verdict"]["recommended"] or "folds" in repeats:
            assert not test & {str(key) for one in predictions.read(place).values() for key in one.keys}
    assert found["test"]["strategy"] == found["verdict"]["recommended"]
    assert found["test_sentence"].startswith("The test split was touched once, after the choice and by ")


def test_a_test_image_that_cannot_be_read_does_not_cost_the_table(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = setting.measured

    def measured(place: Any, *rest: Any) -> Any:
        if place.parts.test:
            raise DataError("'0/1.jpg' is no image.")
        return real(place, *rest)

    monkeypatch.setattr(setting, "measured", measured)
    made = contest.compare(options(photos, tmp_path / "out", seeds=1), draw=no_pages)
    assert made.result["test"]["reason"] == "'0/1.jpg' is no image."
    assert weights.load(tmp_path / "out" / "winner").labels
    with pytest.raises(DataError, match="The test split could not be measured: '0/1"):
        made.insist()


def test_folds_are_the_same_for_all_and_the_winner_is_trained_on_the_data_s_own_split(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = compared(photos, out, seeds=None, folds=2)
    held = [[json.loads((out / "runs" / name / f"fold-{number}" / "split.json").read_text())["test"]
             for number in (1, 2)] for name in ("probe", "full")]
    assert held[0] == held[1]
    own = json.loads((out / "winner" / "split.json").read_text())
    assert sorted(held[0][0] + held[0][1]) == sorted(own["train"] + own["val"])
    assert found["repeats"] == {"kind": "folds", "count": 2}
    assert "test" in weights.read_record(out / "winner")["metrics"]
    assert weights.load(out / "winner").labels


# -------------------------------------------------------------------------------------------- stopping and failing


def test_a_comparison_that_was_broken_off_keeps_what_was_trained(
    whole: tuple[Path, Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, _, found = whole
    trained: list[str] = []
    real, most = teacher.finetune, [2]

    def finetune(one: Finetune, **rest: Any) -> Path:
        if len(trained) == most[0]:
            raise KeyboardInterrupt
        trained.append(f"{one.strategy} {one.seed}")
        return real(one, **rest)

    monkeypatch.setattr(teacher, "finetune", finetune)
    with pytest.raises(KeyboardInterrupt):
        compared(photos, tmp_path / "out")
    with pytest.raises(TrainingError, match="epochs was 1 and is 2"):
        compared(photos, tmp_path / "out", resume=True, epochs=2)
    most[0] = 99
    again = compared(photos, tmp_path / "out", resume=True)
    assert trained == ["probe 0", "full 0", "probe 1", "full 1"]
    assert {row["strategy"]: row["accuracies"] for row in again["rows"]} == {
        row["strategy"]: row["accuracies"] for row in found["rows"]}
    trained.clear()
    notes: list[str] = []
    assert compared(photos, tmp_path / "out", lambda event: notes.append(str(event.values)), resume=True) == again
    assert not trained
    assert "is finished already" in notes[-1]


def test_a_training_that_was_broken_off_goes_on_where_it_was(photos: Path, tmp_path: Path) -> None:
    asked = {"strategies": ["full", "full;lr=0.001"], "seeds": 1, "epochs": 3, "prefer": "accurate", "tta": "hflip",
             "checkpoint_minutes": 0.0}
    whole = compared(photos, tmp_path / "whole", **asked)
    with pytest.raises(ZeroDivisionError):
        compared(photos, tmp_path / "out", StopAt(3, ZeroDivisionError()), **asked)
    assert not (tmp_path / "out").exists()
    began: list[int] = []

    def listener(event: Event) -> None:
        if event.kind == "advance" and "loss" in event.values:
            began.append(event.values["done"])

    again = compared(photos, tmp_path / "out", listener, resume=True, **asked)
    assert began[0] == 3  # the step that was broken off, of the first training
    assert [row["accuracies"] for row in again["rows"]] == [row["accuracies"] for row in whole["rows"]]
    model = [(tmp_path / name / "winner" / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert model[0] == model[1]
    assert set(weights.read_record(tmp_path / "out" / "winner")["tta"]) == {"views", "val", "test"}


def failing(monkeypatch: pytest.MonkeyPatch, *names: str, error: type[EdgetlError] = TrainingError) -> None:
    real = teacher.finetune

    def finetune(one: Finetune, **rest: Any) -> Path:
        if one.strategy in names:
            raise error("The loss is nan in epoch 1, step 3.")
        return real(one, **rest)

    monkeypatch.setattr(teacher, "finetune", finetune)


def test_a_strategy_that_fails_is_a_row(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "lp-ft")
    made = contest.compare(options(photos, tmp_path / "out", strategies=["lp-ft", "probe", "full"], seeds=1),
                           draw=no_pages)
    rows = {row["strategy"]: row for row in made.result["rows"]}
    assert rows["lp-ft"]["reason"] == "The loss is nan in epoch 1, step 3."
    assert rows["lp-ft"]["accuracy"] is None
    assert rows["probe"]["accuracy"] is not None
    assert made.result["rows"][-1]["strategy"] == "lp-ft"
    assert [{pair["first"], pair["second"]} for pair in made.result["pairs"]] == [{"probe", "full"}]
    with pytest.raises(TrainingError, match="1 of 3 strategies could not be trained: lp-ft: The loss is nan"):
        made.insist()


def test_where_all_fail_there_is_no_table(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "probe", "full")
    with pytest.raises(TrainingError, match="None of the strategies could be trained: probe: The loss is nan"):
        compared(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_without_test_images_has_a_winner_all_the_same(photos: Path, tmp_path: Path) -> None:
    found = compared(photos, tmp_path / "out", seeds=1, test_fraction=0)
    assert found["test"] is None
    assert found["test_sentence"] == "There are no test images, so nothing is said of them."
    assert weights.load(tmp_path / "out" / "winner").labels


# -------------------------------------------------------------------------------------------------- what is asked for


def arms(*specs: str, **values: Any) -> tuple[Any, ...]:
    return options(Path("d"), Path("o"), strategies=list(specs), **values).arms(contest._require)[0]


def test_the_options_of_a_row_are_those_of_finetune() -> None:
    first, second, third = arms("full,lp-ft; lr = 3e-4;mixup=0.2", "partial;freeze=stages:2,conv1")
    assert (first.name, first.folder) == ("full;lr=0.0003;mixup=0.2", "full_lr=0.0003_mixup=0.2")
    assert (second.options.strategy, second.options.lr, second.options.mixup) == ("lp-ft", 3e-4, 0.2)
    assert third.options.freeze == ("stages:2", "conv1")
    assert (third.options.lr, third.options.epochs) == (3e-3, 1)
    assert third.own == {"freeze": ("stages:2", "conv1")}


def test_a_truth_value_stands_alone() -> None:
    on, off = arms("full;vflip", "full;hflip=false")
    assert (on.name, on.options.vflip) == ("full;vflip", True)
    assert (off.name, off.options.hflip) == ("full;hflip=false", False)


def test_the_options_of_a_loss_stay_with_it() -> None:
    focal, _ = arms("full;loss=focal;gamma=3;lr=0.1", "full")
    assert (focal.options.loss, focal.options.lr) == (("focal;gamma=3",), 0.1)
    assert focal.name == "full;loss=focal;gamma=3;lr=0.1"


def test_what_only_some_strategies_read_goes_to_those_alone() -> None:
    full, partial = arms("full,partial", freeze=["stages:1"])
    assert (full.options.freeze, partial.options.freeze) == ((), ("stages:1",))


def test_by_default_all_that_fit_are_compared() -> None:
    found, left_out = options(Path("d"), Path("o"), strategies=None).arms(contest._require)
    assert {"scratch", "probe", "full", "lp-ft", "gradual"} <= {arm.name for arm in found}
    assert any(reason.startswith("'partial': --strategy partial needs --freeze") for reason in left_out)
    assert any(reason.startswith("'joint': ") for reason in left_out)
    assert "'feature-copy': without --features-from it is probe once more." in left_out
    found, left_out = options(Path("d"), Path("o"), strategies=None, freeze=["stages:1"]).arms(contest._require)
    assert "partial" in {arm.name for arm in found}


@pytest.mark.parametrize(("specs", "problem"), [
    (["full", "ful"], "'ful': there is no strategy 'ful'; did you mean 'full'?"),
    (["full", "probe;epoch=3"], "unknown key 'epoch'; did you mean 'epochs'?"),
    (["full", "full;epochs=0"], "'full;epochs=0': 'epochs': found 0, expected at least 1"),
    (["full", "full;epochs=many"], "found 'many', expected a whole number"),
    (["full", "full;lr"], "found True, expected a number"),
    (["full", "full;seed=3"], "'seed' is the same for all strategies; give it as --seed"),
    (["full", "full;val-fraction=0.5"], "'val-fraction' is the same for all strategies"),
    (["full", "full;out=x"], "'out' is the same for all strategies; give it as --out"),
    (["full", "full;strategy=probe"], "unknown key 'strategy'"),
    (["full,probe,full"], "'full' is named twice"),
    (["full"], "found full, expected two strategies or more to compare"),
    (["full", "partial"], "'partial': --strategy partial needs --freeze"),
    (["full", "full;loss=kd"], "'full;loss=kd': --loss names 'kd', which needs a teacher's answers"),
    (["full", "probe;freeze=stages:1"], "'probe;freeze=stages:1': --freeze does nothing with --strategy probe"),
])  # fmt: skip
def test_what_cannot_be_compared_is_told_before_the_first_training(specs: list[str], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        arms(*specs)
    assert problem in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        arms("ful", "probe;epoch=3", "full;lr=x")
    assert len(caught.value.problems) == 3


def test_seeds_and_folds_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="found --seeds 2 and --folds 3, expected one of them"):
        options(tmp_path, tmp_path, folds=3).repeats()
    assert options(tmp_path, tmp_path, seeds=None).repeats() == 3


# ------------------------------------------------------------------------------------------------------- statistics


def answered(name: str, right: list[list[int]], seconds: float, **more: Any) -> Answers:
    """A strategy whose trainings are right where a list has 1; all labels are 0."""
    found = []
    for one in right:
        predicted = np.array([1 - hit for hit in one], np.int64)
        score = np.ones(len(one), np.float32)
        found.append(Predictions(np.array([f"{i}.jpg" for i in range(len(one))]), np.zeros(len(one), np.int64),
                                 predicted, score, score))
    return Answers(name, {}, tuple(found), (seconds,) * len(right), **more)


def judged(*answers: Answers) -> tuple[tuple[strategy_table.Row, ...], strategy_table.Verdict]:
    table = strategy_table.rows(answers, folds=False)
    pairs = strategy_table.pairs(answers, [row.strategy for row in table], folds=False)
    return table, strategy_table.verdict(table, pairs, measured_on="40 images")


def test_of_those_that_cannot_be_told_apart_the_quicker_is_recommended() -> None:
    table, found = judged(answered("slow", [[1] * 36 + [0] * 4], 90.0),
                          answered("quick", [[0] + [1] * 34 + [0] * 5], 9.0),
                          answered("poor", [[0] * 36 + [1] * 4], 1.0))
    assert [row.strategy for row in table] == ["slow", "quick", "poor"]
    assert (found.best, found.alike, found.recommended) == ("slow", ("slow", "quick"), "quick")
    first, same, worse, taken = found.sentences
    assert first.startswith("slow is the most accurate of 3 strategies: 90.0 % (95 %: ")
    assert same.startswith("Not distinguishable from it: quick (-5.0 points, 95 % ")
    assert worse.startswith("Significantly worse: poor (-80.0 points, ")
    assert "Recommended: quick, the quickest to train of those that cannot be told apart, 9.0 s a training" in taken
    assert "Not distinguishable is not equal" in taken


def test_the_best_is_recommended_where_it_is_also_the_quickest_or_alone() -> None:
    _, found = judged(answered("a", [[1] * 36 + [0] * 4], 1.0), answered("b", [[1] * 35 + [0] * 5], 2.0))
    assert found.recommended == "a"
    assert "which is also the quickest to train" in found.sentences[-1]
    _, found = judged(answered("a", [[1] * 36 + [0] * 4], 9.0), answered("b", [[0] * 40], 2.0))
    assert (found.recommended, found.alike) == ("a", ("a",))
    assert found.sentences[-1] == "Recommended: a, which no other is like."


def test_a_difference_that_the_adjustment_takes_away_is_no_reason_to_take_the_quicker() -> None:
    answers = [answered("best", [[1] * 40], 9.0), answered("quick", [[1] * 34 + [0] * 6], 1.0),
               answered("third", [[0] * 2 + [1] * 36 + [0] * 2], 8.0)]  # p of quick: 0.031, of three 0.094
    _, found = judged(*answers)
    assert (found.alike, found.recommended) == (("best", "third"), "third")
    assert found.sentences[2].startswith("Worse by a test of the pair alone, but not beside all others: quick (-15.0 ")
    assert "p 0.094 adjusted" in found.sentences[2]


def test_whoever_prefers_accuracy_gets_the_best() -> None:
    answers = (answered("a", [[1] * 36 + [0] * 4], 9.0), answered("b", [[1] * 35 + [0] * 5], 2.0))
    table = strategy_table.rows(answers, folds=False)
    pairs = strategy_table.pairs(answers, ["a", "b"], folds=False)
    found = strategy_table.verdict(table, pairs, measured_on="40 images", quick=False)
    assert (found.recommended, found.alike, found.sentences[-1]) == ("a", ("a", "b"), "Recommended: a.")


def test_p_values_are_adjusted_over_all_pairs() -> None:
    answers = [answered("a", [[1] * 40], 1.0), answered("b", [[1] * 34 + [0] * 6], 1.0),
               answered("c", [[1] * 32 + [0] * 8], 1.0)]
    a_b, a_c, b_c = strategy_table.pairs(answers, ["a", "b", "c"], folds=False)
    assert (a_b.p_value, a_c.p_value, b_c.p_value) == pytest.approx((2 / 2**6, 2 / 2**8, 0.5))
    assert (a_c.adjusted, a_b.adjusted, b_c.adjusted) == pytest.approx((3 * 2 / 2**8, 2 * 2 / 2**6, 0.5))
    assert (a_b.significant, a_c.significant) == (False, True)


def test_answers_to_different_images_are_not_paired() -> None:
    with pytest.raises(ValueError, match="a and b answered different images"):
        strategy_table.pairs([answered("a", [[1, 0, 1]], 1.0), answered("b", [[1, 0]], 1.0)], ["a", "b"], folds=False)


def test_a_row_with_another_budget_is_told_of() -> None:
    row = strategy_table.Row("full;epochs=20", {"epochs": 20, "lr": 0.1})
    told = strategy_table.notes([row, strategy_table.Row("probe", {})], repeats=1, folds=False)
    assert "Not the same budget: full;epochs=20 (--epochs 20)." in told
    assert any("One seed says nothing of the spread over seeds" in one for one in told)


def test_the_watch_leaves_out_what_prepares_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 40.0, 100.0])
    monkeypatch.setattr(contest.timing, "now_s", lambda: next(clock))
    heard: list[Event] = []
    watch = contest.Watch(heard.append)
    for kind, what in (("begin", "train"), ("begin", "decode"), ("end", "decode"), ("end", "train")):
        watch(Event("finetune", kind, {"what": what}))
    assert watch.seconds() == 70.0
    assert len(heard) == 4
