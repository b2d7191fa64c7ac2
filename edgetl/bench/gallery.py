"""One html page over many reports: fronts, histories, bars and distributions, machine by machine. It loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl import extras, rundir
from edgetl.bench import collection, gallery_plots, markup, plots, tables
from edgetl.bench.collection import Entry, Found, Key, Machine
from edgetl.bench.gallery_script import SCRIPT
from edgetl.bench.report import COMPLETE, figures
from edgetl.bench.tables import MISSING, Table, legible, megabytes, milliseconds, percent, span
from edgetl.errors import OutputError
from edgetl.events import Event, Listener, ignore
from edgetl.recipe_report import Report as Gallery

STAGE = "report"
TITLE = "Benchmarks"
MOST_DRAWN = 30  # cases of one figure; the tables have all
FRONT = ("Left and up is better. The area of a marker grows with the size of the graph or weights, from one that still "
         "holds its number. A thick rim marks the front: no other is as fast, as right and as small. The dashed line "
         "is the most accuracy to be had up to each latency.")
BARS = "Bars are medians, the line at the end of each is its 95 % interval."
STRIPS = ("A dot is one call, relative to the median of its case; the box holds the middle half, its thick line is "
          "the median, and the whiskers reach the least and the greatest call.")
HISTORY = ("Medians of the reports that have a date, the oldest at the left; upright lines are 95 % intervals. Each "
           "panel has its own scale, which spans at least a tenth of the value.")


@dataclass(frozen=True)
class Page:
    """What was written."""

    path: Path
    left_out: tuple[str, ...]  # a sentence for each file that could not be read
    beside: Path | None = None  # the same in markdown, of a page about a RUN


def write(options: Gallery, *, listener: Listener = ignore) -> Page:
    """The page that was written to `options.out`.

    Args:
        options: what to draw, and where to.
        listener: hears of each file that could not be read.

    Raises:
        EdgetlError: no report can be read; see `collection.read`.
        OutputError: the file exists, or cannot be written.
    """
    extras.require("matplotlib", extra="cli", purpose="A page over reports")
    out = Path(options.out)
    require_place(out, options.overwrite)
    entries, problems = collection.read(options.reports, options.label)
    for problem in problems:
        listener(Event(STAGE, "warning", {"text": f"Left out: {problem}"}))
    # The page is shown to others, whom it does not concern where things lie on this machine.
    shown = [collection.local(problem, options.reports) for problem in problems]
    text = legible(page(entries, shown, title=options.title or TITLE))
    with rundir.explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_text(out, text)
    return Page(out, tuple(problems))


def require_place(out: Path, overwrite: bool) -> None:
    """Returns when a page can be written to `out`.

    Raises:
        OutputError: it cannot, or something lies there that shall stay.
    """
    if out.is_dir():
        raise OutputError(f"{out} is a folder; --out names an html file.", hint=f"Write --out {out / 'index.html'}")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists already.", hint="Choose another --out, or give --overwrite to replace it.")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise OutputError(f"{out} cannot be written: {above} is a file.", hint="Choose another --out.")


def page(entries: Sequence[Entry], problems: Sequence[str], *, title: str) -> str:
    """The whole page.

    Args:
        entries: the reports.
        problems: what to say of files that are left out.
        title: heading of the page.
    """
    found = collection.machines(entries)
    places = {entry.path: f"report-{place}" for place, entry in enumerate(entries, start=1)}
    sections = [(f"machine-{place}", machine.name, "\n".join(_machine(machine, f"machine-{place}", places)))
                for place, machine in enumerate(found, start=1)]
    sections.append(("reports", "Reports", _reports(found, places)))
    header = (f"<h1>{markup.escape(title)}</h1>\n{_lead(entries, found)}"
              f"{markup.warnings([f'Left out: {problem}' for problem in problems])}\n"
              f"{markup.contents([(anchor, name) for anchor, name, _ in sections])}")
    body = "\n".join(markup.section(name, content, anchor=anchor) for anchor, name, content in sections)
    return markup.document(title, header, body, script=SCRIPT)


def _lead(entries: Sequence[Entry], found: Sequence[Machine]) -> str:
    dates = sorted(entry.date for entry in entries if entry.date is not None)
    when = f", measured from {dates[0]:%Y-%m-%d} to {dates[-1]:%Y-%m-%d}" if dates else ""
    apart = " Figures of different machines are never drawn in one series." if len(found) > 1 else ""
    counts = f"{_count(len(entries), 'report')} of {_count(len(found), 'machine')}"
    return (f'<p class="lead">{counts}{when}. For each machine the last measurement of each case is shown first, then '
            f"how it came about.{apart}</p>")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _machine(machine: Machine, anchor: str, places: Mapping[Path, str]) -> Iterator[str]:
    """The sections of one machine."""
    # Cases that differ in nothing but the backend stand side by side in every table and figure.
    latest = sorted(machine.latest(), key=lambda one: (_graph(one), gallery_plots.middle(one).value))
    if not latest:
        yield "<p>Nothing was measured.</p>"
        return
    numbered = list(enumerate(latest, start=1))
    backends = list(dict.fromkeys(one.row.backend for one in latest))
    yield markup.section("Latest measurement of each case", markup.table(
        _latest(numbered), kind="sortable", anchors=[f"{anchor}-case-{number}" for number, _ in numbered],
        links={"measured in": {one.entry.name: places[one.entry.path] for one in latest}}), anchor=f"{anchor}-latest",
        level=3)
    yield from _fronts(numbered, anchor, backends)
    yield from _bars(numbered, anchor, backends)
    shown, rest = numbered[:MOST_DRAWN], _rest(numbered)
    yield markup.section("Latency of every call", markup.figure(
        plots.strips([(number, one.row) for number, one in shown], f"{anchor}-strips", backends), STRIPS + rest,
        tables.spread_of([(number, one.row) for number, one in numbered])), anchor=f"{anchor}-calls", level=3)
    yield _history(machine, {one.key: number for number, one in numbered}, anchor, backends)
    yield _details(machine, anchor)


def _bars(numbered: Sequence[tuple[int, Found]], anchor: str, backends: Sequence[str]) -> Iterator[str]:
    """Bars for each arrival and batch."""
    groups: dict[tuple[str, int], list[tuple[int, Found]]] = {}
    for number, one in numbered:
        groups.setdefault((one.row.measurement.arrival, one.row.batch), []).append((number, one))
    for place, ((arrival, batch), found) in enumerate(groups.items(), start=1):
        drawn = gallery_plots.bars(found[:MOST_DRAWN], f"{anchor}-bars-{place}", backends)
        caption = f"{BARS} The first table of this machine has the figures.{_rest(found)}"
        yield markup.section(f"Latency by backend: {arrival}, batch {batch}", markup.figure(drawn, caption),
                             anchor=f"{anchor}-bars-{place}-heading", level=3)


def _rest(found: Sequence[tuple[int, Found]]) -> str:
    left = len(found) - MOST_DRAWN
    return f" {_count(left, 'more case')} in the table only." if left > 0 else ""


def _graph(one: Found) -> tuple[str, int, int]:
    name = " ".join(word for word in one.row.case.split(" ") if word != one.row.backend)
    return name, one.row.threads, one.row.batch


def _latest(numbered: Sequence[tuple[int, Found]]) -> Table:
    # What decides comes first: a phone shows four columns.
    columns = ("#", "case", "median ms", "accuracy %", "size MB", "95 % interval ms", "p95 ms", "peak MB", "backend",
               "precision", "batch", "arrival", "date", "commit", "measured in")
    rows = []
    for number, one in numbered:
        row, shown, median = one.row, figures(one.row), gallery_plots.middle(one)
        rows.append((str(number), row.case, milliseconds(shown.median_s), percent(shown.accuracy),
                     megabytes(shown.size_bytes), span(median.low, median.high, 1000, 3), milliseconds(shown.p95_s),
                     megabytes(shown.memory_peak_bytes), row.backend, row.precision or MISSING, str(row.batch),
                     row.measurement.arrival, one.entry.when, one.entry.short_commit or MISSING, one.entry.name))
    return Table("Steady-state latency of one call, accuracy on the test images, size of the graph or weights, and "
                 "peak resident memory of the process", columns, tuple(rows))


def _fronts(numbered: Sequence[tuple[int, Found]], anchor: str, backends: Sequence[str]) -> Iterator[str]:
    """A front for each set of test images, arrival and batch: what differs in these is not compared."""
    groups: dict[tuple[str, str, str, int], list[tuple[int, Found]]] = {}
    for number, one in numbered:
        data = one.entry.report.data
        if one.row.accuracy is not None:
            images = (data.name, data.fingerprint) if data is not None else ("", "")
            groups.setdefault((*images, one.row.measurement.arrival, one.row.batch), []).append((number, one))
    for place, ((data_name, _, arrival, batch), found) in enumerate(groups.items(), start=1):
        about = f"{data_name or 'data without a name'}, {arrival}, batch {batch}"
        shown = found[:MOST_DRAWN]
        drawn = gallery_plots.front(shown, f"{anchor}-front-{place}", backends)
        yield markup.section(f"Latency, accuracy and size: {about}", markup.figure(drawn, FRONT, _front(found)),
                             anchor=f"{anchor}-front-{place}-heading", level=3)


def _front(found: Sequence[tuple[int, Found]]) -> Table:
    best = gallery_plots.on_front([gallery_plots.point(one) for _, one in found])
    rows = []
    for (number, one), on in zip(found, best, strict=True):
        latency, accuracy, _ = gallery_plots.point(one)
        assert one.row.accuracy is not None
        rows.append((str(number), one.row.case, milliseconds(latency), percent(accuracy),
                     span(one.row.accuracy.accuracy_low, one.row.accuracy.accuracy_high, 100, 1),
                     megabytes(one.row.size_bytes), "yes" if on else "no"))
    return Table("Latency, accuracy with its 95 % interval, and size", (
        "#", "case", "median ms", "accuracy %", "95 % interval", "size MB", "on the front"), tuple(rows))


def _history(machine: Machine, numbers: Mapping[Key, int], anchor: str, backends: Sequence[str]) -> str:
    """Panels and a table of what was measured more than once."""
    whole = machine.histories()
    if not whole:
        return ""
    series = dict(sorted(whole.items(), key=lambda item: numbers[item[0]]))
    entries = [entry for entry in machine.entries if entry.date is not None]
    shown = dict(list(series.items())[:MOST_DRAWN])
    drawn = gallery_plots.history(shown, [str(entry.path) for entry in entries], numbers, f"{anchor}-history", backends)
    undated = len(machine.entries) - len(entries)
    left = f" {_count(undated, 'report')} without a date: see --label." if undated else ""
    return markup.section("History", markup.figure(drawn, HISTORY + left, _past(series, entries, numbers)),
                          anchor=f"{anchor}-history-heading", level=3)


def _past(series: Mapping[Key, Sequence[Found]], entries: Sequence[Entry], numbers: Mapping[Key, int]) -> Table:
    medians = {(one.entry.path, key): milliseconds(gallery_plots.middle(one).value)
               for key, found in series.items() for one in found}
    rows = tuple((entry.name, entry.when, entry.short_commit or MISSING,
                  *(medians.get((entry.path, key), MISSING) for key in series))
                 for entry in entries if any((entry.path, key) in medians for key in series))
    heads = tuple(f"{numbers[key]} {key.case}, ms" for key in series)
    return Table("Median latency of one call, report after report", ("report", "date", "commit", *heads), rows)


def _details(machine: Machine, anchor: str) -> str:
    last = machine.entries[-1]
    said: dict[str, list[str]] = {}
    for entry in machine.entries:
        for text in tables.notes(entry.report):
            said.setdefault(text, []).append(entry.name)
    remarks = [f"{text} ({', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})"
               for text, names in said.items()]
    told = f"<h4>Warnings of the reports</h4>\n{markup.bullets(remarks)}" if remarks else ""
    return markup.section("Machine and versions", f"<p>As the last report has it, {markup.escape(last.name)}.</p>\n"
                          f"{markup.definitions(last.report.environment)}\n{told}", anchor=f"{anchor}-details", level=3)


def _reports(found: Sequence[Machine], places: Mapping[Path, str]) -> str:
    columns = ("report", "date", "commit", "machine", "cases", "measured", "state")
    lines = [(places[entry.path], (entry.name, entry.when, entry.short_commit or MISSING, machine.name,
                                   str(len(entry.report.rows)), str(sum(row.measured for row in entry.report.rows)),
                                   entry.report.status if entry.report.status != COMPLETE else "whole"))
             for machine in found for entry in machine.entries]
    return markup.table(Table("The reports that this page is drawn from; dates in UTC", columns,
                              tuple(line for _, line in lines)), kind="sortable", anchors=[one for one, _ in lines])
