"""`edgetl compare-strategies` as a person types it: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl import pipeline
from edgetl.cli import app
from edgetl.errors import TrainingError
from edgetl.recipe_finetune import Finetune
from edgetl.train import teacher

MODEL = ("--teacher", "timm/test_resnet", "--no-pretrained", "--image-size", "32")
QUICK = ("--epochs", "1", "--batch-size", "8", "--threads", "1", "--workers", "0", "--seeds", "1")
Said = tuple[int, str, str]


@pytest.fixture
def call(photo_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs the command on photos into `out`; gives the exit code, stdout and stderr."""
    photos = photo_folder(classes=2, images=6)

    def run(*words: str) -> Said:
        code = app.main(["compare-strategies", "--data", str(photos), *MODEL, *QUICK, "--out", str(tmp_path / "out"),
                         *words])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    return run


def failing(monkeypatch: pytest.MonkeyPatch, name: str, problem: BaseException) -> None:
    real = teacher.finetune

    def finetune(one: Finetune, **rest: Any) -> Path:
        if one.strategy == name:
            raise problem
        return real(one, **rest)

    monkeypatch.setattr(teacher, "finetune", finetune)


def test_a_table_a_verdict_and_what_to_do_next(call: Callable[..., Said], tmp_path: Path) -> None:
    code, out, err = call("--strategies", "probe", "--strategies", "probe;image-size=40")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "Accuracy on validation images; 1 seed, 1 epoch each"
    assert lines[1].split()[:4] == ["#", "strategy", "accuracy", "%"]
    assert {lines[2].split()[1], lines[3].split()[1]} == {"probe", "probe;image-size=40"}
    assert any(line.startswith("- Recommended: ") for line in lines)
    assert any(line.startswith("- The test split was touched once, after the choice and by ") for line in lines)
    assert "- Not the same budget: probe;image-size=40 (--image-size 40)." in lines
    assert err.splitlines()[-1].endswith(f"--teacher {tmp_path / 'out' / 'winner'} --out STUDENT")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "strategies.html", "strategies.md", "strategies.csv", "strategies.json", "winner", "runs"}
    code, out, err = call("--strategies", "probe", "--strategies", "probe;image-size=40", "--resume", "--json")
    assert code == 0
    assert json.loads(out)["out"] == str(tmp_path / "out")
    assert "is finished already" in err
    code, _, err = call("--strategies", "probe,full")
    assert (code, "exists already" in err) == (1, True)
    code, _, err = call("--strategies", "probe,full", "--resume")
    assert (code, "is finished, and had other options: strategies was" in err) == (1, True)


def test_a_strategy_that_fails_is_exit_1_after_the_table(
    call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "full", TrainingError("The loss is nan."))
    code, out, err = call("--strategies", "probe,full", "--strategies", "probe;image-size=40")
    assert code == 1
    assert "Strategies that could not be trained, and why\n" in out
    assert "error: 1 of 3 strategies could not be trained: full: The loss is nan.\n" in err


def test_ctrl_c_says_how_to_go_on_and_that_way_goes_on(
    call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "full", KeyboardInterrupt())
        code, out, err = call("--strategies", "probe,full")
    assert (code, out) == (130, "")
    again = shlex.split(err.splitlines()[-1].removeprefix("hint: Continue with: "))
    assert again[:2] == ["edgetl", "compare-strategies"]
    assert again[-1] == "--resume"
    code, _, err = call("--strategies", "probe,full", "--resume")
    assert code == 0
    assert "probe, seed 0" not in err  # it was trained before
    assert "full, seed 0 (2 of 2)" in err


@pytest.mark.parametrize(("words", "code", "told"), [
    (["--strategies", "ful,probe"], 1, "there is no strategy 'ful'; did you mean 'full'?"),
    (["--strategies", "probe;lr=fast", "--strategies", "full"], 1, "'lr': found 'fast', expected a number"),
    (["--strategies", "full"], 1, "found full, expected two strategies or more to compare"),
    (["--strategies", "probe,full", "--folds", "3"], 1, "found --seeds 1 and --folds 3, expected one of them"),
    (["--folds", "1"], 2, "--folds: found 1, expected at least 2"),
    (["--seeds", "0"], 2, "--seeds: found 0, expected at least 1"),
    (["--strategy", "full"], 2, "No such option: --strategy"),
    (["--strategies", "probe,full", "--teacher", "timm/test_resne"], 1, "Did you mean 'test_resnet'?"),
    (["--strategies", "probe,full", "--resume", "--overwrite"], 1, "contradict each other"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_the_work(
    words: list[str], code: int, told: str, call: Callable[..., Said], tmp_path: Path
) -> None:
    found, out, err = call(*words)
    assert (found, out) == (code, "")
    assert told in err
    assert not (tmp_path / "out").exists()


def test_one_image_of_a_class_cannot_be_dealt_into_folds(
    photo_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = photo_folder(classes=2, images=4, splits=("train", "val", "test"))
    for path in sorted((photos / "train" / "beryl").iterdir()) + sorted((photos / "val" / "beryl").iterdir())[1:]:
        path.unlink()
    (photos / "train" / "beryl" / "000.png").write_bytes((photos / "val" / "beryl" / "000.png").read_bytes())
    code = app.main(["compare-strategies", "--data", str(photos), *MODEL, *QUICK[:-2], "--folds", "2", "--strategies",
                     "probe,full", "--out", str(tmp_path / "out")])
    assert code == 1
    assert "has one image only; in the fold that holds it" in capsys.readouterr().err


def test_the_python_function_returns_what_the_command_prints(
    photo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pipeline.compare_strategies(
        data=photo_folder(classes=2, images=6), teacher="timm/test_resnet", pretrained=False, image_size=32, epochs=1,
        threads=1, workers=0, batch_size="8", seeds=1, strategies=["probe", "probe;image-size=40"], out=tmp_path / "o")
    made.insist()
    assert made.result == json.loads((made.out / "strategies.json").read_text())
