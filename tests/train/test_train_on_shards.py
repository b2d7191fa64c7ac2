"""A training on shards is, bit for bit, the one on a folder with the same images in the same order, resumed too."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from stop_at import StopAt

from edgetl import rundir, weights
from edgetl.cli.app import main
from edgetl.datasets import SPLITS
from edgetl.recipe import Finetune, build
from edgetl.train.teacher import finetune

PhotoFolder = Callable[..., Path]
TINY = {"teacher": "timm/test_resnet", "pretrained": False, "image_size": 32, "epochs": 2, "batch_size": "8",
        "workers": 0, "threads": 1, "checkpoint_minutes": 0.0}


def as_shards(photos: Path, folder: Path) -> str:
    """What --data says of tar files that hold the splits of a folder of photos."""
    folder.mkdir()
    for split in SPLITS:
        with tarfile.open(folder / f"{split}.tar", "w") as opened:
            for path in sorted((photos / split).rglob("*.*")):
                name = path.relative_to(photos / split)
                opened.add(path, str(name), recursive=False)
                member = tarfile.TarInfo(str(name.with_suffix(".cls")))
                member.size = len(path.parent.name)
                opened.addfile(member, io.BytesIO(path.parent.name.encode()))
    return ";".join(f"{split}={folder}/{split}.tar" for split in SPLITS)


def test_a_training_on_shards_is_that_on_a_folder(photo_folder: PhotoFolder, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    photos = photo_folder(classes=2, images=6, splits=SPLITS)
    shards = "shards:" + as_shards(photos, tmp_path / "shards")
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    whole, resumed = (build(Finetune, {**TINY, "data": data, "out": str(tmp_path / name)}, where="test")
                      for data, name in ((str(photos), "whole"), (shards, "resumed")))
    with pytest.raises(KeyboardInterrupt):
        finetune(resumed, listener=StopAt(3, KeyboardInterrupt()))
    finetune(build(Finetune, {**TINY, "data": shards, "out": str(tmp_path / "resumed"), "resume": True}, where="test"))
    finetune(whole)
    assert (tmp_path / "whole" / rundir.MODEL).read_bytes() == (tmp_path / "resumed" / rundir.MODEL).read_bytes()
    first, second = (weights.read_record(tmp_path / name) for name in ("whole", "resumed"))
    assert first["metrics"] == second["metrics"] and second["data"]["source"] == shards
    keys = json.loads((tmp_path / "resumed" / rundir.SPLIT).read_text())["train"]
    assert keys[0] == "train.tar/amber/000.png" and len(keys) == 12


def test_a_shard_that_cannot_be_used_is_one_sentence_and_exit_1(tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"no tar")
    assert main(["finetune", "--data", f"shards:{shard}", "--teacher", "timm/test_resnet", "--no-pretrained", "--out",
                 str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert f"{shard}" in said.replace("\n", "") and "Traceback" not in said
    assert not (tmp_path / "run").exists()
