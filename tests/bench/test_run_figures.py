"""The page of a RUN tells how sure the model is, what moved, and how fast; of an earlier version's, what it knows."""

from __future__ import annotations

import json

import page_reader
import pytest
from test_calibration import answers
from test_run_page import write_run

import edgetl
from edgetl import calibration, evaluate, rundir, scorecard
from edgetl.bench import run_figures, run_page, run_plots, run_record, run_tables

VAL, TEST = ((answers(120, classes=3, seed=seed)) for seed in (1, 2))
MOVED = {"parameters_moved": 300, "parameters_frozen": 100, "frozen": ["stem", "<blocks>.0"]}
TOLD = {"strategy": "gradual", "moved": MOVED, "wise_ft": {"alpha": 0.75, "curve": []},
        "unfrozen": [{"stage": "fc", "epoch": 1}, {"stage": "layer4", "epoch": 2}],
        "options": {"loss": ["labels"], "layer_decay": 0.5, "l2_sp": 0.01},
        "readouts": {"linear": {"accuracy": 0.875, "loss": 0.4},
                     "neighbours": {"k": 5, "val_accuracy": 0.75, "tried": {"1": 0.5, "5": 0.75}}}}


def evaluation(found):
    return evaluate.summarize(*found, tuple(map(str, range(120))))


def write(folder, *, slowest=True, **values):
    """A fine-tuned RUN with everything that this version writes down."""
    write_run(folder, folder / "gone", taught=False)
    record = json.loads((folder / rundir.RUN).read_text())
    record |= {"metrics": scorecard.of_splits({"val": evaluation(VAL), "test": evaluation(TEST)}), **TOLD, **values}
    rundir.write_json(folder / rundir.RUN, record)
    rows = [{"epoch": epoch, "loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "train_accuracy": 0.5,
             "images_per_s": 9.0, "lr": 0.01 * epoch, **({"lr_least": 1e-5 * epoch} if slowest else {})}
            for epoch in (1, 2, 3)]
    (folder / rundir.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write(tmp_path_factory.mktemp("figures") / "run")


@pytest.fixture(scope="module")
def written(run):
    made = edgetl.report(reports=[run], out=run.parent / "page.html")
    return made.path.read_text(), made.beside.read_text()


def test_the_page_has_the_new_parts_and_can_be_read_aloud(written):
    read = page_reader.Reader(written[0])
    page_reader.assert_can_be_read_aloud(read)
    heads = [one["text"] for one in read.all("h2")]
    for part in ("How right, and how sure", "Learning rate", "What moved, and what was frozen",
                 "Read-outs of the features"):
        assert part in heads
    described = {one["id"]: one["text"] for one in read.all("desc")}
    after = calibration.fit_temperature(*VAL)
    scaled = evaluate.scaled(evaluation(TEST), after.value)
    assert described["reliability-desc"] == (
        f"calibration error {100 * evaluation(TEST).ece:.1f} points on 120 images of test, "
        f"{100 * scaled.ece:.1f} at temperature {after.value:.3g}")
    assert described["rates-desc"] == "greatest 0.03, 0.03 after the last epoch; of the slowest layer greatest 3e-05"
    assert "term lr" not in described["losses-desc"]
    assert "Their photos are not shown: they are not where the training found them." in written[0]
    assert "before the temperature" in written[0]
    assert "$" not in described["rates-desc"] and "mathdefault" not in written[0]


def test_the_figures_stand_beside_their_intervals_before_and_after_the_temperature(written):
    found, after = scorecard.of(evaluation(TEST)), calibration.fit_temperature(*VAL).value
    lines = [line for line in written[1].splitlines() if line.startswith("|")]
    accuracy = next(line for line in lines if line.startswith("| accuracy"))
    assert accuracy.split("|")[2].strip() == f"{100 * found['accuracy']:.1f}"
    assert accuracy.split("|")[3].strip() == f"[{100 * found['accuracy_low']:.1f}, {100 * found['accuracy_high']:.1f}]"
    assert not any(line.startswith("| top 5") for line in lines)  # there are three classes
    likelihood = next(line for line in lines if line.startswith(f"| NLL at T = {after:.3g} "))
    assert likelihood.split("|")[2].strip() == f"{evaluate.scaled(evaluation(TEST), after).nll:.3f}"
    chance = next(line for line in lines if line.startswith("| ECE by chance"))
    assert chance.split("|")[3].strip() == "–"
    assert f"the model is too sure: its logits are best divided by the temperature T = {after:.3g}" in written[1]


def test_what_moved_and_how_it_was_led_is_told(written):
    text, markdown = written
    for line in ("| moved | 300 | 75.0 |", "| frozen | 100 | 25.0 |", "| fc | 1 |", "| layer4 | 2 |",
                 "| logistic regression (the head) | – | 87.5 |", "| nearest neighbours, the best | 5 | 75.0 |"):
        assert line in markdown, line
    assert "Frozen: stem, &lt;blocks&gt;.0." in text
    for words in ("0.5 times the rate of the next one", "--l2-sp 0.01", "75 % of the way"):
        assert words in text and words in markdown.replace("\\", "")


def test_one_rate_for_all_is_one_line(tmp_path):
    found = run_record.read(write(tmp_path / "run", slowest=False))
    assert run_tables.rate_curve(found).columns == ("epoch", "learning rate")
    drawn = run_plots.rates(found)
    assert drawn is not None and "slowest" not in drawn
    assert "Dashed" not in run_page.page(found, {}, title="x")


def test_scores_that_nothing_could_be_fitted_to_say_why(tmp_path):
    right = evaluate.summarize(10 * answers(3, classes=3)[0], answers(3, classes=3)[0].argmax(1), ("a", "b", "c"))
    found = run_record.read(write(tmp_path / "run", metrics=scorecard.of_splits({"val": right})))
    assert any(calibration.ALL_RIGHT in line for line in run_figures.explained(found))
    drawn = run_plots.reliability(found)
    assert drawn is not None and "with the temperature" not in drawn
    assert not any("at T" in row[0] for row in run_figures.figures(found).rows)


def test_a_run_of_an_earlier_version_has_none_of_it(tmp_path):
    found = run_record.read(write_run(tmp_path / "run", tmp_path, taught=False))
    assert run_figures.tables(found) == () and run_figures.explained(found) == []
    assert run_figures.training_words(found) == [] and run_plots.reliability(found) is None
    heads = [one["text"] for one in page_reader.Reader(run_page.page(found, {}, title="x")).all("h2")]
    assert "Learning rate" in heads and "How right, and how sure" not in heads


def test_a_found_rate_and_views_are_told_in_words(tmp_path):
    tta = {"views": "hflip", "val": {"accuracy": 0.5, "n": 120}, "test": {"accuracy": 0.75, "n": 60}}
    choices = {"lr": {"finetune": {"rate": 0.00123, "rule": "r", "curve": [[1e-6, 2.0]]}}, "threads": 2}
    run = write(tmp_path / "run", tta=tta, choices=choices)
    words = " ".join(run_figures.training_words(run_record.read(run)))
    assert "found the peak rate 0.00123 (--lr find)" in words
    assert "(hflip) are right on 75.0 % of the 60 test images" in words
    assert "1e-06" not in edgetl.report(reports=[run], out=tmp_path / "page.html").path.read_text()


@pytest.mark.parametrize("names, told", [(30, "Frozen: " + ", ".join(f"b.{n}" for n in range(24)) + " and 6 more."),
                                         (1, "Frozen: b.0.")])
def test_many_frozen_parts_are_counted(tmp_path, names, told):
    moved = {**MOVED, "frozen": [f"b.{place}" for place in range(names)]}
    assert run_figures.training_words(run_record.read(write(tmp_path / "run", moved=moved)))[0] == told
