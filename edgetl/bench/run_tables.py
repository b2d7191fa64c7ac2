"""A RUN as tables of text, drawn alike by markdown and html."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgetl import metrics
from edgetl.bench import task_tables
from edgetl.bench.run_record import CONTROL, Curve, Trained
from edgetl.bench.tables import MISSING, Table, percent, span

SHOWN_DIGITS = 16  # of a digest; run.json has all


def summary(run: Trained) -> Table:
    """One row each for the teachers, the model of the RUN and its control: how right, and how large."""
    unit, more = (" %", ("macro-F1 %",)) if run.score is None else ("", ())
    columns = ("case", f"test{unit}", "95 % interval", f"validation{unit}", *more, "parameters", "kept %",
               "multiplications", "model")
    whole = run.teachers[0].get("parameters") if run.teachers else None
    kind = "student" if run.teachers else "fine-tuned"
    rows = [_who(_numbered("teacher", place, len(run.teachers)), one, _right(one.get("metrics", {}), run), None)
            for place, one in enumerate(run.teachers, start=1)]
    rows.append(_who(kind, run.record, _right(run.metrics, run), whole))
    if CONTROL in run.metrics:
        rows.append(_who("control: no teacher", run.record, _right(run.metrics[CONTROL], run), whole))
    judged = "Accuracy" if run.score is None else _capital(run.score)
    return Table(f"{judged}, size and work of one image, in multiply-accumulates", columns, tuple(rows))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _numbered(name: str, place: int, of: int) -> str:
    return name if of == 1 else f"{name} {place}"


def _right(found: Mapping[str, Any], run: Trained) -> tuple[str, ...]:
    """How right a model of the RUN is by the splits' records: cells of the summary."""
    test, val = found.get("test") or {}, found.get("val") or {}
    if run.score is not None:
        return (*task_tables.judged(test), task_tables.judged(val)[0])
    return (percent(test.get("accuracy")), span(test.get("accuracy_low"), test.get("accuracy_high"), 100, 1),
            percent(val.get("accuracy")), percent(test.get("macro_f1")))


def _who(name: str, about: Mapping[str, Any], right: tuple[str, ...], whole: int | None) -> tuple[str, ...]:
    parameters = about.get("parameters")
    return (name, *right, _whole(parameters), percent(parameters / whole) if whole and parameters else MISSING,
            _whole(about.get("macs")), str(about.get("model") or MISSING))


def _whole(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def gain(run: Trained) -> Table:
    """One row a seed: student, control, and what lies between them."""
    found = run.metrics.get("gain")
    columns = (("seed", "student %", "control %", "gain, points") if run.score is None else
               ("seed", "student", "control", "gain"))
    if not found:
        return Table("", columns, ())
    lines = zip(found["seeds"], found["student"], found["control"], found["differences"], strict=True)
    rows = [(str(seed), percent(ours), percent(plain), f"{100 * more:+.1f}") if run.score is None else
            (str(seed), f"{ours:.3f}", f"{plain:.3f}", f"{more:+.3f}") for seed, ours, plain, more in lines]
    best = f"; this page is that of seed {run.record['best_seed']}, the best on validation" if len(rows) > 1 else ""
    judged = "Accuracy" if run.score is None else _capital(run.score)
    return Table(f"{judged} on {found['images']} test images with the teacher and without{best}", columns, tuple(rows))


def teachers(run: Trained) -> Table:
    """One row a teacher: which weights taught, and what ran them."""
    rows = []
    for place, one in enumerate(run.teachers, start=1):
        key = "teacher_engine" if place == 1 else f"teacher_engine_{place}"
        ran = run.record.get("choices", {}).get(key)
        engine = f"{ran['name']} {ran.get('version') or ''}".strip() if ran else "torch, beside the student"
        size = f"{4 * one['parameters'] / 1e6:.1f}" if one.get("parameters") else MISSING
        rows.append((_numbered("teacher", place, len(run.teachers)), str(one.get("model")), size, engine,
                     str(one.get("sha256", MISSING))[:SHOWN_DIGITS]))
    return Table("Who taught: size of the weights in fp32, what ran it, and how the digest of its file begins",
                 ("case", "model", "MB", "engine", "sha256"), tuple(rows))


def steps(run: Trained) -> Table:
    """One row a cut of a student that was cut in steps: what was left, and what the training after it mended."""
    rows = tuple((str(one["step"]), percent(one["kept"]), _whole(one["parameters"]), percent(one["macs_kept"]),
                  *(percent(one[name]) if run.score is None else task_tables.score(one[name])
                    for name in ("val_accuracy_before", "val_accuracy_after")))
                 for one in run.record.get("steps", ()))
    ends = ("before %", "after %") if run.score is None else ("before", "after")
    return Table(f"The cuts, and the validation {run.score or 'accuracy'} before and after the training that follows "
                 "each", ("step", "kept %", "parameters", "kept multiplications %", *ends), rows)


def confusions(run: Trained) -> list[tuple[str, tuple[str, ...], Mapping[str, Any]]]:
    """Where an image has classes: what precedes the answers of a head, its classes, and its record on the test split.

    Empty without test images.
    """
    test = run.metrics.get("test")
    if not test:
        return []
    if not run.heads:
        return [("", run.labels, test)]
    found = test.get("heads", {})
    return [(f"{head.name}: ", head.labels, found[head.name]) for head in run.heads if head.name in found]


def classes(run: Trained) -> tuple[Table, ...]:
    """One row a class: recall, precision and F1, each with its 95 % interval; of several heads a table each."""
    columns = ("true class", "images", "recall %", "95 % interval", "precision %", "interval of precision", "F1 %",
               "interval of F1")
    found = []
    for name, labels, test in confusions(run):
        matrix = np.asarray(test["confusion"])
        rows = [(label, *_class(int(matrix[place, place]), int(matrix[place].sum()), int(matrix[:, place].sum())))
                for place, label in enumerate(labels)]
        found.append(Table(f"{name}{'e' if name else 'E'}ach class on {test['n']} test images; intervals are Wilson's",
                           columns, tuple(rows)))
    return tuple(found)


def _class(hits: int, images: int, answered: int) -> tuple[str, ...]:
    """Cells of a class; what no image or answer tells anything of is a dash."""
    recall, precision = ((percent(hits / n), span(*metrics.wilson_interval(hits, n), 100, 1)) if n else
                         (MISSING, MISSING) for n in (images, answered))
    seen = images + answered - hits
    f1 = ((percent(2 * hits / (images + answered)),
           span(*metrics.f1_interval(hits, images - hits, answered - hits), 100, 1)) if seen else (MISSING, MISSING))
    return (str(images), *recall, *precision, *f1)


def accuracy_curve(run: Trained) -> Table:
    """One row an epoch: accuracy on validation and on the training views, the control's beside."""
    unit, told = (" %", lambda value: f"{100 * value:.1f}") if run.score is None else ("", task_tables.score)
    names = {"val_accuracy": f"validation{unit}", "train_accuracy": f"training{unit}"}
    heads, rows = _beside(run.curve, run.control_curve, names, told)
    return Table(f"{_capital(run.score or 'accuracy')} after each epoch", ("epoch", *heads), rows)


def loss_curve(run: Trained) -> Table:
    """One row an epoch: the whole loss, each of its terms unweighted, and the loss on validation."""
    names = {name: name.replace("_", " ") for name in loss_names(run.curve)}
    heads, rows = _beside(run.curve, run.control_curve, names, lambda value: f"{value:.4g}")
    return Table("Loss in each epoch: the whole, its terms before their weights, and the "
                 f"{on_validation(run)} on validation", ("epoch", *heads), rows)


def on_validation(run: Trained) -> str:
    """What the loss on validation is called."""
    return "cross-entropy" if run.score is None else "loss of the labels"


def rate_curve(run: Trained) -> Table:
    """One row an epoch: the learning rate at its end, and the smallest of any layer where they differ."""
    names = {"lr": "learning rate", "lr_least": "smallest of a layer"}
    kept = {name: head for name, head in names.items() if any(name in row for row in run.curve)}
    heads, rows = _beside(run.curve, (), kept, lambda value: f"{value:.3g}")
    return Table("Learning rate at the end of each epoch", ("epoch", *heads), rows if kept else ())


def loss_names(curve: Curve) -> list[str]:
    """Names of what is a loss in a curve: the whole first, validation's last."""
    known = ("step", "epoch", "train_accuracy", "val_accuracy", "images_per_s", "lr", "lr_least", "loss",
             "val_loss")
    terms = [name for name in (curve[0] if curve else ()) if name not in known]
    return ["loss", *(terms if len(terms) > 1 else ()), "val_loss"] if curve else []


def _beside(curve: Curve, control: Curve, names: Mapping[str, str], told: Any
            ) -> tuple[list[str], tuple[tuple[str, ...], ...]]:
    """Heads and rows of some values of a curve, those of the control beside them where it has them too."""
    both = [name for name in names if control and name in control[0]]
    heads = [*names.values(), *(f"control, {names[name]}" for name in both)]
    rows = []
    for place in range(max(len(curve), len(control))):
        ours = curve[place] if place < len(curve) else {}
        plain = control[place] if place < len(control) else {}
        cells = [*(ours.get(name) for name in names), *(plain.get(name) for name in both)]
        rows.append((str(place + 1), *(MISSING if one is None else told(one) for one in cells)))
    return heads, tuple(rows)


def tables(run: Trained) -> tuple[Table, ...]:
    """All tables that have rows but the curves, the summary first."""
    found = (summary(run), gain(run), steps(run), *task_tables.tables(run), *classes(run), teachers(run))
    return tuple(one for one in found if one.rows)
