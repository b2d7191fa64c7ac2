"""The pages of a comparison of strategies: every figure, readable aloud, and the same in three files."""

from __future__ import annotations

import copy
import csv
import io

import page_reader
import pytest

from edgetl.bench import strategy_page


def row(name, accuracy, low, high, seconds, **more):
    return {"strategy": name, "own": {}, "reason": None, "accuracies": [accuracy - 0.01, accuracy + 0.01],
            "accuracy": accuracy, "low": low, "high": high, "macro_f1": accuracy - 0.02, "seconds": [seconds, seconds],
            "median_s": seconds, **more}


def pair(first, second, difference, low, high, p_value, adjusted):
    return {"first": first, "second": second, "difference": difference, "low": low, "high": high, "p_value": p_value,
            "adjusted": adjusted, "significant": adjusted < 0.05}


FAILED = {"strategy": "gradual", "own": {}, "reason": "=The loss is nan | in <epoch> 1.", "accuracies": [],
          "accuracy": None, "low": None, "high": None, "macro_f1": None, "seconds": [None, 3.0], "median_s": 3.0}
FOUND = {
    "repeats": {"kind": "seeds", "count": 2}, "epochs": 8,
    "data": {"name": "photos", "images": {"train": 80, "val": 20, "test": 20}},
    "rows": [row("full;lr=0.0003", 0.9, 0.8, 0.95, 60.0), row("lp-ft", 0.88, 0.78, 0.94, 50.0),
             row("probe", 0.6, 0.5, 0.7, 4.0), FAILED],
    "pairs": [pair("full;lr=0.0003", "lp-ft", 0.02, -0.03, 0.07, 0.4, 0.4),
              pair("full;lr=0.0003", "probe", 0.3, 0.2, 0.4, 1e-5, 3e-5), pair("lp-ft", "probe", 0.28, 0.18, 0.38, 1e-4,
                                                                                2e-4)],
    "verdict": {"best": "full;lr=0.0003", "alike": ["full;lr=0.0003", "lp-ft"], "recommended": "lp-ft",
                "sentences": ["full;lr=0.0003 is the most accurate.", "Recommended: lp-ft."]},
    "test": {}, "test_sentence": "The test split was touched once.", "notes": ["Adjusted for 3 comparisons."],
    "options": {"teacher": "timm/test_resnet"},
    "environment": {"cpu": "Some CPU", "cpus": 2, "platform": "Linux", "python": "3.11", "versions": {"torch": "2.11"}},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    strategy_page.write(folder, FOUND)
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_page_can_be_read_aloud_and_loads_nothing(written):
    page = written["strategies.html"]
    read = page_reader.Reader(page)
    page_reader.assert_can_be_read_aloud(read)
    assert "http" not in page and not read.all("script", "link", "iframe", "img")
    assert [one["text"] for one in read.all("h2")] == [
        "Summary", "Accuracy", "Accuracy against time", "Every two compared", "Not trained", "How this was made",
        "Data and options"]
    described = {one["id"]: one["text"] for one in read.all("desc")}
    assert described["strategies-desc"] == "full;lr=0.0003: 90.0 %; lp-ft: 88.0 %; probe: 60.0 %"
    assert described["time-desc"].endswith("3 probe: 60.0 %, 4.0 s")


def test_the_summary_has_every_figure():
    table = strategy_page.summary(FOUND)
    assert table.caption == "Accuracy on validation images; 2 seeds, 8 epochs each"
    assert table.rows == (
        ("1", "full;lr=0.0003", "90.0", "[80.0, 95.0]", "88.0", "60.0", "–", "–", "–", "best"),
        ("2", "lp-ft", "88.0", "[78.0, 94.0]", "86.0", "50.0", "-2.0", "[-7.0, +3.0]", "0.400",
         "not distinguishable, recommended"),
        ("3", "probe", "60.0", "[50.0, 70.0]", "58.0", "4.0", "-30.0", "[-40.0, -20.0]", "< 0.001",
         "significantly worse"))
    assert strategy_page.failures(FOUND).rows == (("gradual", "=The loss is nan | in <epoch> 1."),)
    assert strategy_page.pairs(FOUND).rows[1] == (
        "full;lr=0.0003", "probe", "+30.0", "[+20.0, +40.0]", "< 0.001", "< 0.001", "significant")


def test_the_markdown_says_the_same(written):
    text = written["strategies.md"]
    assert text.startswith("# Strategies of fine-tuning: photos\n\n- full;lr=0.0003 is the most accurate.\n")
    assert "- The test split was touched once.\n" in text
    assert "| 2 | lp-ft | 88.0 |" in text and "\\| in &lt;epoch&gt; 1." in text
    assert "- images: train 80, val 20, test 20\n" in text


def test_the_csv_has_a_line_a_strategy_and_no_formula(written):
    lines = list(csv.DictReader(io.StringIO(written["strategies.csv"])))
    assert [one["strategy"] for one in lines] == ["full;lr=0.0003", "lp-ft", "probe", "gradual"]
    assert lines[1] == {"strategy": "lp-ft", "status": "trained", "accuracy": "0.88", "accuracy_low": "0.78",
                        "accuracy_high": "0.94", "macro_f1": "0.86", "trainings": "2", "median_s": "50.0",
                        "difference_to_best": "-0.02", "p_adjusted_to_best": "0.4", "alike_best": "True",
                        "recommended": "True", "reason": ""}
    assert (lines[3]["status"], lines[3]["accuracy"], lines[3]["reason"][:2]) == ("failed", "", "'=")


def test_folds_and_unknown_times_are_shown_as_what_they_are():
    found = copy.deepcopy(FOUND)
    found["repeats"] = {"kind": "folds", "count": 5}
    for one in found["rows"]:
        one["median_s"] = None
    assert strategy_page.summary(found).caption == (
        "Accuracy on images that were held out in turn; 5 folds, 8 epochs each")
    assert strategy_page.summary(found).rows[0][5] == "–"
    assert strategy_page.against_time(found) is None
    page_reader.assert_can_be_read_aloud(page_reader.Reader(strategy_page.page(found)))
