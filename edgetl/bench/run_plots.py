"""Curves of a training and the gain over its control, as SVG text that takes its ink from the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.bench import plots
from edgetl.bench.run_record import Curve, Trained
from edgetl.bench.run_tables import loss_names, on_validation

OWN, PLAIN = plots.COLORS[0], plots.COLORS[1]  # with the teacher, without
SOLID, DASHED = "-", (0, (4, 2))


def accuracies(run: Trained) -> str | None:
    """Accuracy, or the task's own score, over the epochs on validation and the training views; None without curves."""
    if not run.curve:
        return None
    kind = "student" if run.teachers else "fine-tuned"
    factor, digits, unit = (100, 1, " %") if run.score is None else (1, 3, "")
    with plots.drawing(3.2) as (figure, axes):
        for name, curve, ink in ((kind, run.curve, OWN), ("control", run.control_curve, PLAIN)):
            if curve:
                _line(axes, curve, "val_accuracy", ink, SOLID, f"{name}, validation", factor)
                _line(axes, curve, "train_accuracy", ink, DASHED, f"{name}, training views", factor)
        last = run.curve[-1].get("step")  # weights are kept of the last one, where a student is cut in steps
        kept = [row for row in run.curve if row.get("step") == last]
        best = max(kept, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        axes.plot([best["epoch"]], [factor * best["val_accuracy"]], "o", markersize=8, color="none",
                  markeredgecolor=plots.INK, clip_on=False)
        axes.set_ylabel(run.score or "accuracy, %")
        _epochs(axes, len(run.curve))
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, fontsize=9)
        told = (f"best validation {run.score or 'accuracy'} {factor * best['val_accuracy']:.{digits}f}{unit} in epoch "
                f"{best['epoch']:.0f}")
        if run.control_curve:
            plain = max(row["val_accuracy"] for row in run.control_curve)
            told += f"; of the control {factor * plain:.{digits}f}{unit}"
        return plots.svg(figure, "accuracy", "Accuracy over the epochs" if run.score is None else
                         f"{run.score} over the epochs", told)


def losses(run: Trained) -> str | None:
    """A panel for the whole loss, each of its terms and the loss on validation; None without curves."""
    names = loss_names(run.curve)
    if not names:
        return None
    with plots.blank(0.5 + 1.25 * len(names)) as figure:
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            _line(axes, run.curve, name, OWN, SOLID, "", 1)
            # The control's whole loss is its term on the labels, which is compared with the student's.
            if run.control_curve and name in run.control_curve[0] and name != "loss":
                _line(axes, run.control_curve, name, PLAIN, DASHED, "", 1)
            axes.set_title(_title(name, run), loc="left", fontsize=10)
        _epochs(panels[-1], len(run.curve))
        told = "; ".join(f"{_title(name, run)}: {run.curve[0][name]:.3g} to {run.curve[-1][name]:.3g}"
                         for name in names)
        return plots.svg(figure, "losses", "Losses over the epochs", told)


def rates(run: Trained) -> str | None:
    """The learning rate over the epochs, and the smallest of a layer where they differ; None where it is not known."""
    known = [row for row in run.curve if "lr" in row]
    if not known:
        return None
    with plots.drawing(2.2) as (figure, axes):
        _line(axes, run.curve, "lr", OWN, SOLID, "head", 1)
        ends = [row["lr_least"] for row in known if row.get("lr_least", 0) > 0]
        if ends:
            _line(axes, run.curve, "lr_least", PLAIN, DASHED, "slowest layer", 1)
            _logarithmic(axes, max(ends))
            axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, fontsize=9)
        else:
            axes.set_ylim(bottom=0)
        axes.set_ylabel("learning rate")
        _epochs(axes, len(run.curve))
        told = f"greatest {max(row['lr'] for row in known):.3g}, {known[-1]['lr']:.3g} after the last epoch"
        told += f"; of the slowest layer greatest {max(ends):.3g}" if ends else ""
        return plots.svg(figure, "rates", "Learning rate over the epochs", told)


def _logarithmic(axes: Any, slowest: float) -> None:
    """A vertical axis on which a layer that moves a thousand times slower is seen; a rate that ends at 0 leaves it."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(bottom=slowest / 100)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
    axes.yaxis.set_minor_formatter(NullFormatter())


def reliability(run: Trained) -> str | None:
    """How right the answers are, by how sure they are, before and after the temperature; None where it is not known."""
    fitted = run.metrics.get("temperature")
    name = next((one for one in ("test", "val") if one in (fitted or {}).get("splits", {})), None)
    if fitted is None or name is None:
        return None
    bins = fitted["splits"][name]["reliability"]
    with plots.blank(4.6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 100], [0, 100], color=plots.INK, linewidth=1, linestyle=":")
        _reliable(above, below, bins["before"], "as trained", PLAIN, "s")
        if "after" in bins:
            _reliable(above, below, bins["after"], "with the temperature", OWN, "o")
        above.set_ylabel("answers that are right, %")
        above.set_ylim(-2, 102)
        above.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, fontsize=9)
        below.set_ylabel("images")
        below.set_xlabel("score of the answer, %")
        below.set_xlim(0, 100)
        return plots.svg(figure, "reliability", "How right the answers are, by how sure they are",
                         _spoken(run.metrics.get(name) or {}, fitted, name))


def _reliable(above: Any, below: Any, bins: Mapping[str, Any], label: str, ink: str, shape: str) -> None:
    """A split's bins: a point each, and how many images each has."""
    points = [(100 * sure, 100 * right) for sure, right in zip(bins["confidence"], bins["accuracy"], strict=True)
              if sure is not None]
    above.plot(*zip(*points, strict=True), color=ink, marker=shape, markersize=5, linewidth=1.4, label=label)
    count = bins["count"]
    edges = [100 * place / len(count) for place in range(len(count) + 1)]
    below.stairs(count, edges, color=ink, linewidth=1.4)


def _spoken(before: Mapping[str, Any], fitted: Mapping[str, Any], name: str) -> str:
    images = f"on {before['n']} images of {name}" if "n" in before else f"on {name}"
    after = fitted["splits"][name].get("ece")
    told = f"calibration error {100 * before['ece']:.1f} points {images}" if "ece" in before else images
    return told if after is None else f"{told}, {100 * after:.1f} at temperature {fitted['value']:.3g}"


def _title(name: str, run: Trained) -> str:
    known = {"loss": "whole loss, training views", "val_loss": f"{on_validation(run)} on validation"}
    return known.get(name, f"term {name}")


def _line(axes: Any, curve: Curve, name: str, ink: str, dashes: Any, label: str, factor: float) -> None:
    points = [(row["epoch"], factor * row[name]) for row in curve if name in row]
    axes.plot(*zip(*points, strict=True), linestyle=dashes, color=ink, linewidth=1.6, label=label or None,
              marker="." if len(points) == 1 else None)


def _epochs(axes: Any, count: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlim(0.5 if count == 1 else 1, max(count, 1.5))


def gain(run: Trained) -> str | None:
    """The gain of each seed and the mean with its interval, beside zero; None where there is none."""
    found = run.metrics.get("gain")
    if not found:
        return None
    differences: Sequence[float] = found["differences"]
    factor = 100 if run.score is None else 1
    rows = len(differences) + 1
    with plots.drawing(0.9 + 0.3 * rows) as (figure, axes):
        axes.axvline(0, color=plots.INK, linewidth=1)
        for place, one in enumerate(differences):
            axes.plot([factor * one], [rows - place], "o", color=OWN, markersize=6)
        low, mean, high = (factor * found[name] for name in ("low", "mean", "high"))
        axes.plot([low, high], [1, 1], color=OWN, linewidth=3, solid_capstyle="butt")
        axes.plot([mean], [1], "D", color=OWN, markeredgecolor=plots.INK, markersize=8)
        names = [*(f"seed {seed}" for seed in found["seeds"]), "mean, 95 %"]
        axes.set_yticks(list(range(rows, 0, -1)), names)
        axes.set_ylim(0.4, rows + 0.6)
        axes.set_xlabel(f"student less control, {'points of test accuracy' if run.score is None else run.score}")
        return plots.svg(figure, "gain", "Gain over the control", found["sentence"])
