"""The variants of a bundle: made, judged on the validation split, reported on the test split, ordered by speed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate, extras, judging, plugins, rundir
from edgetl.datasets import DataSet
from edgetl.errors import BackendUnavailable, RecipeError
from edgetl.evaluate import Evaluation
from edgetl.events import Event, Listener
from edgetl.export import rungs, twin
from edgetl.export.golden import Golden
from edgetl.export.graph import Exported
from edgetl.export.parity import greatest_difference
from edgetl.judging import Judged, Judgement, TaskEvaluation
from edgetl.models import Network
from edgetl.recipe import Export
from edgetl.runtime import processor
from edgetl.runtime.heads import Head
from edgetl.runtime.manifest import Variant
from edgetl.runtime.session import GraphSpec, open_session
from edgetl.runtime.verifying import pixels_of
from edgetl.splits import Splits
from edgetl.targets import Target

PORTABLE = "portable"  # the target of the fp32 graph: whatever reads ONNX
# The first that can run is taken, so a processor comes before a card; GPUs take it where they are asked for.
PORTABLE_BACKENDS = ("cpu", "openvino", "cuda", "tensorrt")
BACKEND = "cpu"  # what evaluates and times here
TOLERANCES = {"logits": "tolerance", "features": "features_tolerance"}  # a graph's outputs have their roles as names
FASTER = 0.97  # a variant is preferred where its median latency is below this share of fp32's: less is noise
# Of graphs that nobody could time: INT8 may be slower than fp16, and TensorRT is where there is any.
UNTIMED = (("tensorrt", "fp16"), ("tensorrt", "int8"), ("cuda", "fp16"))
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
    heads: tuple[Head, ...] = ()  # what the network says of an image; none: one class

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
    val: Judged | None  # None where the data has no validation images
    against_fp32: Judgement | None = None
    latency_s: float | None = None  # None: this machine is not the one it is made for
    # What answers for it here: its own backend, or else the processor (see `edgetl.export.twin`), which is not timed.
    judge: str = BACKEND
    test: Judged | None = None  # None until every choice has been made, or where the data has no test images


def choose_targets(options: Export) -> tuple[Target, ...]:
    """The targets asked for, else those whose INT8 graphs this processor can run, and those whose backend can run here.

    Raises:
        UnknownName: no such target.
        RecipeError: a precision that none of the targets has.
        BackendUnavailable: an INT8 variant was asked for that this processor cannot judge.
    """
    every = {name: plugins.load("targets", name).TARGET for name in options.target or plugins.names("targets")}
    chosen = tuple(target for name, target in every.items() if options.target or _runs_here(target)
                   or (target.comes == "backend" and own_backend(target.backends) is not None))
    known = {"fp32"}.union(*(target.precisions for target in every.values()))
    wrong = [one for one in options.precision if one not in known]
    if wrong:
        raise RecipeError([f"'precision': found '{one}', expected one of {', '.join(sorted(known))}" for one in wrong],
                          where="export")
    for target in chosen:
        if "int8" in options.precision and "int8" in target.precisions:
            _require_judge(target, "Export on such a machine, or give --precision fp32.")
            require_quantizer(options.quantizer, target)
    return chosen


def require_quantizer(quantizer: str, target: Target) -> None:
    """Returns where a quantizer is installed, and writes graphs that the target's engine fuses.

    Raises:
        MissingDependency: it is not.
        RecipeError: it does not.
    """
    if quantizer == rungs.OWN:
        return
    extras.require(quantizer, extra=quantizer, purpose=f"--quantizer {quantizer}")
    if target.quantize.get("placement"):
        raise RecipeError([f"'quantizer': {quantizer} rounds where processors fuse, expected {rungs.OWN} for the "
                           f"target {target.name}"], where="the command")


def one_target(name: str | None) -> Target:
    """The target of that name; None stands for the one that suits this processor best.

    Raises:
        UnknownName: no such target.
        BackendUnavailable: INT8 cannot be judged on this processor, or none suits it.
    """
    if name is not None:
        target: Target = plugins.load("targets", name).TARGET
        _require_judge(target, "Run this on such a machine.")
        return target
    suited = [one for one in (plugins.load("targets", each).TARGET for each in plugins.names("targets"))
              if _runs_here(one)]
    if not suited:
        raise BackendUnavailable("No target with INT8 fits this processor.", hint="Name one with --target.")
    found: Target = suited[0]
    return found


def own_backend(backends: Sequence[str], requires: tuple[str, ...] = ()) -> str | None:
    """The first of some backends that can run here, where the processor has what is required; None: none can."""
    if processor.missing(requires):
        return None
    return next((name for name in backends if plugins.load("backends", name).probe().usable), None)


def runs_here(one: Built) -> bool:
    """Whether the variant answers here by what it is made for, so that its latency can be measured."""
    return one.judge in one.variant.backends and not processor.missing(one.variant.requires)


def _require_judge(target: Target, hint: str) -> None:
    lacking = _lacking_judge(target)
    if lacking:
        raise BackendUnavailable(f"An INT8 graph for {target.name} cannot be judged here: this processor has no "
                                 f"{lacking}.", hint=hint)


def _runs_here(target: Target) -> bool:
    """Whether this processor runs the target's INT8 graphs, and no other target's would be better for it."""
    needs = target.requires.get("int8", ())
    return bool(needs) and target.comes == "features" and not processor.missing(needs) and not _outdone(target)


def _outdone(target: Target) -> bool:
    return len(processor.missing(target.better)) < len(target.better)


def _lacking_judge(target: Target) -> str:
    """What this processor would need so that an INT8 graph answers here as it does on its target; "" for nothing."""
    if not target.judges:
        return ", ".join(processor.missing(target.requires.get("int8", ())))
    missing = processor.missing(target.judges)
    return " or ".join(missing) if len(missing) == len(target.judges) else ""


def build_fp32(stock: Stock) -> Built:
    """The portable float32 variant: the reference of all others."""
    exported = stock.exported
    # Ten times what was measured, and no less than a ten-thousandth of the greatest value: another processor adds in
    # another order, while a wrong channel or size moves logits by tenths.
    allowed = tolerances(stock, exported.graph, exported.spec,
                         lambda difference, reach: max(10 * difference, 1e-4 * reach))
    variant = variant_of("fp32", PORTABLE, "fp32", PORTABLE_BACKENDS, exported.graph, exported.spec, exported.opset)
    val = evaluation(stock, exported.graph, exported.spec, "val")
    built = Built(dataclasses.replace(variant, **allowed), exported.graph, exported.spec, val)
    if val is not None:
        stock.note(f"fp32: {judging.score_words(val)} on {val.n} validation images.")
    return built


def ordered(stock: Stock, built: Sequence[Built]) -> tuple[Built, ...]:
    """The variants in the order of preference, with their latencies; `built[0]` is fp32.

    The order is by latency here, one thread, one image, interleaved blocks; what is not clearly faster than fp32 comes
    after it, what is made for lesser processors after what is made for this one, and what this processor is not made
    for is last and stays untimed.
    """
    timed = [one for one in built if runs_here(one)]
    latency_s = latencies_of(stock, timed)
    reference = latency_s[built[0].variant.name]

    def preference(one: Built) -> tuple[int, bool, float]:
        own = latency_s[one.variant.name]
        group = 1 if one.variant.precision == "fp32" else 2 if own >= FASTER * reference else 0
        return (group, _is_second_choice(one.variant), own)

    order = sorted(timed, key=preference)
    for one in order:
        if preference(one)[0] == 2:
            own_ms = 1e3 * latency_s[one.variant.name]
            stock.warn(f"{one.variant.name} is not faster than fp32 here ({own_ms:.2f} against "
                       f"{1e3 * reference:.2f} ms), so it is not preferred.")
    untimed = sorted((one for one in built if one not in timed), key=_rank_untimed)
    for one in untimed:
        where = (f"processors with {', '.join(one.variant.requires)}" if processor.missing(one.variant.requires) else
                 f"the backend {' or '.join(one.variant.backends)}, which cannot run here")
        stock.note(f"{one.variant.name} is for {where}: its accuracy was judged here, its latency was not measured. "
                   "`edgetl tune` does it on the device.")
    return (*(dataclasses.replace(one, latency_s=latency_s[one.variant.name]) for one in order), *untimed)


def _rank_untimed(one: Built) -> int:
    kind = (one.variant.target, one.variant.precision)
    return UNTIMED.index(kind) if kind in UNTIMED else -1


def _is_second_choice(variant: Variant) -> bool:
    """Whether this processor has what makes another target's graph the better one."""
    return variant.target != PORTABLE and _outdone(plugins.load("targets", variant.target).TARGET)


def evaluated(stock: Stock, order: Sequence[Built]) -> tuple[Built, ...]:
    """The same variants with their evaluations; only here, with nothing left to choose, test images are looked at."""
    fp32 = next(one for one in order if one.variant.precision == "fp32")
    fp32_test = evaluation(stock, fp32.graph, fp32.spec, "test")
    return tuple(_with_evaluations(stock, one, fp32_test) for one in order)


def latencies_of(stock: Stock, built: Sequence[Built]) -> dict[str, float]:
    """Median seconds of one image on one thread, by variant, interleaved in blocks."""
    sessions = {one.variant.name: open_session(one.judge, one.graph, one.spec, threads=1) for one in built}
    feeds = {one.variant.name: {one.spec.inputs[0].name: np.ascontiguousarray(golden_images(stock, one.spec)[:1])}
             for one in built}
    try:
        calls = {name: (lambda session=session, name=name: session.run(feeds[name]))
                 for name, session in sessions.items()}
        return {name: statistics.median(seconds) for name, seconds in evaluate.latencies(calls).items()}
    finally:
        for session in sessions.values():
            session.close()


def _with_evaluations(stock: Stock, one: Built, fp32_test: Judged | None) -> Built:
    test = fp32_test
    if fp32_test is not None and one.variant.precision != "fp32":
        test = judging.with_reference(judged(stock, one.graph, one.spec, "test", one.judge), fp32_test)
        told = "" if _unscored(test) else f": {judging.compare(test, fp32_test).sentence()}"
        stock.note(f"{one.variant.name} on test{told or ' is not scored, for these images cannot tell'}.")
    simulated = {} if one.judge in one.variant.backends else {"simulates": list(one.variant.backends)}
    rows = tuple({"backend": one.judge, **simulated, "split": split,
                  **figures(found, one.variant.temperature), "latency_s": one.latency_s,
                  "latency_arrival": "back-to-back", "latency_threads": 1, "machine": rundir.cpu_model()}
                 for split, found in (("val", one.val), ("test", test)) if found is not None)
    status = "not-measured" if one.latency_s is None else "measured"
    return dataclasses.replace(one, test=test, variant=dataclasses.replace(one.variant, evaluations=rows,
                                                                           status=status))


def _unscored(found: Judged) -> bool:
    return isinstance(found, TaskEvaluation) and found.score is None


def figures(found: Judged, temperature: float | None) -> dict[str, Any]:
    """What a row of the manifest says of a split; with a temperature also the calibration of the scores over it."""
    if not isinstance(found, Evaluation):
        return found.to_json()
    told, after = found.to_json(), evaluate.scaled(found, temperature)
    if len(found.confusion) > CONFUSION_CLASSES:
        del told["confusion"]
    scaled = ("ece", "nll", "brier") if temperature is not None else ()
    return told | {f"{name}_scaled": getattr(after, name) for name in scaled}


def evaluation(stock: Stock, graph: bytes, spec: GraphSpec, split: str, judge: str = BACKEND) -> Judged | None:
    """What the graph answers on a split; None where the data has no such split."""
    return judged(stock, graph, spec, split, judge) if stock.splits.of(split) else None


def judged(stock: Stock, graph: bytes, spec: GraphSpec, split: str, judge: str) -> Judged:
    """What the graph answers on a split that has images."""
    session = twin.open_judge(graph, spec, threads=stock.options.threads, backend=judge)
    try:
        predict = evaluate.session_predict(session, image=spec.inputs[0].name, logits=spec.outputs[0].name)
        return judging.evaluate(predict, stock.splits.of(split), stock.data.read, stock.network.preprocess,
                                classes=len(stock.data.labels), asked=stock.heads, normalized=not _takes_pixels(spec))
    finally:
        session.close()


def tolerances(stock: Stock, graph: bytes, spec: GraphSpec, allowed: Callable[[float, float], float],
               judge: str = BACKEND) -> dict[str, Any]:
    """The tolerances: `allowed` of the greatest difference to torch on the golden images and torch's greatest value."""
    found = outputs_on_golden(stock, graph, spec, judge)
    return {TOLERANCES[role]: allowed(greatest_difference(expected, found[role]),
                                      max(1.0, float(np.abs(expected).max())))
            for role, expected in stock.golden.outputs().items()}


def outputs_on_golden(stock: Stock, graph: bytes, spec: GraphSpec, judge: str = BACKEND) -> dict[str, NDArray[Any]]:
    """What the graph says to the golden images, by the output's name."""
    session = twin.open_judge(graph, spec, threads=1, backend=judge)
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


def variant_of(name: str, target: str, precision: str, backends: tuple[str, ...], graph: bytes, spec: GraphSpec,
               opset: int) -> Variant:
    """The manifest's entry of a graph, before anything was measured."""
    return Variant(name=name, file=f"{name}.onnx", target=target, precision=precision, opset=opset,
                   sha256=rundir.sha256(graph), size_bytes=len(graph), inputs=spec.inputs, outputs=spec.outputs,
                   backends=backends)
