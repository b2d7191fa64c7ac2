"""`edgetl inspect` and the card tell what a bundle gives beside labels: features, a score to reject below, drift."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import edit_manifest, give_features, make_bundle

from edgetl.cli.app import main
from edgetl.export import card
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.drift import reference_of

CHECK = {"variant": "fp32", "split": "val", "n": 200, "accepted": 150, "coverage": 0.75, "accuracy": 0.98,
         "accuracy_low": 0.951, "holds": True}
RECORD = {"target_accuracy": 0.95, "confidence": 0.95, "variant": "fp32", "split": "val", "n": 200,
          "checks": [CHECK, {**CHECK, "split": "test", "accepted": 0, "coverage": 0.0, "accuracy": None,
                             "accuracy_low": None, "holds": None}]}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["inspect", *words]) == 0
    return capsys.readouterr().out


def test_a_plain_bundle_has_no_empty_lines_for_what_it_lacks(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, str(bundle))
    assert not any(word in told for word in ("features", "reject", "drift", "temperature"))


def test_everything_is_told(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give_features(bundle)
    reference = reference_of(np.tile([[0.1, 0.9, 0.0]], (40, 1)))
    edit_manifest(bundle, "reject_below", value=0.8125)
    edit_manifest(bundle, "variants", 0, "temperature", value=1.375)
    edit_manifest(bundle, "rejection", value=RECORD)
    edit_manifest(bundle, "drift_reference", value={"variant": "fp32", "split": "val", **reference})
    edit_manifest(bundle, "provenance", value={"export": {"environment": {"versions": {}}, "exporter": "dynamo",
                                                          "parity": {"difference": 1e-6}}})
    told = " ".join(shown(capsys, str(bundle)).split())
    assert "features 4 an image temperature fp32 1.38" in told
    assert ("reject below 0.8125: at least 95 % of the rest are right (fp32, 200 images of val, 95 % confidence)"
            in told)
    assert "drift reference 40 images of val, fp32: mean top score 0.900, entropy 0.325 nats" in told
    values = json.loads(shown(capsys, str(bundle), "--json"))
    assert values["reject_below"] == 0.8125 and values["drift_reference"]["count"] == 40
    text = card.card(open_bundle(bundle).manifest)
    for part in ("score is below 0.8125: at least 95 %", "| fp32 | val | 200 | 75.0 % | 98.00 % | 95.10 % |",
                 "| fp32 | test | 200 | 0.0 % | - | - |", "On 40 images of val, fp32 answers with a top score of 0.900",
                 "4 features an image"):
        assert part in text, part


def test_a_score_without_its_record_is_told_alone(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_manifest(bundle, "reject_below", value=0.5)
    assert "reject below  0.5\n" in shown(capsys, str(bundle))
