"""The page about a RUN: everything that it tells is in it, and it is whole without photos, control or curves."""

from __future__ import annotations

import json
import shutil

import numpy as np
import page_reader
import pytest
from conftest import write_photos

import edgetl
from edgetl import metrics, predictions, rundir
from edgetl.bench import run_page, run_record
from edgetl.cli import app
from edgetl.errors import EdgetlError, OutputError
from edgetl.predictions import Predictions

LABELS = ["amber", "beryl", "<coral>"]
CONFUSION = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]


def measured(accuracy):
    return {"n": 20, "accuracy": accuracy, "accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1,
            "macro_f1": 0.8, "confusion": CONFUSION}


def curve(*terms):
    return "".join(json.dumps({
        "loss": 1 / epoch, **dict.fromkeys(terms, 2 / epoch), "train_accuracy": 0.1 * epoch, "epoch": epoch,
        "val_accuracy": 0.2 * epoch, "val_loss": 1.5 / epoch, "images_per_s": 9.0, "lr": 0.1}) + "\n"
        for epoch in range(1, 5))


def write_run(folder, photos, *, taught=True, seeds=(3, 4)):
    """A RUN folder as distillation leaves it, written by hand."""
    differences = [0.05 * (place + 1) for place, _ in enumerate(seeds)]
    gain = {"seeds": list(seeds), "student": [0.85 for _ in seeds], "control": [0.85 - one for one in differences],
            "differences": differences, "mean": 0.075, "low": -0.01, "high": 0.16, "level": 0.95, "images": 20,
            "significant": False, "sentence": "gain +7.5 points: not significant, the teacher may not have helped."}
    teacher = {"model": "timm/big", "sha256": "ab" * 32, "parameters": 1_000_000, "macs": 5_000_000,
               "metrics": {"test": measured(0.9), "val": measured(0.95)}}
    of_teacher = {"teacher": teacher, "student": "slim:0.4", "kept": 0.4, "best_seed": seeds[0]} if taught else {}
    record = {
        "schema": 1, "kind": "run", "model": "timm/small", "parameters": 400_000, "macs": 2_000_000, "labels": LABELS,
        "metrics": {"val": measured(0.88), "test": measured(0.85),
                    **({"control": {"test": measured(0.8)}, "gain": gain} if taught else {})},
        "data": {"source": str(photos), "notes": ["licence: none"]}, "environment": {"cpu": "made up"},
        "choices": {"threads": 2, "teacher_engine": {"name": "openvino", "version": "2026.1", "seconds_a_batch": {}}},
        "options": {"loss": ["labels:0.1,kd:0.9"]}, **of_teacher}
    (folder / "control").mkdir(parents=True)
    rundir.write_json(folder / rundir.RUN, record)
    (folder / rundir.METRICS).write_text(curve(*(["labels", "kd"] if taught else ["labels"])))
    if taught:
        (folder / "control" / rundir.METRICS).write_text(curve("labels"))
    (folder / rundir.RECIPE).write_text(f'[distill]\ndata = "{photos}"\nstudent = "slim:0.4"\n')
    keys = np.array([f"amber/00{place}.{'jpg' if place % 2 else 'png'}" for place in range(6)])
    predictions.write(folder, {"test": Predictions(
        keys, np.zeros(6, np.int64), np.array([0, 1, 0, 1, 0, 2]),
        np.array([0.9, 0.6, 0.9, 0.7, 0.8, 0.95], np.float32), np.full(6, 0.05, np.float32))})
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_photos(root / "photos", classes=2, images=6)
    write_run(root / "student", root / "photos")
    return root


@pytest.fixture(scope="module")
def written(root):
    made = edgetl.report(reports=[root / "student"], out=root / "sub/page.html")
    return made, made.path.read_text(), made.beside.read_text()


@pytest.fixture(scope="module")
def read(written):
    return page_reader.Reader(written[1])


def test_the_page_can_be_read_aloud_and_loads_nothing(written, read, root):
    page_reader.assert_can_be_read_aloud(read)
    assert "http" not in written[1] and not read.all("script", "link", "iframe")
    assert all(one["src"].startswith("data:image/jpeg;base64,") for one in read.all("img"))
    assert not any(str(root) in page for page in written[1:])  # it concerns nobody where things lie


def test_every_part_is_there(read):
    assert read.all("h1")[0]["text"] == "Distillation: student"
    assert [one["text"] for one in read.all("h2")] == [
        "Summary", "Gain over the control", "Accuracy over the epochs", "Losses", "Learning rate",
        "What it confuses", "Classes",
        "Worst mistakes", "Teacher", "Recipe", "Machine and choices", "Notes"]
    described = {one["id"]: one["text"] for one in read.all("desc")}
    assert described["gain-desc"] == "gain +7.5 points: not significant, the teacher may not have helped."
    assert described["accuracy-desc"] == "best validation accuracy 80.0 % in epoch 4; of the control 80.0 %"
    assert "term kd: 2 to 0.5" in described["losses-desc"] and "cross-entropy on validation" in described["losses-desc"]


def test_the_lead_says_the_result_and_whether_the_teacher_helped(written, read):
    lead = next(one["text"] for one in read.all("p") if one.get("class") == "lead")
    assert lead == ("timm/small, cut to slim:0.4, answers 85.0 % of 20 test images right. Its teacher timm/big answers "
                    "90.0 %. It has 40.0 % of the teacher's parameters. Gain +7.5 points: not "
                    "significant, the teacher may not have helped.")
    assert lead in written[2].replace("\\", "")


def test_the_tables_have_the_figures(written):
    markdown = written[2]
    for line in ("| teacher | 90.0 | [80.0, 100.0] | 95.0 | 80.0 | 1,000,000 | – | 5,000,000 | timm/big |",
                 "| student | 85.0 | [75.0, 95.0] | 88.0 | 80.0 | 400,000 | 40.0 | 2,000,000 | timm/small |",
                 "| control: no teacher | 80.0 | [70.0, 90.0] | – | 80.0 | 400,000 | 40.0 | 2,000,000 | timm/small |",
                 "| 3 | 85.0 | 80.0 | +5.0 |", "| 4 | 85.0 | 75.0 | +10.0 |",
                 f"| teacher | timm/big | 4.0 | openvino 2026.1 | {'ab' * 8} |"):
        assert line in markdown
    assert "this page is that of seed 3" in markdown and 'data = "photos"' in markdown


def test_a_class_has_recall_precision_and_f1_with_their_intervals(written):
    line = next(one for one in written[2].splitlines() if one.startswith("| amber"))
    cells = [one.strip() for one in line.split("|")[1:-1]]
    ends = [metrics.wilson_interval(8, 10), metrics.wilson_interval(8, 9), metrics.f1_interval(8, 2, 1)]
    spans = [f"[{100 * low:.1f}, {100 * high:.1f}]" for low, high in ends]
    assert cells == ["amber", "10", "80.0", spans[0], "88.9", spans[1], "84.2", spans[2]]
    absent = next(one for one in written[2].splitlines() if one.startswith("| &lt;coral"))
    assert absent.endswith("| 0 | – | – | – | – | – | – |")  # no image and no answer: nothing is known


def test_the_surest_mistakes_come_first_with_their_photos(read):
    shown = [one["text"] for one in read.all("li") if "mistakes" in str(one["path"]) or "said " in one["text"]]
    assert [one.split("(")[1].split(")")[0] for one in shown] == ["95 %", "70 %", "60 %"]
    assert [one["alt"] for one in read.all("img")] == [f"A test image of amber, answered as {one}"
                                                       for one in ("<coral>", "beryl", "beryl")]


def test_photos_that_are_gone_are_said_and_the_rest_is_shown(root, tmp_path):
    run = write_run(tmp_path / "student", tmp_path / "nowhere")
    heard = []
    made = edgetl.report(reports=[run], out=tmp_path / "page.html", title="Mine", listener=heard.append)
    assert "without their photos" in heard[0].values["text"] and heard[0].kind == "warning"
    read = page_reader.Reader(made.path.read_text())
    assert read.all("h1")[0]["text"] == "Mine" and not read.all("img") and "Worst mistakes" in made.path.read_text()


def test_a_fine_tuned_run_has_no_teacher_and_no_gain(root, tmp_path):
    run = write_run(tmp_path / "tuned", root / "photos", taught=False)
    read = page_reader.Reader(edgetl.report(reports=[run], out=tmp_path / "page.html").path.read_text())
    page_reader.assert_can_be_read_aloud(read)
    assert read.all("h1")[0]["text"] == "Fine-tuning: tuned"
    assert not {"Teacher", "Gain over the control"} & {one["text"] for one in read.all("h2")}
    assert "Dashed" not in "".join(one["text"] for one in read.all("figcaption"))  # there is no control


def test_an_early_run_without_curves_answers_and_control_is_shown_as_far_as_it_goes(root, tmp_path):
    run = write_run(tmp_path / "early", root / "photos", seeds=(3,))
    record = json.loads((run / rundir.RUN).read_text())
    del record["metrics"]["gain"], record["metrics"]["control"], record["choices"], record["macs"]
    rundir.write_json(run / rundir.RUN, record)
    for name in (rundir.METRICS, rundir.RECIPE, predictions.FILE):
        (run / name).unlink()
    shutil.rmtree(run / "control")
    text = edgetl.report(reports=[run], out=tmp_path / "page.html").path.read_text()
    page_reader.assert_can_be_read_aloud(page_reader.Reader(text))
    assert "Whether the teacher helped is not known: there is no control." in text
    assert "torch, beside the student" in text


def test_a_student_that_was_cut_in_steps_has_its_cuts_and_one_curve(root, tmp_path):
    run = write_run(tmp_path / "cut", root / "photos")
    record = json.loads((run / rundir.RUN).read_text())
    record["steps"] = [{"step": step, "share": kept, "of": "params", "parameters": 10, "kept": kept, "macs": 5,
                        "macs_kept": 0.7, "val_accuracy_before": 0.5, "val_accuracy_after": 0.75}
                       for step, kept in ((1, 0.6), (2, 0.4))]
    rundir.write_json(run / rundir.RUN, record)
    rows = [{"step": step, **json.loads(line)} for step in (1, 2) for line in curve("labels", "kd").splitlines()]
    rows[0]["val_accuracy"] = 0.99  # of the first step, whose weights are not kept
    (run / rundir.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = page_reader.Reader(edgetl.report(reports=[run], out=tmp_path / "page.html").path.read_text())
    assert "Cuts" in [one["text"] for one in read.all("h2")]
    described = {one["id"]: one["text"] for one in read.all("desc")}
    assert described["accuracy-desc"].startswith("best validation accuracy 80.0 % in epoch 8;")
    assert "term step" not in described["losses-desc"]
    assert "| 2 | 40.0 | 10 | 70.0 | 50.0 | 75.0 |" in (tmp_path / "page.md").read_text()


def test_several_teachers_stand_in_a_row_and_a_black_box_keeps_its_size_to_itself(root, tmp_path):
    run = write_run(tmp_path / "two", root / "photos")
    record = json.loads((run / rundir.RUN).read_text())
    box = {"model": "onnx:theirs.onnx", "sha256": "cd" * 32, "parameters": 0, "macs": None, "metrics": {}}
    record["teachers"] = [record["teacher"], box]
    rundir.write_json(run / rundir.RUN, record)
    made = edgetl.report(reports=[run], out=tmp_path / "page.html")
    assert "Teachers" in [one["text"] for one in page_reader.Reader(made.path.read_text()).all("h2")]
    markdown = made.beside.read_text()
    assert "The first of its 2 teachers, timm/big, answers 90.0 %." in markdown
    assert f"| teacher 2 | onnx:theirs.onnx | – | torch, beside the student | {'cd' * 8} |" in markdown
    assert "| teacher 2 | – | – | – | – | 0 | – | – | onnx:theirs.onnx |" in markdown


def test_many_classes_become_a_list_of_confusions(root, tmp_path):
    run = write_run(tmp_path / "many", root / "photos")
    record = json.loads((run / rundir.RUN).read_text())
    record["labels"] = [f"c{place}" for place in range(40)]
    record["metrics"]["test"]["confusion"] = np.roll(3 * np.eye(40, dtype=int), 1, axis=1).tolist()
    rundir.write_json(run / rundir.RUN, record)
    text = edgetl.report(reports=[run], out=tmp_path / "page.html").path.read_text()
    assert "The most frequent of 40 kinds of confusion" in text and 'class="matrix"' not in text


def test_the_command_prints_both_files(root, tmp_path, capsys):
    out = str(tmp_path / "page.html")
    assert app.main(["report", str(root / "student"), "--out", out]) == 0
    assert capsys.readouterr().out == f"{out}\n{out.removesuffix('html')}md\n"
    assert app.main(["report", str(root / "student"), "--out", out]) == 1
    assert "exists already" in capsys.readouterr().err
    assert app.main(["report", str(root / "student"), "--out", out, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"page": out, "left_out": [], "markdown": out[:-4] + "md"}


def test_what_is_no_single_run_is_refused(root, tmp_path):
    for more in ({"reports": [root / "student", root / "photos"]}, {"label": ["x=y"]}):
        with pytest.raises(EdgetlError, match="expected one RUN and no --label"):
            edgetl.report(**{"reports": [root / "student"], "out": tmp_path / "page.html", **more})
    (tmp_path / "page.md").write_text("mine")
    with pytest.raises(OutputError, match=r"page\.md exists already"):
        edgetl.report(reports=[root / "student"], out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_damaged_files_are_a_sentence(root, tmp_path):
    run = write_run(tmp_path / "student", root / "photos")
    (run / rundir.METRICS).write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(EdgetlError, match=r"metrics\.jsonl cannot be read"):
        run_record.read(run)


def test_the_writer_knows_a_run_from_a_report(root):
    assert run_page.is_meant([str(root / "student")]) and not run_page.is_meant([str(root / "photos")])
