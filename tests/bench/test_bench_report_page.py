"""docs/report.md is enough to write a reader: every field is there, in its order, and no other."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import types
import typing
from pathlib import Path

import hand_made
import pytest

from edgetl.bench import energy, environment, formats, provenance, report, watch

PAGE = (Path(__file__).parents[2] / "docs/report.md").read_text()


def kinds(hint, found):
    """Every dataclass that a type is made of."""
    if dataclasses.is_dataclass(hint):
        if hint not in found:
            found.append(hint)
            for inner in typing.get_type_hints(hint).values():
                kinds(inner, found)
    elif isinstance(hint, types.UnionType) or typing.get_origin(hint) is not None:
        for inner in typing.get_args(hint):
            kinds(inner, found)
    return found


KINDS = kinds(report.Figures, kinds(report.Report, []))


def section(title):
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n")[1], flags=re.MULTILINE)[0]


def fields(title):
    return re.findall(r"^\| `([\w.]+)` \| \S", section(title), re.MULTILINE)


def test_the_types_are_found():
    assert {kind.__name__ for kind in KINDS} >= {"Report", "Row", "Measurement", "Accuracy", "Interval", "Figures"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_described_and_no_other(kind):
    assert fields(kind.__name__) == [one.name for one in dataclasses.fields(kind)]


def test_every_field_of_the_environment_is_described(tmp_path):
    made = {**environment.fingerprint(), **provenance.record(tmp_path, {}), "allocator": None}
    assert fields("environment") == list(made)


def test_every_word_of_the_sensors_is_described():
    text = section("sensors")
    for one in dataclasses.fields(energy.Energy):
        assert f"`{one.name}`" in text
    states = iter([watch.State(1, 40.0, {"core_throttle_count": 0}, None, ()),
                   watch.State(1, 41.0, {"core_throttle_count": 2}, None, ())])
    seen = watch.Watch(lambda: next(states))
    seen.before_round()
    seen.after_round("a")
    assert fields("sensors") == ["energy", "energy_reason", "gpu_memory_bytes", *seen.of("a")]


def test_the_file_has_what_the_page_says():
    values = json.loads(report.dumps(hand_made.make_report()))
    assert set(values) == {*fields("Report"), "summary"}
    assert list(values["summary"][0]) == fields("Figures")
    assert f"`schema` other than {report.SCHEMA}" in PAGE


def test_every_file_beside_it_and_every_column_is_described():
    named = re.findall(r"^\| `([\w.-]+)` \|", PAGE.partition("\n## ")[0], re.MULTILINE)
    assert set(named) == {*formats.TEXTS, "report.json", report.HTML, "recipe.toml"}
    table = csv.DictReader(io.StringIO(formats.comma_separated(hand_made.make_report())))
    told = re.findall(r"`(\w+)`", section("report.csv"))
    assert set(table.fieldnames) == set(told) | set(fields("Figures"))


def test_links_lead_somewhere():
    heads = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in re.findall(r"^#+ (.*)$", PAGE, re.M)}
    links = re.findall(r"\]\(#([\w-]+)\)", PAGE)
    assert links and set(links) <= heads
