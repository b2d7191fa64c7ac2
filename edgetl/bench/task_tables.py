"""Tables of a RUN whose images have more, or something else, than one class: heads, labels or columns of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.bench.run_record import Trained
from edgetl.bench.tables import MISSING, Table
from edgetl.head_metrics import CHOSEN
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS

Figure = tuple[str, float, int]  # what it is called, what it is multiplied with, how many digits are shown
# By name in the record, see `edgetl.head_metrics`.
WHOLE: Mapping[str, Mapping[str, Figure]] = {
    CLASSIFY: {"mean_accuracy": ("mean accuracy of the heads, %", 100, 1)},
    MULTILABEL: {"map": ("mAP", 1, 3), "micro_f1": ("micro-F1", 1, 3), "macro_f1": ("macro-F1", 1, 3),
                 "exact_match": ("exact matches, %", 100, 1)},
    REGRESS: {"r2": ("R2, the mean over the columns", 1, 3)},
}  # fmt: skip
EXPLAINED = {
    CLASSIFY: "The mean over the heads of their accuracy, each on the images whose class is known. Intervals are "
              "Wilson's of shares, of the other figures draws of the images.",
    MULTILABEL: "mAP is the mean over the labels of their average precision, which asks how well the images are "
                "ranked; for F1, precision, recall and exact matches a label is said from a probability of 0.5 on. "
                "Intervals are Wilson's of shares, of the other figures 400 draws of the images.",
    REGRESS: "MAE is the mean absolute error, RMSE the root of the mean squared error, both in the unit of the column. "
             "An R2 of 1 is perfect, one of 0 is as good as saying the mean of these images always. Intervals are "
             "those of 400 draws of the images.",
}  # fmt: skip
# Of one head, label or column: its count, and its figures.
PARTS: Mapping[str, tuple[str, Mapping[str, Figure]]] = {
    CLASSIFY: ("head", {"accuracy": ("accuracy %", 100, 1), "macro_f1": ("macro-F1 %", 100, 1),
                        "ece": ("ECE, points", 100, 1), "nll": ("NLL, nats", 1, 3)}),
    MULTILABEL: ("label", {"ap": ("AP", 1, 3), "precision": ("precision %", 100, 1), "recall": ("recall %", 100, 1),
                           "f1": ("F1 %", 100, 1)}),
    REGRESS: ("column", {"mae": ("MAE", 1, -4), "rmse": ("RMSE", 1, -4), "r2": ("R2", 1, 3)}),
}  # fmt: skip


def kind(run: Trained) -> str:
    """The task of a RUN that has heads."""
    return run.heads[0].kind


def judged(found: Mapping[str, Any]) -> tuple[str, str]:
    """The score of a split's record and its interval, as cells."""
    if "task" not in found:
        return MISSING, MISSING
    name = CHOSEN[found["task"]]
    return tuple(cells(found, name, ("", 1, 3)))  # type: ignore[return-value]  # they are two


def cells(found: Mapping[str, Any], name: str, figure: Figure) -> list[str]:
    """A figure of a record and its interval; a dash where it is not known."""
    _, factor, digits = figure
    value, low, high = (found.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return [MISSING if value is None else number(factor * value, digits),
            MISSING if low is None or high is None else
            f"[{number(factor * low, digits)}, {number(factor * high, digits)}]"]


def number(value: float, digits: int) -> str:
    """So many decimals; where `digits` is below 0, so many significant ones."""
    return f"{value:.{digits}f}" if digits >= 0 else f"{value:.{-digits}g}"


def score(value: float | None) -> str:
    """A score with three decimals; a dash where it is not known."""
    return MISSING if value is None else number(value, 3)


def shown_split(run: Trained) -> str | None:
    """The split whose parts are told: the test split, else validation; None where neither was answered."""
    return next((name for name in ("test", "val") if run.metrics.get(name)), None)


def parts(run: Trained) -> Table:
    """One row a head, label or column, each figure with its interval."""
    name, figures = PARTS[kind(run)]
    counted = ("with it",) if name == "label" else ()
    named = [words for words, *_ in figures.values()]
    columns = (name, "images", *counted,
               *(head for words in named for head in (words, f"interval of {words.split()[0].rstrip(',')}")))
    split = shown_split(run)
    if split is None:
        return Table("", columns, ())
    rows = []
    for label, found in _parts(run.metrics[split]):
        count = (str(found["with_label"]),) if counted else ()
        figured = (cell for key, figure in figures.items() for cell in cells(found, key, figure))
        rows.append((label, str(found["n"]), *count, *figured))
    where = {"test": "test images", "val": "validation images"}[split]
    return Table(f"Each {name} on {where}, with 95 % intervals", columns, tuple(rows))


def _parts(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The name and the record of each head, label or column of a split."""
    if found["task"] == CLASSIFY:
        return list(found["heads"].items())
    rows: Sequence[Mapping[str, Any]] = found["labels" if found["task"] == MULTILABEL else "columns"]
    return [(str(row.get("label", row.get("column"))), row) for row in rows]


def unknown(run: Trained) -> Table:
    """One row a head, label or column of which something is not known: of how many images of each split."""
    found: Mapping[str, Mapping[str, int]] = run.record.get("missing") or {}
    names = {"train": "train", "val": "validation", "test": "test"}
    splits = [split for split in names if split in found]
    rows = [(name, *(str(found[split].get(name, 0)) for split in splits))
            for name in dict.fromkeys(name for split in splits for name in found[split])
            if any(found[split].get(name) for split in splits)]
    return Table("Of how many images it is not known; they are left out of its loss and its figures",
                 (PARTS[kind(run)][0], *(names[split] for split in splits)), tuple(rows))


def temperatures(run: Trained) -> list[str]:
    """What each head's logits are best divided by, in words; none where none was fitted."""
    given = run.metrics.get("temperatures") or {}
    found = [f"{name} {one['value']:.3g}" for name, one in given.items() if one.get("value") is not None]
    return [f"The temperatures that fit validation best: {', '.join(found)}. No answer changes by them; edgetl export "
            "fits one for each graph and head."] if found else []


def tables(run: Trained) -> tuple[Table, ...]:
    """All of these tables that have rows; none of a RUN of one class an image."""
    return tuple(one for one in (parts(run), unknown(run)) if one.rows) if run.heads else ()
