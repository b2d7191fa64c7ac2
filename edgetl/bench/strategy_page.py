"""The pages of a comparison of strategies: html, markdown and csv, all from what strategies.json says."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetl import rundir
from edgetl.bench import markdown, markup, plots
from edgetl.bench.formats import cell
from edgetl.bench.tables import MISSING, Table, legible, percent, shown, span

PAGE, TEXT, LINES = "strategies.html", "strategies.md", "strategies.csv"
TITLE = "Strategies of fine-tuning"
Found = Mapping[str, Any]  # strategies.json


def write(folder: Path, found: Found) -> None:
    """Writes the three files into a folder.

    Raises:
        OutputError: it cannot be written.
    """
    rundir.write_text(folder / PAGE, legible(page(found)))
    rundir.write_text(folder / TEXT, legible(markdown_page(found)))
    rundir.write_text(folder / LINES, legible(comma_separated(found)))


def sentences(found: Found) -> list[str]:
    """The result in a few sentences: the best, what cannot be told apart, what to take, and the test."""
    return [*found["verdict"]["sentences"], found["test_sentence"]]


def page(found: Found) -> str:
    """The whole html page."""
    sections = [(name, content) for name, content in _sections(found) if content]
    body = "\n".join(markup.section(name, content, anchor=f"section-{place}")
                     for place, (name, content) in enumerate(sections))
    entries = [(f"section-{place}", name) for place, (name, _) in enumerate(sections)]
    lead = "".join(f'<p class="lead">{markup.escape(one)}</p>' for one in sentences(found))
    heading = f"{TITLE}: {found['data']['name']}"
    return markup.document(heading, f"<h1>{markup.escape(heading)}</h1>\n{lead}\n{markup.contents(entries)}", body)


def _sections(found: Found) -> list[tuple[str, str]]:
    summed, score = summary(found), _score(found, "Accuracy")
    caption = f"Bars are 95 % intervals, small dots single {found['repeats']['kind']}. The ring is what is recommended."
    return [
        ("Summary", markup.table(summed)),
        (score, markup.figure(accuracies(found), caption)),
        (f"{score} against time", markup.figure(against_time(found), "Up and to the left is better; the numbers are "
                                                                     "those of the summary.")),
        ("Every two compared", markup.table(pairs(found))),
        ("Not trained", markup.table(failures(found))),
        ("How this was made", markup.bullets(found["notes"])),
        ("Data and options", markup.definitions(_conditions(found))),
    ]


def _score(found: Found, accuracy: str = "accuracy") -> str:
    """What is compared; of one class an image that is accuracy, in the letters given."""
    return str(found.get("score", accuracy))


def markdown_page(found: Found) -> str:
    """The same in markdown, but for the drawings."""
    tables = [one for one in (summary(found), pairs(found), failures(found)) if one.rows]
    conditions = [f"{name}: {shown(value)}" for name, value in _conditions(found).items()]
    return markdown.limited([f"# {markdown.escape(TITLE)}: {markdown.escape(found['data']['name'])}",
                             markdown.bullets(sentences(found)), *map(markdown.table, tables),
                             f"## How this was made\n\n{markdown.bullets(found['notes'])}",
                             f"## Data and options\n\n{markdown.bullets(conditions)}"])


def _conditions(found: Found) -> dict[str, Any]:
    images, repeats, machine = found["data"]["images"], found["repeats"], found["environment"]
    return {"data": found["data"]["name"], "images": images, "teacher": found["options"]["teacher"],
            "epochs": found["epochs"], repeats["kind"]: repeats["count"],
            **{name: machine.get(name) for name in ("cpu", "cpus", "platform", "python", "versions")}}


def summary(found: Found) -> Table:
    """One row a strategy that was trained, the most accurate first."""
    best, alike = found["verdict"]["best"], found["verdict"]["alike"]
    against = {pair["second"]: pair for pair in found["pairs"] if pair["first"] == best}
    columns = ("#", "strategy", f"{_score(found)} %", "95 % interval", "macro-F1 %", "seconds a training",
               "points to the best", "95 % of that", "p, adjusted", "verdict")
    rows = []
    for number, row in enumerate(trained(found), start=1):
        pair, name = against.get(row["strategy"]), row["strategy"]
        told = ["best" if name == best else "not distinguishable" if name in alike else _worse(pair),
                *(["recommended"] if name == found["verdict"]["recommended"] else [])]
        rows.append((str(number), name, percent(row["accuracy"]), span(row["low"], row["high"], 100, 1),
                     percent(row["macro_f1"]), _seconds(row["median_s"]), *_difference(pair), ", ".join(told)))
    kind, count = found["repeats"]["kind"], found["repeats"]["count"]
    return Table(f"{_score(found, 'Accuracy')} on {_measured_on(found)}; {_counted(count, kind)}, "
                 f"{_counted(found['epochs'], 'epochs')} each", columns, tuple(rows))


def _worse(pair: Mapping[str, Any] | None) -> str:
    return "significantly worse" if pair is not None and pair["significant"] else "worse before the adjustment"


def _counted(count: int, plural: str) -> str:
    return f"{count} {plural if count > 1 else plural.removesuffix('s')}"


def trained(found: Found) -> list[Mapping[str, Any]]:
    """The rows of strategies that have a result."""
    return [row for row in found["rows"] if row["reason"] is None]


def _measured_on(found: Found) -> str:
    return "validation images" if found["repeats"]["kind"] == "seeds" else "images that were held out in turn"


def _difference(pair: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if pair is None:
        return MISSING, MISSING, MISSING
    return (f"{-100 * pair['difference']:+.1f}", span(-pair["high"], -pair["low"], 100, 1, sign="+"),
            _chance(pair["adjusted"]))


def _chance(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _seconds(seconds: float | None) -> str:
    return MISSING if seconds is None else f"{seconds:.1f}"


def pairs(found: Found) -> Table:
    """One row for every two strategies: the first, which is the more accurate, less the second."""
    columns = ("strategy", "less", "points", "95 % interval", "p", "p, adjusted", "verdict")
    rows = tuple((pair["first"], pair["second"], f"{100 * pair['difference']:+.1f}",
                  span(pair["low"], pair["high"], 100, 1, sign="+"), _chance(pair["p_value"]),
                  _chance(pair["adjusted"]), "significant" if pair["significant"] else "not significant")
                 for pair in found["pairs"])
    return Table("Every two strategies, paired image by image; verdicts by the adjusted p-value, at 5 %", columns, rows)


def failures(found: Found) -> Table:
    """One row a strategy that could not be trained."""
    rows = tuple((row["strategy"], row["reason"]) for row in found["rows"] if row["reason"] is not None)
    return Table("Strategies that could not be trained, and why", ("strategy", "reason"), rows)


def comma_separated(found: Found) -> str:
    """CSV with one line a strategy, units in the names of the columns; what was not measured is an empty cell."""
    columns = ("strategy", "status", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "trainings", "median_s",
               "difference_to_best", "p_adjusted_to_best", "alike_best", "recommended", "reason")
    against = {pair["second"]: pair for pair in found["pairs"] if pair["first"] == found["verdict"]["best"]}
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(columns)
    for row in found["rows"]:
        name, pair = row["strategy"], against.get(row["strategy"])
        writer.writerow((cell(name), "failed" if row["reason"] is not None else "trained", row["accuracy"], row["low"],
                         row["high"], row["macro_f1"], len(row["accuracies"]), row["median_s"],
                         None if pair is None else -pair["difference"], None if pair is None else pair["adjusted"],
                         name in found["verdict"]["alike"], name == found["verdict"]["recommended"],
                         cell(row["reason"])))
    return target.getvalue()


def accuracies(found: Found) -> str:
    """A line a strategy: its interval, its mean, and a dot for each training."""
    made = trained(found)
    with plots.drawing(0.9 + 0.42 * len(made)) as (figure, axes):
        for place, row in enumerate(made):
            height = len(made) - place
            axes.plot([100 * row["low"], 100 * row["high"]], [height, height], color=plots.COLORS[0], linewidth=3,
                      solid_capstyle="butt", alpha=0.6)
            axes.plot([100 * one for one in row["accuracies"]], [height] * len(row["accuracies"]), ".",
                      color=plots.INK, markersize=5, alpha=0.7)
            axes.plot([100 * row["accuracy"]], [height], "D", color=plots.COLORS[0], markeredgecolor=plots.INK)
            if row["strategy"] == found["verdict"]["recommended"]:
                axes.plot([100 * row["accuracy"]], [height], "o", color="none", markeredgecolor=plots.INK,
                          markersize=15)
        axes.set_yticks(range(len(made), 0, -1), [plots.brief(row["strategy"], 28) for row in made])
        axes.set_ylim(0.4, len(made) + 0.6)
        axes.set_xlabel(f"{_score(found)} on {_measured_on(found)}, %")
        title = f"{_score(found, 'Accuracy')} of each strategy"
        return plots.svg(figure, "strategies", title, "; ".join(map(_spoken, made)))


def against_time(found: Found) -> str | None:
    """A numbered point a strategy: accuracy over the seconds of a training; None where no time is known."""
    made = [(number, row) for number, row in enumerate(trained(found), start=1) if row["median_s"]]
    if not made:
        return None
    with plots.drawing(3.0) as (figure, axes):
        for place, (number, row) in enumerate(made):
            ink, at = plots.COLORS[place % len(plots.COLORS)], (row["median_s"], 100 * row["accuracy"])
            axes.plot([at[0]] * 2, [100 * row["low"], 100 * row["high"]], color=ink, linewidth=1, alpha=0.5)
            axes.plot(*([one] for one in at), "o", color=ink, markersize=13)
            axes.annotate(str(number), at, ha="center", va="center", color=plots.ON_COLOR, fontsize=9)
        seconds = [row["median_s"] for _, row in made]
        if max(seconds) > 3 * min(seconds):
            plots.logarithmic(axes)
        axes.margins(x=0.12, y=0.15)
        axes.set_xlabel("seconds of a training (left is quicker)")
        axes.set_ylabel(f"{_score(found)}, %")
        told = "; ".join(f"{number} {_spoken(row)}, {row['median_s']:.1f} s" for number, row in made)
        return plots.svg(figure, "time", f"{_score(found, 'Accuracy')} against the time of a training", told)


def _spoken(row: Mapping[str, Any]) -> str:
    return f"{row['strategy']}: {percent(row['accuracy'])} %"
