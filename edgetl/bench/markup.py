"""Pieces of an html page that loads nothing and can be read aloud: tables, figures, lists and the page around them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from edgetl.bench.style import STYLE
from edgetl.bench.tables import HEADS, Table, printable, shown

NO_LINKS: Mapping[str, Mapping[str, str]] = {}


def escape(text: str) -> str:
    """Text that others wrote, for the content or an attribute of an element."""
    return html.escape(printable(text))


def document(title: str, header: str, main: str, *, script: str = "") -> str:
    """A whole page with its landmarks.

    Args:
        title: of the window.
        header: what stands before the content: the heading of the page, its lead and its contents.
        main: the sections.
        script: of the page; what it does is a convenience, and the page is whole without it.
    """
    run = f"<script>\n{script}</script>\n" if script else ""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
            f"<style>\n{STYLE}</style>\n</head>\n<body>\n"
            f'<a class="skip" href="#content">Skip to the content</a>\n<header>\n{header}\n</header>\n'
            f'<main id="content" tabindex="-1">\n{main}\n</main>\n{run}</body>\n</html>\n')


def section(title: str, content: str, *, anchor: str, level: int = 2) -> str:
    """A section that is named by its heading; empty where there is nothing in it."""
    if not content:
        return ""
    return (f'<section aria-labelledby="{anchor}">\n<h{level} id="{anchor}">{escape(title)}</h{level}>\n'
            f"{content}\n</section>")


def contents(entries: Sequence[tuple[str, str]]) -> str:
    """Links to sections, of (anchor, title)."""
    links = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in entries)
    return f'<nav aria-label="Contents">\n<ul>{links}</ul>\n</nav>' if entries else ""


def table(found: Table, *, kind: str = "", anchors: Sequence[str] = (),
          links: Mapping[str, Mapping[str, str]] = NO_LINKS) -> str:
    """A table that scrolls sideways on its own where the screen is narrow; empty where it has no rows.

    Args:
        found: what stands in it.
        kind: class of the table for style and script.
        anchors: an id a row.
        links: by column and text of a cell, the anchor that the cell leads to.
    """
    if not found.rows:
        return ""
    head = "".join(f'<th scope="col"{_align(found, column)}>{escape(name)}</th>'
                   for column, name in enumerate(found.columns))
    ids = [f' id="{anchor}"' for anchor in anchors] or [""] * len(found.rows)
    body = "\n".join(f"<tr{one}>{_cells(found, row, links)}</tr>" for one, row in zip(ids, found.rows, strict=True))
    named = f' class="{kind}"' if kind else ""
    return scrolling(f"<table{named}>\n<caption>{escape(found.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
                     f"<tbody>\n{body}\n</tbody>\n</table>", found.caption)


def scrolling(content: str, label: str) -> str:
    """What may be wider than the screen, in a region of its own."""
    # Focusable, so that a keyboard can scroll it too.
    return f'<div class="wide" role="region" tabindex="0" aria-label="{escape(label)}">\n{content}\n</div>'


def _cells(found: Table, row: Sequence[str], links: Mapping[str, Mapping[str, str]]) -> str:
    cells = []
    for column, text in enumerate(row):
        name = 'th scope="row"' if found.columns[column] in HEADS else "td"
        anchor = links.get(found.columns[column], {}).get(text)
        content = escape(text) if anchor is None else f'<a href="#{anchor}">{escape(text)}</a>'
        cells.append(f"<{name}{_align(found, column)}>{content}</{name.split()[0]}>")
    return "".join(cells)


def _align(found: Table, column: int) -> str:
    return ' class="number"' if found.numeric(column) else ""


def figure(svg: str | None, caption: str, data: Table | None = None) -> str:
    """A drawing with its caption, and the same data as a table where no other table of the page has them."""
    if svg is None:
        return ""
    told = "" if data is None else (f"\n<details>\n<summary>The data of this figure as a table</summary>\n"
                                    f"{table(data)}\n</details>")
    return f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>{told}"


def bullets(lines: Sequence[str]) -> str:
    """A list of texts; empty where there are none."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def warnings(lines: Sequence[str]) -> str:
    """A list of warnings that catches the eye; empty where there are none."""
    return f'<aside aria-label="Warnings">{bullets(lines)}</aside>' if lines else ""


def definitions(values: Mapping[str, object]) -> str:
    """Names and values, e.g. those of the machine."""
    lines = "".join(f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(shown(value))}</dd>"
                    for name, value in values.items())
    return f"<dl>{lines}</dl>"
