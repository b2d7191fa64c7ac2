"""The page over many reports: machines apart, dates in order, whole without script, sound and colour."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import re

import hand_made
import hand_made_history
import page_reader
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgetl
from edgetl.bench import collection, gallery, gallery_plots, report
from edgetl.cli import app
from edgetl.errors import EdgetlError, OutputError
from edgetl.recipe_report import Report as Gallery


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return hand_made_history.write_history(tmp_path_factory.mktemp("history") / "reports")


@pytest.fixture(scope="module")
def written(root):
    heard = []
    made = edgetl.report(reports=[root], out=root.parent / "sub/page.html", title="Bundles <of> July",
                         listener=heard.append)
    return made, made.path.read_text(), heard


@pytest.fixture(scope="module")
def read(written):
    return page_reader.Reader(written[1])


def test_what_cannot_be_read_is_named_and_the_rest_is_drawn(root, written):
    made, page, heard = written
    assert len(made.left_out) == 1 and str(root / "damaged/report.json") in made.left_out[0]
    assert [event.kind for event in heard] == ["warning"]
    assert "Left out: reports/damaged/report.json cannot be read as JSON" in page
    assert str(root) not in page and "junit.json" not in page and "partial" not in page


def test_every_report_machine_and_case_is_there(read):
    lines = [row["text"].split("\n") for row in read.all("tr") if row.get("id", "").startswith("report-")]
    assert len(lines) == 4
    assert [one["text"] for one in read.all("h2")] == ["Cortex-A76, 4 threads", "AMD EPYC, 2 threads", "Reports"]
    cases = {row.case for row in hand_made.make_report().rows if row.measured}
    heads = [one["text"] for one in read.all("th") if one.get("scope") == "row"]
    assert cases <= set(heads)
    assert "2026-07-01 12:30" in " ".join(one["text"] for one in read.all("td"))
    assert any(one["text"] == hand_made_history.commit(2)[:9] for one in read.all("td"))


def test_the_page_is_whole_and_loads_nothing(written, read):
    page = written[1]
    assert not re.search(r"https?:|//|@import|url\((?!#)", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))
    assert not {"link", "iframe", "object", "img"} & {one["tag"] for one in read.elements}
    assert [one for one in read.all("script") if "src" in one] == [] and len(read.all("script")) == 1
    assert not re.search(r"fetch|XMLHttp|import|innerHTML|eval|https?:", read.all("script")[0]["text"])
    ids = [one["id"] for one in read.elements if "id" in one]
    assert len(ids) == len(set(ids))
    for name in ("href", "xlink:href", "aria-labelledby", "aria-describedby"):
        assert {one[name].removeprefix("#") for one in read.elements if name in one} <= set(ids)
    assert "Bundles &lt;of&gt; July" in page


def test_the_page_can_be_read_aloud(written, read):
    page_reader.assert_can_be_read_aloud(read)
    assert '<html lang="en">' in written[1] and 'name="viewport"' in written[1]
    assert "prefers-color-scheme: dark" in written[1] and ":focus-visible" in written[1]


def test_every_figure_has_a_text_and_says_where_its_figures_stand(read):
    figures = read.all("svg")
    titles = {one["id"]: one["text"] for one in read.all("title", "desc") if "id" in one}
    assert len(figures) == 4 + 3  # front, bars, strips and history; the board has no history
    assert all(one["role"] == "img" for one in figures)
    assert all(titles[one["aria-labelledby"]] and " ms" in titles[one["aria-describedby"]] for one in figures)
    assert len(read.all("details")) == 5  # the bars' table is the first of the machine
    history = titles["machine-2-history-desc"]
    assert "bundle x86-vnni.int8 cpu: from 1.33 to 1.35 ms over 3 reports" in history and "5.3" not in history


def test_machines_are_never_in_one_series(root):
    entries, _ = collection.read([str(root)], [])
    for machine in collection.machines(entries):
        assert len({entry.report.environment["cpu"] for entry in machine.entries}) == 1
        for key, found in machine.histories().items():
            assert len({one.entry.path for one in found}) == len(found) > 1
            assert {one.row.measurement.arrival for one in found} == {key.arrival}


def test_a_case_that_was_paced_is_another_series():
    one = hand_made_history.dated(0)
    rows = [dataclasses.replace(row, measurement=dataclasses.replace(row.measurement, arrival="paced 10 ms"))
            for row in one.rows]
    paced = dataclasses.replace(one, rows=tuple(rows))
    entries = [entry("a", one), entry("b", paced)]
    machine, = collection.machines(entries)
    assert len(machine.latest()) == 10 and machine.histories() == {}


def entry(name, made, day=1):
    return collection.Entry(name, pathlib.Path(name), made, None, datetime.datetime(2026, 7, day, tzinfo=datetime.UTC))


@pytest.mark.parametrize("change", [{"cpu": "other"}, {"usable_threads": 1}, {"machine_id": "b"}])
def test_another_machine_is_another_group(change):
    one = hand_made_history.dated(0)
    one = dataclasses.replace(one, environment={**one.environment, "machine_id": "a"})
    other = dataclasses.replace(one, environment={**one.environment, **change})
    assert len(collection.machines([entry("a", one), entry("b", one)])) == 1
    found = collection.machines([entry("a", one), entry("b", other), entry("c", one)])
    assert [[one.name for one in machine.entries] for machine in found] == [["a", "c"], ["b"]]
    assert len({machine.name for machine in found}) == 2


def test_a_copy_is_no_second_measurement(root, tmp_path):
    (tmp_path / "copy.json").write_bytes((root / "day-1/report.json").read_bytes())
    entries, problems = collection.read([str(root / "day-1"), str(tmp_path)], [])
    assert [one.name for one in entries] == ["day-1"]
    assert problems == [f"{tmp_path / 'copy.json'} is a copy of {root / 'day-1/report.json'}."]


def test_two_boards_of_one_kind_are_told_apart_by_their_names():
    boards = [dataclasses.replace(hand_made_history.dated(0), device=name) for name in ("pi-1", "pi-2", None)]
    found = collection.machines([entry("a", boards[0]), entry("b", boards[1]), entry("c", boards[0])])
    assert [machine.name for machine in found] == [f"{name}: AMD EPYC, 2 threads" for name in ("pi-1", "pi-2")]
    assert len(collection.machines([entry("a", boards[0]), entry("b", boards[2])])) == 1


def test_dates_order_the_history_and_the_last_is_the_latest(root):
    entries, _ = collection.read([str(root)], [f"{root}/day-0=v9@2026-08-01"])
    machine = collection.machines(entries)[1]
    assert [one.name for one in machine.entries] == ["day-1", "day-2", "day-0"]
    assert {one.entry.name for one in machine.latest()} == {"day-0"}
    assert machine.entries[-1].short_commit == "v9" and machine.entries[0].short_commit == "010101010"


def test_a_report_without_a_date_is_in_no_history(root, tmp_path):
    made = hand_made_history.dated(5)
    plain = {name: value for name, value in made.environment.items() if name not in ("measured_at", "commit")}
    hand_made_history.write(tmp_path / "old", dataclasses.replace(made, environment=plain))
    entries, _ = collection.read([str(root), str(tmp_path)], [])
    machine = collection.machines(entries)[1]
    assert len(machine.entries) == 4 and all(len(one) == 3 for one in machine.histories().values())
    few = [dataclasses.replace(one, report=dataclasses.replace(one.report, rows=one.report.rows[2:3]))
           for one in machine.entries]
    assert "1 report without a date" in gallery.page(few, [], title="x")


@pytest.mark.parametrize(("label", "told"), [
    ("{root}/day-0=v1@yesterday", "'yesterday' is no date"), ("{root}/nowhere=v1", "no report at or below")])
def test_a_label_that_cannot_be_meant_is_refused(root, label, told):
    with pytest.raises(EdgetlError, match=told):
        collection.read([str(root)], [label.format(root=root)])


def test_the_front_is_what_nothing_beats():
    points = [(1.0, 0.8, 5.0), (2.0, 0.9, 5.0), (2.0, 0.85, 6.0), (3.0, 0.9, 1.0), (1.0, 0.8, None), (1.0, 0.8, 5.0)]
    assert gallery_plots.on_front(points) == [True, True, False, True, False, True]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), st.none() | st.integers(1, 4)), max_size=8))
def test_each_point_off_the_front_is_beaten_by_one_on_it(points):
    best = gallery_plots.on_front(points)
    assert any(best) == bool(points)
    on = [point for point, one in zip(points, best, strict=True) if one]
    for (latency, accuracy, size), one in zip(points, best, strict=True):
        assert one or any(a <= latency and b >= accuracy and (c or 9) <= (size or 9) for a, b, c in on)


def test_names_cannot_break_the_page(root, tmp_path):
    evil = "<script>alert(1)</script> \"'\x1b[31m $x$"
    made = hand_made_history.dated(0)
    row = dataclasses.replace(made.rows[2], measurement=dataclasses.replace(made.rows[2].measurement, case=evil))
    environment = {**made.environment, "cpu": evil}
    named = dataclasses.replace(made, rows=(row,), reference=None, focus=None, environment=environment, notes=(evil,))
    page = gallery.page([entry(evil, named), entry("b", named, 2)], [evil], title=evil)
    assert "<script>alert" not in page and "\x1b" not in page and page.count("<script>") == 1
    page_reader.Reader(page)


def test_cases_without_accuracy_size_or_success_leave_no_hole():
    made = hand_made_history.dated(0)
    bare = dataclasses.replace(made.rows[2], accuracy=None, size_bytes=None, memory_peak_bytes=None, load_s=())
    page = gallery.page([entry("a", dataclasses.replace(made, rows=(bare, made.rows[-1])))], [], title="x")
    assert "front" not in page and "Latency by backend" in page
    failed = gallery.page([entry("a", dataclasses.replace(made, rows=made.rows[-1:]))], [], title="x")
    assert "Nothing was measured" in failed and "<svg" not in failed


def test_many_cases_are_drawn_up_to_a_number_and_all_told(monkeypatch):
    monkeypatch.setattr(gallery, "MOST_DRAWN", 2)
    page = gallery.page([entry("a", hand_made_history.dated(0))], [], title="x")
    assert "3 more cases in the table only." in page


# ----------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_the_page_and_says_what_is_left_out(root, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert app.main(["report", f"{root}/damaged", f"{root}/day-1", "--out", str(out), "--json"]) == 0
    told, errors = capsys.readouterr()
    assert json.loads(told)["page"] == str(out) and len(json.loads(told)["left_out"]) == 1
    assert "damaged/report.json" in errors and "error" not in errors
    assert app.main(["report", str(root), "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert app.main(["report", str(root / "day-0"), "--out", str(out), "--overwrite"]) == 0
    assert capsys.readouterr().out.strip() == str(out)


@pytest.mark.parametrize(("places", "told"), [
    (["nowhere"], "nowhere does not exist"), (["empty"], "There is no report in"),
    (["damaged/report.json"], "cannot be read as JSON")])
def test_without_a_single_report_it_fails_in_a_sentence(root, tmp_path, capsys, places, told):
    (tmp_path / "empty").mkdir()
    place = tmp_path / "empty" if places == ["empty"] else root / places[0]
    assert app.main(["report", str(place), "--out", str(tmp_path / "page.html")]) == 1
    assert told in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_wrong_flags_are_wrong_usage(root, tmp_path, capsys):
    assert app.main(["report", str(root), "--out", str(tmp_path / "p.html"), "--label", "v1"]) == 2
    assert "expected PATH=COMMIT" in capsys.readouterr().err
    assert app.main(["report", "--out", str(tmp_path / "p.html")]) == 2


@pytest.mark.parametrize(("out", "told"), [
    ("", "is a folder; --out names an html file"), ("day-0/report.json/page.html", "report.json is a file"),
    ("day-0/report.json/a/page.html", "report.json is a file"), ("day-0/report.json", "exists already")])
def test_a_place_where_no_page_can_be_is_told_before_anything_is_drawn(root, out, told, monkeypatch):
    monkeypatch.setattr(gallery, "page", None)
    with pytest.raises(OutputError, match=told):
        gallery.write(Gallery(reports=(str(root),), out=str(root / out)))


@pytest.mark.parametrize(("text", "places", "shown"), [
    ("/home/me/r/a/report.json is cut", ["/home/me/r"], "r/a/report.json is cut"),
    ("/home/me/r is cut", ["/home/me", "/home/me/r"], "r is cut"),
    ("a.b/report.json is cut.", ["."], "a.b/report.json is cut."),
    ("a/report.json: the data is a list.", ["a/"], "a/report.json: the data is a list.")])
def test_a_page_names_no_folder_of_the_machine(text, places, shown):
    assert collection.local(text, places) == shown


def test_a_report_of_a_newer_schema_is_left_out_and_named(root, tmp_path):
    folder = hand_made_history.write(tmp_path / "new", hand_made_history.dated(0))
    values = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**values, "schema": report.SCHEMA + 1}))
    entries, problems = collection.read([str(root / "day-1"), str(folder)], [])
    assert len(entries) == 1 and "reads up to" in problems[0]
