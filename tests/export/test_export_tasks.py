"""Runs of labels, values and several heads on their whole way: finetune, export, and the answers of the device."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgetl.runtime
from edgetl import evaluate, judging, weights
from edgetl.cli.app import main
from edgetl.datasets import Item
from edgetl.errors import DataError, GateFailed
from edgetl.events import Event
from edgetl.export import graph, metadata, scaling
from edgetl.export.bundle import export
from edgetl.export.ladder import Limits
from edgetl.export.variants import Built
from edgetl.heads import ONE_CLASS, asked_again
from edgetl.recipe import Export, Finetune, build
from edgetl.runtime import manifest
from edgetl.runtime.heads import CLASSIFY, MULTILABEL, NEAR, REGRESS, Head
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec
from edgetl.train.teacher import finetune

TINY = {"teacher": "timm/test_resnet", "pretrained": False, "image_size": 32, "strategy": "probe", "epochs": 1,
        "batch_size": "9", "workers": 0, "threads": 1, "val_fraction": 0.3, "crop_scale": 1.0}  # fmt: skip
SHADES = ("dark", "mid", "light")
TASKS: dict[str, dict[str, Any]] = {
    "values": {"task": REGRESS}, "labels": {"task": MULTILABEL}, "heads": {"label_columns": ("shade", "blue")},
}  # fmt: skip
EXPORTS: dict[str, dict[str, Any]] = {
    "values": {"precision": ["fp32"], "embed_normalize": True},
    "labels": {"precision": ["fp32"], "label_threshold": 0.7, "with_features": True},
    "heads": {"precision": ["fp32"]},
}  # fmt: skip


def tables(folder: Path, images: int = 40) -> None:
    """Pictures whose red may be anything and whose upper half may be blue, and three tables that tell of it."""
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = {"values": ["path,red_level,shifted_mm"], "labels": ["path,Bright,Blue"], "heads": ["path,shade,blue"]}
    for place in range(images):
        red, blue = float(rng.uniform(0, 255)), bool(rng.random() < 0.5)
        pixels = rng.integers(30, 50, (32, 32, 3), dtype=np.uint8)
        pixels[..., 0] = int(red)
        pixels[:16, :, 2] = 255 if blue else 40
        Image.fromarray(pixels).save(folder / f"{place}.png")
        gap = place % 7 == 0
        lines["values"].append(f"{place}.png,{'' if gap else red},{red / 2 + 1000}")
        lines["labels"].append(f"{place}.png,{int(red > 128)},{'' if gap else int(blue)}")
        shade = SHADES[int(red // 86)] if place % 9 else "mid"  # some are wrong, so that a temperature can be fitted
        lines["heads"].append(f"{place}.png,{shade},{'' if gap else ('no', 'yes')[blue]}")
    for name, rows in lines.items():
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")


def asking(run: Path, out: Path, **values: Any) -> Export:
    plain = {"run": str(run), "out": str(out), "threads": 1, "golden": 3, "precision": ["fp32"]}
    return build(Export, {**plain, **values}, where="test")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    tables(folder)
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, Path]:
    said = {name: {**TINY, **task, "data": f"csv:{place / name}.csv", "out": str(place / f"{name}-run")}
            for name, task in TASKS.items()}
    return {name: finetune(build(Finetune, one, where="test")) for name, one in said.items()}


@pytest.fixture(scope="module")
def bundles(runs: dict[str, Path], place: Path) -> dict[str, Path]:
    """By the older exporter, which takes a tenth of the time; the newer one has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "_dynamo", graph._torchscript)
        return {name: export(asking(run, place / f"{name}-bundle", **EXPORTS[name])) for name, run in runs.items()}


def by_torch(run: Path, file: Path) -> np.ndarray:
    """The outputs of the RUN's own network, [outputs]."""
    network = weights.load(run, any_task=True).network
    image = evaluate.pixels_of(Item(file.name, 0), lambda _: file.read_bytes(), network.preprocess)
    with torch.inference_mode():
        found = network.module(torch.from_numpy(evaluate.normalize(image[None], network.preprocess)))
    outputs: np.ndarray = found[0].numpy()
    return outputs


def manifest_of(bundle: Path) -> manifest.Manifest:
    return manifest.from_json((bundle / manifest.MANIFEST).read_text(), where=str(bundle))


# ------------------------------------------------------------------------------------------------ from file to answer


@pytest.mark.parametrize("name", TASKS)
def test_the_device_answers_as_torch_does(bundles: dict[str, Path], runs: dict[str, Path], place: Path,
                                          name: str) -> None:
    with edgetl.runtime.load(bundles[name], backend="cpu") as model:
        for number in (3, 8, 21):
            file = place / f"{number}.png"
            expected, found = by_torch(runs[name], file), model.predict(file)
            assert model.logits([file])[0] == pytest.approx(expected, rel=1e-4, abs=1e-3)
            if isinstance(found, edgetl.runtime.ValuesPrediction):
                assert list(found.values) == ["red_level", "shifted_mm"]
                assert list(found.values.values()) == pytest.approx(expected.tolist(), rel=1e-4)
            elif isinstance(found, edgetl.runtime.LabelsPrediction):
                scores = 1 / (1 + np.exp(-expected.astype(np.float64)))
                assert dict(found.scores) == pytest.approx(dict(zip(("Bright", "Blue"), scores, strict=True)), abs=1e-4)
                assert set(found.labels) == {label for label, score in found.scores if score >= 0.7}
            else:
                assert isinstance(found, edgetl.runtime.HeadsPrediction)
                assert found.heads["shade"].index == expected[:3].argmax()
                assert found.heads["blue"].label == ("no", "yes")[int(expected[3:].argmax())]
    assert edgetl.runtime.verify(bundles[name], backend="cpu").images == 6  # three photos, three drawn


def test_the_manifest_says_what_the_run_says(bundles: dict[str, Path], runs: dict[str, Path]) -> None:
    found = {name: manifest_of(bundle) for name, bundle in bundles.items()}
    assert all(one.schema == manifest.SCHEMA and one.drift_reference is None for one in found.values())
    assert [one.task for one in found.values()] == [REGRESS, MULTILABEL, CLASSIFY]
    values, labels, heads = (one.heads for one in found.values())
    record = weights.read_record(runs["values"])
    assert values[0].spreads == pytest.approx(record["standardised"]["scale"])
    assert labels[0].thresholds == (0.7, 0.7) and labels[0].labels == ("Bright", "Blue")
    assert [head.outputs for head in heads] == [(0, 3), (3, 5)] and [head.name for head in heads] == ["shade", "blue"]
    assert found["heads"].labels == ("shade: dark", "shade: light", "shade: mid", "blue: no", "blue: yes")
    temperatures = found["heads"].variants[0].temperatures
    assert set(temperatures) <= {"shade", "blue"} and "shade" in temperatures  # of which one answer in nine is wrong
    assert found["values"].variants[0].embeds_preprocess and len(found["labels"].variants[0].outputs) == 2


def test_the_figures_are_those_of_the_training(bundles: dict[str, Path], runs: dict[str, Path]) -> None:
    """The same network on the same images, by the same score: what training wrote into run.json."""
    of = {"values": "r2", "labels": "map", "heads": "mean_accuracy"}
    for name, figure in of.items():
        record = weights.read_record(runs[name])
        for row in manifest_of(bundles[name]).variants[0].evaluations:
            assert row["score"] == pytest.approx(record["metrics"][row["split"]][figure], abs=1e-4)
            assert row["score_name"] == record["score"] and "accuracy" not in row
    details = manifest_of(bundles["values"]).variants[0].evaluations[0]["details"]
    column = weights.read_record(runs["values"])["metrics"]["val"]["columns"][1]
    assert details["shifted_mm"]["mae"] == pytest.approx(column["mae"], rel=1e-3)


@pytest.mark.parametrize("name", TASKS)
def test_a_graph_without_its_bundle_says_its_heads(bundles: dict[str, Path], name: str) -> None:
    import onnx

    props = {one.key: one.value for one in onnx.load(bundles[name] / "fp32.onnx").metadata_props}
    told = [head["name"] for head in json.loads(props["edgetl.heads"])]
    assert told == [head.name for head in manifest_of(bundles[name]).heads]
    assert json.loads(props["edgetl.task"]) == manifest_of(bundles[name]).task and "names" not in props
    assert "edgetl.heads" not in metadata.metadata_of(Preprocess((8, 8)), ("a", "b"))


# ----------------------------------------------------------------------------------------------------- on the command


def said_by(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(one) for one in arguments]) == 0
    return capsys.readouterr().out


def test_predict_prints_lines_json_and_tables(bundles: dict[str, Path], place: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    photo = place / "3.png"
    assert "shifted_mm 1" in said_by(capsys, "predict", bundles["values"], photo)
    assert "shade: " in said_by(capsys, "predict", bundles["heads"], photo)
    told = {name: json.loads(said_by(capsys, "predict", bundle, photo, "--json"))["predictions"][0]
            for name, bundle in bundles.items()}
    assert set(told["values"]["values"]) == {"red_level", "shifted_mm"}
    assert {one["label"] for one in told["labels"]["scores"]} == {"Bright", "Blue"}
    assert set(told["heads"]["heads"]["blue"]) == {"label", "index", "score", "top"}
    rows = {name: next(csv.DictReader(io.StringIO(said_by(capsys, "predict", bundle, photo, "--csv"))))
            for name, bundle in bundles.items()}
    assert float(rows["values"]["red_level"]) == pytest.approx(told["values"]["values"]["red_level"], rel=1e-6)
    assert rows["labels"]["labels"] == "|".join(told["labels"]["labels"]) and float(rows["labels"]["Blue"]) <= 1
    assert rows["heads"]["shade"] == told["heads"]["heads"]["shade"]["label"]
    assert float(rows["heads"]["shade score"]) == pytest.approx(told["heads"]["heads"]["shade"]["score"], abs=1e-6)


@pytest.mark.parametrize(("name", "says"), [("values", "R2"), ("labels", "mAP"), ("heads", "mean accuracy of the")])
def test_inspect_verify_and_the_card_name_the_score(bundles: dict[str, Path], name: str, says: str,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    told = said_by(capsys, "inspect", bundles[name])
    assert says in told and f"head '{manifest_of(bundles[name]).heads[0].name}'" in told and "classes" not in told
    assert "agree" in said_by(capsys, "verify", bundles[name], "--backend", "cpu")
    page = (bundles[name] / "README.md").read_text()
    assert f"| {says}" in page and "classifier (" not in page and "accuracy |" not in page.replace(f"| {says}", "")


def test_what_makes_no_sense_is_one_sentence(runs: dict[str, Path], place: Path, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    for name, more, says in (
        ("values", ("--reject-accuracy", "90"), "--reject-accuracy is about the score of one class an image"),
        ("heads", ("--label-threshold", "0.7"), "--label-threshold is about labels an image"),
        ("heads", ("--data", f"csv:{place / 'labels'}.csv"), "has no column 'shade'"),
        ("values", ("--data", str(place)), "--task regress needs a table"),
    ):
        assert main(["export", str(runs[name]), "--out", str(out), "--precision", "fp32", *more]) == 1
        assert says in capsys.readouterr().err and not out.exists()
    assert main(["export", str(runs["labels"]), "--out", str(out), "--label-threshold", "1.5"]) == 2


def test_other_columns_of_the_same_names_are_refused(runs: dict[str, Path], place: Path, tmp_path: Path) -> None:
    text = (place / "heads.csv").read_text().replace(",mid,", ",light,")
    (place / "fewer.csv").write_text(text)
    with pytest.raises(DataError, match=r"has the classes .*; .* knows"):
        export(asking(runs["heads"], tmp_path / "bundle", data=f"csv:{place / 'fewer'}.csv"))


# ---------------------------------------------------------------------------------------------------- other precisions


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_int8_and_half_are_judged_by_the_tasks_own_score(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    heard: list[Event] = []
    options = asking(runs[name], tmp_path / "bundle", precision=["fp32", "fp16", "int8"], max_drop=5.0,
                     min_agreement=80.0, target=["x86-avx2", "tensorrt"])
    try:
        bundle = export(options, listener=heard.append)
    except GateFailed:
        bundle = tmp_path / "bundle"
    found = manifest_of(bundle)
    assert len(found.variants) > 1
    for variant in found.variants:
        assert {row["split"] for row in variant.evaluations} == {"val", "test"}
        if variant.precision == "int8":
            rung = variant.calibration["rungs"][-1]  # type: ignore[index]
            assert rung["passed"] and rung["score_name"] == weights.read_record(runs[name])["score"]
    assert any("points of " in str(one.values.get("text")) for one in heard)
    assert edgetl.runtime.verify(bundle, backend="cpu").images == 6


# -------------------------------------------------------------------------------------------------------------- judged


VALUES = (Head("v", REGRESS, ("mm", "g"), (0, 2), (), (1.0, 10.0)),)
LABELS = (Head("l", MULTILABEL, ("a", "b"), (0, 2), (0.5, 0.8)),)
HEADS = (Head("a", CLASSIFY, ("x", "y"), (0, 2)), Head("b", CLASSIFY, ("p", "q"), (2, 4)))
KEYS = tuple(map(str, range(40)))


def answers(width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (40, width))


def test_points_are_hundredths_of_the_score_and_agreement_is_of_answers() -> None:
    truth, noise = answers(2) * (1, 10), answers(2, 1) * (0.02, 1.5)
    fp32, int8 = (judging.summarize(VALUES, one, truth, KEYS) for one in (truth, truth + noise))
    found = judging.compare(int8, fp32)
    assert fp32.score == 1 and int8.score is not None and found.score_name == "R2"
    assert found.drop_points == pytest.approx(100 * (1 - int8.score)) and found.drop_low < found.drop_high
    near = np.abs(noise) <= NEAR * np.array([1.0, 10.0])
    assert found.agreement == pytest.approx(near.mean()) and 0.5 < found.agreement < 1
    assert judging.with_reference(int8, fp32).agreement == found.agreement
    assert Limits(100.0, 50.0).hold(found) and not Limits(0.0, 50.0).hold(found) and not Limits(100.0, 99.0).hold(found)
    assert "points of R2" in found.sentence() and found.image_points == 2.5


def test_a_label_is_said_from_its_threshold_on() -> None:
    logits = np.array([[0.1, 1.0], [-0.1, 2.0], [3.0, -1.0]])  # a probability of 0.8 is a logit of 1.386
    truth = np.array([[1.0, 0], [0, 1], [1, math.nan]])
    found = judging.summarize(LABELS, logits, truth, ("a", "b", "c"))
    assert found.details() == {"a": 1.0, "b": 1.0} and found.score_name == "mAP"
    low = dataclasses.replace(LABELS[0], thresholds=(0.5, 0.5))
    assert judging.summarize((low,), logits, truth, ("a", "b", "c")).details()["b"] == pytest.approx(2 / 3)


def test_heads_are_judged_by_the_mean_of_their_accuracies() -> None:
    logits = np.array([[1.0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]])
    truth = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1], [math.nan, math.nan, 1, 0]])
    found = judging.summarize(HEADS, logits, truth, ("a", "b", "c"))
    assert found.details() == {"a": 0.5, "b": pytest.approx(2 / 3)}
    assert found.score == pytest.approx((0.5 + 2 / 3) / 2)


def test_images_that_cannot_tell_are_no_judges() -> None:
    same = np.ones((3, 2))
    found = judging.summarize(VALUES, same, same, ("a", "b", "c"))
    assert found.score is None and judging.score_words(found) == "R2 not defined"
    with pytest.raises(DataError, match="The 3 images cannot judge a graph: their R2 is not defined"):
        judging.compare(found, found)
    with pytest.raises(ValueError, match="cannot be paired"):
        judging.compare(found, judging.summarize(VALUES, same, same, ("a", "b", "d")))
    with pytest.raises(TypeError, match="expected one of one class"):
        judging.of_classes(found)


def test_more_outputs_than_a_manifest_holds_have_no_details() -> None:
    many = tuple(map(str, range(judging.DETAILED + 1)))
    head = Head("l", MULTILABEL, many, (0, len(many)), (0.5,) * len(many))
    rows = answers(len(many))
    assert judging.summarize((head,), rows, (rows > 0).astype(float), KEYS).details() == {}


def test_each_head_has_the_temperature_of_its_known_images(bundles: dict[str, Path]) -> None:
    from edgetl import calibration

    logits, chance = answers(4, 3), np.random.default_rng(4)
    truth = np.concatenate([np.eye(2)[chance.integers(0, 2, 40)], np.eye(2)[logits[:, 2:].argmax(1)]], axis=1)
    right = np.arange(40) % 3 > 0
    truth[right, :2] = np.eye(2)[logits[right, :2].argmax(1)]
    truth[5, :2] = math.nan
    heard: list[str] = []
    variant = manifest_of(bundles["heads"]).variants[0]
    built = Built(variant, b"", GraphSpec((), ()), judging.summarize(HEADS, logits, truth, KEYS))
    stock: Any = type("Listening", (), {"note": staticmethod(heard.append)})
    found = scaling.fitted(stock, built).variant.temperatures
    known = np.arange(40) != 5
    expected = calibration.fit_temperature(logits[known, :2], truth[known, :2].argmax(1)).value
    assert found == {"a": pytest.approx(expected)}
    assert "'b' are left as they are, for on the 40 validation images every answer is right" in heard[1]


def test_what_a_run_asked_of_its_table() -> None:
    several = [{"name": "a", "kind": CLASSIFY, "labels": ["x", "y"]}, {"name": "b", "kind": CLASSIFY, "labels": "pq"}]
    values = [{"name": "values", "kind": REGRESS, "labels": ["mm", "g"]}]
    labels = [{"name": "labels", "kind": MULTILABEL, "labels": ["u", "v"]}]
    assert asked_again({}) == ONE_CLASS
    assert asked_again({"heads": several}).columns == ("a", "b")
    assert asked_again({"heads": values}).columns == ("mm", "g")
    assert asked_again({"heads": labels, "options": {}}).columns == ()
    assert asked_again({"heads": labels, "options": {"label_columns": ["u", "v"]}}).columns == ("u", "v")

