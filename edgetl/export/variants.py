"""The variants of a bundle: made, judged on the validation split, reported on the test split, ordered by speed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate, plugins, rundir
from edgetl.compress import calibrate, quantize
from edgetl.datasets import DataSet
from edgetl.errors import BackendUnavailable, DataError, RecipeError
from edgetl.evaluate import Comparison, Evaluation
from edgetl.events import Event, Listener
from edgetl.export.golden import Golden
from edgetl.export.graph import Exported
from edgetl.export.parity import greatest_difference
from edgetl.models import Network
from edgetl.recipe import Export
from edgetl.runtime import processor
from edgetl.runtime.manifest import Variant
from edgetl.runtime.session import GraphSpec, open_session
from edgetl.runtime.verifying import pixels_of
from edgetl.splits import Splits
from edgetl.targets import Target

PORTABLE = "portable"  # the target of the fp32 graph: whatever reads ONNX
PORTABLE_BACKENDS = ("cpu", "openvino")
BACKEND = "cpu"  # what evaluates and times here
TOLERANCES = {"logits": "tolerance", "features": "features_tolerance"}  # a graph's outputs have their roles as names
FASTER = 0.97  # a variant is preferred where its median latency is below this share of fp32's: less is noise
CONFUSION_CLASSES = 100  # a matrix of more would fill the manifest: it grows with their square


@dataclass(frozen=True)
class Stock:
    """What every variant is made from and judged with."""

    options: Export
    network: Network
    data: DataSet
    splits: Splits
    golden: Golden
    exported: Exported
    listener: Listener

    def note(self, text: str) -> None:
        """Tells the listener."""
        self.listener(Event("export", "note", {"text": text}))

    def warn(self, text: str) -> None:
        """Warns the listener."""
        self.listener(Event("export", "warning", {"text": text}))


@dataclass(frozen=True)
class Built:
    """A variant with its graph, its answers on the validation images, and later its speed and its answers on test."""

    variant: Variant
    graph: bytes
    spec: GraphSpec
    val: Evaluation | None  # None where the data has no validation images
    against_fp32: Comparison | None = None
    latency_s: float | None = None
    test: Evaluation | None = None  # None until every choice has been made, or where the data has no test images


@dataclass(frozen=True)
class Rejected:
    """A variant that no rung of its target's ladder brought through the gate."""

    name: str
    rungs: tuple[dict[str, Any], ...]
    sentence: str


def choose_targets(options: Export) -> tuple[Target, ...]:
    """The targets asked for, else those whose INT8 graphs this processor can run.

    Raises:
        UnknownName: no such target.
        RecipeError: a precision that none of the targets has.
        BackendUnavailable: an INT8 variant was asked for that this processor cannot judge.
    """
    every = {name: plugins.load("targets", name).TARGET for name in options.target or plugins.names("targets")}
    chosen = tuple(target for name, target in every.items() if options.target or _runs_here(target))
    known = {"fp32"}.union(*(target.precisions for target in every.values()))
    wrong = [one for one in options.precision if one not in known]
    if wrong:
        raise RecipeError([f"'precision': found '{one}', expected one of {', '.join(sorted(known))}" for one in wrong],
                          where="export")
    for target in chosen:
        missing = processor.missing(target.requires.get("int8", ()))
        if "int8" in options.precision and missing:
            raise BackendUnavailable(
                f"An INT8 graph for {target.name} cannot be judged here: this processor has no {', '.join(missing)}.",
                hint="Export on such a machine, or give --precision fp32.")
    return chosen


def _runs_here(target: Target) -> bool:
    needs = target.requires.get("int8", ())
    return bool(needs) and not processor.missing(needs)


def build_fp32(stock: Stock) -> Built:
    """The portable float32 variant: the reference of all others."""
    exported = stock.exported
    # Ten times what was measured, and no less than a ten-thousandth of the greatest value: another processor adds in
    # another order, while a wrong channel or size moves logits by tenths.
    tolerances = _tolerances(stock, exported.graph, exported.spec,
                             lambda difference, reach: max(10 * difference, 1e-4 * reach))
    variant = _variant("fp32", PORTABLE, "fp32", PORTABLE_BACKENDS, exported.graph, exported.spec, exported.opset)
    val = evaluation(stock, exported.graph, exported.spec, "val")
    built = Built(dataclasses.replace(variant, **tolerances), exported.graph, exported.spec, val)
    if val is not None:
        stock.note(f"fp32: {_share(val)} on {val.n} validation images.")
    return built


def build_int8(stock: Stock, target: Target, fp32: Built) -> Built | Rejected:
    """The target's INT8 variant, by the first calibration method that passes the gate on the validation split.

    Raises:
        DataError: there are no validation images to hold the gate with.
    """
    if fp32.val is None:
        raise DataError("There are no validation images, so the accuracy of INT8 cannot be held against its limit.",
                        hint="Give data with a val split, or train with --val-fraction above 0.")
    name = f"{target.name}.int8"
    items = calibrate.choose(stock.splits.train, stock.options.calibration_images, stock.options.seed)
    spec = dataclasses.replace(fp32.spec, precision="int8")
    known = _known_steps(stock, spec, target)
    rungs: list[dict[str, Any]] = []
    for method in target.quantize["methods"]:
        reader = calibrate.Reader(items, stock.data.read, stock.network.preprocess, name=spec.inputs[0].name)
        made = quantize.quantize(fp32.graph, target.quantize, reader, method=method, known=known)
        val = evaluate.with_reference(_of_split(stock, made.graph, spec, "val"), fp32.val)
        found = evaluate.compare(val, fp32.val)
        passed = _passes(found, stock.options)
        rungs.append({"method": method, "passed": passed, **dataclasses.asdict(found)})
        stock.note(f"{name}, {method}: {found.sentence()}; {'passed' if passed else 'outside the limits'}.")
        if passed:
            return _accepted(stock, target, made, spec, val, found, rungs, len(items))
    return Rejected(name, tuple(rungs), _refusal(name, rungs, stock.options))


def _known_steps(stock: Stock, spec: GraphSpec, target: Target) -> dict[str, tuple[float, int]]:
    """The rounding of the image where it can be chosen so that a graph which takes pixels need not round them."""
    steps = quantize.pixel_steps(stock.network.preprocess)
    wanted = stock.options.embed_normalize and target.quantize["activations"] == "uint8"
    return {spec.inputs[0].name: steps} if wanted and steps is not None else {}


def _refusal(name: str, rungs: Sequence[Mapping[str, Any]], options: Export) -> str:
    best = max(rungs, key=lambda rung: (rung["drop_points"] <= options.max_drop, rung["agreement"]))
    return (f"{name} is outside the limits: against fp32 it loses {best['drop_points']:.2f} points of validation "
            f"accuracy (95 %: {best['drop_low']:.2f} to {best['drop_high']:.2f}) with {100 * best['agreement']:.2f} % "
            f"agreement at best ({best['method']}, {best['n']} images); allowed are {options.max_drop:g} points and at "
            f"least {options.min_agreement:g} %")


def _accepted(stock: Stock, target: Target, made: quantize.Quantized, spec: GraphSpec, val: Evaluation,
              found: Comparison, rungs: list[dict[str, Any]], images: int) -> Built:
    graph = made.graph
    kernels = quantize.fused(graph)
    if kernels["float_nodes"]:
        stock.warn(f"{target.name}.int8: {kernels['float_nodes']} kernels stay in float: {kernels['float_kernels']}.")
    calibration = {"method": rungs[-1]["method"], "images": images, "split": "train", "seed": stock.options.seed,
                   "rounding": dict(made.rounding), "rungs": rungs, "fused": kernels}
    # The difference to torch is the rounding itself, the same everywhere. Twice that and a fiftieth of the greatest
    # value leave room for a value that another processor rounds to the neighbouring step.
    tolerances = _tolerances(stock, graph, spec, lambda difference, reach: 2 * difference + 0.02 * reach)
    variant = _variant(f"{target.name}.int8", target.name, "int8", target.backends, graph, spec, target.opset)
    variant = dataclasses.replace(variant, requires=target.requires.get("int8", ()), calibration=calibration,
                                  **tolerances)
    return Built(variant, graph, spec, val, found)


def _passes(found: Comparison, options: Export) -> bool:
    # The tiny allowance is for the division only: a limit that is met exactly is met.
    drop_ok = found.drop_points <= options.max_drop + 1e-9
    return drop_ok and 100 * found.agreement >= options.min_agreement - 1e-9


def ordered(stock: Stock, built: Sequence[Built]) -> tuple[Built, ...]:
    """The variants in the order of preference, with their latencies; `built[0]` is fp32.

    The order is by latency here, one thread, one image, interleaved blocks; what is not clearly faster than fp32 comes
    after it.
    """
    latency_s = latencies_of(stock, built)
    reference = latency_s[built[0].variant.name]

    def preference(one: Built) -> tuple[bool, float]:
        own = latency_s[one.variant.name]
        return (one.variant.precision != "fp32" and own >= FASTER * reference, own)

    order = sorted(built, key=preference)
    for one in order:
        if preference(one)[0]:
            own_ms = 1e3 * latency_s[one.variant.name]
            stock.warn(f"{one.variant.name} is not faster than fp32 here ({own_ms:.2f} against "
                       f"{1e3 * reference:.2f} ms), so it is not preferred.")
    return tuple(dataclasses.replace(one, latency_s=latency_s[one.variant.name]) for one in order)


def evaluated(stock: Stock, order: Sequence[Built]) -> tuple[Built, ...]:
    """The same variants with their evaluations; only here, with nothing left to choose, test images are looked at."""
    fp32 = next(one for one in order if one.variant.precision == "fp32")
    fp32_test = evaluation(stock, fp32.graph, fp32.spec, "test")
    return tuple(_with_evaluations(stock, one, fp32_test) for one in order)


def latencies_of(stock: Stock, built: Sequence[Built]) -> dict[str, float]:
    """Median seconds of one image on one thread, by variant, interleaved in blocks."""
    sessions = {one.variant.name: open_session(BACKEND, one.graph, one.spec, threads=1) for one in built}
    feeds = {one.variant.name: {one.spec.inputs[0].name: np.ascontiguousarray(golden_images(stock, one.spec)[:1])}
             for one in built}
    try:
        calls = {name: (lambda session=session, name=name: session.run(feeds[name]))
                 for name, session in sessions.items()}
        return {name: statistics.median(seconds) for name, seconds in evaluate.latencies(calls).items()}
    finally:
        for session in sessions.values():
            session.close()


def _with_evaluations(stock: Stock, one: Built, fp32_test: Evaluation | None) -> Built:
    test = fp32_test
    if fp32_test is not None and one.variant.precision != "fp32":
        test = evaluate.with_reference(_of_split(stock, one.graph, one.spec, "test"), fp32_test)
        stock.note(f"{one.variant.name} on test: {evaluate.compare(test, fp32_test).sentence()}.")
    rows = tuple({"backend": BACKEND, "split": split, **found.to_json(), "latency_s": one.latency_s,
                  "latency_arrival": "back-to-back", "latency_threads": 1, "machine": rundir.cpu_model()}
                 for split, found in (("val", one.val), ("test", test)) if found is not None)
    return dataclasses.replace(one, test=test, variant=dataclasses.replace(one.variant, evaluations=rows,
                                                                           status="measured"))


def evaluation(stock: Stock, graph: bytes, spec: GraphSpec, split: str) -> Evaluation | None:
    """What the graph answers on a split; None where the data has no such split."""
    return _of_split(stock, graph, spec, split) if stock.splits.of(split) else None


def _of_split(stock: Stock, graph: bytes, spec: GraphSpec, split: str) -> Evaluation:
    session = open_session(BACKEND, graph, spec, threads=stock.options.threads)
    try:
        predict = evaluate.session_predict(session, image=spec.inputs[0].name, logits=spec.outputs[0].name)
        return evaluate.evaluate(predict, stock.splits.of(split), stock.data.read, stock.network.preprocess,
                                 classes=len(stock.data.labels), normalized=not _takes_pixels(spec))
    finally:
        session.close()


def _tolerances(stock: Stock, graph: bytes, spec: GraphSpec,
                allowed: Callable[[float, float], float]) -> dict[str, Any]:
    """The tolerances: `allowed` of the greatest difference to torch on the golden images and torch's greatest value."""
    found = outputs_on_golden(stock, graph, spec)
    return {TOLERANCES[role]: allowed(greatest_difference(expected, found[role]),
                                      max(1.0, float(np.abs(expected).max())))
            for role, expected in stock.golden.outputs().items()}


def outputs_on_golden(stock: Stock, graph: bytes, spec: GraphSpec) -> dict[str, NDArray[Any]]:
    """What the graph says to the golden images, by the output's name."""
    session = open_session(BACKEND, graph, spec, threads=1)
    try:
        return dict(session.run({spec.inputs[0].name: golden_images(stock, spec)}))
    finally:
        session.close()


def golden_images(stock: Stock, spec: GraphSpec) -> NDArray[Any]:
    """The golden images as a graph of that spec takes them."""
    tensor = stock.golden.tensor
    return pixels_of(tensor, stock.network.preprocess) if _takes_pixels(spec) else tensor


def _takes_pixels(spec: GraphSpec) -> bool:
    return spec.inputs[0].dtype == "uint8"


def _variant(name: str, target: str, precision: str, backends: tuple[str, ...], graph: bytes, spec: GraphSpec,
             opset: int) -> Variant:
    return Variant(name=name, file=f"{name}.onnx", target=target, precision=precision, opset=opset,
                   sha256=rundir.sha256(graph), size_bytes=len(graph), inputs=spec.inputs, outputs=spec.outputs,
                   backends=backends)


def _share(found: Evaluation) -> str:
    return f"{100 * found.accuracy:.2f} % ({100 * found.accuracy_low:.2f} to {100 * found.accuracy_high:.2f})"
