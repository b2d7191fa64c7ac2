"""One html page, and the same in markdown, about a RUN: how it went, and what the teacher was worth."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgetl import datasets, extras, heads, rundir, weights
from edgetl.bench import (
    answers_html,
    gallery,
    markdown,
    markup,
    run_figures,
    run_plots,
    run_record,
    run_tables,
    task_mistakes,
    task_plots,
    task_tables,
)
from edgetl.bench.gallery import STAGE, Page
from edgetl.bench.run_record import CONTROL, Trained
from edgetl.bench.tables import legible, percent, shown
from edgetl.errors import EdgetlError
from edgetl.events import Event, Listener, ignore
from edgetl.head_metrics import of_card
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS
from edgetl.recipe_report import Report

PARTS = {CLASSIFY: "Heads", MULTILABEL: "Labels", REGRESS: "Values"}
CURVES = ("The ring is the epoch whose weights are kept: the best on validation. Training {score} is that on "
          "cropped, mirrored and mixed views, which are harder than the images.")
LOSSES = "Terms are drawn before their weights, each on its own scale.{control} {terms}"
DASHED = " Dashed: the control, which has the labels alone."
RATES = "At the end of each epoch."
RELIABILITY = ("Each point is a fifteenth of the scores. On the dotted line answers are as right as they are sure; "
               "below it they are too sure. Underneath: how many images have such scores. Points of few images mean "
               "little.")
UNSCALED = "These scores are the model's own, before the temperature."
GONE = "Their photos are not shown: they are not where the training found them."
GAIN = "Dots are seeds; the bar is the 95 % interval of their mean."
ONE_SEED = "The interval is paired over the test images (Tango); one seed tells nothing of the spread over seeds."
DRAWS = ("The interval is of draws of the test images, the same for both; one seed tells nothing of the spread over "
         "seeds.")
DRAWN = "The interval covers the choice of seeds and of test images, which are drawn for both alike."
SEVERAL = "The interval covers the choice of seeds and of test images (crossed, Howe)."


def is_meant(places: Sequence[str]) -> bool:
    """Whether a RUN is named."""
    return any(weights.is_run(Path(place)) for place in places)


def write(options: Report, *, listener: Listener = ignore) -> Page:
    """The page about a RUN that was written to `options.out`, with its markdown beside it.

    Args:
        options: which RUN, and where to.
        listener: hears why there are no photos, where that is so.

    Raises:
        EdgetlError: more than one place is named, or --label is given, or the RUN cannot be read.
        OutputError: a file exists, or cannot be written.
    """
    extras.require("matplotlib", extra="cli", purpose="A page about a RUN")
    if len(options.reports) != 1 or options.label:
        raise EdgetlError("A RUN gets a page of its own: expected one RUN and no --label, found "
                          f"{', '.join([*options.reports, *(f'--label {one}' for one in options.label)])}.",
                          hint="Write one page for each RUN, and another one for the reports of benchmarks.")
    out = Path(options.out)
    beside = out.with_suffix(".md")
    for path in (out, beside):
        gallery.require_place(path, options.overwrite)
    run = run_record.read(Path(options.reports[0]))
    pictures, reason = _pictures(run)
    if reason is not None:
        listener(Event(STAGE, "warning", {"text": reason}))
    title = options.title or f"{'Distillation' if run.teachers else 'Fine-tuning'}: {run.name}"
    with rundir.explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_text(out, legible(page(run, pictures, title=title)))
    rundir.write_text(beside, legible(markdown_page(run, title=title)))
    return Page(out, (), beside)


def _pictures(run: Trained) -> tuple[dict[str, bytes], str | None]:
    """JPEGs of the worst mistakes by key, and why there are none where that is so."""
    keys = {one.key for one in run.mistakes} | {one.key for one in run.hardest}
    if not keys:
        return {}, None
    try:
        data = datasets.open_data(run.record["data"]["source"], foreign=False,
                                  asked=heads.asked_again(run.record))
        items = {item.key: item for item in data.items}
        found = {key: answers_html.thumbnail(data.read(items[key])) for key in sorted(keys) if key in items}
    except EdgetlError as problem:
        return {}, f"The mistakes are shown without their photos: {problem.message}"
    return found, None if found else "The mistakes are shown without their photos, which are not in the data any more."


def page(run: Trained, pictures: Mapping[str, bytes], *, title: str) -> str:
    """The whole page.

    Args:
        run: what to show.
        pictures: JPEGs of its worst mistakes, by key.
        title: heading of the page.
    """
    sections = [(name, content) for name, content in _sections(run, pictures) if content]
    body = "\n".join(markup.section(name, content, anchor=f"section-{place}")
                     for place, (name, content) in enumerate(sections))
    entries = [(f"section-{place}", name) for place, (name, _) in enumerate(sections)]
    lead = markup.escape(" ".join(sentences(run)))
    header = f'<h1>{markup.escape(title)}</h1>\n<p class="lead">{lead}</p>\n{markup.contents(entries)}'
    return markup.document(title, header, body)


def _sections(run: Trained, pictures: Mapping[str, bytes]) -> list[tuple[str, str]]:
    # Focusable, so that a keyboard can scroll it.
    recipe = "\n".join(['<pre tabindex="0">', markup.escape(run.recipe), "</pre>"]) if run.recipe else ""
    curves = CURVES.format(score=run.score or "accuracy")
    return [
        ("Summary", markup.table(run_tables.summary(run))),
        ("Gain over the control", _gain(run)),
        ("Cuts", markup.table(run_tables.steps(run))),
        ("How right, and how sure", _sure(run)),
        (PARTS[task_tables.kind(run)] if run.heads else "", _parts(run)),
        (_capital(f"{run.score or 'accuracy'} over the epochs"),
         markup.figure(run_plots.accuracies(run), curves, run_tables.accuracy_curve(run))),
        ("Losses", markup.figure(run_plots.losses(run), _losses(run), run_tables.loss_curve(run))),
        ("Learning rate", markup.figure(run_plots.rates(run), _rates(run), run_tables.rate_curve(run))),
        ("What moved, and what was frozen", _moved(run)),
        ("Read-outs of the features", markup.table(run_figures.readouts(run))),
        ("What it confuses", _matrices(run)),
        ("Classes", "\n".join(map(markup.table, run_tables.classes(run)))),
        ("Worst mistakes", _mistakes(run, pictures)),
        ("Teacher" if len(run.teachers) == 1 else "Teachers", markup.table(run_tables.teachers(run))),
        ("Recipe", recipe),
        ("Machine and choices", markup.definitions(_machine(run))),
        ("Notes", markup.bullets(run.record.get("data", {}).get("notes", ()))),
    ]


def _sure(run: Trained) -> str:
    """All figures, and the reliability diagram."""
    words = _paragraphs(run_figures.explained(run))
    found = [markup.table(run_figures.figures(run)), words, markup.figure(run_plots.reliability(run), RELIABILITY)]
    return "\n".join(one for one in found if one)


def _paragraphs(lines: Sequence[str]) -> str:
    return "\n".join(f"<p>{markup.escape(one)}</p>" for one in lines)


def _rates(run: Trained) -> str:
    differ = any("lr_least" in row for row in run.curve)
    return RATES + (" Dashed: the layer that moves slowest, next to the input." if differ else "")


def _moved(run: Trained) -> str:
    words = _paragraphs(run_figures.training_words(run))
    found = [markup.table(run_figures.moved(run)), markup.table(run_figures.unfrozen(run)), words]
    return "\n".join(one for one in found if one)


def _matrices(run: Trained) -> str:
    """The confusion matrix, of several heads each under its name."""
    found = [(name, answers_html.matrix(test["confusion"], labels, test["n"]))
             for name, labels, test in run_tables.confusions(run)]
    return "\n".join(f"<h3>{markup.escape(name.removesuffix(': '))}</h3>\n{matrix}" if name else matrix
                     for name, matrix in found)


def _parts(run: Trained) -> str:
    """Of labels, values and several heads: each by itself, and what was said of values against what is true."""
    figure = markup.figure(task_plots.values(run), task_plots.caption(run))
    return "\n".join(one for one in (*map(markup.table, task_tables.tables(run)), figure) if one)


def _mistakes(run: Trained, pictures: Mapping[str, bytes]) -> str:
    if run.hardest:
        shown = answers_html.hardest(run.hardest, pictures, task_mistakes.LEADS[task_tables.kind(run)])
        return "\n".join([shown, _paragraphs([] if pictures else [GONE])]).rstrip()
    if not run.mistakes:
        return ""
    scaled = (run.metrics.get("temperature") or {}).get("value") is not None
    words = [*([] if pictures else [GONE]), *([UNSCALED] if scaled else [])]
    return "\n".join([answers_html.mistakes(run.mistakes, pictures), _paragraphs(words)]).rstrip()


def _gain(run: Trained) -> str:
    found = run.metrics.get("gain")
    if not found:
        return ""
    how = (DRAWS if run.heads else ONE_SEED) if len(found["seeds"]) == 1 else DRAWN if run.heads else SEVERAL
    return "\n".join([f"<p>{markup.escape(_capital(found['sentence']))}</p>",
                      markup.figure(run_plots.gain(run), f"{GAIN} {how}"), markup.table(run_tables.gain(run))])


def _losses(run: Trained) -> str:
    losses = run.record.get("options", {}).get("loss")
    terms = f"--loss {' --loss '.join(losses)}" if losses else ""
    return LOSSES.format(control=DASHED if run.control_curve else "", terms=terms)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def sentences(run: Trained) -> list[str]:
    """The result in a few sentences: how right, beside whom, how small, and whether the teacher helped."""
    test, teacher = run.metrics.get("test"), (run.teachers or ({},))[0]
    found = []
    if test and run.heads:
        found.append(f"On the test split {_named(run)} has {test['sentence']}.")
    elif test:
        found.append(f"{_named(run)} answers {percent(test['accuracy'])} % of {test['n']} test images right.")
    theirs = of_card((teacher.get("metrics") or {}).get("test") or {})
    if test and theirs is not None:
        several = f"The first of its {len(run.teachers)} teachers, {teacher['model']},"
        who = several if len(run.teachers) > 1 else f"Its teacher {teacher['model']}"
        found.append(f"{who} has {theirs:.3f}." if run.heads else f"{who} answers {percent(theirs)} %.")
    if "kept" in run.record:
        found.append(f"It has {percent(run.record['kept'])} % of the teacher's parameters.")
    gain = run.metrics.get("gain")
    if gain:
        found.append(_capital(gain["sentence"]))
    elif run.teachers and CONTROL not in run.metrics:
        found.append("Whether the teacher helped is not known: there is no control.")
    return found


def _named(run: Trained) -> str:
    cut = str(run.record.get("student", "")).startswith("slim:")
    return f"{run.record['model']}, cut to {run.record['student']}," if cut else str(run.record["model"])


def _machine(run: Trained) -> dict[str, object]:
    chosen = {name: value for name, value in run.record.get("choices", {}).items() if name != "lr"}  # told in words
    return {**run.record.get("environment", {}), **chosen}


def markdown_page(run: Trained, *, title: str) -> str:
    """The page as GitHub-flavoured markdown, without its figures and photos."""
    parts = [f"# {markdown.escape(title)}", markdown.escape(" ".join(sentences(run))),
             *map(markdown.table, (*run_tables.tables(run), *run_figures.tables(run)))]
    mistakes = [f"{one.key}: is {one.label}, said {one.predicted} ({100 * one.score:.0f} %)" for one in run.mistakes]
    mistakes += task_mistakes.sentences(run.hardest)
    known = [f"{name}: {shown(value)}" for name, value in _machine(run).items()]
    notes = run.record.get("data", {}).get("notes", ())
    sure = [*run_figures.explained(run), *run_figures.training_words(run)]
    for heading, lines in (("Scores and weights", sure), ("Worst mistakes", mistakes), ("Machine and choices", known),
                           ("Notes", notes)):
        if lines:
            parts.append(f"## {heading}\n\n{markdown.bullets(lines)}")
    if run.recipe:
        parts.append("## Recipe\n\n" + textwrap.indent(run.recipe, "    "))
    return markdown.limited(parts)
