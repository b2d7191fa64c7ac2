"""The report: what is missing stays missing, json comes back as it went, and the page needs nothing but itself."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re

import hand_made
import page_reader
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.bench import html as pages
from edgetl.bench import markdown, report, tables
from edgetl.errors import EdgetlError


@pytest.fixture(scope="module")
def made():
    return hand_made.make_report()


@pytest.fixture(scope="module")
def page(made):
    mistakes = made.row(made.focus).accuracy.mistakes
    return pages.page(made, {mistake.key: hand_made.picture(i) for i, mistake in enumerate(mistakes)})


def test_json_comes_back_as_it_went(made):
    again = report.from_json(json.loads(report.dumps(made)), where="here")
    assert report.dumps(again) == report.dumps(made)
    assert again.rows == made.rows and again.data == made.data


def test_what_later_versions_measure_comes_back_too(made):
    best = report.Throughput(420.0, None, None, 8, 2, (410.0, 430.0))
    row = dataclasses.replace(made.rows[0], warmup_calls=40, warmup_s=0.2, warmup_reason="did not become stable",
                              decode_s=(0.1, 0.2), files="2 photos", throughputs=(best,), best_throughput=best,
                              gpu_memory_bytes=5, affinity=(0, 1), cpu_quota=1.5, device_s=(0.002, 0.004))
    found = dataclasses.replace(made, rows=(row,), status=report.PARTIAL)
    again = report.from_json(json.loads(report.dumps(found)), where="here")
    assert again.rows == found.rows and again.status == "partial"
    assert report.figures(row).device_s == pytest.approx(0.003) and report.figures(made.rows[0]).device_s is None
    assert report.figures(row).best_throughput_ips == 420.0 and report.figures(row).decode_s == pytest.approx(0.15)
    assert report.figures(row).mean_throughput_ips < report.figures(row).throughput_ips  # of a skewed distribution


def test_a_report_without_the_later_fields_is_read(made):
    values = json.loads(report.dumps(made))
    del values["status"]
    for row in values["rows"]:
        for name in ("warmup_calls", "throughputs", "best_throughput", "decode_s", "affinity", "files", "device_s"):
            del row[name]
    assert report.from_json(values, where="here").rows == made.rows


def test_unknown_fields_are_ignored(made):
    values = json.loads(report.dumps(made))
    values["later"], values["rows"][0]["measurement"]["later"] = 1, 2
    assert report.from_json(values, where="here").rows == made.rows


def test_too_old_and_too_new_are_told_apart():
    with pytest.raises(EdgetlError, match="no longer reads") as old:
        report.from_json({"schema": 0}, where="r.json")
    with pytest.raises(EdgetlError, match="reads up to 1") as new:
        report.from_json({"schema": 99}, where="r.json")
    assert "Measure again" in old.value.hint and "Update" in new.value.hint


@pytest.mark.parametrize(("break_it", "told"), [
    (lambda values: values.pop("environment"), "'report.environment' is missing"),
    (lambda values: values["rows"][1].update(backend=3), r"'report.rows\[1\].backend' is 3, expected a text"),
    (lambda values: values["rows"][0]["measurement"].update(seconds=[True]), r"seconds\[0\]' is True, expected a num"),
    (lambda values: values.update(rows={}), "'report.rows' is {}, expected a list"),
    (lambda values: values.pop("schema"), "not a benchmark report"),
])
def test_damaged_reports_name_the_field(made, break_it, told):
    values = json.loads(report.dumps(made))
    break_it(values)
    with pytest.raises(EdgetlError, match=told):
        report.from_json(values, where="r.json")


def test_a_missing_number_is_null_and_a_dash_but_never_zero():
    failed = hand_made.row("a cpu", 0, backend="cpu", reason="crashed", size_bytes=None, memory_peak_bytes=None,
                           import_s=(), load_s=(), first_s=())
    bare = hand_made.row("b cpu", 2, backend="cpu", size_bytes=None, parameters=None, memory_peak_bytes=None,
                         memory_loaded_bytes=None, import_s=(), load_s=(), first_s=(), precision=None)
    values = json.loads(report.dumps(dataclasses.replace(hand_made.make_report(), rows=(failed, bare))))
    assert values["rows"][0]["memory_peak_bytes"] is None and values["rows"][1]["accuracy"] is None
    found = dataclasses.replace(hand_made.make_report(), rows=(failed, bare), reference=None, focus=None)
    line = dict(zip(tables.summary(found).columns, tables.summary(found).rows[0], strict=True))
    assert line["case"] == "b cpu" and line["median ms"] != tables.MISSING
    assert {line[name] for name in ("accuracy %", "speed-up", "import ms", "load ms", "first ms", "size MB",
                                    "peak MB")} == {tables.MISSING}
    assert values["summary"][0] == {name: "a cpu" if name == "case" else None for name in values["summary"][0]}
    case = dict(zip(tables.cases(found).columns, tables.cases(found).rows[0], strict=True))
    assert {case[name] for name in ("loaded MB", "parameters M", "precision")} == {tables.MISSING}
    assert tables.answers(found).rows == ()
    assert tables.failures(found).rows == (("a cpu", "crashed"),)
    assert "| a cpu | crashed |" in markdown.page(found)


def test_a_percentile_without_enough_samples_says_how_many_it_needs():
    few = hand_made.row("a cpu", 2, backend="cpu")
    few = dataclasses.replace(few, measurement=dataclasses.replace(few.measurement, seconds=(0.001,) * 100))
    found = dataclasses.replace(hand_made.make_report(), rows=(few,), reference=None, focus=None)
    assert "needs 130 samples" in tables.summary(found).rows[0]


def test_paced_cases_have_no_throughput():
    paced = hand_made.row("a cpu", 2, backend="cpu")
    paced = dataclasses.replace(paced, measurement=dataclasses.replace(paced.measurement, arrival="paced 10ms"))
    found = dataclasses.replace(hand_made.make_report(), rows=(paced,), reference=None, focus=None)
    line = dict(zip(tables.summary(found).columns, tables.summary(found).rows[0], strict=True))
    assert line["images/s"] == tables.MISSING and "paced 10ms" in tables.summary(found).caption


def test_markdown_tables_are_whole(made):
    lines = [line for line in markdown.page(made).splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in lines}
    assert widths == {len(table.columns) + 1 for table in tables.tables(made)}
    assert "- Photos: CC0 &lt;1.0&gt; &amp; free." in markdown.page(made)


@settings(deadline=None, max_examples=100)
@given(st.floats(1e-6, 1e6))
def test_significant_digits_are_right_and_without_exponent(value):
    text = tables.significant(value, 3)
    assert "e" not in text and float(text) == pytest.approx(value, rel=0.0051 if value >= 1e-3 else 0.01, abs=1e-12)
    if value < 999:
        assert len(text.replace(".", "").lstrip("0")) == 3


class Reader(html.parser.HTMLParser):
    """Collects what a page is made of, and insists that every element is closed."""

    VOID = {"meta", "img", "br", "path", "use", "rect"}

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def test_the_page_is_well_formed_and_its_ids_are_unique(read):
    assert read.open == []
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0
    used = {value[1:] for _, name, value in read.attributes if name in ("href", "xlink:href")}
    assert used and used <= set(ids)


def test_the_page_loads_nothing(page, read):
    assert not re.search(r"https?:|//|@import", re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", page))
    assert not {"script", "link", "iframe", "object"} & set(read.tags)
    sources = [value for _, name, value in read.attributes if name == "src"]
    assert sources and all(value.startswith("data:image/jpeg;base64,/9j/") for value in sources)


def test_the_page_can_be_read_aloud_and_in_the_dark(page, read):
    assert read.tags.count("caption") == read.tags.count("table") == 7
    alts = [value for tag, name, value in read.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) == read.tags.count("img") and all(alts)
    assert page.count('<svg viewBox=') == page.count('role="img" aria-labelledby=') == page.count("</desc>") == 2
    assert "3 bundle x86-vnni.int8 cpu: 1.33 ms, 85.0 %" in page
    assert read.tags.count("h1") == 1 and read.tags.count("h2") == 12
    assert '<aside aria-label="Warnings"><ul><li>A warning.</li></ul></aside>' in page
    assert "prefers-color-scheme: dark" in page and "currentColor" in page and "#010203" not in page
    assert 'name="viewport"' in page and '<html lang="en">' in page


def test_a_screen_reader_finds_its_way(page):
    page_reader.assert_can_be_read_aloud(page_reader.Reader(page))


def test_the_page_escapes_what_others_wrote(page):
    assert "CC0 &lt;1.0&gt; &amp; free" in page and "<1.0>" not in page


def test_a_page_without_accuracy_or_measurements_still_stands(made):
    only_failed = dataclasses.replace(made, rows=made.rows[-1:], reference=None, focus=None, data=None)
    text = pages.page(only_failed, {})
    assert "SIGKILL" in text and "<svg" not in text and "<img" not in text


def test_many_classes_are_told_as_their_confusions(made):
    labels = tuple(f"class {number}" for number in range(40))
    matrix = [[0] * 40 for _ in range(40)]
    matrix[3][7], matrix[5][5], matrix[1][2] = 4, 9, 2
    graded = dataclasses.replace(made.rows[2].accuracy, confusion=tuple(map(tuple, matrix)), mistakes=())
    rows = (dataclasses.replace(made.rows[2], accuracy=graded),)
    text = pages.page(dataclasses.replace(made, rows=rows, data=dataclasses.replace(made.data, labels=labels)), {})
    assert 'class="matrix"' not in text
    assert '<th scope="col">true class</th>' in text and ">case</th>" not in text.partition("kinds of confusion")[2]
    assert text.index("class 3</th>") < text.index("class 1</th>") and "2 kinds of confusion" in text


def test_thumbnails_are_small_jpegs_of_the_mistakes(made):
    from edgetl.datasets import Item

    mistakes = made.row(made.focus).accuracy.mistakes
    found = pages.thumbnails(made, [Item(mistake.key, 0) for mistake in mistakes], lambda item: hand_made.picture(1))
    assert set(found) == {mistake.key for mistake in mistakes}
    assert all(data.startswith(b"\xff\xd8") and len(data) < 30_000 for data in found.values())


def test_one_table_has_all_that_decides(made):
    whole = tables.summary(made)
    line = dict(zip(whole.columns, whole.rows[0], strict=True))
    needed = {"median ms", "95 % interval ms", "p95 ms", "images/s", "import ms", "load ms", "first ms", "size MB",
              "peak MB", "accuracy %"}
    assert needed < set(whole.columns)
    assert [line[name] for name in ("import ms", "load ms", "first ms")] == ["1150", "45.0", "15.0"]
    first = json.loads(report.dumps(made))["summary"][0]
    assert first["first_s"] == 0.015 and first["throughput_ips"] == pytest.approx(1 / first["median_s"])
    assert MARKDOWN_HEAD in markdown.page(made)


def test_no_figure_stands_in_two_tables(made):
    columns = [name for table in tables.tables(made)[:3] for name in table.columns if name not in ("#", "case")]
    assert sorted(name for name in set(columns) if columns.count(name) > 1) == ["accuracy %"]  # beside its interval


def test_what_is_shown_to_others_names_no_folder_of_the_machine(made):
    home = "/home/me/secret plans"
    rows = [dataclasses.replace(row, source=f"{home}/{row.source}", accuracy_reason=f"{home}/{row.source}/x is damaged",
                                measurement=dataclasses.replace(row.measurement, reason=row.measurement.reason
                                                                and f"{home}/{row.source}/model is a pickle"))
            for row in made.rows]
    data = dataclasses.replace(made.data, name="photos.csv", source=f"csv:{home}/photos.csv")
    there = dataclasses.replace(made, rows=tuple(rows), data=data,
                                notes=(f"The data is not the one that {rows[0].source} was trained on.",))
    for text in (markdown.page(there), pages.page(there, {}), str(tables.tables(there))):
        assert "model is a pickle" in text and "secret" not in text and "/home" not in text
    name = made.rows[0].source.rpartition("/")[2]
    assert f"not the one that {name} was trained on" in markdown.page(there)
    assert "Data: photos.csv, " in pages.page(there, {})
    assert json.loads(report.dumps(there))["data"]["source"] == f"csv:{home}/photos.csv"


MARKDOWN_HEAD = "| images/s | import ms | load ms | first ms | size MB | peak MB |"
