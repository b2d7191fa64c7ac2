"""`edgetl quantize`: an INT8 graph of any classifier in ONNX, no less right than allowed and faster, or none."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import datasets, evaluate, foreign, judging, rundir, splits
from edgetl.compress import quantize as quantizer
from edgetl.datasets import DataSet, Item
from edgetl.errors import DataError, EdgetlError, GateFailed, OutputError
from edgetl.events import Event, Listener, ignore
from edgetl.export import variants
from edgetl.export.ladder import Ladder, Limits, Subject, judged
from edgetl.export.variants import BACKEND, FASTER
from edgetl.foreign import Foreign
from edgetl.judging import Judgement
from edgetl.recipe_quantize import Quantize
from edgetl.runtime import processor
from edgetl.runtime.session import open_session
from edgetl.splits import Splits
from edgetl.targets import Target

STAGE = "quantize"


@dataclass(frozen=True)
class Outcome:
    """What became of a graph."""

    out: str
    target: str
    size_bytes: int
    fp32_size_bytes: int
    accuracy: float | None  # of INT8 on the validation images, 0 to 1; None where the labels are not known
    fp32_accuracy: float | None
    found: Judgement
    latency_s: float | None  # median of one image on one thread; None where the target's machine is not this one
    fp32_latency_s: float | None
    calibration: Mapping[str, Any]  # how it was made: method, rungs, kernels that run as integers, ...

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def quantize(options: Quantize, *, listener: Listener = ignore) -> Outcome:
    """The INT8 graph of `options.model`, written to `options.out`.

    Calibration sees training images, the limits are held on validation images, and the test images are not looked at.

    Args:
        options: the graph, the images, and the limits.
        listener: hears of what is done and found.

    Raises:
        EdgetlError: the graph cannot be read, see `foreign.read`, or the target has no INT8.
        DataError: there are no validation images, or the data has a class that the graph does not know.
        OutputError: `options.out` exists or cannot be written.
        GateFailed: no INT8 graph is within the limits, or none is faster; nothing is written.
    """
    out = Path(options.out)
    if out.is_dir() or (out.exists() and not options.overwrite):
        raise OutputError(f"{out} exists already.",
                          hint="Choose another --out" + ("." if out.is_dir() else ", or give --overwrite."))
    rundir.require_place(out)  # the work takes minutes
    target = variants.one_target(options.target)
    if "int8" not in target.precisions:
        raise EdgetlError(f"There is no INT8 for the target '{target.name}', only {', '.join(target.precisions)}.",
                          hint="Name another --target; `edgetl list targets` shows them.")
    variants.require_quantizer(options.quantizer, target)
    classifier = foreign.read(Path(options.model), options)
    data = datasets.open_data(options.data)
    parts = splits.resolve(data, options, listener=listener)
    subject = _subject(options, classifier, data, parts, listener)
    ladder = Ladder(f"{target.name}.int8", target, subject)
    attempt = ladder.climbed()
    if attempt is None:
        raise GateFailed(f"{ladder.refusal()}. Nothing was written.",
                         hint="Use fp32, give more --calibration-images, or another --max-drop and --min-agreement.")
    timed = _latencies(target, classifier, attempt.made, subject)
    _require_faster(ladder.name, timed)
    with rundir.explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    rundir.write_bytes(out, attempt.made.graph)
    known = subject.limits.max_drop is not None
    accuracy, fp32_accuracy = (judging.of_classes(one).accuracy if known else None
                               for one in (attempt.val, subject.reference))
    return Outcome(str(out), target.name, len(attempt.made.graph), len(classifier.graph), accuracy, fp32_accuracy,
                   attempt.found, timed.get("int8"), timed.get("fp32"), ladder.calibration(attempt))


def _subject(options: Quantize, classifier: Foreign, data: DataSet, parts: Splits, listener: Listener) -> Subject:
    if not parts.val:
        raise DataError("There are no validation images, so the accuracy of INT8 cannot be held against its limit.",
                        hint="Give data with a val split, or --val-fraction above 0.")

    def note(text: str) -> None:
        listener(Event(STAGE, "note", {"text": text}))

    train, val = (_relabelled(items, data, classifier, options) for items in (parts.train, parts.val))
    limits = Limits(options.max_drop if classifier.labels is not None else None, options.min_agreement)
    if limits.max_drop is None:
        listener(Event(STAGE, "warning", {"text": "Nobody says how the graph's classes are called (--labels), so only "
                                                  "the agreement with fp32 is judged, no accuracy."}))
    reference = judging.of_classes(judged(classifier.graph, classifier.spec, val, data.read, classifier.preprocess,
                                          options.threads))
    if limits.max_drop is None:  # then what fp32 answers is right, and a point lost is an image on which INT8 disagrees
        said = reference.logits.argmax(axis=1)
        val = tuple(dataclasses.replace(item, label=int(one)) for item, one in zip(val, said, strict=True))
        reference = evaluate.summarize(reference.logits, said, reference.keys)
    else:
        note(f"fp32: {100 * reference.accuracy:.2f} % on {reference.n} validation images.")
    return Subject(classifier.graph, classifier.spec, classifier.preprocess, train, val, data.read, reference, limits,
                   options.calibration_images, options.seed, options.threads, note, qat_epochs=options.qat_epochs,
                   quantizer=options.quantizer)


def _relabelled(items: Sequence[Item], data: DataSet, classifier: Foreign, options: Quantize) -> tuple[Item, ...]:
    """The items with the graph's own numbers of their classes; all 0 where nobody knows them."""
    if classifier.labels is None:
        return tuple(dataclasses.replace(item, label=0) for item in items)
    places = {name: place for place, name in enumerate(classifier.labels)}
    unknown = [name for name in data.labels if name not in places]
    if unknown:
        raise DataError(f"{options.data} has the class '{unknown[0]}', which {options.model} does not have.",
                        hint="Give the names of its classes in its order with --labels, or other data.")
    return tuple(dataclasses.replace(item, label=places[data.labels[item.label]]) for item in items)


def _latencies(target: Target, classifier: Foreign, made: quantizer.Quantized, subject: Subject) -> dict[str, float]:
    """Median seconds of a call on one thread, interleaved; empty where the target's machine is not this one."""
    if BACKEND not in target.backends or processor.missing(target.requires.get("int8", ())):
        return {}
    spec = classifier.spec
    sessions = {"fp32": open_session(BACKEND, classifier.graph, spec, threads=1),
                "int8": open_session(BACKEND, made.graph, dataclasses.replace(spec, precision="int8"), threads=1)}
    try:
        size = spec.inputs[0].shape[0]
        shown = np.concatenate(list(evaluate.images(subject.val[:1], subject.read, subject.preprocess)))
        image = np.repeat(shown, 1 if isinstance(size, str) else size, axis=0)
        calls = {name: (lambda session=session: session.run({spec.inputs[0].name: image}))
                 for name, session in sessions.items()}
        return {name: statistics.median(seconds) for name, seconds in evaluate.latencies(calls).items()}
    finally:
        for session in sessions.values():
            session.close()


def _require_faster(name: str, timed: Mapping[str, float]) -> None:
    if timed and timed["int8"] >= FASTER * timed["fp32"]:
        raise GateFailed(f"{name} is not faster than fp32 here: {1e3 * timed['int8']:.2f} against "
                         f"{1e3 * timed['fp32']:.2f} ms a call. Nothing was written.",
                         hint="Keep the float32 graph on this kind of machine.")
