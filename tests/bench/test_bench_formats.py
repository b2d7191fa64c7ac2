"""The files for other programs: whole, escaped, with units, and with no number that was not measured."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from xml.etree import ElementTree

import hand_made
import pytest
from hand_made_pair import make, row
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.bench import compare, compare_words, formats, html, junit, markdown, report, stats, tables

# What the schemas of Jenkins' xUnit plug-in (junit-10.xsd) allow and demand: attributes, then children.
SHAPE = {
    "testsuites": ({"name"}, {"tests", "failures", "errors", "time"}, ("testsuite",)),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"time", "skipped"}, ("testcase",)),
    "testcase": ({"name"}, {"classname", "time"}, ("skipped", "error", "failure", "system-out")),
    "skipped": (set(), {"message"}, ()),
    "error": ({"type"}, {"message"}, ()),
    "failure": ({"type"}, {"message"}, ()),
    "system-out": (set(), set(), ()),
}
EVIL = "<img src=x onerror=alert(1)> | `x` **b** [l](http://e) \x1b[31m _i_ ~~s~~ &amp; ]]> \udcff"


@pytest.fixture(scope="module")
def made():
    return hand_made.make_report()


def renamed(made, name):
    """The report with one measured case of that name."""
    row = made.rows[2]
    row = dataclasses.replace(row, measurement=dataclasses.replace(row.measurement, case=name))
    return dataclasses.replace(made, rows=(row, made.rows[-1]), reference=None, focus=None)


def assert_shape(element):
    required, optional, children = SHAPE[element.tag]
    assert required <= set(element.attrib) <= required | optional
    assert {child.tag for child in element} <= set(children)
    for child in element:
        assert_shape(child)


def read_suite(text):
    root = ElementTree.fromstring(text)
    assert root.tag == "testsuites"
    assert_shape(root)
    inner = root[0]
    assert int(inner.get("tests")) == len(inner)
    for kind in ("failure", "error"):
        assert int(inner.get(f"{kind}s")) == int(root.get(f"{kind}s")) == len(inner.findall(f"testcase/{kind}"))
    assert int(inner.get("skipped")) == len(inner.findall("testcase/skipped"))
    return inner


def test_junit_has_a_test_a_case_and_says_why_one_failed(made):
    inner = read_suite(junit.page(made))
    assert [case.get("name") for case in inner] == [row.case for row in made.rows]
    failed = inner[-1].find("error")
    assert failed.get("message") == failed.text == "the worker was ended by SIGKILL"
    assert all(len(case) == 1 and "median ms: " in case.find("system-out").text for case in list(inner)[:-1])
    assert float(inner[0].get("time")) == pytest.approx(sum(made.rows[0].measurement.seconds), abs=0.001)
    assert inner[0].get("classname") == "edgetl.bench.torch"


def test_junit_skips_what_was_never_begun(made):
    waiting = dataclasses.replace(made.rows[-1].measurement, status=report.PENDING, reason="the run was broken off")
    rows = (*made.rows[:-1], dataclasses.replace(made.rows[-1], measurement=waiting))
    inner = read_suite(junit.page(dataclasses.replace(made, rows=rows)))
    assert inner[-1].find("skipped").get("message") == "the run was broken off" and inner.get("errors") == "0"


def test_junit_tells_a_failure_from_an_error():
    tests = [junit.Test("a", "g", 0.5), junit.Test("b", "g", 0.25, junit.FAILURE, "5 % slower"),
             junit.Test("c", "g", 0, junit.ERROR, None), junit.Test("d", "g", 0, junit.SKIPPED, "too noisy")]
    inner = read_suite(junit.suite("gate", tests))
    assert [inner.get(name) for name in ("tests", "failures", "errors", "skipped", "time")] == [*"4111", "0.750"]
    assert inner[1].find("failure").get("message") == "5 % slower"
    assert inner[2].find("error").get("message") == "no reason was given"


def test_junit_of_a_comparison_says_no_where_the_gate_does(tmp_path):
    base = make(row("fast", 1, 1), row("slow", 1, 2), row("noisy", 1, 3, between=0.1), row("gone", 1, 4))
    new = make(row("fast", 1, 5), row("slow", 1.4, 6), row("noisy", 1.05, 7, between=0.1), row("late", 1, 8))
    for limit, outcomes in ((0.05, ["system-out", "failure", "error", "error", "skipped"]),
                            (None, ["system-out", "system-out", "system-out", "skipped", "skipped"])):
        found = compare.of_reports(base, new, max_regression=limit)
        compare_words.write(found, tmp_path / "out", overwrite=True)
        inner = read_suite((tmp_path / "out/junit.xml").read_text())
        assert [case.get("name") for case in inner] == ["fast", "slow", "noisy", "gone", "late"]
        assert [case[0].tag for case in inner] == outcomes
        assert inner[1].find("system-out").text.startswith("slower: ")
    assert inner[3].find("skipped").get("message") == "not compared: only in BASE"


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_junit_holds_any_text(text):
    inner = read_suite(junit.suite(text, [junit.Test(text, text, 1, junit.FAILURE, text or None, text)]))
    # XML itself turns carriage returns into line feeds; all else comes back as it was made printable.
    assert inner[0].get("name") == tables.printable(text)


def test_csv_has_a_line_a_case_and_units_in_its_columns(made):
    lines = list(csv.DictReader(io.StringIO(formats.comma_separated(made))))
    assert [line["case"] for line in lines] == [row.case for row in made.rows]
    first, failed = lines[2], lines[-1]
    median = stats.median_interval(made.rows[2].measurement.by_round())
    assert float(first["median_s"]) == median.value and float(first["median_low_s"]) == median.low
    assert float(first["p95_s"]) > median.value and first["p99_s"] == ""  # 250 calls bound no p99
    assert first["size_bytes"] == "3400000" and first["backend"] == "cpu" and first["arrival"] == "back-to-back"
    assert failed["median_s"] == failed["speedup"] == "" and failed["reason"] == "the worker was ended by SIGKILL"
    numbers = set(first) - {"case", "status", "reason", "source", "kind", "backend", "variant", "precision", "arrival"}
    plain = {"threads", "batch", "calls", "rounds", "speedup", "accuracy", "accuracy_low", "accuracy_high",
             "score", "score_name", "score_low", "score_high"}
    assert all(name.endswith(("_s", "_bytes", "_ips")) for name in numbers - plain)


def test_csv_has_every_figure_of_the_summary(made):
    columns = set(csv.DictReader(io.StringIO(formats.comma_separated(made))).fieldnames)
    assert {field.name for field in dataclasses.fields(report.Figures)} <= columns


def test_csv_lets_no_name_be_a_formula(made):
    text = formats.comma_separated(renamed(made, '=HYPERLINK("http://e")\nx'))
    assert next(csv.DictReader(io.StringIO(text)))["case"] == '\'=HYPERLINK("http://e") x'


def test_csv_of_no_case_has_a_head(made):
    assert formats.comma_separated(dataclasses.replace(made, rows=())) == "case\n"


def test_the_action_gets_what_it_reads(made):
    entries = json.loads(formats.action(made))
    assert all(set(entry) - {"range"} == {"name", "unit", "value", "extra"} for entry in entries)
    assert all(isinstance(entry["value"], float) and math.isfinite(entry["value"]) for entry in entries)
    by_name = {entry["name"]: entry for entry in entries}
    assert len(by_name) == len(entries)
    found = by_name["bundle x86-vnni.int8 cpu: median latency"]
    median = stats.median_interval(made.rows[2].measurement.by_round())
    assert found["unit"] == "ms" and found["value"] == pytest.approx(1000 * median.value)
    assert found["range"].startswith("± 0.0") and "back-to-back, batch 1, on AMD EPYC" in found["extra"]
    assert by_name["bundle x86-vnni.int8 cpu: wrong answers"]["value"] == pytest.approx(15.0)
    assert not any("SIGKILL" in name or name.startswith("bundle fp32 openvino") for name in by_name)
    assert not any("p99" in name for name in by_name)  # of 250 calls


def test_markdown_escapes_what_others_wrote(made):
    text = markdown.page(renamed(made, EVIL))
    line = next(line for line in text.splitlines() if "onerror" in line)
    assert "<img" not in text and "&lt;img src=x onerror=alert(1)&gt;" in line
    assert r"\| \`x\` \*\*b\*\* \[l\](http://e)" in line and r"\_i\_ \~\~s\~\~ &amp;amp; ]]&gt;" in line
    assert "\x1b" not in text and r"\\x1b" in line and "mobilenet_v2" in markdown.escape("mobilenet_v2")
    assert markdown.bullets(["# x", "1. y", "- z", "[1.2, 3]"]).splitlines() == ["- \\# x", "- 1\\. y", "- \\- z",
                                                                                 "- [1.2, 3]"]


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=st.sampled_from(list("<>|`*[]()!_~\\&a1 \n\r\t\x00\u2028#")), max_size=30))
def test_a_cell_of_markdown_is_one_line_without_tags(text):
    escaped = markdown.escape(text)
    assert not set("<>\n\r\x00\u2028") & set(escaped)
    assert "|" not in escaped.replace("\\\\", "").replace("\\|", "")


def test_markdown_stays_within_a_job_s_summary(made):
    assert "left out" not in markdown.page(made)
    names = [f"{number} {'x' * 2000}" for number in range(1000)]
    many = dataclasses.replace(made, notes=tuple(names))
    text = markdown.page(many)
    assert len(text.encode()) < 1024 ** 2 and text.startswith("# Benchmark\n\n## Steady-state")
    assert "sections are left out here" in text and text.rstrip().endswith("report.html has all.")


def test_a_name_with_anything_in_it_breaks_no_format(made):
    odd = renamed(made, EVIL)
    for name, text in formats.texts(odd).items():
        assert text.encode() and "\x1b" not in text, name
    read_suite(formats.texts(odd)[formats.JUNIT])
    assert "<img src=x" not in html.page(odd, {})
