"""The options of `edgetl compare`. They are no table of a recipe: a comparison is of what was measured already."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.recipe_fields import REQUIRED, opt
from edgetl.recipe_gate import ABOVE_0

PERCENTAGE = (rf"\s*{ABOVE_0}\s*%\s*", "a percentage above 0: 5% or 2.5%")


@dataclass(frozen=True, kw_only=True)
class Compare:
    """`edgetl compare`."""

    base: str = opt(REQUIRED, "Report of `edgetl bench` to compare with: its file or its folder.", positional=True,
                    given=True)
    new: str = opt(REQUIRED, "Report of what is new.", positional=True, given=True)
    max_regression: str | None = opt(
        None, "Exit 3 when a case is slower by more than this beyond doubt, 4 when that cannot be decided.",
        form=PERCENTAGE)
    least_effect: str = opt("3%", "Least change that counts as faster or slower.", form=PERCENTAGE)
    across_machines: bool = opt(
        False, "Compare reports of different machines, roughly, by the kernel that both measured.", given=True)
    out: str | None = opt(
        None, "Folder to write comparison.json, comparison.md and junit.xml to (default: none).", given=True)
    overwrite: bool = opt(False, "Replace --out if it exists.", given=True)
