"""A report as one html file that loads nothing: for a phone, the dark, paper and a screen reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgetl import splits
from edgetl.bench import answers_html, instruments, layers_html, markup, mlperf_table, overview, plots, tables
from edgetl.bench.markup import bullets, escape, figure, table
from edgetl.bench.report import Accuracy, Report, Row
from edgetl.bench.tables import notes, percent, shown, significant
from edgetl.datasets import Item


def thumbnails(report: Report, items: Sequence[Item], read: Callable[[Item], bytes]) -> dict[str, bytes]:
    """JPEGs, at most 192 pixels wide and high, of the mistakes of the case in focus, by key."""
    focus = _focus(report)
    if focus is None or focus.accuracy is None:
        return {}
    by_key = {item.key: item for item in items}
    return {mistake.key: answers_html.thumbnail(read(by_key[mistake.key])) for mistake in focus.accuracy.mistakes}


def page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The whole page.

    Args:
        report: what to show.
        pictures: JPEGs by key, see `thumbnails`.
    """
    sections = [(title, content) for title, content in _sections(report, pictures) if content]
    body = "\n".join(markup.section(title, content, anchor=f"section-{place}")
                     for place, (title, content) in enumerate(sections))
    entries = [(f"section-{place}", title) for place, (title, _) in enumerate(sections)]
    header = f"<h1>Benchmark</h1>\n{_lead(report)}\n{markup.contents(entries)}"
    return markup.document("edgetl benchmark", header, body)


def _sections(report: Report, pictures: Mapping[str, bytes]) -> list[tuple[str, str]]:
    focus = _focus(report)
    graded = focus.accuracy if focus else None
    return [
        ("Summary", table(tables.summary(report))),
        ("Not measured", table(tables.failures(report))),
        (f"Latency against {tables.score_name(report) or 'accuracy'}",
         figure(plots.latency_against_accuracy(report), SCATTER_CAPTION)),
        ("Latency of every call", figure(plots.latency_distribution(report), STRIPS_CAPTION, tables.spread(report))),
        ("Tail of the latencies", table(tables.tails(report))),
        ("Throughput", table(tables.throughputs(report))),
        ("From the file to the label", table(tables.ways(report))),
        ("MLPerf's method", "\n".join(map(table, mlperf_table.tables(report)))),
        ("Energy and state of the processor", "\n".join(map(table, instruments.tables(report)))),
        ("Where the time goes", layers_html.content(report)),
        ("Accuracy", table(tables.answers(report))),
        (_capital(tables.score_name(report) or ""),
         "\n".join(filter(None, map(table, (tables.scores(report), tables.score_parts(report)))))),
        ("Cases", table(tables.cases(report))),
        (f"What {focus.case} confuses" if focus else "", _matrix(graded, report)),
        (f"Worst mistakes of {focus.case}" if focus else "",
         answers_html.mistakes(graded.mistakes if graded else (), pictures)),
        ("How this was measured", _method(report)),
        ("Machine and versions", markup.definitions(tables.machine(report))),
        ("Notes", bullets(overview.all_remarks(report))),
    ]


SCATTER_CAPTION = ("Numbers are those of the summary. Vertical bars: 95 % interval of the accuracy or score. "
                   "The best place is the upper left.")
STRIPS_CAPTION = ("A dot is one call, relative to the median of its case; the box holds the middle half, its thick "
                  "line is the median, and the whiskers reach the least and the greatest call: none was left out.")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _focus(report: Report) -> Row | None:
    return None if report.focus is None else report.row(report.focus)


def _lead(report: Report) -> str:
    """The result in a sentence or two, and what may be wrong with it."""
    measured = sum(row.measured for row in report.rows)
    machine = escape(tables.machine_name(report))
    parts = [f"{measured} of {len(report.rows)} cases measured on {machine}."]
    focus = _focus(report)
    if focus is not None and focus.accuracy is not None:
        speed = _speed(focus, report.reference)
        right = f"answers {percent(focus.accuracy.accuracy)} % of {focus.accuracy.n} test images right"
        gap = focus.accuracy.difference
        points = "" if gap is None else f" ({gap * 100:+.1f} points)"
        parts.append(f"<strong>{escape(focus.case)}</strong> {speed}{' and ' if speed else ''}{right}{points}.")
    if focus is not None and focus.score is not None and focus.score.value is not None:
        speed, found = _speed(focus, report.reference), focus.score
        more = "" if found.difference is None else f" ({found.difference:+.3f})"
        has = f"has {escape(found.name)} {found.value:.3f}{more} on {found.n} test images"
        parts.append(f"<strong>{escape(focus.case)}</strong> {speed}{' and ' if speed else ''}{has}.")
    return f'<p class="lead">{" ".join(parts)}</p>{markup.warnings(notes(report))}'


def _speed(focus: Row, reference: str | None) -> str:
    found = focus.speedup
    if found is None or found.low is None or found.high is None:
        return ""
    low, value, high = (significant(one, 3) for one in (found.low, found.value, found.high))
    return f"is {value} times as fast as {escape(str(reference))} (95 %: {low} to {high})"


def _matrix(graded: Accuracy | None, report: Report) -> str:
    if graded is None or report.data is None:
        return ""
    return answers_html.matrix(graded.confusion, report.data.labels, graded.n)


def _method(report: Report) -> str:
    """The recipe of the measurement, from the options that were used."""
    options, any_row = report.options, report.rows[0].measurement
    kept, arrivals = options["block"] - any_row.warmup, tables.arrivals(report)
    lines = [
        "The stopwatch runs from the array in host memory to the finished answer in host memory; decoding and "
        "preprocessing of images are outside.",
        f"Each case runs in a process of its own. {options['rounds']} rounds; in each, every case is measured once, in "
        f"random order (seed {options['seed']}), while the others and the parent sleep.",
        *_warmth(report),
        f"A round is {options['block']} calls, {arrivals}; the first {any_row.warmup} are dropped and the "
        f"other {kept} kept, every one. The garbage collector of Python is off meanwhile.",
        *_of_scores(report),
        "Intervals of medians and percentiles come from order statistics, counted as so many independent calls as "
        "the rounds agree on; intervals of speed-ups "
        "(time per image against the reference's) from a bootstrap over rounds and calls; intervals of accuracies are "
        "Wilson's, those of differences are paired (Tango).",
        "A percentile is shown only where the number of samples bounds it at 99 % confidence.",
        f"Import, load and first call: {options['starts']} fresh processes, the files in the page cache. Import is the "
        "runtime and the backend's library; load is all from there to an open session, with the model's own code.",
        "Accuracy was measured on the very sessions that were timed, on the test split, after the timing.",
        *_data_line(report),
    ]
    return bullets(lines)


def _of_scores(report: Report) -> list[str]:
    if tables.score_name(report) is None:
        return []
    return ["Intervals of scores and of their differences are of 400 draws of the test images, the same for both; "
            "agreement is the share of answers that are the reference's too: the same class of a head, a label that "
            "both say or neither, a value within a tenth of its standard deviation in training."]


def _warmth(report: Report) -> list[str]:
    """How the cases were warmed up, and the ways that go beyond the blocks; nothing of what was not measured."""
    told = []
    if any(row.warmup_calls is not None for row in report.rows):
        told.append("Before the first round each case is called until two successive windows of calls show no trend "
                    "(Kendall's tau), which the cases' table counts; a case that does not come to rest has a note.")
    if any(row.device_s for row in report.rows):
        told.append("The device alone: after the rounds as many calls again, arriving alike, in which the device's own "
                    "clock takes the time between two events around the engine's work. It holds no copies and nothing "
                    "of the host, and so is no latency.")
    if any(row.throughputs for row in report.rows):
        told.append(f"Throughput: windows of {report.options['window_s']:g} s, one a round, in which several threads "
                    "call one session, each again as soon as it has its answer; median of the rounds.")
    if any(row.end_to_end_s for row in report.rows):
        told.append("From the file to the label: the bytes are in memory; what decodes, resizes, normalises and reads "
                    "the answer is the code of edgetl.runtime, after all rounds, in the sessions that were timed.")
    return told


def _data_line(report: Report) -> list[str]:
    if report.data is None:
        return []
    told = {**report.data.rule}
    if splits.LEFT_OUT in told:
        told[splits.LEFT_OUT] = f"{sum(map(len, told[splits.LEFT_OUT].values()))} damaged images"
    rule = ", ".join(f"{name} {shown(value)}" for name, value in told.items())
    return [f"Data: {report.data.name}, {report.data.n} test images, fingerprint {report.data.fingerprint[:16]}; "
            f"split: {rule}."]
