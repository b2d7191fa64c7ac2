"""How batches are dealt out, added up and checkpointed; one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stop_at import StopAt

from edgetl import launch, rundir
from edgetl.errors import EdgetlError, TrainingError
from edgetl.events import Event
from edgetl.recipe import Finetune, build
from edgetl.train import checkpoint, distributed
from edgetl.train.cells import Cells
from edgetl.train.distributed import ALONE
from edgetl.train.teacher import finetune

TINY = {"teacher": "timm/test_vit", "pretrained": False, "image_size": 32, "epochs": 2, "workers": 0, "lr": 1e-3,
        "threads": 1, "ema": 0.0}  # a network without batch norms  # fmt: skip


@pytest.fixture
def photos(photo_folder: Callable[..., Path]) -> Path:
    return photo_folder(classes=3, images=12)


def options(data: Path, out: Path, **values: Any) -> Finetune:
    return build(Finetune, {"data": str(data), "out": str(out), **TINY, **values}, where="test")


def curve(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / rundir.METRICS).read_text().splitlines()]
    return [row[name] for row in rows for name in ("loss", "val_loss")]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_every_image_is_dealt_to_one_cell(
    labelled: int, others: int, ranks: int, micro: int, mirrored: bool
) -> None:
    size = labelled + others
    cells = [Cells(ranks, rank, micro).of(size, labelled, mirrored=mirrored) for rank in range(ranks)]
    assert all(len(one) == micro for one in cells)
    dealt = [cell for one in cells for cell in one]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(size))
    assert all((np.diff(cell) > 0).all() for cell in dealt)  # so that labelled images stay first
    for number, alone in enumerate(Cells(1, 0, micro).of(size, labelled, mirrored=mirrored)):
        shared = np.concatenate([one[number] for one in cells])
        assert sorted(shared.tolist()) == alone.tolist()  # a micro-batch is the same however many share it
    if not mirrored:
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(0, 30), st.integers(1, 4))
def test_mirrored_cells_hold_what_mixup_mixes_in_the_whole_batch(labelled: int, others: int, ranks: int) -> None:
    size = labelled + others
    partner = np.concatenate([np.arange(labelled)[::-1], np.arange(labelled, size)[::-1]])
    for rank in range(ranks):
        (cell,) = Cells(ranks, rank).of(size, labelled, mirrored=True)
        known = int((cell < labelled).sum())
        mixed = np.concatenate([cell[:known][::-1], cell[known:][::-1]])
        assert (partner[cell] == mixed).all()


@pytest.mark.parametrize("more", [{"mixup": 0.4}, {"clip_norm": 0.05}])
def test_batches_added_up_are_the_larger_batch(photos: Path, tmp_path: Path, more: dict[str, float]) -> None:
    """27 images: steps of 9 in three batches of 3, and with mixup in pairs."""
    whole = finetune(options(photos, tmp_path / "whole", batch_size="12", epochs=1, **more))
    added = finetune(options(photos, tmp_path / "added", batch_size="4", epochs=1, accumulate=3, **more))
    np.testing.assert_allclose(curve(added), curve(whole), rtol=1e-4)


def test_a_resume_between_steps_of_several_batches_is_bit_exact(photos: Path, tmp_path: Path) -> None:
    more = {"batch_size": "4", "accumulate": 2, "checkpoint_minutes": 0.0}
    whole = finetune(options(photos, tmp_path / "whole", **more))
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, tmp_path / "broken", **more), listener=StopAt(3, ZeroDivisionError()))
    again = finetune(options(photos, tmp_path / "broken", resume=True, **more))
    assert (again / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()


def test_other_additions_are_another_training(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, tmp_path / "run", batch_size="4", checkpoint_minutes=0.0),
                 listener=StopAt(3, ZeroDivisionError()))  # fmt: skip
    with pytest.raises(TrainingError, match="accumulate was 1 and is 2"):
        finetune(options(photos, tmp_path / "run", batch_size="4", checkpoint_minutes=0.0, accumulate=2, resume=True))


def test_more_parts_than_images_are_one_sentence(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgetlError, match="too small for 1 processes and --accumulate 64") as refused:
        finetune(options(photos, tmp_path / "run", batch_size="1", accumulate=64))
    assert refused.value.hint == "Use a larger --batch-size."


def test_what_sees_a_micro_batch_only_is_told(photos: Path, tmp_path: Path) -> None:
    told: list[str] = []

    def listener(event: Event) -> None:
        told.extend([event.values["text"]] if event.kind == "warning" else [])

    finetune(options(photos, tmp_path / "run", teacher="timm/test_resnet", epochs=1, batch_size="4", accumulate=2),
             listener=listener)  # fmt: skip
    assert told == ["--accumulate 2: batch norm sees the 4 images of a micro-batch, not a step's 8."]


# ------------------------------------------------------------------------------------------------------ checkpoints


def broken_off(photos: Path, out: Path) -> Path:
    """The unfinished folder of a training that wrote several checkpoints."""
    values = {"batch_size": "8", "checkpoint_minutes": 0.0}
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, out, **values), listener=StopAt(6, ZeroDivisionError()))
    return rundir.partial(out)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(photos: Path, tmp_path: Path) -> None:
    values = {"batch_size": "8", "checkpoint_minutes": 0.0}
    whole = finetune(options(photos, tmp_path / "whole", **values))
    folder = broken_off(photos, tmp_path / "broken")
    newest, before = (checkpoint.read(folder / name) for name in (rundir.CHECKPOINT, rundir.PREVIOUS))
    steps = [one.scalars["progress"]["epoch"] * 4 + one.scalars["progress"]["step"] for one in (before, newest)]
    assert steps == [4, 5]
    (folder / rundir.CHECKPOINT).write_bytes((folder / rundir.CHECKPOINT).read_bytes()[:-9])
    told: list[Event] = []
    again = finetune(options(photos, tmp_path / "broken", resume=True, **values), listener=told.append)
    warnings = [event.values["text"] for event in told if event.kind == "warning"]
    assert len(warnings) == 1 and warnings[0].endswith("Training goes on from the checkpoint before it.")
    assert (again / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()
    assert not (again / rundir.PREVIOUS).exists()


def test_a_kill_between_two_renames_leaves_the_one_before(photos: Path, tmp_path: Path) -> None:
    folder = broken_off(photos, tmp_path / "run")
    (folder / rundir.CHECKPOINT).unlink()
    assert rundir.resumable(folder)
    finetune(options(photos, tmp_path / "run", resume=True, batch_size="8", checkpoint_minutes=0.0))


def test_a_disk_without_hard_links_keeps_two_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    for step in (1.0, 2.0):
        checkpoint.write_newest(tmp_path, checkpoint.State({"a": torch.tensor([step])}))
    found = [checkpoint.read(tmp_path / name).tensors["a"].item() for name in (rundir.PREVIOUS, rundir.CHECKPOINT)]
    assert found == [1.0, 2.0]


def test_both_damaged_is_one_sentence_and_a_pickle_never_gives_way(tmp_path: Path) -> None:
    told: list[str] = []
    assert checkpoint.newest(tmp_path, told.append) is None
    (tmp_path / rundir.CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match="damaged"):
        checkpoint.newest(tmp_path, told.append)
    checkpoint.write(tmp_path / rundir.PREVIOUS, checkpoint.State({"a": torch.ones(1)}))
    (tmp_path / rundir.CHECKPOINT).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(TrainingError, match="is a pickle"):
        checkpoint.newest(tmp_path, told.append)
    assert told == []


# --------------------------------------------------------------------------------------------------- what was started

TOLD = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # fmt: skip


def test_a_process_alone_is_no_part_of_anything() -> None:
    assert launch.place({}) is None and launch.place({**TOLD, "WORLD_SIZE": "1"}) is None
    assert launch.place(TOLD) == launch.Place(1, 1, 2, 2, 0)
    assert ALONE.first and ALONE.total([2.5]) == [2.5] and ALONE.decided(lambda: 3) == 3 and ALONE.speaks()


@pytest.mark.parametrize(("change", "says"), [({"MASTER_PORT": None}, "MASTER_PORT cannot be found"),
                                              ({"RANK": "one"}, "no whole numbers")])  # fmt: skip
def test_half_a_launcher_is_one_sentence(change: dict[str, str | None], says: str) -> None:
    environment = {name: value for name, value in {**TOLD, **change}.items() if value is not None}
    with pytest.raises(EdgetlError, match=says):
        launch.place(environment)


def test_work_for_one_is_refused_to_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgetl.cli import app

    for rank, said in (("0", "torchrun started 2 processes, and `edgetl export` is work for one."), ("1", "")):
        for name, value in {**TOLD, "RANK": rank}.items():
            monkeypatch.setenv(name, value)
        assert app.main(["export", "run", "--out", "bundle"]) == 1
        assert said in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert app.main(["compare-strategies", "--data", "d", "--teacher", "t/x", "--out", "o"]) == 1
    told = capsys.readouterr().err
    assert "`edgetl compare-strategies` is work for one." in told and "CUDA_VISIBLE_DEVICES" in told
    monkeypatch.setenv("RANK", "1")
    with launch.one_voice("finetune"):
        print("not heard")
    assert capsys.readouterr().out == ""


class Memory(dict[str, int]):
    """A store of a first process that was killed: it keeps what was there, and nothing comes any more."""

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def add(self, key: str, more: int) -> int:
        self[key] = self.get(key, 0) + more
        return self[key]


def test_a_first_process_without_signs_of_life_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=0.2))
    world = distributed.World(rank=1, size=2, store=Memory())  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="Another of the 2 processes of this training ended"):
        world.decided(lambda: pytest.fail("only the first process decides"))


def test_who_waits_is_told_of_a_failure_at_once_and_one_speaks() -> None:
    store = Memory()
    worlds = [distributed.World(rank=rank, size=2, store=store) for rank in range(2)]  # type: ignore[arg-type]
    assert [world.speaks() for world in worlds] == [True, False]
    with pytest.raises(TrainingError, match="Another of the 2 processes"), worlds[1].agreeing({}):
        pytest.fail("the choices never came")
