"""What a recipe's `[gate]` table objects to, once everything was made and measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetl.bench import report
from edgetl.bench.report import Row
from edgetl.errors import GateFailed
from edgetl.plan import FOLDERS
from edgetl.recipe import Gate
from edgetl.runtime.bundle import open_bundle

ROUNDING = 1e-6  # points; the difference of two percentages carries that much of no meaning


def objections(gate: Gate, out: Path, precision: Sequence[str] = ()) -> tuple[str, ...]:
    """What the `[gate]` table objects to, in sentences; accuracies are those of the report's test split.

    Args:
        gate: the limits.
        out: what `edgetl run` wrote.
        precision: what was to be exported; with "int8", each INT8 variant is judged and there must be one.
    """
    if gate.min_teacher_accuracy is None and gate.max_student_drop is None:
        return ()
    rows = report.read(out / FOLDERS["bench"]).rows
    teacher = _accuracies(rows, FOLDERS["finetune"], None)
    found = []
    if gate.min_teacher_accuracy is not None and min(teacher) < gate.min_teacher_accuracy:
        found.append(f"The teacher {_told(rows, min(teacher))}; the recipe asks for {gate.min_teacher_accuracy:g}"
                     f"{_unit(rows)}.")
    if gate.max_student_drop is not None:
        judged = _judged(out / FOLDERS["export"], precision)
        if not judged:
            found.append("The recipe asks for INT8, and the bundle has no INT8 variant to hold against the teacher.")
        for name in judged:
            student = min(_accuracies(rows, FOLDERS["export"], name))
            drop = max(teacher) - student
            if drop > gate.max_student_drop + ROUNDING:
                found.append(f"The bundle's variant {name} {_told(rows, student)}, {drop:.1f} points below the teacher;"
                             f" the recipe allows {gate.max_student_drop:g}.")
    return tuple(found)


def _score(rows: Sequence[Row]) -> str | None:
    return next((row.score.name for row in rows if row.score is not None), None)


def _told(rows: Sequence[Row], value: float) -> str:
    """How right something is, in words; `value` in percent, or in hundredths of the task's score."""
    name = _score(rows)
    return (f"is right on {value:.1f} % of the test images" if name is None else
            f"has {value:.1f} hundredths of {name} on the test images")


def _unit(rows: Sequence[Row]) -> str:
    return " %" if _score(rows) is None else ""


def _judged(bundle: Path, precision: Sequence[str]) -> list[str]:
    """Names of the variants that the gate is about: INT8 where it was asked for, else the default."""
    variants = open_bundle(bundle).manifest.variants
    if "int8" in precision:
        return [variant.name for variant in variants if variant.precision == "int8"]
    return [variants[0].name]


def _accuracies(rows: Sequence[Row], folder: str, variant: str | None) -> list[float]:
    """Percent right, or hundredths of the task's score, of a folder of OUT (and variant) on every backend.

    Folders are told apart by their last name, for OUT may have been moved since the report was made.

    Raises:
        GateFailed: it was measured on none, so the gate cannot be passed.
    """
    own = [row for row in rows if Path(row.source).name == folder and variant in (None, row.variant)]
    found = [100 * row.accuracy.accuracy for row in own if row.accuracy is not None]
    found += [100 * row.score.value for row in own if row.score is not None and row.score.value is not None]
    if not found:
        what = f"the variant {variant} of the bundle" if variant else f"the {folder}"
        raise GateFailed(f"The report has no accuracy of {what}, which the recipe's [gate] needs.",
                         hint="[bench] must name a backend that opens it, and data to measure on.")
    return found
