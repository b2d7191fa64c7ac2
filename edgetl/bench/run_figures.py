"""What a RUN tells beside its accuracy, as tables: how sure it is, what moved, and what its features know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.bench import task_tables
from edgetl.bench.run_record import Trained
from edgetl.bench.tables import MISSING, Table, percent

SPLITS = {"test": "test", "val": "validation"}  # by their names in a record, the first that decides nothing first
SHOWN = 24  # names of frozen parts
# By name in the record: what it is called, what it is multiplied with, and how many digits are shown.
FIGURES = {"accuracy": ("accuracy, %", 100, 1), "top5": ("top 5, %", 100, 1), "macro_f1": ("macro-F1, %", 100, 1),
           "ece": ("ECE, points", 100, 1), "ece_chance": ("ECE by chance", 100, 1), "nll": ("NLL, nats", 1, 3),
           "brier": ("Brier score", 1, 3)}
SCALED = ("ece", "nll", "brier")
ALIKE = 0.05  # of the temperature from 1: less is not worth a word
CAPTION = "Each figure with its 95 % interval"
EXPLAINED = ("Intervals are Wilson's of shares, of the other figures 1,000 draws of the images. ECE is the expected "
             "calibration error, the mean gap between how sure the answers are and how right; by chance is what a "
             "model without any gap shows on so many images. NLL is the negative log-likelihood. Where fewer than 10 "
             "answers are wrong, NLL and Brier score have no interval: one more error might move them by any amount.")


def figures(run: Trained) -> Table:
    """One row a figure, with its interval on each split; those that a temperature changes also with it."""
    splits = [name for name in SPLITS if run.metrics.get(name)]
    columns = ("figure", *(head for name in splits for head in (SPLITS[name], f"95 % interval, {SPLITS[name]}")))
    found = {name: run.metrics[name] for name in splits}
    if not (run.heads or any("nll_low" in one for one in found.values())):  # of an earlier version
        return Table("", columns, ())
    rows = []
    fitted = run.metrics.get("temperature") or {}
    asked = task_tables.WHOLE[task_tables.kind(run)] if run.heads else FIGURES
    for name, (words, factor, digits) in asked.items():
        rows.append(_row((words, factor, digits), list(found.values()), name))
        if name in SCALED and fitted.get("value") is not None:
            scaled = [fitted["splits"].get(split, {}) for split in splits]
            rows.append(_row((f"{words.partition(',')[0]} at T = {fitted['value']:.3g}", factor, digits), scaled, name))
    return Table(CAPTION, columns, tuple(row for row in rows if any(cell != MISSING for cell in row[1:])))


def _row(named: tuple[str, float, int], found: Sequence[Mapping[str, Any]], name: str) -> tuple[str, ...]:
    return (named[0], *(cell for one in found for cell in task_tables.cells(one, name, named)))


def explained(run: Trained) -> list[str]:
    """What the figures are, and the temperature that was fitted on validation, in words; none of earlier versions."""
    if run.heads:
        return [task_tables.EXPLAINED[task_tables.kind(run)], *task_tables.temperatures(run)]
    found = run.metrics.get("temperature")
    known = [EXPLAINED] if figures(run).rows else []
    if not found:
        return known
    if found["value"] is None:
        return [*known, f"The scores are left as they are: of the {found['n']} validation images {found['refusal']}."]
    value = found["value"]
    kind = ("about as sure as it is right" if abs(value - 1) < ALIKE else
            "too sure" if value > 1 else "not sure enough")
    return [*known, f"On the {found['n']} validation images the model is {kind}: its logits are best divided by the "
                    f"temperature T = {value:.3g}. No answer changes by it. edgetl export fits one for each graph, and "
                    "the runtime uses it."]


def moved(run: Trained) -> Table:
    """One row for what moved, one for what was frozen; none where a record does not tell."""
    found = run.record.get("moved")
    columns = ("part", "parameters", "%")
    if not found:
        return Table("", columns, ())
    sizes = {"moved": found["parameters_moved"], "frozen": found["parameters_frozen"]}
    rows = tuple((name, f"{size:,}", percent(size / max(1, sum(sizes.values())))) for name, size in sizes.items())
    strategy = run.record.get("strategy")
    return Table(f"What training moved{'' if strategy is None else f', by the strategy {strategy}'}", columns, rows)


def unfrozen(run: Trained) -> Table:
    """One row a stage that was set free on the way, by the epoch from which on it moves."""
    rows = tuple((str(one["stage"]), str(one["epoch"])) for one in run.record.get("unfrozen", ()))
    return Table("What was set free on the way", ("part", "from epoch"), rows)


def readouts(run: Trained) -> Table:
    """One row a way to read classes off the frozen features: how right each is on validation."""
    found = run.record.get("readouts") or {}
    rows = []
    if "linear" in found:
        name, told = ("logistic regression", percent) if run.score is None else ("a linear layer", task_tables.score)
        rows.append((f"{name} (the head)", MISSING, told(found["linear"]["accuracy"])))
    if "neighbours" in found:
        near = found["neighbours"]
        rows += [(f"nearest neighbours{', the best' if int(k) == near['k'] else ''}", k, percent(share))
                 for k, share in near["tried"].items()]
    unit = " %" if run.score is None else ""
    return Table(f"What the features know before they are trained: each read-out's {run.score or 'accuracy'} on "
                 "validation, where it was also chosen", ("case", "neighbours", f"validation{unit}"), tuple(rows))


def training_words(run: Trained) -> list[str]:
    """Sentences about how the weights were led, as far as the record tells."""
    options, mixed = run.record.get("options") or {}, run.record.get("wise_ft")
    names = (run.record.get("moved") or {}).get("frozen") or ()
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    found = [f"Frozen: {', '.join(names[:SHOWN])}{more}."] if names else []
    decay = options.get("layer_decay", 1.0)
    if isinstance(decay, float) and decay < 1:
        found.append(f"Each block moves at {decay:g} times the rate of the next one towards the head (--layer-decay).")
    if options.get("l2_sp"):
        found.append(f"The weights are held near the pretrained ones (--l2-sp {options['l2_sp']:g}).")
    tried = ((run.record.get("choices") or {}).get("lr") or {}).values()
    found += [f"A trial on training images found the peak rate {one['rate']:.3g} (--lr find)." for one in tried]
    if mixed:
        found.append(f"What is kept lies {100 * mixed['alpha']:g} % of the way from the weights before training to "
                     "those after it, the best on validation (--wise-ft).")
    views = run.record.get("tta") or {}
    found += [f"Answers averaged over views ({views['views']}) are right on {percent(views[name]['accuracy'])} % of "
              f"the {views[name]['n']} {name} images." for name in ("val", "test") if name in views]
    return found


def tables(run: Trained) -> tuple[Table, ...]:
    """All of these tables that have rows."""
    return tuple(one for one in (figures(run), moved(run), unfrozen(run), readouts(run)) if one.rows)
