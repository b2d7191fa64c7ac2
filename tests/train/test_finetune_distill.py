"""The real training loop on tiny networks and photos made on the spot: learning, resuming, refusing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stop_at import StopAt
from torch import nn

from edgetl import rundir, weights
from edgetl.errors import DataError, EdgetlError, OutputError, TrainingError
from edgetl.events import Event
from edgetl.recipe import Distill, Finetune, build
from edgetl.train import checkpoint, setting
from edgetl.train.student import distill
from edgetl.train.task import ClassifierTask
from edgetl.train.teacher import finetune

TINY = {
    "teacher": "timm/test_resnet",
    "pretrained": False,
    "image_size": 32,
    "epochs": 2,
    "batch_size": "8",
    "workers": 0,
    "lr": 3e-3,
    "threads": 1,
}

PhotoFolder = Callable[..., Path]


@pytest.fixture
def photos(photo_folder: PhotoFolder) -> Path:
    return photo_folder(classes=3, images=12)


def options(data: Path, out: Path, **values: Any) -> Finetune:
    return build(Finetune, {"data": str(data), "out": str(out), **TINY, **values}, where="test")


def student_options(data: Path, teacher: Path, out: Path, **values: Any) -> Distill:
    plain = {name: value for name, value in TINY.items() if name not in ("teacher", "pretrained")}
    return build(
        Distill,
        {"data": str(data), "teacher": str(teacher), "out": str(out), "control": False, **plain, **values},
        where="test",
    )


def tensors_of(run: Path) -> bytes:
    return (run / rundir.MODEL).read_bytes()


def test_full_learns_and_leaves_a_whole_run(photos: Path, tmp_path: Path) -> None:
    run = finetune(options(photos, tmp_path / "run", epochs=6))
    record = weights.read_record(run)
    assert record["metrics"]["val"]["accuracy"] >= 0.9
    assert record["metrics"]["test"]["n"] > 0
    assert {path.name for path in run.iterdir()} >= {
        "run.json",
        "model.safetensors",
        "recipe.toml",
        "split.json",
        "metrics.jsonl",
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 7))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not list(tmp_path.glob(".*partial")) and not (run / rundir.CHECKPOINT).exists()


def test_probe_moves_the_head_alone(photos: Path, tmp_path: Path) -> None:
    start = finetune(options(photos, tmp_path / "start", epochs=1))
    run = finetune(options(photos, tmp_path / "probe", teacher=str(start), strategy="probe"))
    before, after = (weights.load(path).network.module.state_dict() for path in (start, run))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}
    told = weights.read_record(run)["readouts"]
    assert told["linear"]["accuracy"] > 0
    assert told["neighbours"]["val_accuracy"] == max(told["neighbours"]["tried"].values())


def test_lp_ft_starts_from_the_probe_and_moves_all(photos: Path, tmp_path: Path) -> None:
    start = finetune(options(photos, tmp_path / "start", epochs=1))
    notes: list[str] = []

    def listener(event: Event) -> None:
        notes.append(str(event.values.get("text", "")))

    run = finetune(
        options(photos, tmp_path / "lpft", teacher=str(start), strategy="lp-ft", epochs=1), listener=listener
    )
    assert any(note.startswith("linear probe: validation accuracy") for note in notes)
    before, after = (weights.load(path).network.module.state_dict() for path in (start, run))
    first = next(iter(before))
    assert not torch.equal(before[first], after[first])
    assert set(weights.read_record(run)["readouts"]) == {"linear", "neighbours"}


def test_the_same_seed_gives_the_same_weights_and_another_does_not(photos: Path, tmp_path: Path) -> None:
    one, two, other = (
        finetune(options(photos, tmp_path / name, seed=seed, epochs=1)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert tensors_of(one) == tensors_of(two)
    assert tensors_of(one) != tensors_of(other)


@pytest.mark.parametrize("step", [1, 3, 4, 6])
@pytest.mark.parametrize("minutes", [0.0, 5.0])  # a checkpoint after every step, or after epochs only
def test_resume_is_bit_exact_wherever_it_stopped(photos: Path, tmp_path: Path, step: int, minutes: float) -> None:
    whole = finetune(options(photos, tmp_path / "whole", checkpoint_minutes=minutes))
    broken = options(photos, tmp_path / "broken", checkpoint_minutes=minutes)
    with pytest.raises(ZeroDivisionError):
        finetune(broken, listener=StopAt(step, ZeroDivisionError()))
    assert not (tmp_path / "broken").exists()
    if rundir.partial(tmp_path / "broken").exists():  # else no checkpoint was written yet, and there is nothing to lose
        with pytest.raises(OutputError, match="An interrupted run"):
            finetune(broken)
    resumed = finetune(options(photos, tmp_path / "broken", checkpoint_minutes=minutes, resume=True))
    assert tensors_of(resumed) == tensors_of(whole)
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, resumed)
    ]
    assert losses[0] == losses[1]


def test_resume_with_other_options_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, tmp_path / "run"), listener=StopAt(5, ZeroDivisionError()))
    with pytest.raises(TrainingError, match=r"lr was 0\.003 and is 0\.1"):
        finetune(options(photos, tmp_path / "run", lr=0.1, resume=True))


def test_a_finished_run_is_left_alone_on_resume(photos: Path, tmp_path: Path) -> None:
    run = finetune(options(photos, tmp_path / "run", epochs=1))
    before = tensors_of(run)
    finetune(options(photos, tmp_path / "run", epochs=1, resume=True))
    assert tensors_of(run) == before
    with pytest.raises(TrainingError, match="is finished, and had other options: epochs was 1 and is 2"):
        finetune(options(photos, tmp_path / "run", epochs=2, resume=True))
    with pytest.raises(OutputError, match="exists already"):
        finetune(options(photos, tmp_path / "run", epochs=1))


def test_where_things_lie_and_how_they_are_prepared_do_not_matter_on_resume(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, tmp_path / "run"), listener=StopAt(5, ZeroDivisionError()))
    monkeypatch.chdir(photos.parent)
    finetune(options(Path(photos.name), tmp_path / "run", workers=2, checkpoint_minutes=1.0, resume=True))


def test_a_run_whose_photos_changed_is_not_resumed(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, tmp_path / "run"), listener=StopAt(5, ZeroDivisionError()))
    victim = sorted((photos / "amber").iterdir())[0]
    victim.write_bytes(sorted((photos / "beryl").iterdir())[2].read_bytes())
    with pytest.raises(TrainingError, match="data fingerprint was"):
        finetune(options(photos, tmp_path / "run", resume=True))


def test_an_interrupted_overwrite_is_resumed_not_the_old_run_taken(photos: Path, tmp_path: Path) -> None:
    old = tensors_of(finetune(options(photos, tmp_path / "run", seed=1)))
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, tmp_path / "run", overwrite=True), listener=StopAt(5, ZeroDivisionError()))
    assert tensors_of(tmp_path / "run") == old  # the old run stays until the new one is whole
    fresh = finetune(options(photos, tmp_path / "fresh"))
    assert tensors_of(finetune(options(photos, tmp_path / "run", resume=True))) == tensors_of(fresh) != old


def test_a_kill_between_the_record_and_the_last_rename_loses_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(setting, "tidy", killed)
        with pytest.raises(ZeroDivisionError):
            finetune(options(photos, tmp_path / "run"))
    seen: list[str] = []
    run = finetune(options(photos, tmp_path / "run", resume=True), listener=lambda event: seen.append(event.kind))
    assert "advance" not in seen  # nothing was trained again
    assert not (run / rundir.CHECKPOINT).exists() and weights.is_run(run)


def test_a_second_process_on_the_same_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    with rundir.building(tmp_path / "run"), pytest.raises(OutputError, match="Another process is writing"):
        finetune(options(photos, tmp_path / "run"))


def test_a_kill_between_two_renames_gives_the_old_folder_back(tmp_path: Path) -> None:
    with rundir.building(tmp_path / "out") as folder:
        (folder / "a").write_text("old")
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    with pytest.raises(OutputError, match="exists already"):
        rundir.claim(tmp_path / "out", resume=False, overwrite=False)
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_files_that_a_killed_process_was_writing_are_swept(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), rundir.building(tmp_path / "out") as folder:
        (folder / rundir.CHECKPOINT).write_text("kept")
        (folder / f".checkpoint.xyz{rundir.UNFINISHED}").write_text("half")
        raise ZeroDivisionError
    with rundir.building(tmp_path / "out", resume=True) as folder:
        assert [path.name for path in folder.iterdir()] == [rundir.CHECKPOINT]


def test_no_validation_image_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leaves no validation image"):
        finetune(options(photos, tmp_path / "run", val_fraction=0))


def test_a_resume_on_another_device_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, tmp_path / "run"), listener=StopAt(5, ZeroDivisionError()))
    path = rundir.partial(tmp_path / "run") / setting.CHOICES
    rundir.write_json(path, {**json.loads(path.read_text()), "device": "cuda"})
    with pytest.raises(TrainingError, match="was on cuda; --device auto is cpu here"):
        finetune(options(photos, tmp_path / "run", resume=True))


def test_a_loss_that_is_not_finite_stops_with_its_place(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison, forward = [1.0], ClassifierTask.forward

    def poisoned(task: ClassifierTask, batch: Any) -> dict[str, torch.Tensor]:
        result = forward(task, batch)
        return {**result, "loss": result["loss"] * poison[0]}

    def listener(event: Event) -> None:
        if event.kind == "epoch":
            poison[0] = float("nan")

    monkeypatch.setattr(ClassifierTask, "forward", poisoned)
    with pytest.raises(TrainingError, match=r"The loss is nan in epoch 2, step 1; .* kept"):
        finetune(options(photos, tmp_path / "run"), listener=listener)
    assert not (tmp_path / "run").exists()
    kept = checkpoint.read(rundir.partial(tmp_path / "run") / rundir.CHECKPOINT)
    assert kept.scalars["progress"]["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in kept.part("model").values())


def test_early_stopping_counts_epochs_without_a_better_score(photos: Path, tmp_path: Path) -> None:
    run = finetune(options(photos, tmp_path / "run", epochs=30, patience=2, lr=0.0, ema=0.0))
    assert len((run / "metrics.jsonl").read_text().splitlines()) < 30


def test_a_run_teaches_a_slim_student_with_its_control(photos: Path, tmp_path: Path) -> None:
    teacher = finetune(options(photos, tmp_path / "teacher", epochs=4))
    run = distill(
        student_options(
            photos,
            teacher,
            tmp_path / "student",
            student="slim:0.5",
            round_to=2,
            control=True,
            loss=("labels:0.5,kd:0.5;temperature=2",),
        )
    )
    record = weights.read_record(run)
    assert record["kept"] == pytest.approx(0.5, rel=0.01)
    assert record["metrics"]["control"]["test"]["n"] == record["metrics"]["test"]["n"]
    assert weights.is_run(run / "control")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(0.5 * rows[0]["labels"] + 0.5 * rows[0]["kd"], rel=1e-4)
    assert (
        json.loads((run / "split.json").read_text())["test"] == json.loads((teacher / "split.json").read_text())["test"]
    )
    untaught = json.loads((run / "control" / "metrics.jsonl").read_text().splitlines()[0])
    assert "kd" not in untaught


def test_a_students_weights_hold_nothing_of_the_teacher_or_the_loss(photos: Path, tmp_path: Path) -> None:
    teacher = finetune(options(photos, tmp_path / "teacher", epochs=1))
    run = distill(
        student_options(photos, teacher, tmp_path / "student", student="timm/test_resnet", epochs=1, pretrained=False)
    )
    assert set(weights.load(run).network.module.state_dict()) == set(weights.load(teacher).network.module.state_dict())


def test_distillation_resumes_bit_exactly_in_student_and_control(photos: Path, tmp_path: Path) -> None:
    teacher = finetune(options(photos, tmp_path / "teacher", epochs=1))
    values = {"student": "slim:0.6", "round_to": 2, "control": True}
    whole = distill(student_options(photos, teacher, tmp_path / "whole", **values))

    class InControl(StopAt):
        def __call__(self, event: Event) -> None:
            if event.stage == "control":
                super().__call__(event)

    for stop in (StopAt(5, ZeroDivisionError()), InControl(5, ZeroDivisionError())):
        with pytest.raises(ZeroDivisionError):
            distill(
                student_options(photos, teacher, tmp_path / "broken", resume=isinstance(stop, InControl), **values),
                listener=stop,
            )
    resumed = distill(student_options(photos, teacher, tmp_path / "broken", resume=True, **values))
    assert tensors_of(resumed) == tensors_of(whole)
    assert tensors_of(resumed / "control") == tensors_of(whole / "control")


def test_a_teacher_of_other_classes_is_refused_with_the_list(
    photos: Path, photo_folder: PhotoFolder, tmp_path: Path
) -> None:
    teacher = finetune(options(photos, tmp_path / "teacher", epochs=1))
    more = photo_folder("more", classes=4, images=8)
    with pytest.raises(DataError, match=r"the data has \['dusk'\] that the teacher lacks"):
        distill(student_options(more, teacher, tmp_path / "student"))


def test_an_earlier_run_gets_a_new_head_for_other_classes(
    photos: Path, photo_folder: PhotoFolder, tmp_path: Path
) -> None:
    source = finetune(options(photos, tmp_path / "source", epochs=1))
    more = photo_folder("more", classes=4, images=8)
    run = finetune(options(more, tmp_path / "target", teacher=str(source), epochs=1))
    head = weights.load(run).network.module.get_submodule("fc")
    assert isinstance(head, nn.Linear) and head.out_features == 4


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"student": "slim:x"}, "expected slim:R"),
        ({"student": "slim:2"}, "between 0 and 1"),
        ({"loss": ("kdd",)}, "no loss named 'kdd'"),
        ({"student": "timm/test_resnett"}, "Did you mean 'test_resnet'"),
        ({"batch_size": "many"}, "'batch_size': found 'many'"),
        ({"device": "tpu"}, "'device': found 'tpu'"),
    ],
)
def test_wrong_words_are_one_sentence_and_leave_no_run(
    photos: Path, tmp_path: Path, values: dict[str, Any], says: str
) -> None:
    teacher = finetune(options(photos, tmp_path / "teacher", epochs=1))
    with pytest.raises(EdgetlError, match=says):
        distill(student_options(photos, teacher, tmp_path / "student", **values))
    assert not (tmp_path / "student").exists() and not rundir.partial(tmp_path / "student").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_that_is_not_there_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgetlError, match="sees no CUDA device"):
        finetune(options(photos, tmp_path / "run", device="cuda"))


def test_a_text_file_named_jpg_and_a_truncated_one_are_named(photos: Path, tmp_path: Path) -> None:
    victims = sorted((photos / "amber").glob("*.jpg"))
    victims[0].write_text("no picture at all")
    victims[1].write_bytes(victims[1].read_bytes()[:200])
    with pytest.raises(DataError, match=victims[0].name):
        finetune(options(photos, tmp_path / "run", val_fraction=0.1, test_fraction=0.1))


LOOP = """
import sys
from edgetl.recipe import Finetune, Distill, build
from edgetl.train.teacher import finetune
from edgetl.train.student import distill
import json
kind, values = sys.argv[1], json.loads(sys.argv[2])
(finetune if kind == "finetune" else distill)(build(Finetune if kind == "finetune" else Distill, values, where="test"))
"""


def killed_then_resumed(kind: str, values: dict[str, Any], kills: int, seed: int) -> Path:
    """Runs a training in a process that is killed with SIGKILL at random moments, and resumes it each time."""
    dice, resume = random.Random(seed), False
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, kind, json.dumps({**values, "resume": resume})], stderr=subprocess.DEVNULL
        )
        time.sleep(dice.uniform(2.0, 6.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        resume = True
    subprocess.run([sys.executable, "-c", LOOP, kind, json.dumps({**values, "resume": True})], check=True, timeout=300)
    return Path(values["out"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["finetune", "distill"])
def test_ten_kills_change_no_bit(photos: Path, tmp_path: Path, kind: str) -> None:
    start = finetune(options(photos, tmp_path / "start", epochs=1))
    values: dict[str, Any] = {**TINY, "data": str(photos), "epochs": 40, "checkpoint_minutes": 0.0}
    if kind == "distill":
        values = {
            **{name: one for name, one in values.items() if name != "pretrained"},
            "teacher": str(start),
            "student": "slim:0.5",
            "round_to": 2,
        }
    runs = {}
    for name in ("whole", "killed"):
        here = {**values, "out": str(tmp_path / name)}
        runs[name] = killed_then_resumed(kind, here, 10 if name == "killed" else 0, seed=os.getpid())
    assert tensors_of(runs["killed"]) == tensors_of(runs["whole"])


DIES = """
import os, signal
from edgetl.train.loop import Fit
move = Fit._move
def dying(fit):
    move(fit)
    if fit.progress.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Fit._move = dying
"""


def test_a_kill_in_the_middle_changes_no_bit(photos: Path, tmp_path: Path) -> None:
    whole = finetune(options(photos, tmp_path / "whole", epochs=12))
    values = {**TINY, "data": str(photos), "epochs": 12, "out": str(tmp_path / "killed")}
    killed = subprocess.run([sys.executable, "-c", DIES + LOOP, "finetune", json.dumps(values)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len((rundir.partial(tmp_path / "killed") / rundir.METRICS).read_text().splitlines()) == 2
    assert tensors_of(finetune(options(photos, tmp_path / "killed", epochs=12, resume=True))) == tensors_of(whole)


@pytest.mark.parametrize("stage", ["finetune", "distill"])
def test_weights_that_would_not_be_read_are_refused_before_anything_is_made(
    photos: Path, tmp_path: Path, stage: str
) -> None:
    run = finetune(options(photos, tmp_path / "run", epochs=1))
    with pytest.raises(EdgetlError, match=r"brings its own weights, so --weights w\.pt would not be read") as refused:
        if stage == "finetune":
            finetune(options(photos, tmp_path / "next", teacher=str(run), weights="w.pt"))
        else:
            distill(student_options(photos, run, tmp_path / "next", student="slim:0.6", weights="w.pt"))
    assert refused.value.hint == "Leave --weights out, or name a FAMILY/VARIANT."
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(("next", "partial"))] == []
