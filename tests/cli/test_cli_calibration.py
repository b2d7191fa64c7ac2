"""`edgetl inspect RUN` says how sure the model is, before and after its temperature, as far as the RUN tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetl import evaluate, rundir, scorecard
from edgetl.cli.app import main

RECORD = {"schema": 1, "kind": "run", "model": "timm/x", "labels": ["a", "b"], "parameters": 5,
          "preprocess": {"size_hw": [8, 8]}}


def answered(wrong: int) -> evaluate.Evaluation:
    """Ten answers of the score 0.9 each, of which some are wrong."""
    logits = np.tile([[np.log(9.0), 0.0]], (10, 1))
    return evaluate.summarize(logits, (np.arange(10) < wrong).astype(int), tuple(map(str, range(10))))


@pytest.mark.parametrize("metrics, told", [
    # 7 of 10 right at a score of 0.9: at T the score is 0.7, log 9 / T = log(7/3).
    ({"val": answered(3), "test": answered(3)}, "ECE 20.0 points on test, 0.0 at temperature 2.59"),
    ({"val": answered(3)}, "ECE 20.0 points on val, 0.0 at temperature 2.59"),
    ({"val": answered(0), "test": answered(1)}, "ECE 0.0 points on test\n"),  # nothing to fit
])
def test_calibration_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: dict[str, object],
                                 told: str) -> None:
    rundir.write_json(tmp_path / rundir.RUN, {**RECORD, "metrics": scorecard.of_splits(metrics)})  # type: ignore[arg-type]
    assert main(["inspect", str(tmp_path)]) == 0
    assert told in capsys.readouterr().out


def test_an_earlier_run_has_no_such_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rundir.write_json(tmp_path / rundir.RUN, {**RECORD, "metrics": {"test": answered(3).to_json()}})
    assert main(["inspect", str(tmp_path)]) == 0
    assert "calibration" not in capsys.readouterr().out
