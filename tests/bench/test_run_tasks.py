"""The page of a RUN of labels, values or several heads: its own score, its parts and its mistakes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import page_reader
import pytest
from conftest import write_photos
from test_run_page import curve

import edgetl
from edgetl import head_metrics, heads, predictions, rundir, task_scores
from edgetl.bench import run_record, run_tables, task_mistakes, task_plots
from edgetl.errors import EdgetlError
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Head
from edgetl.task_scores import Said

ASKED = {
    REGRESS: (Head("values", REGRESS, ("height_mm", "mass_g")),),
    MULTILABEL: (Head("labels", MULTILABEL, ("sea", "<sky>", "hill")),),
    CLASSIFY: (Head("shape", CLASSIFY, ("round", "long")), Head("colour", CLASSIFY, ("red", "blue", "grey"))),
}
COLUMNS = {REGRESS: ["height_mm", "mass_g"], MULTILABEL: ["sky"], CLASSIFY: ["shape", "colour"]}
N = 24


def answered(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What is said and what is true of some images, with a gap in the last column of the first."""
    rng, asked = np.random.default_rng(seed), ASKED[kind]
    if kind == REGRESS:
        truth = rng.normal(size=(N, 2)) * (10, 100) + (60, 300)
        said = truth + rng.normal(size=(N, 2)) * (2, 20)
    elif kind == MULTILABEL:
        truth = (rng.random((N, 3)) < 0.5).astype(float)
        said = 3 * (truth - 0.5) + rng.normal(size=(N, 3))
    else:
        truth = np.concatenate([np.eye(len(head.labels))[rng.integers(0, len(head.labels), N)] for head in asked], 1)
        said = 3 * truth + rng.normal(size=truth.shape)
    truth[0, list(heads.places(asked))[-1][1].start if kind == CLASSIFY else -1 :] = math.nan
    return said, truth


def write_run(folder: Path, kind: str, photos: Path, *, taught: bool = False) -> Path:
    """A RUN folder as training leaves it, written by hand."""
    asked = ASKED[kind]
    found = {split: answered(kind, seed) for seed, split in enumerate(("val", "test"))}
    card = head_metrics.card(
        asked, {name: one[0] for name, one in found.items()}, {name: one[1] for name, one in found.items()}
    )
    keys = np.array([f"amber/00{place % 4}.{'jpg' if place % 2 else 'png'}" for place in range(N)])
    more = (
        {
            "teacher": {"model": "timm/big", "sha256": "ab" * 32, "parameters": 10, "metrics": {"test": card["test"]}},
            "student": "slim:0.5",
        }
        if taught
        else {}
    )
    differences = [0.01, 0.03]
    gain = {
        "seeds": [3, 4],
        "student": [0.8, 0.8],
        "control": [0.79, 0.77],
        "differences": differences,
        "mean": 0.02,
        "low": -0.1,
        "high": 0.14,
        "images": N,
        "score": heads.SCORES[kind],
        "sentence": "gain +0.020 of it.",
    }
    record = {
        "schema": 1,
        "kind": "run",
        "model": "timm/small",
        "parameters": 5,
        "macs": 7,
        "best_seed": 3,
        "labels": list(heads.outputs(asked)),
        "heads": heads.to_json(asked),
        "task": kind,
        "score": heads.SCORES[kind],
        "missing": {"train": {"hill": 2}, "test": {"hill": 0, "sky": 0}},
        "readouts": {"linear": {"accuracy": 0.625, "loss": 1.0}},
        "steps": [
            {
                "step": 1,
                "kept": 0.5,
                "parameters": 5,
                "macs_kept": 0.5,
                "val_accuracy_before": -0.25,
                "val_accuracy_after": 0.5,
            }
        ]
        if taught
        else [],
        "metrics": {**card, **({"gain": gain, "control": {"test": card["test"]}} if taught else {})},
        "data": {"source": f"csv:{photos / 'values.csv'}"}, "label_columns": COLUMNS[kind],
        "choices": {},
        "environment": {},
        "options": {},
        **more,
    }
    folder.mkdir(parents=True)
    rundir.write_json(folder / rundir.RUN, record)
    (folder / rundir.METRICS).write_text(curve("labels"))
    arrays = {
        f"{split}.{part}": value
        for split, (said, truth) in found.items()
        for part, value in zip(task_scores.PARTS, (keys, said, truth), strict=True)
    }
    target = io.BytesIO()
    np.savez_compressed(target, **arrays)
    (folder / task_scores.ANSWERS).write_bytes(target.getvalue())
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write_photos(root, classes=1, images=4)
    lines = "path,height_mm,mass_g,shape,colour\n" + "".join(
        f"{path.relative_to(root)},1,2,{('round', 'long')[place % 2]},{('red', 'blue', 'grey')[place % 3]}\n"
        for place, path in enumerate(sorted(root.rglob("*.*"))))
    (root / "values.csv").write_text(lines)
    return root


@pytest.mark.parametrize("kind", ASKED)
def test_the_page_tells_the_tasks_own_figures(kind: str, photos: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kind, photos)
    record = json.loads((run / rundir.RUN).read_text())
    made = edgetl.report(reports=[run], out=tmp_path / "page.html")
    text, markdown = made.path.read_text(), made.beside.read_text()
    read = page_reader.Reader(text)
    page_reader.assert_can_be_read_aloud(read)
    sections = [one["text"] for one in read.all("h2")]
    score = heads.SCORES[kind]
    assert {REGRESS: "Values", MULTILABEL: "Labels", CLASSIFY: "Heads"}[kind] in sections
    assert f"{score[:1].upper()}{score[1:]} over the epochs" in sections and "Worst mistakes" in sections
    assert ("What it confuses" in sections) == ("Classes" in sections) == (kind == CLASSIFY)
    test = record["metrics"]["test"]
    assert f"On the test split timm/small has {test['sentence']}." in text
    value, low, high = (test[head_metrics.CHOSEN[kind] + end] for end in ("", "_low", "_high"))
    val = record["metrics"]["val"][head_metrics.CHOSEN[kind]]
    assert f"| fine-tuned | {value:.3f} | [{low:.3f}, {high:.3f}] | {val:.3f} | 5 | – | 7 | timm/small |" in markdown
    told = {one["id"]: one["text"] for one in read.all("desc")}
    assert told["accuracy-desc"] == f"best validation {score} 0.800 in epoch 4"
    assert "cross-entropy" not in told["losses-desc"]
    assert "| a linear layer (the head) | – | 0.625 |" in markdown
    # The table has no column of that label, so its photos cannot be found; what was heard says so.
    assert bool(read.all("img")) == (kind != MULTILABEL) == ("photos are not shown" not in text)
    assert "| hill | 2 | 0 |" in markdown and "| sky |" not in markdown  # of which nothing is unknown


def test_each_part_has_its_figures(photos: Path, tmp_path: Path) -> None:
    found = {kind: run_record.read(write_run(tmp_path / kind, kind, photos)) for kind in ASKED}
    rows = {
        kind: {row[0]: row for table in run_tables.tables(run) for row in table.rows} for kind, run in found.items()
    }
    mae = found[REGRESS].metrics["test"]["columns"][1]
    assert rows[REGRESS]["mass_g"][1:4] == ("23", f"{mae['mae']:.4g}", f"[{mae['mae_low']:.4g}, {mae['mae_high']:.4g}]")
    label = found[MULTILABEL].metrics["test"]["labels"][1]
    assert rows[MULTILABEL]["<sky>"][1:4] == ("24", str(label["with_label"]), f"{label['ap']:.3f}")
    assert rows[CLASSIFY]["colour"][:3] == (
        "colour",
        "23",
        f"{100 * found[CLASSIFY].metrics['test']['heads']['colour']['accuracy']:.1f}",
    )
    assert [table.caption.split(":")[0] for table in run_tables.classes(found[CLASSIFY])] == ["shape", "colour"]
    assert run_tables.classes(found[REGRESS]) == ()


def test_a_student_stands_beside_its_teacher_and_control_in_the_tasks_score(photos: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", REGRESS, photos, taught=True)
    value = json.loads((run / rundir.RUN).read_text())["metrics"]["test"]["r2"]
    made = edgetl.report(reports=[run], out=tmp_path / "page.html")
    markdown = made.beside.read_text()
    assert f"Its teacher timm/big has {value:.3f}." in markdown.replace("\\", "")
    assert "| 3 | 0.800 | 0.790 | +0.010 |" in markdown and "| 4 | 0.800 | 0.770 | +0.030 |" in markdown
    assert "| 1 | 50.0 | 5 | 50.0 | -0.250 | 0.500 |" in markdown  # R2 may be below 0
    assert "points of test accuracy" not in made.path.read_text()


def test_the_worst_values_are_those_furthest_off_by_their_columns_spread() -> None:
    truth = np.array([[0.0, 0.0], [1.0, 100.0], [2.0, math.nan], [3.0, 300.0]])
    said = truth + np.array([[0.0, 20.0], [0.9, 0.0], [0.0, 5.0], [-2.0, 60.0]])
    found = task_mistakes.hardest(Said(ASKED[REGRESS], np.array(list("abcd")), said, truth), 3)
    assert [(one.key, one.said, one.known, one.far) for one in found] == [
        ("d", "height_mm 1", "3", "-2"),
        ("b", "height_mm 1.9", "1", "+0.9"),
        ("d", "mass_g 360", "300", "+60"),
    ]
    assert len(task_mistakes.hardest(Said(ASKED[REGRESS], np.array(list("abcd")), said, truth), 99)) == 4


def test_the_worst_labels_are_wrong_and_have_the_largest_loss() -> None:
    truth = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, math.nan], [0.0, 0.0, 0.0]])
    said = np.array([[-1.0, -1.0, -9.0], [-800.0, 1.0, 50.0], [-0.1, -0.1, -0.1]])  # the last is right
    found = task_mistakes.hardest(Said(ASKED[MULTILABEL], np.array(list("abc")), said, truth), 9)
    assert [(one.key, one.said, one.known) for one in found] == [("b", "<sky>", "sea, <sky>"), ("a", "none", "sea")]
    assert found[0].far == f"loss {(800 + math.log1p(math.exp(-1))) / 2:.2f}"


def test_the_worst_classes_are_the_surest_of_all_heads() -> None:
    truth = np.array([[1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [0, 1, math.nan, math.nan, math.nan]])
    said = np.array([[0, 1, 9.0, 0, 0], [9, 0, 9.0, 0, 0], [5, 0, 1, 0, 0]])
    found = task_mistakes.hardest(Said(ASKED[CLASSIFY], np.array(list("abc")), said, truth), 9)
    assert [(one.key, one.said, one.known) for one in found] == [
        ("b", "colour: red", "colour: blue"),
        ("c", "shape: round", "shape: long"),
        ("a", "shape: long", "shape: round"),
    ]


def test_said_against_true_leaves_out_what_is_not_known(photos: Path, tmp_path: Path) -> None:
    run = run_record.read(write_run(tmp_path / "run", REGRESS, photos))
    drawn = task_plots.values(run)
    assert drawn is not None and "on 24 images; mass_g: mean absolute error" in drawn and "on 23 images" in drawn
    assert task_plots.values(run_record.read(write_run(tmp_path / "labels", MULTILABEL, photos))) is None


def test_a_run_without_its_answers_has_no_mistakes_and_damaged_ones_are_said(photos: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", REGRESS, photos)
    (run / task_scores.ANSWERS).unlink()
    text = edgetl.report(reports=[run], out=tmp_path / "page.html").path.read_text()
    assert "Worst mistakes" not in text and "height_mm" in text
    (run / task_scores.ANSWERS).write_bytes(b"nothing")
    with pytest.raises(EdgetlError, match="cannot be read as answers"):
        run_record.read(run)
    assert not (run / predictions.FILE).exists()
