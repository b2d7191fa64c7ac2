"""What the model card of a bundle says of the distillation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import make_bundle

from edgetl.export.card import card
from edgetl.runtime import manifest as manifests

TEACHER = {"model": "timm/big"}


@pytest.mark.parametrize(
    ("run", "says", "silent"),
    [
        ({"metrics": {"gain": {"sentence": "gain +2.0 points: significant."}}, "teacher": TEACHER},
         ["- teacher: timm/big", "- beside a control without a teacher: gain +2.0 points: significant."], ""),
        ({"metrics": {"gain": None}, "teacher": TEACHER, "teachers": [TEACHER, {"model": "onnx:x"}]},
         ["- teacher: timm/big", "- teacher: onnx:x"], "control"),
        ({"stage": "finetune"}, ["- trained by: finetune"], "teacher"),
    ],
)  # fmt: skip
def test_teachers_and_what_they_are_worth(tmp_path: Path, run: dict[str, Any], says: list[str], silent: str) -> None:
    text = (make_bundle(tmp_path / "bundle") / "manifest.json").read_text()
    made = manifests.from_json(text, where="manifest.json")
    provenance = {"export": {"exporter": "dynamo", "parity": {"difference": 0.0}, "environment": {"versions": {}}}}
    told = card(dataclasses.replace(made, provenance={**provenance, "run": run}))
    assert all(line in told.splitlines() for line in says)
    assert not silent or silent not in told
