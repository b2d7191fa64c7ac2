"""Reports from many places, put in order: by machine, since figures of two machines are no series, and by date."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetl import rundir
from edgetl.bench import environment, report
from edgetl.bench.report import Report, Row
from edgetl.errors import EdgetlError

MARKS = ("schema", "rows", "environment")  # a json object with these is meant to be a report
UNDATED = datetime.datetime.min.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Entry:
    """A report and where it belongs."""

    name: str  # its place below what the command named, which is all that others need to know of it
    path: Path
    report: Report
    commit: str | None
    date: datetime.datetime | None  # with a zone

    @property
    def when(self) -> str:
        """The date to the minute in UTC, or that it is not known."""
        return "not known" if self.date is None else self.date.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M")

    @property
    def short_commit(self) -> str | None:
        """As git abbreviates it; what is no commit's name stays whole."""
        name, dash, state = (self.commit or "").partition("-")
        plain = len(name) == 40 and set(name.lower()) <= set("0123456789abcdef")
        return f"{name[:9]}{dash}{state}" if plain else self.commit


@dataclass(frozen=True)
class Key:
    """What makes rows of two reports measurements of one thing."""

    case: str
    backend: str
    precision: str | None
    threads: int
    batch: int
    arrival: str  # rows of different patterns are never compared


@dataclass(frozen=True)
class Found:
    """A measured row and its report."""

    entry: Entry
    row: Row

    @property
    def key(self) -> Key:
        """See `Key`."""
        row = self.row
        return Key(row.case, row.backend, row.precision, row.threads, row.batch, row.measurement.arrival)


@dataclass(frozen=True)
class Machine:
    """The reports of one machine, the oldest first; those without a date stand before all."""

    name: str
    entries: tuple[Entry, ...]

    def found(self) -> list[Found]:
        """Every measured row."""
        return [Found(entry, row) for entry in self.entries for row in entry.report.rows if row.measured]

    def latest(self) -> list[Found]:
        """The last measurement of each thing, in the order in which things first came up."""
        return list({one.key: one for one in self.found()}.values())

    def histories(self) -> dict[Key, list[Found]]:
        """What was measured more than once at known times, the oldest first."""
        dated: dict[Key, list[Found]] = {}
        for one in self.found():
            if one.entry.date is not None:
                dated.setdefault(one.key, []).append(one)
        return {key: found for key, found in dated.items() if len(found) > 1}


def read(places: Sequence[str], labels: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """The reports at and below some places, and a sentence for each file that is meant to be one and cannot be read.

    A folder is searched for `report.json` and for other json files that hold a report; folders whose names begin with
    a dot, where unfinished ones lie, are passed by.

    Args:
        places: files and folders.
        labels: `PATH=COMMIT[@DATE]`, the commit and date of the reports at or below a path.

    Raises:
        EdgetlError: there is no report, or none that can be read; a label is no date, or belongs to no report.
    """
    files = {file.resolve(): (file, root) for root in map(Path, places) for file in _files(root)}
    entries, problems = [], []
    originals: dict[str, Path] = {}
    for file, root in files.values():
        try:
            entry = _entry(file, root)
        except EdgetlError as problem:
            problems.append(problem.message)
            continue
        # One measurement that lies in two places is not two.
        original = originals.setdefault(rundir.sha256(file.read_bytes()), file)
        if original is file:
            entries.append(entry)
        else:
            problems.append(f"{file} is a copy of {original}.")
    if not entries:
        raise EdgetlError(" ".join(problems) or f"There is no report in {', '.join(places)}.",
                          hint="Give the folders, or the report.json, that `edgetl bench` wrote.")
    entries = [replace(entry, name=name)
               for entry, name in zip(entries, _distinct([entry.name for entry in entries]), strict=True)]
    for label in labels:
        entries = _labelled(entries, label)
    return entries, problems


def local(text: str, places: Sequence[str]) -> str:
    """Text in which the places that the command named are cut to their last names."""
    for place in sorted(map(Path, places), key=lambda one: len(str(one)), reverse=True):
        if place != Path():  # paths below the current folder do not name it
            # As a whole: the place "a" is no part of "data", nor is the folder ".." of "...".
            pattern = rf"(?<![\w./-]){re.escape(str(place))}(?![\w.-])"
            text = place.absolute().name.join(re.split(pattern, text))
    return text


def _files(root: Path) -> Iterator[Path]:
    if not root.exists():
        raise EdgetlError(f"{root} does not exist.", hint="Give files or folders of reports.")
    if not root.is_dir():
        yield root
        return
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder) / name
            if name == rundir.REPORT or (name.endswith(".json") and not name.startswith(".") and _is_meant(file)):
                yield file


def _is_meant(file: Path) -> bool:
    try:
        values = rundir.read_json(file, EdgetlError)
    except EdgetlError:
        return False  # some other program's file, damaged or not: a report is called report.json, or can be read
    return isinstance(values, Mapping) and all(mark in values for mark in MARKS)


def _entry(file: Path, root: Path) -> Entry:
    found = report.read(file)
    inner = file.relative_to(root) if root.is_dir() else Path(file.name)
    below = inner.parent if inner.name == rundir.REPORT else inner.with_suffix("")
    name = below.as_posix() if below.parts else (root if root.is_dir() else file.parent).absolute().name
    commit = found.environment.get("commit")
    return Entry(name or inner.name, file, found, commit if isinstance(commit, str) else None,
                 _date(found.environment.get("measured_at")))


def _date(value: Any) -> datetime.datetime | None:
    """A date of ISO 8601, in UTC where it names no zone; None where it is none."""
    try:
        found = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _labelled(entries: Sequence[Entry], label: str) -> list[Entry]:
    place, _, told = label.rpartition("=")
    commit, at, day = told.partition("@")
    date = _date(day)
    if at and date is None:
        raise EdgetlError(f"--label {label}: '{day}' is no date.", hint="Write it as 2026-07-31 or 2026-07-31T18:30.")
    root = Path(place).resolve()
    hit = [entry.path.resolve().is_relative_to(root) for entry in entries]
    if not any(hit):
        raise EdgetlError(f"--label {label}: there is no report at or below {place}.",
                          hint="Name a file or folder of those that the page is drawn from.")
    return [replace(entry, commit=commit or entry.commit, date=date or entry.date) if one else entry
            for entry, one in zip(entries, hit, strict=True)]


def machines(entries: Sequence[Entry]) -> list[Machine]:
    """The entries by machine, in the order in which machines first came up."""
    groups: list[list[Entry]] = []
    for entry in entries:
        home = next((group for group in groups if all(_same(one, entry) for one in group)), None)
        if home is None:
            groups.append([entry])
        else:
            home.append(entry)
    names = [_named(group[0].report) for group in groups]
    return [Machine(name, tuple(sorted(group, key=lambda entry: entry.date or UNDATED)))
            for name, group in zip(_distinct(names), groups, strict=True)]


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, those that come up again with their number."""
    return [name if names.count(name) == 1 else f"{name} ({names[:place].count(name) + 1})"
            for place, name in enumerate(names)]


def _same(one: Entry, other: Entry) -> bool:
    """Whether one machine measured both: two boards of one kind differ in nothing but their own names."""
    a, b = one.report, other.report
    apart = a.device is not None and b.device is not None and a.device != b.device
    # What a report does not tell decides nothing for `differences`, so the name must agree as well.
    return not apart and _kind(a) == _kind(b) and not environment.differences(a.environment, b.environment)


def _named(one: Report) -> str:
    return _kind(one) if one.device is None else f"{one.device}: {_kind(one)}"


def _kind(one: Report) -> str:
    machine = one.environment
    threads = machine.get("usable_threads")
    count = f", {threads} thread{'s' if threads != 1 else ''}" if isinstance(threads, int) else ""
    return f"{machine.get('cpu') or machine.get('machine') or 'unknown machine'}{count}"
