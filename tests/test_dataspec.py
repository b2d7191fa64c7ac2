"""The paths within what --data says: made absolute, anchored to a recipe, and cut for pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl import dataspec
from edgetl.bench import run_record
from edgetl.export import private

URLS = "shards:train=s3://bucket/a/{0..9}.tar;val=https://h.example/b/c.tar?key=secret;label=kind"


@pytest.mark.parametrize(("spec", "full"), [
    ("photos", "{here}/photos"), ("digits", "digits"), ("elpv:majority", "elpv:majority"),
    ("csv:photos.csv", "csv:{here}/photos.csv"), ("shards:t-{000..9}.tar", "shards:{here}/t-{000..9}.tar"),
    ("shards:train=a/*.tar;val=b/x.tar;label=kind;classes=c.txt",
     "shards:train={here}/a/*.tar;val={here}/b/x.tar;label=kind;classes={here}/c.txt"),
    (URLS, URLS), ("shards:", "shards:"),
])
def test_a_spec_that_is_found_from_any_folder(spec: str, full: str, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert dataspec.absolute(spec) == full.replace("{here}", str(tmp_path))


def test_a_path_that_begins_with_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dataspec.absolute("shards:~/a.tar") == f"shards:{tmp_path}/a.tar"


def test_paths_of_a_recipe_count_from_its_folder_where_something_is_there(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "a.csv").touch()
    here = str(tmp_path)
    for spec in ("sets", "csv:a.csv", "shards:sets/{000..009}.tar", "shards:sets/*/x.tar", "shards:val=sets/[ab].tar"):
        scheme, colon, path = spec.rpartition(":")
        name, equals, path = path.rpartition("=")
        assert dataspec.anchored(spec, tmp_path) == f"{scheme}{colon}{name}{equals}{here}/{path}"
    for spec in ("digits", "csv:b.csv", "shards:elsewhere/{0..9}.tar", URLS, ""):
        assert dataspec.anchored(spec, tmp_path) == spec


def test_what_is_shown_to_others_names_no_folder_and_no_key() -> None:
    spec = "shards:train=/home/me/t-{0..9}.tar;val=https://h.example/b/c.tar?key=secret;label=kind"
    short = "shards:train=t-{0..9}.tar;val=c.tar;label=kind"
    assert dataspec.without_folders(spec) == short
    assert private.final_name(spec) == short
    assert dataspec.without_folders("csv:/home/me/a.csv") == private.final_name("csv:/home/me/a.csv") == "csv:a.csv"
    assert run_record._without_places(f'data = "{spec}"\nout = "/home/me/run"') == f'data = "{short}"\nout = "run"'
