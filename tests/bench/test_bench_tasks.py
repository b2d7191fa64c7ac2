"""Bundles of labels, values and several heads under bench and tune: they are timed, and what is not judged is said."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import HEADS, PREPROCESS, edit_manifest, encode, give_heads, graph_spec, make_bundle, make_photo

from edgetl.bench import cases, tune
from edgetl.bench.walk import Way
from edgetl.bench.worker import Worker
from edgetl.cli.app import main
from edgetl.recipe import Bench, build
from edgetl.runtime import preprocess
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.heads import from_json, to_json
from edgetl.runtime.session import open_session

SAYS = {"multilabel": "says 3 labels an image", "regress": "says 3 value(s) an image",
        "classify": "says 1 classes an image (animal)"}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_data_that_judges_one_class_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = give_heads(make_bundle(tmp_path / "tiny"), HEADS[kind])
    (tmp_path / "data.csv").write_text("path,label\na.png,cat\nb.png,dog\n")
    data = f"csv:{tmp_path / 'data.csv'}"
    assert main(["bench", str(bundle), "--data", data, "--backend", "cpu", "--out", str(tmp_path / "report")]) == 1
    told = capsys.readouterr().err
    assert f"{SAYS[kind]}, and --data judges one class an image only" in told and "edgetl inspect" in told
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("kind", HEADS)
def test_the_way_from_a_file_ends_with_the_tasks_own_answer(kind: str, tmp_path: Path) -> None:
    bundle = give_heads(make_bundle(tmp_path / "tiny"), HEADS[kind])
    heads = open_bundle(bundle).manifest.heads
    assert from_json(to_json(heads)) == heads
    session = open_session("cpu", (bundle / "fp32.onnx").read_bytes(), graph_spec(), threads=1)
    try:
        way = Way(session, graph_spec(), preprocess.to_dict(PREPROCESS), ("cat", "dog", "fox"),
                  [base64.b64encode(encode(make_photo(2))).decode()], embeds=False, heads=to_json(heads))
        said = way.label(0)
    finally:
        session.close()
    assert said.startswith({"regress": "cat ", "classify": "animal: "}.get(kind, said[:3]))
    assert (said.count("  ") == 2) == (kind == "regress")  # three values


def test_a_worker_is_given_the_heads_of_a_bundle(tmp_path: Path) -> None:
    bundle = give_heads(make_bundle(tmp_path / "tiny"), HEADS["regress"])
    (case,) = cases.find(build(Bench, {"cases": [str(bundle)], "out": "x", "backend": ["cpu"]}, where="test"))
    assert case.subject.heads == open_bundle(bundle).manifest.heads
    assert "heads" in Worker.take.__annotations__


def test_tune_reads_the_recorded_score(tmp_path: Path) -> None:
    bundle = give_heads(make_bundle(tmp_path / "tiny", second={"precision": "int8"}), HEADS["regress"])
    for variant, score in ((0, 0.9), (1, 0.85)):
        edit_manifest(bundle, "variants", variant, "evaluations",
                      value=[{"split": "val", "score_name": "R2", "score": score, "n": 9}])
    found = tune._recorded(open_bundle(bundle).manifest)
    assert found == {("fp32", ""): 0.0, ("other", ""): pytest.approx(5.0)}
    plain: Any = dataclasses.replace(open_bundle(bundle).manifest, heads=())
    assert tune._recorded(plain) == {}
