"""Bundles of labels, values and several heads under bench, tune, gate and compare: judged by their own score."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_bundle import HEADS, PREPROCESS, edit_manifest, encode, give_heads, graph_spec, make_bundle, make_photo

import edgetl
from edgetl import evaluate, heads, judging
from edgetl.bench import cases, compare, exam, gate_words, tune
from edgetl.bench.report import read as read_report
from edgetl.bench.walk import Way
from edgetl.bench.worker import Worker
from edgetl.cli.app import main
from edgetl.datasets import open_data
from edgetl.events import ignore
from edgetl.heads import ONE_CLASS, Asked
from edgetl.recipe import Bench, build
from edgetl.runtime import preprocess
from edgetl.runtime.bundle import open_bundle
from edgetl.runtime.heads import from_json, to_json
from edgetl.runtime.session import open_session

SCORES = {"multilabel": "mAP", "regress": "R2", "classify": "mean accuracy of the heads"}
LINES = {
    "multilabel": ("path,cat,dog,fox,split", ("1,0,1", "0,1,", "0,0,1", "1,1,0")),
    "regress": ("path,cat,dog,fox,split", ("1,20,0.1", "2,,0.2", "3,40,0.3", "4.5,50,0.7")),
    "classify": ("path,animal,split", ("cat", "dog", "fox", "cat")),
}


def table(folder: Path, kind: str, images: int = 12) -> str:
    """--data with a test and a val split of their own, and a few images to train on."""
    head, cells = LINES[kind]
    lines = [head]
    for place in range(images):
        (folder / f"{place}.png").write_bytes(encode(make_photo(place)))
        lines.append(f"{place}.png,{cells[place // 3 % len(cells)]},{('test', 'val', 'train')[place % 3]}")
    (folder / f"{kind}.csv").write_text("\n".join(lines) + "\n")
    return f"csv:{folder / f'{kind}.csv'}"


def judged_bundle(folder: Path, kind: str) -> Path:
    return give_heads(make_bundle(folder, second={"precision": "int8"}), HEADS[kind])


@pytest.mark.parametrize("kind", HEADS)
def test_bench_judges_by_the_tasks_own_score(kind: str, tmp_path: Path) -> None:
    bundle, data = judged_bundle(tmp_path / "tiny", kind), table(tmp_path, kind)
    report = edgetl.bench(
        cases=[bundle],
        data=data,
        backend=["cpu"],
        out=tmp_path / "report",
        rounds=1,
        block=50,
        starts=1,
        warmup_s=0,
        threads=["1"],
    )
    first, second = report.rows
    assert first.accuracy is None and first.score is not None and second.score is not None
    assert first.score.name == SCORES[kind] and first.score.n == report.data.n == 4
    assert first.score.agreement is None and second.score.agreement == 1.0  # it is the same graph
    assert second.score.difference == 0.0 and set(first.score.parts) <= {"cat", "dog", "fox", "animal"}
    # What is told is what the very graph answers, scored by the rule of training.
    opened = open_data(data, asked=judging.of_table(open_bundle(bundle).manifest.heads))
    items = [item for item in opened.items if item.split == "test"]
    session = open_session("cpu", (bundle / "fp32.onnx").read_bytes(), graph_spec(), threads=1)
    try:
        expected = judging.evaluate(
            evaluate.session_predict(session, image="image"),
            items,
            opened.read,
            PREPROCESS,
            classes=3,
            asked=open_bundle(bundle).manifest.heads,
        )
    finally:
        session.close()
    assert isinstance(expected, judging.TaskEvaluation)
    assert first.score.value == pytest.approx(expected.score) and first.score.low == pytest.approx(expected.score_low)
    again = read_report(tmp_path / "report")
    assert again.rows == report.rows
    summary = json.loads((tmp_path / "report/report.json").read_text())["summary"][0]
    assert summary["accuracy"] is None and summary["score"] == first.score.value
    page = (tmp_path / "report/report.html").read_text()
    assert f"{SCORES[kind]} of the very sessions" in (tmp_path / "report/report.md").read_text()
    assert f"Latency against {SCORES[kind]}" in page and "accuracy %" not in page
    line = next(csv.DictReader((tmp_path / "report/report.csv").read_text().splitlines()))
    assert line["score_name"] == SCORES[kind] and float(line["score"]) == first.score.value


def test_the_reports_of_two_scores_are_not_subtracted(tmp_path: Path) -> None:
    row: Any = SimpleNamespace(accuracy=None, score=SimpleNamespace(name="mAP"))
    points, why = compare._accuracy(row, row)
    assert points is None and why == "mAP is no mean over images; edgetl gate --data pairs it"


def test_tune_measures_points_of_the_score_here(tmp_path: Path) -> None:
    bundle, data = judged_bundle(tmp_path / "tiny", "regress"), table(tmp_path, "regress")
    manifest = open_bundle(bundle).manifest
    paper = exam.prepare(
        build(Bench, {"cases": [str(bundle)], "data": data, "out": "x"}, where="test"),
        cases.find(build(Bench, {"cases": [str(bundle)], "out": "x", "backend": ["cpu"]}, where="t")),
        ignore,
        split="val",
    )
    assert paper is not None and paper.heads == manifest.heads
    truth = heads.truth(judging.plain(manifest.heads), [item.answers for item in paper.items])
    keys = tuple(item.key for item in paper.items)
    good = judging.summarize(manifest.heads, np.nan_to_num(truth), truth, keys)
    bad = judging.summarize(manifest.heads, np.nan_to_num(truth) + 0.5, truth, keys)
    trials: Any = [
        SimpleNamespace(answers=said, case=SimpleNamespace(subject=SimpleNamespace(variant=name, backend="cpu")))
        for name, said in (("fp32", good), ("other", bad))
    ]
    found = tune._measured(trials, manifest)
    assert found["fp32", "cpu"] == 0.0 and found["other", "cpu"] == pytest.approx(100 * (good.score - bad.score))
    told = gate_words.accuracy(good, 90)
    assert told.endswith("images, at least 0.9 wanted") and "R2 1.000" in told
    unknown = judging.summarize(manifest.heads, truth[:1], truth[:1], keys[:1])
    assert exam.score(unknown, unknown).agreement is not None and exam.score(unknown, unknown).difference is None
    assert "points of R2" in gate_words.drop(judging.compare(bad, good), 1.0)


def test_cases_that_say_different_things_share_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = judged_bundle(tmp_path / "values", "regress"), judged_bundle(tmp_path / "labels", "multilabel")
    out = ["--backend", "cpu", "--out", str(tmp_path / "report")]
    assert main(["bench", str(first), str(second), "--data", table(tmp_path, "regress"), *out]) == 1
    assert "says 3 labels an image, and" in capsys.readouterr().err and not (tmp_path / "report").exists()


def test_a_run_is_a_case_with_its_heads_and_the_columns_it_was_trained_on(tmp_path: Path) -> None:
    record = {
        "heads": [{"name": "values", "kind": "regress", "labels": ["a", "b"]}],
        "label_columns": ["b", "a"],
        "standardised": {"mean": [0.0, 0.0], "scale": [2.0, 0.5]},
    }
    (head,) = judging.of_run(record)
    assert head.spreads == (2.0, 0.5) and head.outputs == (0, 2) and judging.of_run({}) == ()
    assert judging.of_table((head,), ("b", "a")) == Asked("regress", ("b", "a"))
    assert judging.of_table((head,)) == Asked("regress", ("a", "b")) and judging.of_table(()) == ONE_CLASS
    assert heads.asked_of(dataclasses.asdict(Asked("regress", ("a",)))) == Asked("regress", ("a",))
    assert heads.asked_of(None) == ONE_CLASS


@pytest.mark.parametrize("kind", HEADS)
def test_the_way_from_a_file_ends_with_the_tasks_own_answer(kind: str, tmp_path: Path) -> None:
    bundle = give_heads(make_bundle(tmp_path / "tiny"), HEADS[kind])
    said_of = open_bundle(bundle).manifest.heads
    assert from_json(to_json(said_of)) == said_of
    session = open_session("cpu", (bundle / "fp32.onnx").read_bytes(), graph_spec(), threads=1)
    try:
        way = Way(
            session,
            graph_spec(),
            preprocess.to_dict(PREPROCESS),
            ("cat", "dog", "fox"),
            [base64.b64encode(encode(make_photo(2))).decode()],
            embeds=False,
            heads=to_json(said_of),
        )
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
        edit_manifest(
            bundle,
            "variants",
            variant,
            "evaluations",
            value=[{"split": "val", "score_name": "R2", "score": score, "n": 9}],
        )
    found = tune._recorded(open_bundle(bundle).manifest)
    assert found == {("fp32", ""): 0.0, ("other", ""): pytest.approx(5.0)}
    plain: Any = dataclasses.replace(open_bundle(bundle).manifest, heads=())
    assert tune._recorded(plain) == {}
