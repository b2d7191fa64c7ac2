"""Views that come again, what the teacher said to them, and who runs the teacher."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from stop_at import StopAt

from edgetl import losses, models, pipeline, rundir, weights
from edgetl.errors import BackendUnavailable, EdgetlError, OutputError
from edgetl.events import ignore
from edgetl.recipe import Distill, Finetune, build
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import choosing, engines, softlabels, views
from edgetl.train.engines import Engine
from edgetl.train.loader import Batch, TrainLoader
from edgetl.train.loop import Precision
from edgetl.train.softlabels import Identity, Live, SoftLabels
from edgetl.train.student import distill
from edgetl.train.task import ClassifierTask
from edgetl.train.teacher import finetune
from edgetl.train.views import View

pytestmark = pytest.mark.usefixtures("written_once")
COMMON = {"image_size": 32, "batch_size": "8", "workers": 0, "threads": 1}
STUDENT = {"student": "timm/test_efficientnet", "pretrained": False, "loss": ["labels:0.2,kd:1;temperature=2"]}
KEPT_PIXELS = Preprocess(size_hw=(24, 24), mean=(0.5,) * 3, std=(0.5,) * 3)
CPU = Precision(torch.device("cpu"), None)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Photos, and a RUN that knows them."""
    photos = write_photos(tmp_path_factory.mktemp("photos") / "photos", classes=3, images=8)
    out = tmp_path_factory.mktemp("teacher") / "run"
    given = {"data": str(photos), "out": str(out), "teacher": "timm/test_resnet", "pretrained": False, "epochs": 3}
    return photos, finetune(build(Finetune, {**given, **COMMON}, where="test"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "softlabels"


def student(taught: tuple[Path, Path], out: Path, *, listener: Any = ignore, graph_of: Any = None, **more: Any) -> Path:
    given = {
        "data": str(taught[0]),
        "teacher": str(taught[1]),
        "out": str(out),
        "epochs": 6,
        "control": False,
        **STUDENT,
        **COMMON,
        **more,
    }
    return distill(build(Distill, given, where="test"), listener=listener, graph_of=graph_of)


def curve(run: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (run / rundir.METRICS).read_text().splitlines()]


# ----------------------------------------------------------------------------------------------------- the views


class Stored:
    """Eleven images of noise, as the loader wants them."""

    def __getitem__(self, row: int) -> np.ndarray[Any, Any]:
        return np.random.default_rng(row).integers(0, 256, (40, 30 + row, 3), np.uint8)


def loader(views: int, **more: Any) -> TrainLoader:
    given = {"data": "x", "out": "y", "teacher": "z", **COMMON, **more}
    items = [dataclasses.make_dataclass("Item", ["label"])(row % 3) for row in range(11)]
    options = build(Distill, given, where="test")
    return TrainLoader(Stored(), items, 3, KEPT_PIXELS, options, 4, torch.device("cpu"), views)  # type: ignore[arg-type]


def by_row(made: TrainLoader, epoch: int) -> dict[int, tuple[torch.Tensor, torch.Tensor, int]]:
    return {int(row): (image, target, batch.view) for batch in made.epoch(epoch)
            for row, image, target in zip(batch.index, batch.images, batch.targets, strict=True)}  # fmt: skip


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize("workers", [0, 2])
def test_views_come_again_bit_for_bit_in_another_order(mixup: float, workers: int) -> None:
    made = loader(3, mixup=mixup, workers=workers)
    first, again, other = by_row(made, 1), by_row(made, 4), by_row(made, 2)
    assert sorted(first) == list(range(11)) and list(first) != list(again)
    for row, (image, target, view) in first.items():
        assert torch.equal(image, again[row][0]) and torch.equal(target, again[row][1])
        assert (view, again[row][2], other[row][2]) == (1, 1, 2)
        assert not torch.equal(image, other[row][0])


def test_without_views_every_epoch_draws_new_ones_and_mixup_is_what_it_was() -> None:
    first, again = by_row(loader(0), 0), by_row(loader(0), 3)
    assert not any(torch.equal(image, again[row][0]) for row, (image, _, _) in first.items())
    for batch in loader(0, mixup=0.5).epoch(0):
        pairs = batch.labels.flip(0)
        assert all(set(target.topk(2).indices.tolist()) <= {0, 1, 2} for target in batch.targets)
        alone = batch.labels == pairs
        assert torch.equal(batch.targets[alone].argmax(1), batch.labels[alone])


def test_a_mixed_view_is_the_image_and_its_partner() -> None:
    plain, mixing = (
        loader(2, color_jitter=0, label_smoothing=0),
        loader(2, mixup=0.4, color_jitter=0, label_smoothing=0),
    )
    pure, mixed = by_row(plain, 1), by_row(mixing, 1)
    for row, (image, target, _) in mixed.items():
        partner, blend = mixing._partner(1, row)
        share = blend.share
        torch.testing.assert_close(image, share * pure[row][0] + (1 - share) * pure[partner][0], rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(target, share * pure[row][1] + (1 - share) * pure[partner][1])


# ----------------------------------------------------------------------------------------------------- the store


@settings(max_examples=25, deadline=None)
@given(st.integers(2, views.MANY), st.integers(0, 10_000))
def test_logits_of_few_classes_are_kept_to_half_a_unit_of_float16(classes: int, seed: int) -> None:
    logits = 10 * torch.randn(3, classes, generator=torch.Generator().manual_seed(seed))
    view = View.empty(5, classes)
    view.put(torch.tensor([4, 0, 2]), logits)
    assert view.known.tolist() == [True, False, True, False, True]
    assert torch.equal(view.get(torch.tensor([0, 2, 4])), logits[[1, 2, 0]].half().float())


def test_of_many_classes_the_greatest_are_kept_and_the_rest_of_the_probability() -> None:
    classes = views.MANY + 44
    logits = 4 * torch.randn(6, classes, generator=torch.Generator().manual_seed(0))
    view = View.empty(6, classes)
    view.put(torch.arange(6), logits)
    found, exact = view.get(torch.arange(6)).softmax(1), logits.softmax(1)
    top = exact.topk(views.TOP, dim=1).indices
    torch.testing.assert_close(found.gather(1, top), exact.gather(1, top), rtol=0.01, atol=1e-4)
    torch.testing.assert_close(found.sum(1), torch.ones(6))
    rest = [row[~torch.isin(torch.arange(classes), kept)] for row, kept in zip(found, top, strict=True)]
    assert all(float(one.max() - one.min()) == 0 for one in rest)
    stored = sum(one.numel() * one.element_size() for one in view.tensors().values()) / 6
    assert stored < 0.7 * 2 * classes


@pytest.mark.parametrize("worst", [float("nan"), float("inf"), 1e6])
def test_answers_that_cannot_be_stored_are_refused(worst: float) -> None:
    with pytest.raises(EdgetlError, match="not finite, or too large"):
        View.empty(1, 2).put(torch.tensor([0]), torch.tensor([[worst, 0.0]]))


class Teacher:
    """Counts the images that it is asked about."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return torch.stack([images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))], dim=1)


def batch_of(index: list[int], view: int) -> Batch:
    rows = torch.tensor(index)
    images = rows.float().view(-1, 1, 1, 1) + view + torch.linspace(0, 1, 48).view(1, 3, 4, 4)
    return Batch(images, rows % 2, torch.eye(2)[rows % 2], rows, view)


def test_the_teacher_is_asked_once_and_what_it_said_is_read_after_a_restart(tmp_path: Path) -> None:
    teacher = Teacher()
    store = SoftLabels(tmp_path / "store", 4, 2, teacher)
    first = [store.answers(batch_of(rows, view)) for view in (0, 1) for rows in ([0, 1], [2, 3])]
    files = sorted(store.folder.glob("*.safetensors"))
    assert teacher.images == 8 and [path.name for path in files] == ["view-0000.safetensors", "view-0001.safetensors"]
    assert store.size_bytes == sum(path.stat().st_size for path in files)
    assert dict(store.told()[0]) == {"bytes": store.size_bytes, "bytes_an_image": 5, "views": 2, "images": 4,
                                     "asked": 8, "reused": 0}  # fmt: skip
    again = SoftLabels(tmp_path / "store", 4, 2, teacher)
    assert torch.equal(again.answers(batch_of([3, 0], 1)), torch.stack([first[3][1], first[2][0]]))
    assert teacher.images == 8


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    teacher = Teacher()
    store = SoftLabels(tmp_path / "store", 4, 2, teacher)
    said = store.answers(batch_of([0, 1], 0))
    assert not list(tmp_path.iterdir())
    store.flush()
    again = SoftLabels(tmp_path / "store", 4, 2, teacher)
    assert torch.equal(again.answers(batch_of([0, 1], 0)), said) and teacher.images == 2
    again.answers(batch_of([2, 3], 0))
    assert teacher.images == 4


@pytest.mark.parametrize("stored", [True, False])
def test_what_fits_into_the_memory_is_found_out_with_the_teacher_and_nothing_is_kept(
    tmp_path: Path, stored: bool
) -> None:
    teacher = Teacher()
    source = SoftLabels(tmp_path / "store", 8, 2, teacher) if stored else Live(teacher)
    student = models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32)
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    task = ClassifierTask(student, losses.parse(["kd"]), source=source)
    place = types.SimpleNamespace(device=torch.device("cpu"), precision=CPU)
    assert choosing.fits(place, task, student.preprocess, 6)  # type: ignore[arg-type]
    assert teacher.images == 6
    task.flush()
    assert not (tmp_path / "store").exists()
    assert all(torch.equal(value, before[name]) for name, value in student.module.state_dict().items())


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_view_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    teacher, folder, told = Teacher(), tmp_path / "store", list[str]()
    store = SoftLabels(folder, 2, 2, teacher)
    said = store.answers(batch_of([0, 1], 0))
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-7] if damage is None else damage)
    assert torch.equal(SoftLabels(folder, 2, 2, teacher, note=told.append).answers(batch_of([0, 1], 0)), said)
    assert teacher.images == 4 and len(told) == 1 and told[0].endswith("The teacher is asked again.")
    assert torch.equal(SoftLabels(folder, 3, 2, teacher).answers(batch_of([0, 1], 0)), said)  # of other images
    assert teacher.images == 6


IDENTITY = Identity(
    teacher="a" * 64, teacher_preprocess=KEPT_PIXELS, student_preprocess=KEPT_PIXELS, fingerprint="f", keys=("x", "y"),
    options=dict.fromkeys(softlabels.DRAWN_BY, 0), engine="torch 2",
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "b" * 64},
        {"teacher_preprocess": dataclasses.replace(KEPT_PIXELS, mean=(0.4,) * 3)},
        {"student_preprocess": dataclasses.replace(KEPT_PIXELS, size_hw=(32, 32))},
        {"fingerprint": "g"},
        {"keys": ("y", "x")},
        {"engine": "torch 3"},
        *({"options": {**IDENTITY.options, name: 1}} for name in softlabels.DRAWN_BY),
    ],
)
def test_whatever_decides_an_answer_names_another_store(change: dict[str, Any]) -> None:
    assert dataclasses.replace(IDENTITY, **change).key() != IDENTITY.key() == dataclasses.replace(IDENTITY).key()


@pytest.mark.parametrize("name", ["softlabels.VERSION", "softlabels.VIEWS_VERSION", "softlabels.__version__"])
def test_other_code_names_another_store(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = IDENTITY.key()
    monkeypatch.setattr(f"edgetl.train.{name}", "another")
    assert IDENTITY.key() != before


# ------------------------------------------------------------------------------------------------------ in the loop


def test_training_with_the_store_is_training_on_the_same_views_without_it(
    taught: tuple[Path, Path], tmp_path: Path, cache: Path
) -> None:
    stored = student(taught, tmp_path / "stored", views=2, mixup=0.2)
    live = student(taught, tmp_path / "live", views=2, mixup=0.2, softlabels="off")
    np.testing.assert_allclose(curve(stored), curve(live), atol=1e-3)
    assert curve(stored) != curve(live)  # float16
    (folder,) = cache.iterdir()
    assert len(list(folder.glob("*.safetensors"))) == 2
    record = weights.read_record(stored)
    images = record["softlabels"]["images"]
    assert record["softlabels"] == {"bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
                                    "bytes_an_image": 7, "views": 2, "images": images,
                                    "asked": 2 * images, "reused": 4 * images}  # fmt: skip
    assert "softlabels" not in weights.read_record(live)
    assert record["choices"]["teacher_engine"]["name"] == "torch" and record["options"]["views"] == 2


def test_the_teacher_looks_at_each_view_once(
    taught: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    torch_ask = engines.torch_ask

    def counting(*given: Any) -> Any:
        ask = torch_ask(*given)
        return lambda images: (counts.append(len(images)), ask(images))[1]

    monkeypatch.setattr(engines, "torch_ask", counting)
    images = weights.read_record(taught[1])["data"] and len(json.loads((taught[1] / "split.json").read_text())["train"])
    student(taught, tmp_path / "one", views=2, epochs=5)
    assert sum(counts) == 2 * images
    student(taught, tmp_path / "again", views=2, epochs=3)
    assert sum(counts) == 2 * images
    student(taught, tmp_path / "other", views=1, epochs=3, seed=5)
    assert sum(counts) == 3 * images
    student(taught, tmp_path / "fresh", views=0, epochs=2)
    assert sum(counts) == 5 * images


@pytest.mark.parametrize("step", [1, 4])
def test_a_resume_in_the_middle_of_the_build_gives_the_same_student(
    taught: tuple[Path, Path], tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"views": 2, "mixup": 0.2, "checkpoint_minutes": 0, "epochs": 4}
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "one"))
    whole = student(taught, tmp_path / "whole", **more)
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "two"))
    with pytest.raises(RuntimeError, match="the machine died"):
        student(taught, tmp_path / "broken", listener=StopAt(step, RuntimeError("the machine died")), **more)
    again = student(taught, tmp_path / "broken", resume=True, **more)
    assert (again / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()


def test_a_full_disk_is_one_sentence(
    taught: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = rundir.write_bytes

    def full(path: Path, data: bytes) -> None:
        if "softlabels" in str(path):
            raise OSError(28, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(rundir, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        student(taught, tmp_path / "run", views=1)
    assert "EDGETL_CACHE" in caught.value.message and not (tmp_path / "run").exists()


def test_views_drawn_anew_are_asked_once_and_the_training_is_the_same_without_a_store(
    taught: tuple[Path, Path], tmp_path: Path, cache: Path
) -> None:
    more = {"views": 2, "refresh_views": 3, "mixup": 0.2, "checkpoint_minutes": 0, "control": False}
    stored = student(taught, tmp_path / "stored", **more)
    told = weights.read_record(stored)["softlabels"]
    assert (told["views"], told["asked"], told["reused"]) == (4, 4 * told["images"], 2 * told["images"])
    live = student(taught, tmp_path / "live", softlabels="off", **more)
    np.testing.assert_allclose(curve(stored), curve(live), atol=1e-3)
    (folder,) = cache.iterdir()
    shutil.rmtree(folder)
    with pytest.raises(RuntimeError, match="the machine died"):  # in the second time's first view
        student(taught, tmp_path / "broken", listener=StopAt(8, RuntimeError("the machine died")), **more)
    again = student(taught, tmp_path / "broken", resume=True, **more)
    assert (again / rundir.MODEL).read_bytes() == (stored / rundir.MODEL).read_bytes()
    later = weights.read_record(again)["softlabels"]  # what the dead process had asked and not yet counted is reused
    assert later["asked"] <= told["asked"] and later["asked"] + later["reused"] == 6 * told["images"]
    assert {**later, "asked": 0, "reused": 0} == {**told, "asked": 0, "reused": 0}


TRAIN = """
import json, os, signal, sys
from edgetl.recipe import Distill, build
from edgetl.train import softlabels
from edgetl.train.student import distill
write = softlabels.rundir.write_bytes
def dying(path, data):
    write(path, data)
    if path.name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
softlabels.rundir.write_bytes = dying
distill(build(Distill, json.loads(sys.argv[1]), where="test"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", ["the first answers", "the last view"])
def test_a_kill_during_the_build_or_after_it_changes_no_bit(
    taught: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    more = {"views": 3, "mixup": 0.2, "checkpoint_minutes": 0, "epochs": 9, "control": False}
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "one"))
    whole = student(taught, tmp_path / "whole", **more)
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "two"))
    given = {"data": str(taught[0]), "teacher": str(taught[1]), "out": str(tmp_path / "killed"), **STUDENT, **COMMON,
             **more}  # fmt: skip
    mark = "view-0000.safetensors" if after == "the first answers" else "view-0002.safetensors"
    killed = subprocess.run([sys.executable, "-c", TRAIN, json.dumps(given), mark], check=False)
    assert killed.returncode == -signal.SIGKILL
    again = student(taught, tmp_path / "killed", resume=rundir.resumable(rundir.partial(tmp_path / "killed")), **more)
    assert (again / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()
    told = weights.read_record(again)["softlabels"]
    assert told["views"] == 3 and told["asked"] + told["reused"] == 9 * told["images"]


# ------------------------------------------------------------------------------------------- who runs the teacher


@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_another_engine_gives_the_same_student_within_rounding(
    taught: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    more = {"views": 1, "epochs": 2}
    mine = student(taught, tmp_path / "torch", teacher_engine="torch", **more)
    other = student(taught, tmp_path / name, teacher_engine=name, graph_of=pipeline._graph_of, **more)
    np.testing.assert_allclose(curve(mine), curve(other), atol=1e-3)
    chosen = weights.read_record(other)["choices"]["teacher_engine"]
    assert chosen["name"] == name and any(char.isdigit() for char in chosen["version"])


def choose(wish: str = "auto", asked: int = engines.WORTH, graph_of: Any = pipeline._graph_of, **more: Any) -> Engine:
    torch.manual_seed(0)  # the same teacher every time
    teacher = models.create("timm/test_resnet", classes=3, pretrained=False, image_size=32)
    teacher.module.eval()
    size = {"batch": 4, "size_hw": (24, 24), "threads": 1, **more}
    return engines.choose(wish, teacher, ("a", "b", "c"), CPU, asked=asked, graph_of=graph_of, **size)


def test_a_trial_is_made_where_it_can_pay() -> None:
    tried = choose()
    assert set(tried.trial) == {"torch", "cpu", "openvino"} and tried.name in tried.trial
    assert all(seconds > 0 for seconds in tried.trial.values())
    for untried in (choose(asked=engines.WORTH - 1), choose(graph_of=None), choose("torch")):
        assert (untried.name, untried.trial) == ("torch", {})


def test_engines_agree_on_what_the_teacher_says() -> None:
    images = 255 * torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    said = {name: choose(name).ask(images) for name in ("torch", "cpu", "openvino")}
    for name in ("cpu", "openvino"):
        assert said[name].dtype == torch.float32
        torch.testing.assert_close(said[name], said["torch"], rtol=1e-3, atol=1e-4)


def test_only_a_clearly_quicker_engine_takes_the_place_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(engines.timing, "now_s", lambda: now[0])

    def engine(name: str, seconds: float) -> Engine:
        def ask(images: torch.Tensor) -> torch.Tensor:
            now[0] += seconds
            return images

        return Engine(name, "1", ask, {})

    for other, chosen in ((0.5, "other"), (0.96, "torch"), (0.94, "other"), (2.0, "torch")):
        found = engines.quickest([engine("torch", 1.0), engine("other", other)], 2, (8, 8))
        assert found.name == chosen and found.trial == pytest.approx({"torch": 1.0, "other": other})


def test_what_cannot_run_the_teacher_is_refused(taught: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="--teacher-engine cpu runs on a CPU"):
        choose("cpu", graph_of=None)
    with pytest.raises(EdgetlError, match="only torch has"):
        student(taught, tmp_path / "run", loss=["at:1000"], teacher_engine="cpu", graph_of=pipeline._graph_of)
    with pytest.raises(EdgetlError, match="does not know"):
        engines.recorded({"teacher_engine": {"name": "tensorrt"}}, "auto")


def test_a_loss_on_features_asks_the_teacher_itself(taught: tuple[Path, Path], tmp_path: Path, cache: Path) -> None:
    run = student(taught, tmp_path / "run", views=2, loss=["sp:3000,kd:1"], epochs=2)
    assert curve(run, "sp")[0] > 0 and not cache.exists()
