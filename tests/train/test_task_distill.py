"""Several heads, labels and values taught by a RUN of the same task: losses, store, control, cuts, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl import heads, rundir, task_scores, weights
from edgetl.cli.app import main
from edgetl.datasets import Item
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Asked, Head
from edgetl.recipe import Distill, Finetune, build
from edgetl.train.student import distill
from edgetl.train.teacher import finetune

TINY = {"image_size": 32, "epochs": 2, "batch_size": "16", "workers": 0, "threads": 1, "ema": 0.0, "val_fraction": 0.25,
        "crop_scale": 1.0, "color_jitter": 0.0, "compile": "off", "amp": "off"}  # fmt: skip
SHADES = ("dark", "mid", "light")
TASKS: dict[str, dict[str, Any]] = {
    "values": {"task": REGRESS}, "labels": {"task": MULTILABEL}, "heads": {"label_columns": ("shade", "blue")},
}  # fmt: skip
SCORES = {"values": "r2", "labels": "map", "heads": "mean_accuracy"}


def tables(folder: Path, images: int = 48) -> None:
    """Pictures whose red may be anything and whose upper half may be blue; three tables that tell of it, with gaps."""
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


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables, and below `teacher-NAME` a RUN for each: a network whose head was fitted."""
    folder = tmp_path_factory.mktemp("school")
    tables(folder)
    for name, task in TASKS.items():
        said = {**TINY, **task, "teacher": "timm/test_resnet", "pretrained": False, "strategy": "probe",
                "data": f"csv:{folder / name}.csv", "out": str(folder / f"teacher-{name}")}  # fmt: skip
        finetune(build(Finetune, said, where="test"))
    return folder


def options(school: Path, name: str, out: Path, **values: Any) -> Distill:
    said = {**TINY, "data": f"csv:{school / name}.csv", "teacher": str(school / f"teacher-{name}"),
            "student": "timm/test_resnet", "pretrained": False, "out": str(out), "control": False,
            "teacher_engine": "torch"}  # fmt: skip
    return build(Distill, {**said, **values}, where="test")


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / rundir.METRICS).read_text().splitlines()]


# -------------------------------------------------------------------------------------------------------- in the loop


@pytest.mark.parametrize("name", TASKS)
def test_the_store_teaches_as_the_teacher_itself(school: Path, tmp_path: Path, name: str) -> None:
    live = distill(options(school, name, tmp_path / "live", views=1, softlabels="off", mixup=0.2))
    stored = distill(options(school, name, tmp_path / "stored", views=1, mixup=0.2))
    first, second = rows_of(live), rows_of(stored)
    assert [row["loss"] for row in first] == pytest.approx([row["loss"] for row in second], abs=1e-3)
    assert all(math.isfinite(row["val_accuracy"]) for row in first)
    record = weights.read_record(stored)
    told = record["softlabels"]
    assert told["asked"] == told["reused"] > 0 and told["bytes_an_image"] == 1 + 2 * len(record["labels"])
    assert record["heads"] == weights.read_record(school / f"teacher-{name}")["heads"]
    assert record["metrics"]["test"][SCORES[name]] is not None and record["missing"]["train"]
    assert record["teacher"]["metrics"]["val"][SCORES[name]] > 0.7
    answers = task_scores.read(stored, heads.of_record(record))
    assert answers["test"].value == pytest.approx(record["metrics"]["test"][SCORES[name]])


def test_the_default_loss_is_the_tasks_own_and_is_recorded(school: Path, tmp_path: Path) -> None:
    for name, parts in (("values", {"labels", "imitation"}), ("labels", {"labels", "kd"})):
        run = distill(options(school, name, tmp_path / name, epochs=1))
        record = weights.read_record(run)
        (text,) = record["options"]["loss"]
        assert {part.partition(":")[0] for part in text.partition(";")[0].split(",")} == parts
        assert parts <= set(rows_of(run)[0]) and text in (run / rundir.RECIPE).read_text()
        again = options(school, name, tmp_path / name, epochs=1, resume=True)
        assert weights.read_record(distill(again)) == record  # finished: nothing is done


def test_a_student_of_values_answers_in_the_unit_of_the_table(school: Path, tmp_path: Path) -> None:
    cut = options(school, "values", tmp_path / "cut", student="slim:0.6", round_to=1, epochs=1, lr=1e-6,
                  warmup_epochs=0.0)  # fmt: skip
    record = weights.read_record(distill(cut))
    assert record["cut"]["kept"] <= 0.6 and record["labels"] == ["red", "shifted"]
    said = task_scores.read(tmp_path / "cut", heads.of_record(record))["val"]
    assert np.abs(said.answers[:, 1] - 1064).max() < 400  # though it hardly learned
    # A student of a student: the record of the first says all that the second needs.
    more = options(school, "values", tmp_path / "more", teacher=str(tmp_path / "cut"), student=str(tmp_path / "cut"),
                   epochs=1, lr=1e-9, warmup_epochs=0.0, loss=("imitation",))  # fmt: skip
    again = weights.read_record(distill(more))
    assert again["label_columns"] == ["red", "shifted"]
    # The same network in training and in evaluation mode; in another unit it would be a thousand away.
    assert rows_of(tmp_path / "more")[0]["imitation"] < 500


def test_control_and_gain_are_told_in_the_tasks_own_score(school: Path, tmp_path: Path) -> None:
    run = distill(options(school, "labels", tmp_path / "run", control=True, seeds=2, epochs=1))
    found = weights.read_record(run)
    gain = found["metrics"]["gain"]
    assert gain["score"] == "mAP" and len(gain["differences"]) == 2 and gain["low"] < gain["mean"] < gain["high"]
    assert gain["mean"] == pytest.approx(np.mean(np.subtract(gain["student"], gain["control"])))
    assert gain["sentence"].startswith(f"gain {gain['mean']:+.3f} of mAP (95 %: ")
    control = weights.read_record(run / "control")
    assert control["heads"] == found["heads"] and set(rows_of(run / "control")[0]) >= {"labels"}
    assert [row["val"] for row in found["seeds"]] != [None, None]
    assert gain["control"][0 if found["best_seed"] == 0 else 1] == pytest.approx(control["metrics"]["test"]["map"])


def test_cuts_in_steps_and_unlabelled_images(school: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for place in range(4):
        from PIL import Image

        Image.fromarray(np.full((32, 32, 3), 20 + place, np.uint8)).save(more / f"{place}.png")
    said = options(school, "heads", tmp_path / "run", student="slim:0.5", round_to=1, slim_steps=2, slim_epochs=1,
                   epochs=1, unlabeled=(str(more),),
                   loss=("labels:0.2,dkd:0.2,logit-standardization:0.6", "rkd:0.1"))  # fmt: skip
    record = weights.read_record(distill(said))
    assert len(record["steps"]) == 2 and record["data"]["unlabelled"]["images"] == 4
    assert record["heads"] and {"dkd", "logit-standardization", "rkd"} <= set(rows_of(tmp_path / "run")[0])


def test_several_teachers_and_inherited_weights(school: Path, tmp_path: Path) -> None:
    teacher = str(school / "teacher-labels")
    said = options(school, "labels", tmp_path / "run", teacher=f"{teacher},{teacher}", teacher_mix="confidence",
                   inherit="teacher", epochs=1)
    record = weights.read_record(distill(said))
    assert len(record["teachers"]) == 2 and record["choices"]["inherited"]["left"] == 0
    run = options(school, "values", tmp_path / "values", inherit=str(school / "teacher-values"), epochs=1, lr=1e-9,
                  warmup_epochs=0.0)
    record = weights.read_record(distill(run))
    assert record["choices"]["inherited"]["left"] == 0
    said_to = task_scores.read(tmp_path / "values", heads.of_record(record))["val"].answers
    assert np.abs(said_to[:, 1] - 1064).max() < 400


def test_another_order_of_the_columns_is_the_same_task(school: Path, tmp_path: Path) -> None:
    lines = [line.split(",") for line in (school / "labels.csv").read_text().splitlines()]
    (school / "turned.csv").write_text("\n".join(",".join((a, c, b)) for a, b, c in lines) + "\n")
    said = options(school, "labels", tmp_path / "run", data=f"csv:{school / 'turned.csv'}", epochs=1)
    record = weights.read_record(distill(said))
    assert record["labels"] == ["Blue", "Bright"]
    straight = weights.read_record(school / "teacher-labels")["metrics"]["val"]["map"]
    assert record["teacher"]["metrics"]["val"]["map"] == pytest.approx(straight)


def test_a_teacher_of_values_is_measured_in_their_unit(school: Path, tmp_path: Path) -> None:
    lines = (school / "values.csv").read_text().splitlines()
    (school / "fewer.csv").write_text("\n".join(lines[:1] + lines[5:]) + "\n")  # other images: nothing is recorded
    said = options(school, "values", tmp_path / "run", data=f"csv:{school / 'fewer.csv'}", epochs=1)
    found = weights.read_record(distill(said))["teacher"]["metrics"]["val"]
    assert found["r2"] > 0.7 and found["columns"][1]["mae"] < 20


# ------------------------------------------------------------------------------------------------------- bad inputs


def test_what_does_not_fit_is_refused(
    school: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], photo_folder: Any
) -> None:
    def line(name: str, *more: str, data: str = "", teacher: str = "") -> list[str]:
        teacher = teacher or str(school / f"teacher-{name}")
        return ["distill", "--data", data or f"csv:{school / name}.csv", "--student", "timm/test_resnet", "--teacher",
                teacher, "--no-control", "--out", str(tmp_path / "no"), *more]  # fmt: skip

    lines = (school / "labels.csv").read_text().replace("Bright", "Shiny")
    (school / "other.csv").write_text(lines)
    short = "\n".join(row.rpartition(",")[0] for row in (school / "values.csv").read_text().splitlines())
    (school / "short.csv").write_text(short + "\n")
    plain = str(photo_folder(classes=2, images=6))
    both = f"{school / 'teacher-labels'},{school / 'teacher-values'}"
    cases: Mapping[str, list[str]] = {
        "the data have ['Shiny'] that it lacks, and it has ['Bright'] that the data lack": line(
            "labels", data=f"csv:{school / 'other.csv'}"),
        "has no column 'shifted' to learn": line("values", data=f"csv:{school / 'short.csv'}"),
        "--task regress needs a table, and": line("values", data=plain),
        "'crd', which is no loss for --task classify with --label-columns": line("heads", "--loss", "crd"),
        "'kd', which is no loss for --task regress": line("values", "--loss", "kd"),
        "'dist', which is no loss for --task multilabel": line("labels", "--loss", "labels,dist"),
        "--cutmix cannot be combined with --task regress": line("values", "--cutmix", "1"),
        "--teacher-mix confidence cannot be combined with --task regress": line(
            "values", "--teacher-mix", "confidence"),
        "teacher-values was trained on 2 value(s) an image, and another one with --task multilabel": line(
            "labels", teacher=both),
        "timm/test_resnet knows one class an image, and another one was trained with --task regress": line(
            "values", teacher=f"{school / 'teacher-values'},timm/test_resnet"),
        "shade": ["prune", str(school / "teacher-heads"), "--data", f"csv:{school / 'labels.csv'}", "--params", "0.5",
                  "--out", str(tmp_path / "no")],
    }  # fmt: skip
    for says, said in cases.items():
        assert main(said) == 1, says
        told = capsys.readouterr().err
        assert says in told and "Traceback" not in told, told
        assert not (tmp_path / "no").exists()


def test_prune_and_distill_speak_of_the_tasks_score(
    school: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["prune", str(school / "teacher-values"), "--data", f"csv:{school / 'values.csv'}", "--params", "0.6",
            "--out", str(tmp_path / "cut"), "--epochs", "1", "--batch-size", "16", "--workers", "0", "--threads", "1",
            "--round-to", "1", "--image-size", "32", "--val-fraction", "0.25"]  # fmt: skip
    assert main(said) == 0
    told = capsys.readouterr()
    assert "of R2 (95 %" in told.out and " -> R2 " in told.out, told.out
    assert "R2" in told.out.splitlines()[0]  # of the table of student and control


# --------------------------------------------------------------------------------------------- what a RUN asks for


def test_a_record_tells_what_to_ask_of_a_table() -> None:
    def record(asked: tuple[Head, ...], **more: Any) -> dict[str, Any]:
        return {"heads": heads.to_json(asked), **more}

    classes = (Head("a", CLASSIFY, ("x", "y")), Head("b", CLASSIFY, ("p", "q")))
    assert heads.asked_again(record(classes)) == Asked(CLASSIFY, ("a", "b"))
    assert heads.asked_again(record((Head("values", REGRESS, ("mm",)),))) == Asked(REGRESS, ("mm",))
    labels = (Head("labels", MULTILABEL, ("x", "y")),)
    assert heads.asked_again(record(labels)) == Asked(MULTILABEL, ())
    assert heads.asked_again(record(labels, options={"label_columns": ["x", "y"]})) == Asked(MULTILABEL, ("x", "y"))
    assert heads.asked_again(record(labels, label_columns=["y"], options={})) == Asked(MULTILABEL, ("y",))
    assert heads.asked_again({"labels": ["x"]}) == heads.ONE_CLASS
    assert heads.order(classes[::-1], classes) == (2, 3, 0, 1)


def test_images_without_a_label_have_no_truth(school: Path) -> None:
    from edgetl import datasets, splits
    from edgetl.train.aim import Aim

    data = datasets.open_data(f"csv:{school / 'heads.csv'}", asked=Asked(CLASSIFY, ("shade", "blue")))
    parts = splits.resolve(data, build(Finetune, {**TINY, "data": "x", "teacher": "y", "out": "z"}, where="test"))
    aim = Aim.of(data, parts)
    assert aim is not None
    assert aim.targets([Item("u", -1)], 0.1).isnan().all() and aim.targets(parts.train[:1]).shape == (1, 5)
    assert dataclasses.replace(aim).kind == CLASSIFY and torch.isfinite(aim.targets(parts.train)).any()
