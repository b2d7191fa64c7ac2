"""Several heads, labels and values in the real loop: what is learned, recorded, resumed and refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stop_at import StopAt
from torch import nn

from edgetl import heads, losses, models, rundir, weights
from edgetl.cli.app import main
from edgetl.datasets import DataSet, Item
from edgetl.errors import DataError, EdgetlError
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Head
from edgetl.losses import Answer, Given
from edgetl.recipe import Finetune, build
from edgetl.splits import Duplicates, Splits
from edgetl.train import objective, task_losses
from edgetl.train.aim import Aim, PerHead
from edgetl.train.teacher import finetune

TINY = {"teacher": "timm/test_resnet", "pretrained": False, "image_size": 32, "epochs": 1, "batch_size": "9",
        "workers": 0, "lr": 3e-3, "threads": 1, "ema": 0.5, "val_fraction": 0.3, "crop_scale": 1.0,
        "color_jitter": 0.0}  # fmt: skip
NAN = math.nan
SHADES = ("dark", "mid", "light")
TASKS: dict[str, dict[str, Any]] = {
    "values": {"task": REGRESS}, "labels": {"task": MULTILABEL}, "heads": {"label_columns": ("shade", "blue")},
}  # fmt: skip


def tables(folder: Path, images: int = 40) -> None:
    """Pictures whose red may be anything and whose upper half may be blue; three tables that tell of it."""
    from PIL import Image

    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"values": ["path,red,shifted"], "labels": ["path,Bright,Blue"],
                                   "heads": ["path,shade,blue"]}  # fmt: skip
    for place in range(images):
        red, blue = float(rng.uniform(0, 255)), bool(rng.random() < 0.5)
        pixels = np.full((32, 32, 3), 40, np.uint8)
        pixels[..., 0] = int(red)
        pixels[:16, :, 2] = 255 if blue else 40
        Image.fromarray(pixels).save(folder / f"{place}.png")
        gap = place % 7 == 0
        lines["values"].append(f"{place}.png,{'' if gap else red},{red / 2 + 1000}")
        lines["labels"].append(f"{place}.png,{int(red > 128)},{'' if gap else int(blue)}")
        lines["heads"].append(f"{place}.png,{SHADES[int(red // 86)]},{'' if gap else ('no', 'yes')[blue]}")
    for name, rows in lines.items():
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    tables(tmp_path)
    return tmp_path


def options(folder: Path, name: str, out: str, **values: Any) -> Finetune:
    said = {**TINY, "data": f"csv:{folder / name}.csv", "out": str(folder / out), **TASKS[name], **values}
    return build(Finetune, said, where="test")


def answers_of(run: Path) -> dict[str, np.ndarray]:
    with np.load(run / "answers.npz") as file:
        return {name: file[name] for name in file.files}


# -------------------------------------------------------------------------------------------------------- in the loop


def test_values_are_learned_and_answered_in_their_own_unit(photos: Path) -> None:
    run = finetune(options(photos, "values", "run", strategy="probe"))
    record = weights.read_record(run)
    assert record["task"] == REGRESS and record["score"] == "R2" and record["labels"] == ["red", "shifted"]
    assert record["missing"]["train"]["red"] > 0 and record["missing"]["train"]["shifted"] == 0
    assert record["metrics"]["test"]["r2"] > 0.8
    assert record["metrics"]["test"]["columns"][1]["mae"] < 15  # of values around 1060
    assert record["standardised"]["mean"][1] == pytest.approx(1064, abs=25)
    found, network = answers_of(run), weights.load(run, any_task=True).network
    assert np.abs(found["val.answers"][:, 1] - 1064).max() < 120  # what was written down is in the unit, too
    with torch.no_grad():  # and so is what the kept network itself says
        assert abs(float(network.module(torch.zeros(1, 3, 32, 32))[0, 1]) - 1064) < 400


def test_labels_and_heads_are_learned_by_probe(photos: Path) -> None:
    record = weights.read_record(finetune(options(photos, "labels", "labels-run", strategy="probe")))
    assert record["metrics"]["val"]["map"] > 0.9 and record["task"] == MULTILABEL
    assert [row["label"] for row in record["metrics"]["val"]["labels"]] == ["Bright", "Blue"]
    record = weights.read_record(finetune(options(photos, "heads", "heads-run", strategy="probe")))
    assert record["metrics"]["val"]["mean_accuracy"] > 0.8 and record["task"] == CLASSIFY
    assert set(record["metrics"]["test"]["heads"]) == {"shade", "blue"}
    assert heads.of_record(record)[1] == Head("blue", CLASSIFY, ("no", "yes"))
    assert record["metrics"]["val"]["heads"]["blue"]["n"] < record["metrics"]["val"]["n"] or (
        record["missing"]["val"]["blue"] == 0)  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_the_loop_learns_each_task_and_resumes_bit_for_bit(photos: Path, name: str) -> None:
    whole = finetune(options(photos, name, "whole", epochs=2, mixup=0.2))
    with pytest.raises(KeyboardInterrupt):
        finetune(options(photos, name, "again", epochs=2, mixup=0.2), listener=StopAt(4, KeyboardInterrupt()))
    again = finetune(options(photos, name, "again", epochs=2, mixup=0.2, resume=True))
    assert (whole / rundir.MODEL).read_bytes() == (again / rundir.MODEL).read_bytes()
    rows = [json.loads(line) for line in (whole / rundir.METRICS).read_text().splitlines()]
    assert all(math.isfinite(row["val_accuracy"]) and math.isfinite(row["train_accuracy"]) for row in rows)
    first, second = (answers_of(run) for run in (whole, again))
    assert all(np.array_equal(first[key], second[key], equal_nan=key.endswith("truth")) for key in first)


@pytest.mark.parametrize(("name", "strategy"), [("values", "lp-ft"), ("labels", "gradual"), ("heads", "partial"),
                                                ("values", "scratch"), ("labels", "feature-copy")])  # fmt: skip
def test_other_strategies_run_as_they_are(photos: Path, name: str, strategy: str) -> None:
    more = {"partial": {"freeze": ("stages:2",)}}.get(strategy, {})
    record = weights.read_record(finetune(options(photos, name, "run", strategy=strategy, **more)))
    assert record["strategy"] == strategy and record["heads"] and "sentence" in record["metrics"]["test"]


def test_a_source_of_one_class_is_trained_along(photos: Path, photo_folder: Callable[..., Path]) -> None:
    source = photo_folder("source", classes=3, images=6)
    run = finetune(options(photos, "labels", "run", strategy="joint", source=str(source)))
    assert weights.read_record(run)["source"]["classes"] and weights.read_record(run)["labels"] == ["Bright", "Blue"]


def test_a_run_of_the_same_columns_keeps_its_head_and_its_unit(photos: Path) -> None:
    first = finetune(options(photos, "values", "first", strategy="probe"))
    second = finetune(options(photos, "values", "second", teacher=str(first), lr=0.0, ema=0.0))
    # Nothing moved but the statistics of batch norm: so the head is the one that was, standardised and taken back.
    before, after = (weights.load(one, any_task=True).network.module.state_dict() for one in (first, second))
    assert torch.allclose(before["fc.weight"], after["fc.weight"], rtol=1e-4, atol=1e-5)
    assert torch.allclose(before["fc.bias"], after["fc.bias"], rtol=1e-4)
    other = finetune(options(photos, "labels", "other", teacher=str(first)))
    assert weights.read_record(other)["labels"] == ["Bright", "Blue"]


def test_one_column_with_all_that_holds_the_weights(photos: Path) -> None:
    first = finetune(options(photos, "values", "first", label_columns=("shifted",)))
    more = {"teacher": str(first), "l2_sp": 0.01, "wise_ft": True, "layer_decay": 0.8, "loss": ("mse",)}
    second = options(photos, "values", "second", label_columns=("shifted",), **more)
    record = weights.read_record(finetune(second))
    assert record["labels"] == ["shifted"] and record["wise_ft"]["head"] == "interpolated"
    assert record["data"]["notes"][0].endswith("not used: red.")
    again = finetune(dataclasses.replace(second, resume=True))  # finished: nothing is done
    assert weights.read_record(again) == record


def test_one_class_is_trained_as_before(photos: Path, photo_folder: Callable[..., Path]) -> None:
    said = {**TINY, "data": str(photo_folder(classes=2, images=12)), "out": str(photos / "plain")}
    record = weights.read_record(finetune(build(Finetune, said, where="test")))
    assert "task" not in record and "heads" not in record and record["metrics"]["val"]["accuracy"] >= 0


# --------------------------------------------------------------------------------------------------------------- aims


def aim_of(asked: tuple[Head, ...], answers: list[tuple[float, ...]]) -> tuple[Aim, tuple[Item, ...]]:
    items = tuple(Item(str(place), 0, answers=one) for place, one in enumerate(answers))
    data = DataSet("d", heads.outputs(asked), items, lambda item: b"", heads=asked)
    aim = Aim.of(data, Splits(items, items, (), "", {}, Duplicates()))
    assert aim is not None
    return aim, items


def test_targets_are_smoothed_within_a_head_and_standardised_over_training() -> None:
    aim, items = aim_of((Head("a", CLASSIFY, ("x", "y")), Head("b", CLASSIFY, ("p", "q", "r", "s"))),
                        [(0.0, 3.0), (1.0, NAN)])
    found = aim.targets(items, 0.2)
    assert torch.allclose(found[0], torch.tensor([0.9, 0.1, 0.05, 0.05, 0.05, 0.85]))
    assert torch.equal(found[1].isnan(), torch.tensor([False, False, True, True, True, True]))
    aim, items = aim_of((Head("l", MULTILABEL, ("x", "y")),), [(0.0, 1.0), (1.0, 0.0)])
    assert torch.allclose(aim.targets(items, 0.2), torch.tensor([[0.1, 0.9], [0.9, 0.1]]))
    aim, items = aim_of((Head("v", REGRESS, ("mm", "g")),), [(1.0, 10.0), (3.0, NAN), (NAN, 30.0)])
    assert torch.allclose(aim.targets(items, 0.2), torch.tensor([[-1, -1], [1, NAN], [NAN, 1]]), equal_nan=True)


def test_the_score_of_batches_adds_up_to_that_of_the_images() -> None:
    aim, items = aim_of((Head("v", REGRESS, ("mm", "g")),), [(1.0, 5.0), (2.0, 7.0), (6.0, 9.0)])
    targets, logits = aim.targets(items), torch.tensor([[0.1, -1.0], [0.2, 0.3], [1.0, 0.5]])
    scored = aim.score(task_losses.of_task(("labels",), aim.heads), targets, aim.truth(items))(logits)
    assert float(aim.right(logits, targets)) / 3 == pytest.approx(scored.accuracy, abs=1e-5)
    aim, items = aim_of((Head("a", CLASSIFY, ("x", "y")), Head("b", CLASSIFY, ("p", "q"))), [(0.0, 1.0), (1.0, NAN)])
    logits = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    assert float(aim.right(logits, aim.targets(items))) == 0.5 + 1  # of the second image only one head is known
    aim, items = aim_of((Head("l", MULTILABEL, ("x", "y")),), [(0.0, 1.0), (1.0, 0.0)])
    assert float(aim.right(torch.tensor([[-1.0, -1.0], [2.0, -1.0]]), aim.targets(items, 0.1))) == 1.5


def test_a_rescaled_head_says_the_same_in_another_unit() -> None:
    network = models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32)
    aim, _ = aim_of((Head("v", REGRESS, ("mm", "g")),), [(1.0, 1000.0), (3.0, 3000.0)])
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = network.module.eval()(images)
        aim.settle(network)
        unit = network.module(images)
        aim.begin(network)
        after = network.module(images)
    assert torch.allclose(unit, before * torch.tensor([1.0, 1000.0]) + torch.tensor([2.0, 2000.0]), rtol=1e-4)
    assert torch.allclose(after, before, atol=1e-4)


def test_data_that_cannot_be_learned_or_scored_are_refused() -> None:
    with pytest.raises(DataError, match="have the same 'mm', 2"):
        aim_of((Head("v", REGRESS, ("mm",)),), [(2.0,), (2.0,)])
    asked = (Head("l", MULTILABEL, ("x",)),)
    train, val = Item("a", 0, answers=(1.0,)), Item("b", 0, answers=(0.0,))
    data = DataSet("d", ("x",), (train, val), lambda item: b"", heads=asked)
    with pytest.raises(DataError, match=r"The 1 validation images do not tell .* mAP is not defined"):
        Aim.of(data, Splits((train,), (val,), (), "", {}, Duplicates()))


# ------------------------------------------------------------------------------------------------------------- losses


def test_losses_leave_out_what_is_not_known() -> None:
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.3]], requires_grad=True)
    targets = torch.tensor([[1.0, NAN], [NAN, NAN]])
    known = {"bce": math.log1p(math.exp(-0.5)), "mse": 0.25, "smooth-l1": 0.125}
    for name, expected in known.items():
        loss = losses.parse((name,))[0].loss(Answer(logits), None, Given(targets))
        assert float(loss.detach()) == pytest.approx(expected / 4)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient[0, 0] != 0 and gradient.flatten()[1:].tolist() == [0, 0, 0]


def test_a_loss_a_head_is_the_mean_over_heads_and_images() -> None:
    asked = (Head("a", CLASSIFY, ("x", "y")), Head("b", CLASSIFY, ("p", "q", "r")))
    logits, targets = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 5)
    targets[:, 0], targets[:, 4] = 1, 1
    targets[2, 2:] = NAN
    for text in ("labels", "focal;gamma=2"):
        loss = losses.parse((text,))[0].loss
        found = PerHead(loss, asked)(Answer(logits), None, Given(targets))
        first = loss(Answer(logits[:, :2]), None, Given(targets[:, :2]))
        second = loss(Answer(logits[:2, 2:]), None, Given(targets[:2, 2:])) * 2 / 3
        assert float(found) == pytest.approx(float((first + second) / 2))
    silent = PerHead(loss, asked)(Answer(logits), None, Given(torch.full((3, 5), NAN)))
    assert float(silent) == 0


def test_parts_of_a_step_add_up_whatever_is_not_known() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 4, generator=generator), torch.rand(7, 4, generator=generator).round()
    targets[torch.rand(7, 4, generator=generator) < 0.4] = NAN
    asked = (Head("a", CLASSIFY, ("x", "y")), Head("b", CLASSIFY, ("p", "q")))
    for loss in (*(losses.parse((name,))[0].loss for name in ("bce", "mse", "smooth-l1")),
                 PerHead(losses.parse(("labels",))[0].loss, asked)):  # fmt: skip
        whole, first, second = (float(loss(Answer(logits[part]), None, Given(targets[part])))
                                for part in (slice(0, 7), slice(0, 3), slice(3, 7)))  # fmt: skip
        assert whole == pytest.approx((3 * first + 4 * second) / 7)


def test_the_loss_labels_is_the_tasks_own() -> None:
    from edgetl.losses import bce, mse, smooth_l1

    labels, values = (Head("l", MULTILABEL, ("x",)),), (Head("v", REGRESS, ("x",)),)
    assert isinstance(task_losses.of_task(("labels",), labels)[0].loss, bce.Loss)
    assert isinstance(task_losses.of_task(("labels:2",), values)[0].loss, smooth_l1.Loss)
    assert isinstance(task_losses.of_task(("mse",), values)[0].loss, mse.Loss)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("labels", {"balance": "loss"}, "--balance cannot be combined with --task multilabel"),
        ("values", {"tta": "hflip"}, "--tta cannot be combined with --task regress"),
        ("values", {"cutmix": 1.0}, "a part of a picture has no part of its value"),
        ("heads", {"balance": "sampler"}, "--balance cannot be combined with --task classify with --label-columns"),
        ("labels", {"loss": ("focal",)}, "'focal', which is no loss for --task multilabel"),
        ("values", {"loss": ("bce",)}, "'bce', which is no loss for --task regress"),
        ("heads", {"loss": ("mse",)}, "'mse', which is no loss for --task classify"),
        ("values", {"loss": ("kd",)}, "needs a teacher's answers"),
    ],
)
def test_options_of_another_task_are_refused(tmp_path: Path, name: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(EdgetlError, match=says):
        objective.require(options(tmp_path, name, "run", **more))


def test_a_network_without_a_linear_head_cannot_say_values() -> None:
    aim, _ = aim_of((Head("v", REGRESS, ("mm", "g")),), [(1.0, 5.0), (2.0, 7.0)])
    network = models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32)
    network.module.set_submodule("fc", nn.Conv2d(4, 2, 1))
    with pytest.raises(EdgetlError, match="ends in Conv2d; --task multilabel and regress need a linear layer"):
        aim.require(dataclasses.replace(network, head="fc"))


def test_the_command_trains_tells_and_others_refuse_the_run(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = str(photos / "run"), f"csv:{photos / 'values.csv'}"
    line = ["finetune", "--data", data, "--task", "regress", "--teacher", "timm/test_resnet", "--no-pretrained",
            "--image-size", "32", "--epochs", "1", "--batch-size", "9", "--workers", "0", "--threads", "1", "--out"]
    assert main([*line, run]) == 0
    told = capsys.readouterr()
    assert "task        regress" in told.out and "R2 " in told.out and "answers.npz" in told.err
    assert main(["inspect", run]) == 0 and "R2 " in capsys.readouterr().out
    assert main([*line[:3], "--task", "multilabel", *line[5:], str(photos / "no")]) == 1
    assert "line 2: 'shifted' is '1" in capsys.readouterr().err
    assert main([*line[:3], "--task", "rank", *line[5:], str(photos / "no")]) == 2
