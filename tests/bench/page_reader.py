"""Reads a page as a browser and a screen reader do, and insists on what they need."""

from __future__ import annotations

import itertools
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "path", "use", "rect", "input"}


class Reader(HTMLParser):
    """The elements of a page in order, each with its attributes and text, and the path of its parents."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "path": [one["tag"] for one in self.open], **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", "path": [one["tag"] for one in self.open], **dict(attrs)})

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, *tags):
        """The elements of these names."""
        return [element for element in self.elements if element["tag"] in tags]


def assert_can_be_read_aloud(read):
    """Landmarks, headings, tables, figures and links are such that the page makes sense without seeing it."""
    ids = [one["id"] for one in read.elements if "id" in one]
    assert len(ids) == len(set(ids))
    for name in ("href", "xlink:href", "aria-labelledby", "aria-describedby"):
        assert {one[name].removeprefix("#") for one in read.elements if name in one} <= set(ids)
    _assert_landmarks_and_headings(read)
    _assert_tables(read)
    texts = {one["id"]: one["text"] for one in read.all("title", "desc") if "id" in one}
    for one in read.all("svg"):
        assert one["role"] == "img" and texts[one["aria-labelledby"]] and texts[one["aria-describedby"]]
    assert all(one.get("alt") for one in read.all("img"))


def _assert_landmarks_and_headings(read):
    assert [len(read.all(tag)) for tag in ("header", "main", "nav")] == [1, 1, 1]
    body = [one["tag"] for one in read.elements].index("body")
    assert read.elements[body + 1]["href"] == "#content"  # the first stop of a keyboard goes past the contents
    levels = [int(one["tag"][1]) for one in read.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    named = {one["aria-labelledby"] for one in read.all("section")}
    assert named and named <= {one["id"] for one in read.all("h2", "h3") if "id" in one}
    linked = {one["href"] for one in read.all("a") if "nav" in one["path"]}
    assert linked and linked <= {f"#{anchor}" for anchor in named}


def _assert_tables(read):
    tables = read.all("table")
    assert len(tables) == len(read.all("caption"))
    assert all(one.get("scope") in ("col", "row") for one in read.all("th"))
    assert all(("thead" in one["path"]) == (one["scope"] == "col") for one in read.all("th"))
    regions = [one for one in read.all("div") if one.get("role") == "region"]
    assert len(regions) == len(tables) and all(one["tabindex"] == "0" and one["aria-label"] for one in regions)
