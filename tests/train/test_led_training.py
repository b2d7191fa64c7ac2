"""The options that lead a training, in the real loop: what each does, that they combine, and that each resumes."""

from __future__ import annotations

import json
import math
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stop_at import StopAt
from torch import nn

from edgetl import models, rundir, weights
from edgetl.cli.app import main
from edgetl.errors import RecipeError, TrainingError
from edgetl.events import Event
from edgetl.models import Network
from edgetl.recipe import Distill, Finetune, build, to_toml
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import layer_decay, loader, lr_range, optim, tta, wise
from edgetl.train.anchor import Anchor
from edgetl.train.course import Course
from edgetl.train.progress import Score
from edgetl.train.student import distill
from edgetl.train.teacher import finetune

TINY = {"image_size": 32, "epochs": 2, "batch_size": "8", "workers": 0, "lr": 3e-3, "threads": 1}
EVERYTHING: dict[str, Any] = {
    "schedule": "one-cycle", "min_lr": 1e-5, "layer_decay": 0.7, "l2_sp": 0.1, "wise_ft": True, "lr": "find",
    "balance": "sampler", "loss": ["focal;gamma=1"], "tta": "hflip", "clip_norm": 1.0, "ema": 0.9, "mixup": 0.2,
    "patience": 5, "label_smoothing": 0.1, "accumulate": 2, "workers": 1,
    "checkpoint_minutes": 0.0,
}  # fmt: skip
ALONE = [
    {"schedule": "plateau", "plateau_epochs": 1, "warmup_epochs": 0, "epochs": 3},
    EVERYTHING,
    *(
        pytest.param(one, marks=pytest.mark.slow)  # each is in `EVERYTHING`, too
        for one in (
            {"schedule": "one-cycle"}, {"layer_decay": 0.5}, {"l2_sp": 1.0}, {"wise_ft": True}, {"lr": "find"},
            {"balance": "sampler"}, {"balance": "logit-adjust", "loss": ["focal"]}, {"tta": "five-crop"},
        )
    ),
]  # fmt: skip

PhotoFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12, 12 and 4 images."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for place, (name, count) in enumerate((("amber", 12), ("beryl", 12), ("coral", 4))):
        (folder / name).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 120, (40, 40, 3), np.uint8)
            pixels[..., place] += 100
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def start(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RUN of the same classes, which the others start from."""
    out = tmp_path_factory.mktemp("start") / "run"
    return finetune(options(photos, "timm/test_resnet", out, pretrained=False, epochs=1))


def options(data: Path, teacher: Path | str, out: Path, **values: Any) -> Finetune:
    named = {"data": str(data), "teacher": str(teacher), "out": str(out)}
    return build(Finetune, {**named, **TINY, **values}, where="test")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / rundir.METRICS).read_text().splitlines()]


def distance(one: Path, two: Path) -> float:
    """Of the backbones of two RUNs."""
    first, second = (weights.load(path).network.module.state_dict() for path in (one, two))
    names = [name for name, value in first.items() if value.is_floating_point() and not name.startswith("fc.")]
    squares = [float((first[name] - second[name]).square().sum()) for name in names if "running" not in name]
    return math.sqrt(sum(squares))


# ----------------------------------------------------------------------------------------------------- in the loop


@pytest.mark.parametrize("values", ALONE, ids=lambda values: "+".join(values) if len(values) < 5 else "everything")
def test_each_resumes_bit_for_bit(photos: Path, start: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    whole = finetune(options(photos, start, tmp_path / "whole", **{"checkpoint_minutes": 0.0, **values}))
    broken = {"checkpoint_minutes": 0.0, **values}
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, start, tmp_path / "broken", **broken), listener=StopAt(3, ZeroDivisionError()))
    resumed = finetune(options(photos, start, tmp_path / "broken", resume=True, **broken))
    assert (resumed / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()
    told = [{name: weights.read_record(run).get(name) for name in ("choices", "wise_ft", "tta")}
            for run in (whole, resumed)]  # fmt: skip
    assert told[0] == told[1]
    curves = [[{name: row[name] for name in row if name != "images_per_s"} for row in rows(run)]
              for run in (whole, resumed)]  # fmt: skip
    assert curves[0] == curves[1]


def test_a_distillation_resumes_with_them_too(photos: Path, start: Path, tmp_path: Path) -> None:
    given = {
        **TINY, "data": str(photos), "teacher": str(start), "student": "timm/test_resnet", "pretrained": False,
        "control": False, "lr": "find", "schedule": "plateau", "plateau_epochs": 1, "min_lr": 1e-7, "layer_decay": 0.8,
        "checkpoint_minutes": 0.0,
    }  # fmt: skip
    whole = distill(build(Distill, {**given, "out": str(tmp_path / "whole")}, where="test"))
    broken = {**given, "out": str(tmp_path / "broken")}
    with pytest.raises(ZeroDivisionError):
        distill(build(Distill, broken, where="test"), listener=StopAt(4, ZeroDivisionError()))
    resumed = distill(build(Distill, {**broken, "resume": True}, where="test"))
    assert (resumed / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()
    found = weights.read_record(resumed)["choices"]["lr"]["distill"]["rate"]
    assert max(row["lr"] for row in rows(resumed)) <= found


def test_the_schedule_is_what_metrics_say(photos: Path, start: Path, tmp_path: Path) -> None:
    constant = finetune(options(photos, start, tmp_path / "a", schedule="constant", warmup_epochs=0))
    assert [row["lr"] for row in rows(constant)] == [3e-3, 3e-3]
    cosine = finetune(options(photos, start, tmp_path / "b", min_lr=1e-3, warmup_epochs=0, epochs=3))
    found = [row["lr"] for row in rows(cosine)]
    assert found == sorted(found, reverse=True) and found[0] < 3e-3 and found[-1] > 1e-3


def test_plateau_goes_to_a_tenth_after_an_epoch_without_a_better_one(photos: Path, start: Path, tmp_path: Path) -> None:
    # With no rate to speak of nothing moves, so that no epoch but the first is the best.
    still = {"schedule": "plateau", "lr": 1e-12, "weight_decay": 0.0, "ema": 0.0, "warmup_epochs": 0, "epochs": 4}
    run = finetune(options(photos, start, tmp_path / "run", plateau_epochs=1, **still))
    better = [row["val_accuracy"] for row in rows(run)]
    expected, drops, best = [], 0, None
    for place, row in enumerate(rows(run)):
        expected.append(1e-12 * 0.1**drops)
        score = Score(better[place], row["val_loss"])
        if score.better_than(best):
            best = score
        else:
            drops += 1
    assert [row["lr"] for row in rows(run)] == pytest.approx(expected)


def test_l2_sp_keeps_the_weights_nearer_and_says_its_penalty(photos: Path, start: Path, tmp_path: Path) -> None:
    plain = {"ema": 0.0, "schedule": "constant", "weight_decay": 0.0}
    free = finetune(options(photos, start, tmp_path / "free", **plain))
    held = finetune(options(photos, start, tmp_path / "held", l2_sp=300.0, **plain))
    assert 0 < distance(held, start) < distance(free, start) / 2
    assert all(row["l2_sp"] > 0 for row in rows(held)) and "l2_sp" not in rows(free)[0]


def test_the_weights_that_hold_must_be_the_same_on_resume(photos: Path, start: Path, tmp_path: Path) -> None:
    network = weights.load(start).network
    anchor = Anchor.of(network, 1.0)
    course = Course({}, anchor)
    course.require(course.digest)
    with torch.no_grad():
        next(network.module.parameters()).add_(1)
    with pytest.raises(TrainingError, match="not those towards which the interrupted training was pulled"):
        Course({}, Anchor.of(network, 1.0)).require(course.digest)


def test_wise_ft_keeps_the_best_of_its_curve(photos: Path, start: Path, tmp_path: Path) -> None:
    run = finetune(options(photos, start, tmp_path / "run", wise_ft=True))
    told = weights.read_record(run)["wise_ft"]
    tried = [(point["alpha"], point["statistics"]) for point in told["curve"]]
    inner = [(alpha, statistics) for alpha in wise.ALPHAS[1:-1] for statistics in (wise.TAKEN, wise.BETWEEN)]
    assert tried == [(0.0, wise.BETWEEN), *inner, (1.0, wise.BETWEEN)] and told["head"] == "interpolated"
    best = max(told["curve"], key=lambda point: (point["val_accuracy"], -point["val_loss"], point["alpha"]))
    assert told["alpha"] == best["alpha"]
    trained = max(rows(run), key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    last = told["curve"][-1]
    assert (last["val_accuracy"], last["val_loss"]) == (trained["val_accuracy"], pytest.approx(trained["val_loss"]))


def test_wise_ft_interpolates_only_a_head_that_was_fitted(photos: Path, start: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name, like in (("dune", "amber"), ("elm", "beryl")):
        shutil.copytree(photos / like, other / name)
    heads = {}
    for strategy in ("full", "lp-ft"):
        run = finetune(options(other, start, tmp_path / strategy, strategy=strategy, wise_ft=True, epochs=1))
        heads[strategy] = weights.read_record(run)["wise_ft"]["head"]
    assert heads == {"full": "fine-tuned", "lp-ft": "interpolated"}


def test_of_equal_alphas_the_training_s_own_result_is_kept(photos: Path, start: Path, tmp_path: Path) -> None:
    # With no rate to speak of, and norms that learn nothing, all alphas are the same.
    still = {"lr": 0.0, "ema": 0.0, "strategy": "partial", "freeze": "conv1*,bn1*,layer*", "epochs": 1}
    run = finetune(options(photos, start, tmp_path / "run", wise_ft=True, **still))
    told = weights.read_record(run)["wise_ft"]
    assert len({point["val_loss"] for point in told["curve"]}) == 1
    assert (told["alpha"], told["statistics_images"]) == (1.0, 0)


@pytest.mark.parametrize(
    ("strategy", "more"), [("partial", {"freeze": "stages:2"}), ("gradual", {}), ("lp-ft", {"lr": 1e-3}), ("joint", {})]
)
def test_all_combine_with_any_strategy_and_what_is_frozen_stays(
    photos: Path, start: Path, tmp_path: Path, strategy: str, more: dict[str, Any]
) -> None:
    if strategy == "joint":
        more = {"source": str(photos)}
    run = finetune(options(photos, start, tmp_path / "run", strategy=strategy, **{**EVERYTHING, **more}))
    record = weights.read_record(run)
    assert record["wise_ft"]["curve"] and record["tta"]["test"] and ("lr" in record["choices"]) == ("lr" not in more)
    frozen = record["moved"]["frozen"]
    assert bool(frozen) == (strategy == "partial")
    before, after = (weights.load(path).network.module for path in (start, run))
    still = [f"{name}." for name in frozen]
    for name, value in after.state_dict().items():  # batch norm's statistics among them
        if name.startswith(tuple(still)):
            assert torch.equal(value, before.state_dict()[name]), name


def test_lr_find_says_what_it_tried_and_trains_with_it(photos: Path, start: Path, tmp_path: Path) -> None:
    notes: list[str] = []

    def listener(event: Event) -> None:
        notes.append(str(event.values.get("text", "")))

    found = options(photos, start, tmp_path / "a", lr="find", schedule="constant", warmup_epochs=0)
    run = finetune(found, listener=listener)
    told = weights.read_record(run)["choices"]["lr"]["finetune"]
    assert lr_range.LOW <= told["rate"] <= lr_range.HIGH
    assert [row["lr"] for row in rows(run)] == [told["rate"]] * 2
    tried = [rate for rate, _ in told["curve"]]
    assert tried == sorted(tried) and 2 <= len(tried) <= lr_range.STEPS
    assert any(note.startswith("--lr find: ") for note in notes)
    # Nothing of the trial is left: the same training with that rate as a number is the same to the bit.
    again = finetune(options(photos, start, tmp_path / "b", lr=told["rate"], schedule="constant", warmup_epochs=0))
    assert (again / rundir.MODEL).read_bytes() == (run / rundir.MODEL).read_bytes()


def test_tta_is_reported_beside_and_changes_no_model(photos: Path, start: Path, tmp_path: Path) -> None:
    plain = finetune(options(photos, start, tmp_path / "plain", epochs=1))
    for views in ("hflip", "five-crop"):
        run = finetune(options(photos, start, tmp_path / views, epochs=1, tta=views))
        record = weights.read_record(run)
        assert (run / rundir.MODEL).read_bytes() == (plain / rundir.MODEL).read_bytes()
        assert record["metrics"]["test"] == weights.read_record(plain)["metrics"]["test"]
        assert record["tta"]["views"] == views and record["tta"]["test"]["n"] == record["metrics"]["test"]["n"]


def test_both_accuracies_are_shown(
    photos: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--data", str(photos), "--teacher", str(start), "--out", str(tmp_path / "run"), "--threads", "1"]
    assert main(["finetune", *own, "--epochs", "1", "--workers", "0", "--strategy", "probe", "--tta", "hflip"]) == 0
    shown = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"test", "test, hflip"} <= set(shown)


def test_the_sampler_shows_the_rare_class_as_often_as_the_others(
    photos: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    finish = loader.TrainLoader._finish

    def counting(self: Any, *given: Any) -> Any:
        batch = finish(self, *given)
        seen.extend(batch.labels.tolist())
        return batch

    monkeypatch.setattr(loader.TrainLoader, "_finish", counting)
    finetune(options(photos, start, tmp_path / "run", balance="sampler", epochs=1))
    counts = np.bincount(seen)
    assert counts.max() - counts.min() <= 1


# ------------------------------------------------------------------------------------------------- in closed form


def small() -> Network:
    """Four layers, a norm that belongs to the second, and a head."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1),
                           nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))  # fmt: skip
    return Network("own/small", module, "6", Preprocess((16, 16)), models.WeightsReport("file", matched=("0.weight",)))


def test_depth_counts_blocks_from_the_head_down() -> None:
    found = layer_decay.depths(small())
    assert found == {"0.weight": 3, "0.bias": 3, "1.weight": 2, "1.bias": 2, "2.weight": 2, "2.bias": 2,
                     "5.weight": 1, "5.bias": 1, "6.weight": 0, "6.bias": 0}  # fmt: skip
    assert layer_decay.scales(small(), 0.5)["0.weight"] == 0.125


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit"])
def test_depth_follows_the_blocks_of_timm(name: str) -> None:
    network = models.create(name, classes=3, pretrained=False, image_size=32)
    found = layer_decay.depths(network)
    assert set(found) == {name for name, _ in network.module.named_parameters()}
    assert {found[one] for one in found if one.startswith(f"{network.head}.")} == {0}
    assert set(found.values()) == set(range(max(found.values()) + 1))
    assert found[next(iter(found))] == max(found.values())


def test_each_group_of_parameters_has_its_share_of_the_rate() -> None:
    network = small()
    made = options(Path(), "", Path(), layer_decay=0.5)
    course = Course.of(network, made)
    optimizer = course.optimizer(network.module.named_parameters(), made)
    optim.set_rate(optimizer, 0.8)
    rates = {one: group["lr"] for group in optimizer.param_groups for one in group["params"]}
    found = {name: rates[one] for name, one in network.module.named_parameters()}
    assert (found["6.weight"], found["5.bias"], found["2.weight"], found["0.weight"]) == (0.8, 0.4, 0.2, 0.1)
    assert course.row(optimizer) == {"lr_least": 0.1}
    alike = optim.build_optimizer(network.module.named_parameters(), made)
    assert course.row(alike) == {}
    decays = {one: group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert {decays[one] for one in network.module.parameters() if one.ndim == 1} == {0.0}
    assert {decays[one] for one in network.module.parameters() if one.ndim > 1} == {made.weight_decay}


def test_the_pull_is_a_step_down_the_penalty_and_leaves_the_head() -> None:
    network = small()
    module = network.module
    anchor = Anchor.of(network, 0.5)
    before = {name: value.clone() for name, value in module.named_parameters()}
    with torch.no_grad():
        for one in module.parameters():
            one.add_(2.0)
    moved = sum(value.numel() for name, value in before.items() if not name.startswith("6."))
    assert anchor.penalty() == pytest.approx(0.5 / 2 * 4 * moved)
    made = options(Path(), "", Path())
    course = Course({}, anchor)
    optimizer = course.optimizer(module.named_parameters(), made)
    course.begin_step(optimizer, 0.1)
    for name, value in module.named_parameters():
        expected = 2.0 if name.startswith("6.") else 2.0 * (1 - 0.1 * 0.5)
        assert torch.allclose(value - before[name], torch.tensor(expected), atol=1e-5), name
    held = {one: group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert held[module.get_parameter("0.weight")] == 0.0 and held[module.get_parameter("6.weight")] == 0.05


def test_weights_that_began_at_random_are_not_held() -> None:
    network = small()
    report = models.WeightsReport("file", missing=("5.weight",), mismatched=("1.weight",))
    anchor = Anchor.of(Network("own/small", network.module, "6", network.preprocess, report), 1.0)
    held = {name for name, one in network.module.named_parameters() if one in anchor.held}
    assert held == {"0.weight", "0.bias", "1.bias", "2.weight", "2.bias", "5.bias"}


def test_weights_between_are_on_the_line_and_integers_are_not() -> None:
    before, after = ({"a": torch.tensor([1.0, value]), "head.w": torch.tensor([value]), "count": torch.tensor(3)}
                     for value in (0.0, 10.0))  # fmt: skip
    found = wise.between(before, after, 0.3, ("head.w",))
    assert torch.allclose(found["a"], torch.tensor([1.0, 3.0])) and found["head.w"].item() == 10
    assert found["count"].dtype == torch.int64
    ends = (wise.between(before, after, alpha) for alpha in (0.0, 1.0))
    for end, expected in zip(ends, (before, after), strict=True):
        assert all(torch.equal(end[name], expected[name]) for name in expected)


def test_the_range_test_takes_a_tenth_of_the_edge() -> None:
    rising = ((1e-5, 2.0), (1e-4, 1.5), (1e-3, 1.0), (1e-2, 1.015), (1e-1, 4.0))
    assert lr_range.chosen(rising) == pytest.approx(1e-3)
    flat = tuple((10.0 ** (step / 10 - 6), 1 + 0.015 * (step % 2)) for step in range(40))
    assert lr_range.chosen((*flat, (1.0, 9.0))) == pytest.approx(0.1 * flat[-1][0])
    lucky = ((1e-7, 0.1), *flat)  # one batch of easy images at the beginning
    assert lr_range.chosen(lucky) == pytest.approx(0.1 * flat[-1][0])
    for curve in ((), ((1e-5, 1.0), (1e-4, 2.0), (1e-3, 3.0))):
        with pytest.raises(TrainingError, match="the loss rises at every rate"):
            lr_range.chosen(curve)


def test_the_rates_of_the_trial_grow_geometrically() -> None:
    rates = [lr_range.rate_of(step, 100) for step in range(100)]
    assert rates[0] == lr_range.LOW and rates[-1] == pytest.approx(lr_range.HIGH)
    assert rates[50] / rates[49] == pytest.approx(rates[1] / rates[0])


def test_views_are_averaged_as_probabilities() -> None:
    one, two = np.array([[0.0, 2.0]]), np.array([[3.0, -1.0]])
    expected = (torch.tensor(one).softmax(1) + torch.tensor(two).softmax(1)) / 2
    found = tta.mean_answer([one, two + 7.0])  # a constant is no answer
    assert np.exp(found) == pytest.approx(expected.numpy())


def test_five_crops_are_those_of_torchvision() -> None:
    from torchvision.transforms.v2.functional import five_crop

    images = np.arange(2 * 3 * 9 * 10, dtype=np.float32).reshape(2, 3, 9, 10)
    theirs = five_crop(torch.from_numpy(images), [6, 7])
    ours = tta.crops(images, 6, 7)
    assert all(np.array_equal(mine, other.numpy()) for mine, other in zip(ours[:4], theirs[:4], strict=True))
    assert ours[4].shape == (2, 3, 6, 7)
    assert np.array_equal(tta.mirrored(images)[1], torch.from_numpy(images).flip(3).numpy())


# ------------------------------------------------------------------------------------------------------ wrong usage


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--loss", "kd"], 1, "--loss names 'kd', which needs a teacher's answers"),
        (["--loss", "nonsense"], 1, "nonsense"),
        (["--loss", "focal;gamma=x"], 1, "found 'x', expected a number"),
        (["--min-lr", "1", "--lr", "0.1"], 1, "--min-lr 1 is above --lr 0.1"),
        (["--lr", "fast"], 2, "--lr: found 'fast', expected a number or 'find'"),
        (["--lr", "nan"], 2, "expected a finite number"),
        (["--lr", "-1"], 2, "expected at least 0"),
        (["--schedule", "step"], 2, "expected one of cosine, one-cycle, plateau, constant"),
        (["--layer-decay", "0"], 2, "expected at least 0.01"),
        (["--layer-decay", "1.5"], 2, "expected at most 1"),
        (["--balance", "smote"], 2, "expected one of none, sampler, loss, logit-adjust"),
        (["--tta", "ten-crop"], 2, "expected one of none, hflip, five-crop"),
        (["--plateau-epochs", "0"], 2, "expected at least 1"),
        (["--l2-sp", "0.1", "--no-pretrained"], 1, "--l2-sp pulls towards pretrained weights"),
        (["--wise-ft", "--no-pretrained"], 1, "--wise-ft goes back towards pretrained weights"),
        (["--wise-ft", "--strategy", "probe"], 1, "--wise-ft does nothing with --strategy probe"),
        (["--loss", "focal", "--strategy", "probe"], 1, "--loss does nothing with --strategy probe"),
        (["--l2-sp", "1", "--strategy", "scratch"], 1, "--l2-sp does nothing with --strategy scratch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_values_are_one_sentence(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, said: str
) -> None:
    own = ["--data", str(photos), "--teacher", "timm/test_resnet", "--out", str(tmp_path / "run"), "--threads", "1"]
    assert main(["finetune", *own, "--image-size", "32", *flags]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_recipe_says_losses_as_tables_and_find_as_a_word() -> None:
    made = options(Path("d"), "t/x", Path("o"), loss=[{"name": "focal", "gamma": 1}, "labels:0.5"], lr="find")
    assert made.loss == ("focal:1;gamma=1", "labels:0.5")
    assert 'lr = "find"' in to_toml(made) and tomllib.loads(to_toml(made))["finetune"]["loss"] == list(made.loss)
    with pytest.raises(RecipeError, match="'lr': found 'fast', expected a number or 'find'"):
        options(Path("d"), "t/x", Path("o"), lr="fast")
