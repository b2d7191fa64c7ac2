"""A report as tables of text, drawn alike by the terminal, markdown and html. MB is 10**6 bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from edgetl.bench import stats
from edgetl.bench.affinity import in_words
from edgetl.bench.report import BACK_TO_BACK, PARTIAL, Accuracy, Report, Row, Score, figures

BROKEN_OFF = "The benchmark was broken off; these are the rounds until then."
MISSING = "–"  # a number that was not measured; never 0
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
DEVICE_ALONE = "device alone ms"
# Columns that say what their row is about.
HEADS = frozenset({"case", "true class", "report", "strategy", "figure", "part",
                   "head", "label", "column"})
TEXT_COLUMNS = HEADS | {"answered", "reason", "arrival", "backend", "precision", "commit", "date", "measured in",
                        "reached with", "cores", "machine", "state", "on the front", "layer", "operation",
                        "executed as", "arithmetic", "sensor", "of", "scenario", "result", "metric", "valid",
                        "early stopping", "min duration", "min queries", "inputs", "verdict", "gate",
                        "model", "engine", "sha256", "less"}


@dataclass(frozen=True)
class Table:
    """Text in rows and columns."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def numeric(self, column: int) -> bool:
        """Whether a column holds figures and is aligned to the right."""
        return self.columns[column] not in TEXT_COLUMNS


def tables(report: Report) -> tuple[Table, ...]:
    """All tables of a report that have rows, the summary first; no figure stands in two of them."""
    found = [summary(report), answers(report), scores(report), tails(report), throughputs(report), ways(report),
             cases(report), failures(report)]
    return tuple(table for table in found if table.rows)


def summary(report: Report) -> Table:
    """One row a measured case: latency, accuracy, speed-up, throughput, import, load, first call, size and memory."""
    reference = f"; speed-up against {report.reference}" if report.reference else ""
    if reference and len({row.measurement.arrival for row in report.rows}) > 1:
        reference += ", under the same arrival"
    # What decides comes first: a phone shows four columns, and the terminal cuts from the right.
    alone = any(row.device_s for row in report.rows)
    columns = ("#", "case", "median ms", score_name(report) or "accuracy %", "speed-up", "95 % interval ms", "p95 ms",
               *([DEVICE_ALONE] if alone else []), "images/s", "import ms", "load ms", "first ms", "size MB", "peak MB")
    rows = [(str(number), row.case, *_summary_cells(row, alone=alone)) for number, row in numbered(report)]
    starts = max((len(row.load_s) for row in report.rows), default=0)
    caption = (f"Steady-state latency of one call, {arrivals(report)}{reference}; import, load and first call of a "
               f"fresh process, median of {starts}; size of the graph or weights; peak resident memory of the process"
               + (f"; {DEVICE_ALONE}: the device's own clock, without copies and host, median" if alone else ""))
    return Table(f"{BROKEN_OFF} {caption}" if report.status == PARTIAL else caption, columns, tuple(rows))


def numbered(report: Report) -> list[tuple[int, Row]]:
    """Measured rows with the number that tables and figures give them, from 1."""
    return list(enumerate((row for row in report.rows if row.measured), start=1))


def arrivals(report: Report) -> str:
    """How the calls of the cases arrive, in words."""
    return ", ".join(dict.fromkeys(row.measurement.arrival for row in report.rows))


def _summary_cells(row: Row, *, alone: bool) -> tuple[str, ...]:
    found = figures(row)
    median = stats.median_interval(row.measurement.by_round())
    rate = found.throughput_ips
    return (milliseconds(found.median_s), right(row), times(row.speedup),
            span(median.low, median.high, 1000, 3),
            stats.needs(95.0) if found.p95_s is None else milliseconds(found.p95_s),
            *([milliseconds(found.device_s)] if alone else []),
            MISSING if rate is None else significant(rate, 3), milliseconds(found.import_s),
            milliseconds(found.load_s), milliseconds(found.first_s), megabytes(found.size_bytes),
            megabytes(found.memory_peak_bytes))


def score_name(report: Report) -> str | None:
    """What the cases are judged by, where that is not accuracy."""
    return next((row.score.name for row in report.rows if row.score is not None), None)


def right(row: Row) -> str:
    """How right a case is: its accuracy in percent, or its score; a dash where it is not known."""
    if row.score is not None:
        return MISSING if row.score.value is None else f"{row.score.value:.3f}"
    return percent(row.accuracy.accuracy if row.accuracy else None)


def scores(report: Report) -> Table:
    """One row a case that says something else than one class an image: its score, and against the reference."""
    columns = ("#", "case", score_name(report) or "score", "95 % interval", "agreement %", "to ref.",
               "95 % interval to ref.")
    rows = [(str(number), row.case, right(row), *_score_cells(row.score))
            for number, row in numbered(report) if row.score]
    data = f"{report.data.name}, {report.data.n} test images" if report.data else "no data"
    reference = f"; ref. = {report.reference}" if report.reference else ""
    return Table(f"{score_name(report)} of the very sessions that were timed: {data}{reference}", columns, tuple(rows))


def _score_cells(found: Score) -> tuple[str, ...]:
    return (_thousandths(found.low, found.high), percent(found.agreement),
            MISSING if found.difference is None else f"{found.difference:+.3f}",
            _thousandths(found.difference_low, found.difference_high, "+"))


def _thousandths(low: float | None, high: float | None, sign: str = "") -> str:
    return MISSING if low is None or high is None else f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def score_parts(report: Report) -> Table:
    """One row a case and head, label or value: its own figures, where there are not too many of them."""
    known = [(number, row, row.score.parts) for number, row in numbered(report) if row.score and row.score.parts]
    figured = [one if isinstance(one, Mapping) else {"right": one} for *_, found in known for one in found.values()]
    names = tuple(dict.fromkeys(name for one in figured for name in one))
    words = {"mae": "MAE", "rmse": "RMSE", "r2": "R2", "right": "accuracy or F1"}
    rows = [(str(number), row.case, part, *(_part(one, name) for name in names))
            for number, row, found in known for part, one in found.items()]
    return Table("Of each head its accuracy, of each label its F1, of each value its errors in its own unit",
                 ("#", "case", "part", *(words.get(name, name) for name in names)), tuple(rows))


def _part(found: Any, name: str) -> str:
    value = found.get(name) if isinstance(found, Mapping) else found
    return MISSING if value is None else f"{value:.4g}"


def answers(report: Report) -> Table:
    """One row a case with accuracy: how right, within what interval, and against the reference."""
    columns = ("#", "case", "right", "accuracy %", "95 % interval", "weighted %", "macro-F1 %", "agreement %",
               "only it right", "only ref. right", "points to ref.", "95 % interval of points")
    rows = [(str(number), row.case, *_answer_cells(row.accuracy)) for number, row in numbered(report) if row.accuracy]
    data = f"{report.data.name}, {report.data.n} test images" if report.data else "no data"
    reference = f"; ref. = {report.reference}" if report.reference else ""
    return Table(f"Accuracy of the very sessions that were timed: {data}{reference}", columns, tuple(rows))


def _answer_cells(found: Accuracy) -> tuple[str, ...]:
    return (f"{found.correct}/{found.n}", percent(found.accuracy),
            span(found.accuracy_low, found.accuracy_high, 100, 1),
            percent(found.weighted_accuracy), percent(found.macro_f1), percent(found.agreement),
            _count(found.only_case_right), _count(found.only_reference_right),
            MISSING if found.difference is None else f"{found.difference * 100:+.1f}",
            span(found.difference_low, found.difference_high, 100, 1, sign="+"))


def tails(report: Report) -> Table:
    """One row a measured case: the percentiles beside the median, each with its interval where the calls bound it."""
    columns = ("#", "case", "p99 ms", "p99.9 ms", "p90 ms", "95 % interval of p95 ms", "calls")
    rows = [(str(number), row.case, _percentile(row, 99.0), _percentile(row, 99.9), _percentile(row, 90.0),
             _ends(row, 95.0), str(len(row.measurement.seconds)))
            for number, row in numbered(report)]
    return Table("Tail of the latencies, with 95 % intervals by how much the rounds agree", columns, tuple(rows))


def _percentile(row: Row, percent: float) -> str:
    found = stats.percentile(row.measurement.seconds, percent)
    return stats.needs(percent) if found is None else f"{milliseconds(found)} {_ends(row, percent)}"


def _ends(row: Row, percent: float) -> str:
    """The interval of a percentile; where the rounds do not bound it on one side, that side is a dash."""
    found = stats.percentile_interval(row.measurement.by_round(), percent)
    return MISSING if found is None else f"[{milliseconds(found.low)}, {milliseconds(found.high)}]"


def throughputs(report: Report) -> Table:
    """One row a case whose throughput was measured, or may be chosen by its batch: the best, the mean, and windows."""
    counts = sorted({one.concurrency for row in report.rows for one in row.throughputs})
    several = len({row.batch for row in report.rows}) > 1
    columns = ("#", "case", "best images/s", "reached with", "mean images/s", *(f"{count} at once" for count in counts))
    rows = [(str(number), row.case, *_throughput_cells(row, counts)) for number, row in numbered(report)
            if row.throughputs or (several and row.measurement.arrival == BACK_TO_BACK)]
    return Table("Throughput: the best over the batches and callers of a graph; the mean of one caller, from its "
                 "latencies; and windows in which so many threads call one session at once, images/s",
                 columns, tuple(rows))


def _throughput_cells(row: Row, counts: Sequence[int]) -> tuple[str, ...]:
    best, mean = row.best_throughput, figures(row).mean_throughput_ips
    own = {one.concurrency: significant(one.ips, 3) for one in row.throughputs}
    ends = "" if best is None or best.low is None else f" {span(best.low, best.high, 1, 3)}"
    return (MISSING if best is None else significant(best.ips, 3) + ends,
            MISSING if best is None else f"batch {best.batch}, {best.concurrency} at once",
            MISSING if mean is None else significant(mean, 3), *(own.get(count, MISSING) for count in counts))


def ways(report: Report) -> Table:
    """One row a case that was timed from an image file to its label: the whole way, and its parts."""
    columns = ("#", "case", "end to end ms", "decoding ms", "preprocessing ms")
    rows = [(str(number), row.case, *(_middle(row, one) for one in (row.end_to_end_s, row.decode_s, row.preprocess_s)))
            for number, row in numbered(report) if row.end_to_end_s]
    files = ", ".join(dict.fromkeys(row.files for row in report.rows if row.files))
    return Table(f"From the bytes of an image file to its label, one at a time, medians with 95 % intervals: {files}",
                 columns, tuple(rows))


def _middle(row: Row, seconds: Sequence[float]) -> str:
    if not seconds:
        return MISSING
    rounds = row.measurement.rounds
    found = stats.median_interval(np.reshape(seconds, (rounds, -1)) if len(seconds) % rounds == 0 else seconds)
    return " ".join(one for one in (milliseconds(found.value), span(found.low, found.high, 1000, 3)) if one != MISSING)


def cases(report: Report) -> Table:
    """One row a measured case: what it is, what the open session weighs, and what became of the warm-up."""
    on_gpu = any(row.gpu_memory_bytes is not None for row in report.rows)
    columns = ("#", "case", "backend", "precision", "threads", "batch", "parameters M", "loaded MB", "warm-up calls",
               "cores", *(["GPU MB"] if on_gpu else []))
    rows = [(str(number), row.case, row.backend, row.precision or MISSING, _threads(row), str(row.batch),
             MISSING if row.parameters is None else f"{row.parameters / 1e6:.2f}",
             megabytes(row.memory_loaded_bytes), _count(row.warmup_calls), _cores(row),
             *([megabytes(row.gpu_memory_bytes)] if on_gpu else [])) for number, row in numbered(report)]
    return Table("What ran; peak resident memory when the session was open; calls until stable", columns, tuple(rows))


def _cores(row: Row) -> str:
    """The cores that a case might run on, and what its cgroup pays for."""
    quota = [] if row.cpu_quota is None else [f"quota {row.cpu_quota:g}"]
    return ", ".join([*filter(None, [in_words(row.affinity)]), *quota]) or MISSING


def spread(report: Report) -> Table:
    """One row a measured case: between what the latencies of its calls lie; the median is the summary's."""
    return spread_of(numbered(report))


def spread_of(rows: Sequence[tuple[int, Row]]) -> Table:
    """`spread` of some rows, each with its number."""
    columns = ("#", "case", "calls", "least ms", "lower quartile ms", "upper quartile ms", "greatest ms")
    lines = [(str(number), row.case, str(len(row.measurement.seconds)),
              *(milliseconds(float(one)) for one in np.quantile(row.measurement.seconds, (0, 0.25, 0.75, 1))))
             for number, row in rows]
    return Table("Latency of every call: least, quartiles and greatest; none is left out", columns, tuple(lines))


def failures(report: Report) -> Table:
    """One row a case that could not be measured, and why."""
    rows = tuple((row.case, local(row.measurement.reason or "no reason was given", report))
                 for row in report.rows if not row.measured)
    return Table("Cases that could not be measured", ("case", "reason"), rows)


def remarks(report: Report) -> list[str]:
    """What a reader must know beside the figures and the warnings: why an accuracy is missing, the data's licence."""
    reasons = [f"{row.case}: no accuracy, {local(row.accuracy_reason, report)}" for row in report.rows
               if row.measured and row.accuracy_reason]
    return [*reasons, *(report.data.notes if report.data else ())]


def notes(report: Report) -> list[str]:
    """The warnings of the benchmark."""
    broken_off = [BROKEN_OFF] if report.status == PARTIAL else []
    return broken_off + [local(text, report) for text in report.notes]


def machine(report: Report) -> dict[str, Any]:
    """What is known of the machine that measured; a device that was reached over ssh is named first."""
    return {**({} if report.device is None else {"device": report.device}), **report.environment}


def machine_name(report: Report) -> str:
    """The machine in a word or two: its processor, and the name of a device that was reached over ssh."""
    processor = str(report.environment.get("cpu") or report.environment.get("machine"))
    return processor if report.device is None else f"{report.device} ({processor})"


def local(text: str, report: Report) -> str:
    """Text in which the folders and files that the command named are cut to their last names.

    A page or table is shown to others, whom it does not concern where things lie on the machine that measured; the
    json keeps what was typed, under `options` and `source`.
    """
    named = [row.source for row in report.rows] + ([report.data.source.removeprefix("csv:")] if report.data else [])
    for place in sorted(named, key=len, reverse=True):
        text = text.replace(place, PurePath(place).name or place)
    return text


def legible(text: str) -> str:
    """Text that UTF-8 can hold: the bytes of file names that are not UTF-8 are written as escapes."""
    return text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """`legible` text in which control characters, which move a terminal's cursor and no XML may hold, are escapes."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), legible(text))


def shown(value: Any) -> str:
    """A value of the environment in words; what a nested table does not know is left out."""
    if value is None:
        return "not known"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items() if one is not None) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _threads(row: Row) -> str:
    return str(row.threads) if row.threads else f"all ({row.session.get('threads', '?')})"


def _count(value: int | None) -> str:
    return MISSING if value is None else str(value)


def milliseconds(seconds: float | None) -> str:
    """Three significant digits of milliseconds."""
    return MISSING if seconds is None else significant(seconds * 1000, 3)


def percent(share: float | None) -> str:
    """A share in 0..1 as percent with one decimal."""
    return MISSING if share is None else f"{share * 100:.1f}"


def megabytes(size_bytes: int | None) -> str:
    """Three significant digits of 10**6 bytes."""
    return MISSING if size_bytes is None else significant(size_bytes / 1e6, 3)


def times(found: stats.Interval | None) -> str:
    """A speed-up with its interval, e.g. `11.2x [10.9, 11.5]`."""
    if found is None:
        return MISSING
    return f"{significant(found.value, 3)}x {span(found.low, found.high, 1, 3)}"


def span(low: float | None, high: float | None, factor: float, digits: int, *, sign: str = "") -> str:
    """`[low, high]` times a factor: so many significant digits, or decimals where shares become percent."""
    if low is None or high is None:
        return MISSING
    if factor == 100:
        return f"[{low * factor:{sign}.{digits}f}, {high * factor:{sign}.{digits}f}]"
    return f"[{significant(low * factor, digits)}, {significant(high * factor, digits)}]"


def significant(value: float, digits: int) -> str:
    """A positive number with so many significant digits and no exponent."""
    if value == 0:
        return "0"
    decimals = digits - 1 - _magnitude(value)
    return f"{value:.{max(0, decimals)}f}"


def _magnitude(value: float) -> int:
    # Through the formatted number, because 9.996 with three digits is 10.0.
    return int(f"{value:.2e}".partition("e")[2])
