"""The bundle: every variant that passed, the manifest, the golden images and the model card, in one folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl import datasets, evaluate, heads, judging, metrics, rundir, splits, weights
from edgetl.errors import DataError, EdgetlError, GateFailed
from edgetl.evaluate import Evaluation
from edgetl.events import Event, Listener, ignore
from edgetl.export import card, embed, golden, graph, halving, ladder, private, rejection, scaling, variants
from edgetl.export.ladder import Rejected
from edgetl.export.rejection import Threshold
from edgetl.export.variants import Built, Stock
from edgetl.judging import Judged
from edgetl.recipe import Export, to_toml
from edgetl.runtime import drift
from edgetl.runtime import manifest as manifests
from edgetl.runtime.heads import THRESHOLD
from edgetl.runtime.manifest import Manifest
from edgetl.runtime.verifying import verify
from edgetl.targets import Target

CARD = "README.md"
RECORD_KEPT = ("model", "stage", "data", "metrics", "options", "choices", "environment", "teacher", "student", "kept",
               "parameters", "teachers", "teacher_mix", "teacher_weight")
TABLES = ("confusion", "classes", "reliability")  # of a record's metrics


@dataclass(frozen=True)
class Made:
    """Everything that the manifest tells of: what was built, and what was refused."""

    built: tuple[Built, ...]  # in the order of preference, evaluated
    rejected: tuple[Rejected, ...]
    threshold: Threshold | None  # None: it was not asked for

    @property
    def refusals(self) -> tuple[Rejected, ...]:
        """What the export was asked for and is left out."""
        refusal = self.threshold.refusal if self.threshold is not None else None
        return (*self.rejected, *(() if refusal is None else (Rejected("reject_below", (), refusal),)))


def export(options: Export, *, listener: Listener = ignore) -> Path:
    """The bundle folder of a RUN: fp32 always, and the other precisions of each target where their accuracy holds.

    Calibration uses training images, every choice validation images, and the test images are for the report.

    Args:
        options: the recipe.
        listener: told what is done, found and refused.

    Raises:
        EdgetlError: the RUN cannot be read, or its data are not known.
        DataError: the data are not those that the RUN was trained with, or an image cannot be read.
        OutputError: the bundle exists already or cannot be written.
        GateFailed: the graph does not answer as the torch model (nothing is kept), or a variant lost more than is
            allowed, or no score was found that --reject-accuracy asks for (the bundle is kept without it).
    """
    run = weights.load(Path(options.run), any_task=True)
    _require_threshold(options, run)
    targets = variants.choose_targets(options)
    graph.require_packages()
    out = Path(options.out)
    rundir.claim(out, resume=None, overwrite=options.overwrite)
    stock = prepare(options, run, listener)
    made = build(stock, targets)
    write(out, describe(stock, run, made), made.built, stock)
    if made.refusals:
        said = ". ".join(one.sentence for one in made.refusals)
        raise GateFailed(f"{said}. {out} was written without it.", hint=_way_out(made))
    return out


def _require_threshold(options: Export, run: weights.Run) -> None:
    """Raises EdgetlError where a score is asked for that what the RUN says of an image does not have."""
    asked = heads.of_record(run.record)
    if asked and options.reject_accuracy is not None:
        raise EdgetlError(f"--reject-accuracy is about the score of one class an image; {run.folder} says "
                          f"{heads.words(asked)}.", hint="Leave it out.")
    kind = asked[0].kind if asked else heads.CLASSIFY
    if kind != heads.MULTILABEL and options.label_threshold != THRESHOLD:
        raise EdgetlError(f"--label-threshold is about labels an image; {run.folder} says {heads.words(asked)}.",
                          hint="Leave it out.")


def _way_out(made: Made) -> str:
    hints = []
    if made.rejected:
        hints.append("Use fp32, give more --calibration-images, or another --max-drop and --min-agreement.")
    if len(made.refusals) > len(made.rejected):
        hints.append("Give a lower --reject-accuracy, or more validation images (--val-fraction of the training).")
    return " ".join(hints)


def prepare(options: Export, run: weights.Run, listener: Listener) -> Stock:
    """Data, fp32 graph and golden images of a RUN.

    Raises:
        EdgetlError: neither --data nor the RUN says which data.
        DataError: the data are not the RUN's.
        GateFailed: the graph does not answer as the torch model does.
    """
    recorded = run.record.get("data") or {}
    source = options.data or recorded.get("source")
    if not source:
        raise EdgetlError(f"{run.folder} does not say which data it was trained on.", hint="Give them with --data.")
    data = datasets.open_data(source, foreign=options.data is not None, asked=heads.asked_again(run.record))
    known = heads.of_record(run.record)
    if data.labels != run.labels or data.heads != known:
        raise DataError(f"{source} has the classes {list(data.labels)}; {run.folder} knows {list(run.labels)}.",
                        hint="Give the data that the RUN was trained on.")
    parts = splits.resolve(data, options, recorded=recorded.get("rule"), listener=listener)
    if "fingerprint" in recorded:
        splits.require_same_data(parts, recorded["fingerprint"], recorded_by=str(run.folder))
    asked = judging.of_training(known, parts.train, options.label_threshold)
    exported = graph.export(run.network, run.labels, heads=asked, with_features=options.with_features,
                            listener=listener)
    module = run.network.module
    module = graph.with_features_of(module, run.network.head) if options.with_features else module
    pictures = golden.make(options.golden_kind, options.golden, options.seed, items=parts.train, data=data,
                           preprocess=run.network.preprocess, outputs=graph.outputs_of(module, exported.spec))
    stock = Stock(options, run.network, data, parts, pictures, exported, listener, asked)
    stock.note(f"fp32 graph by the {exported.exporter} exporter: logits differ from torch by at most "
               f"{exported.parity.difference:.2g} (allowed {exported.parity.limit:.2g}).")
    return stock


def build(stock: Stock, targets: Sequence[Target]) -> Made:
    """The variants in the order of preference, what was refused, and the score to reject below.

    Raises:
        DataError: there are no validation images, and a choice needs them.
    """
    if stock.options.reject_accuracy is not None and not stock.splits.val:
        raise DataError("There are no validation images, so no score to reject below can be found.",
                        hint="Give data with a val split, or train with --val-fraction above 0.")
    wanted = _wanted(stock, targets)
    steps = _Steps(stock.listener, 2 + len(wanted))
    built: list[Built] = [variants.build_fp32(stock)]
    steps.advance()
    rejected: list[Rejected] = []
    for target, precision in wanted:
        made = (ladder.build_int8(stock, target, built[0]) if precision == "int8" else
                halving.build_half(stock, target, precision, built[0]))
        one = halving.confirmed(stock, made, built[0])
        if isinstance(one, Rejected):
            rejected.append(one)
            stock.warn(f"{one.sentence}. It is left out.")
        else:
            built.append(one)
        steps.advance()
    ordered = variants.ordered(stock, embed.embedded(stock, built) if stock.options.embed_normalize else built)
    order = tuple(scaling.fitted(stock, one) for one in ordered)
    threshold = find_threshold(stock, order)
    evaluated = variants.evaluated(stock, order)
    steps.advance()
    steps.end()
    return Made(evaluated, tuple(rejected), threshold)


def _wanted(stock: Stock, targets: Sequence[Target]) -> list[tuple[Target, str]]:
    """The variants beside fp32, which is one for all; warns of precisions that would be in none."""
    asked = [one for one in dict.fromkeys(stock.options.precision) if one != "fp32"]
    found = [(target, one) for target in targets for one in asked if one in target.precisions]
    for one in asked:
        if not any(precision == one for _, precision in found):
            left = "" if found else "; only fp32 is exported"
            stock.warn(f"No target with {one.upper()} fits this machine{left}. Name one with --target.")
    return found


def find_threshold(stock: Stock, order: Sequence[Built]) -> Threshold | None:
    """The score to reject below, found for the default variant and checked for the others; None: not asked for."""
    default, target = order[0], stock.options.reject_accuracy
    if target is None or default.val is None:
        return None
    found = rejection.search(_scaled(default.val, default), target / 100, variant=default.variant.name)
    if found.refusal is not None:
        stock.warn(f"{found.refusal}. It is left out.")
        return found
    rows = [(one.variant.name, "val", _scaled(one.val, one)) for one in order if one.val is not None]
    for check in (rejection.checked(found, rows) or {})["checks"]:
        told = (f"{check['variant']}: {100 * check['coverage']:.1f} % of {check['n']} validation images have a score "
                f"of at least {found.reject_below:.6g}, and {_percent(check['accuracy'])} of these answers are right")
        if check["holds"]:
            stock.note(f"{told}.")
        else:
            stock.warn(f"{told}: {target:g} % is shown for {default.variant.name} only.")
    return found


def _scaled(found: Judged, one: Built) -> Evaluation:
    return evaluate.scaled(judging.of_classes(found), one.variant.temperature)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.2f} %"


class _Steps:
    """Progress of an export in whole steps."""

    def __init__(self, listener: Listener, total: int) -> None:
        self._listener, self._done = listener, 0
        listener(Event("export", "begin", {"what": "export", "total": total, "unit": "steps"}))

    def advance(self) -> None:
        self._done += 1
        self._listener(Event("export", "advance", {"done": self._done}))

    def end(self) -> None:
        self._listener(Event("export", "end", {"what": "export"}))


def describe(stock: Stock, run: weights.Run, made: Made) -> Manifest:
    """The manifest; its `golden` is filled in when the file is written."""
    exported = stock.exported
    provenance = {
        "run": private.without_folders(concise({key: run.record[key] for key in RECORD_KEPT if key in run.record})),
        "model_sha256": rundir.sha256((run.folder / rundir.MODEL).read_bytes()),
        "export": {"exporter": exported.exporter, "fallback_reason": exported.reason,
                   "parity": exported.parity.to_json(), "seed": stock.options.seed,
                   "max_drop": stock.options.max_drop, "min_agreement": stock.options.min_agreement,
                   "data_fingerprint": stock.splits.fingerprint, "environment": rundir.environment()},
        "rejected": [{"name": one.name, "sentence": one.sentence, "rungs": list(one.rungs)} for one in made.refusals],
        "notes": list(stock.data.notes),
    }
    written = tuple(one.variant for one in made.built)
    return Manifest(schema=manifests.schema_of(written, stock.heads),
                    name=stock.options.name or Path(stock.options.out).resolve().name,
                    task=stock.heads[0].kind if stock.heads else "classify", labels=run.labels,
                    preprocess=run.network.preprocess, variants=written, heads=stock.heads, provenance=provenance,
                    reject_below=None if made.threshold is None else made.threshold.reject_below,
                    rejection=_rejection(made), drift_reference=_drift_reference(made.built[0]))


def concise(value: Any) -> Any:
    """A record without the tables that grow with the classes: the RUN keeps them, and a manifest has its limits."""
    if isinstance(value, list | tuple):
        return [concise(one) for one in value]
    if isinstance(value, dict):
        return {key: concise(one) for key, one in value.items() if key not in TABLES}
    return value


def _rejection(made: Made) -> dict[str, Any] | None:
    """What the threshold does for every variant, on validation where it was found and on test."""
    if made.threshold is None:
        return None
    return rejection.checked(made.threshold, [
        (one.variant.name, split, _scaled(found, one)) for one in made.built
        for split, found in (("val", one.val), ("test", one.test)) if found is not None])


def _drift_reference(default: Built) -> dict[str, Any] | None:
    """The default variant's scores on the validation images; None without such images, or classes to score."""
    if not isinstance(default.val, Evaluation):
        return None
    scores = metrics.softmax(default.val.logits, default.variant.temperature or 1.0)
    return {"variant": default.variant.name, "split": "val", **drift.reference_of(scores)}


def write(out: Path, manifest: Manifest, built: Sequence[Built], stock: Stock) -> None:
    """Writes the whole bundle, verified, or nothing: graphs, golden images, manifest, model card and recipe."""
    pictures = golden.to_npz(stock.golden)
    entry: dict[str, Any] = {"file": manifests.GOLDEN, "sha256": rundir.sha256(pictures), "size_bytes": len(pictures),
                             "count": len(stock.golden.sources), "kind": stock.golden.kind,
                             "drawn": stock.golden.drawn}
    whole = dataclasses.replace(manifest, golden=entry)
    files = {one.variant.file: one.graph for one in built}
    texts = {manifests.MANIFEST: manifests.to_json(whole), CARD: card.card(whole),
             rundir.RECIPE: to_toml(private.shareable(stock.options))}
    # The names of folders may hold bytes that are not UTF-8; they are written as escapes.
    files |= {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    files[manifests.GOLDEN] = pictures
    with rundir.building(out, overwrite=stock.options.overwrite) as folder:
        for name, content in files.items():
            rundir.write_bytes(folder / name, content)
        # What is handed out has been read back and has answered as the torch model did.
        verify(folder, threads=stock.options.threads, public_key=False)  # it cannot be signed yet
