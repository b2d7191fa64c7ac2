"""The options of `edgetl report`. They are no table of a recipe: the page is drawn from what others left."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.recipe_fields import REQUIRED, opt


@dataclass(frozen=True, kw_only=True)
class Report:
    """`edgetl report`."""

    reports: tuple[str, ...] = opt(
        REQUIRED, "Reports of `edgetl bench`: files, or folders that are searched for them; or one RUN folder.",
        positional=True, given=True)
    out: str = opt(REQUIRED, "The html file to write; that of a RUN gets a .md file beside it.", given=True)
    title: str | None = opt(
        None, "Heading of the page (default: 'Benchmarks', or what the RUN is).", form=(r".*\S.*", "a text"))
    label: tuple[str, ...] = opt(
        (), "PATH=COMMIT[@DATE] for the reports at or below PATH, where they carry none or another; may be repeated.",
        form=(r".+=[^=@]*(@[^=@]+)?", "PATH=COMMIT, PATH=COMMIT@DATE or PATH=@DATE"))
    overwrite: bool = opt(False, "Replace --out if it exists.", given=True)
