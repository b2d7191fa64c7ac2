"""The ladder to an INT8 variant: each rung is tried only where those before it lost too much on the validation split.

The rungs are files, see `export.rungs`. A rung is passed where both the loss of accuracy and the disagreement with
float32 are within the limits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import evaluate, judging
from edgetl.compress import calibrate, quantize
from edgetl.compress.groups import groups_of
from edgetl.datasets import Item
from edgetl.errors import DataError, GateFailed
from edgetl.export import half, pace, rungs, twin, variants
from edgetl.export.variants import BACKEND, FASTER, Built, Stock
from edgetl.judging import Judged, Judgement
from edgetl.runtime import processor
from edgetl.runtime.heads import Head
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec, open_session
from edgetl.targets import Target

RANKED_IMAGES = 32  # calibration images that tell the layers apart
QUICK = ("cpu", "openvino")  # backends that open a graph in a second or so
LEAST_S = 5e-4  # of a call in float32: of a shorter one most is no computing, and what INT8 saves is not seen


@dataclass(frozen=True)
class Limits:
    """What INT8 may lose against float32 on the validation images."""

    max_drop: float | None  # percentage points of accuracy; None where the labels are not known
    min_agreement: float  # percent

    def hold(self, found: Judgement) -> bool:
        """Whether what was found is within them."""
        # The tiny allowance is for the division only: a limit that is met exactly is met.
        drop_ok = self.max_drop is None or found.drop_points <= self.max_drop + 1e-9
        return drop_ok and 100 * found.agreement >= self.min_agreement - 1e-9


@dataclass(frozen=True)
class Subject:
    """A float32 classifier, the images that calibrate and judge it, and the limits."""

    graph: bytes
    spec: GraphSpec
    preprocess: Preprocess
    train: Sequence[Item]
    val: Sequence[Item]
    read: Callable[[Item], bytes]
    reference: Judged  # of the float32 graph on `val`
    limits: Limits
    calibration_images: int
    seed: int
    threads: int
    note: Callable[[str], None]
    known: Mapping[str, tuple[float, int]] = dataclasses.field(default_factory=dict)  # see `quantize.write`
    qat_epochs: int = 0  # of quantization-aware distillation; 0 leaves that rung out
    quantizer: str = rungs.OWN
    watch: pace.Stopwatch = pace.stopwatch
    heads: tuple[Head, ...] = ()  # what the graph says; none: one class an image

    @property
    def fixed(self) -> bool:
        """Whether the graph takes exactly `batch` images."""
        return not isinstance(self.spec.inputs[0].shape[0], str)

    @property
    def batch(self) -> int:
        """Images that a call of the graph takes while it is calibrated, at most."""
        size = self.spec.inputs[0].shape[0]
        return calibrate.BATCH if isinstance(size, str) else size


@dataclass(frozen=True)
class Plan:
    """How an INT8 graph is made."""

    source: quantize.Source
    method: str  # of calibration, see `compress.ranges`
    told: str  # what the table of rungs calls it
    floats: tuple[str, ...] = ()  # layers left in float with their groups, see `compress.groups`
    known: Mapping[str, tuple[float, int]] | None = None  # rounding of activations; None is the subject's
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the target's scheme
    steps: Mapping[str, NDArray[np.int8]] | None = None  # what weights are rounded to, where that is known better


@dataclass(frozen=True)
class Tried:
    """What the table of rungs keeps of an attempt: all but the graph."""

    plan: Plan
    found: Judgement
    row: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether it is within the limits."""
        return bool(self.row["passed"])


@dataclass(frozen=True)
class Attempt(Tried):
    """An INT8 graph with its answers on the validation images."""

    made: quantize.Quantized
    val: Judged


@dataclass(frozen=True)
class Rejected:
    """A variant that no rung of its target's ladder brought through the gate."""

    name: str
    rungs: tuple[dict[str, Any], ...]
    sentence: str


class Ladder:
    """A ladder for a target; `rungs` is the table of all attempts.

    Args:
        name: of the variant.
        target: whose INT8 scheme is used.
        subject: what is quantized.
    """

    def __init__(self, name: str, target: Target, subject: Subject) -> None:
        self.name, self.scheme, self.methods = name, target.quantize, target.quantize["methods"]
        self.subject, self.requires = subject, target.requires.get("int8", ())
        self.judged_only = BACKEND not in target.backends  # its engine is not the one that answers here
        # An engine of TensorRT takes minutes to build, so its graphs are not timed while there are many of them.
        quick = [one for one in target.backends if one in QUICK]
        self.backend = variants.own_backend(quick, self.requires)
        self.spec = dataclasses.replace(subject.spec, precision="int8")
        chosen = calibrate.choose(subject.train, subject.calibration_images, subject.seed)
        self.items = chosen[:len(chosen) - len(chosen) % subject.batch] if subject.fixed else chosen
        if not self.items:
            raise DataError(f"The graph takes {subject.batch} images at once; {len(chosen)} training images are less.",
                            hint="Give more --calibration-images, or a graph with a free batch.")
        self.reader = calibrate.Reader(self.items, subject.read, subject.preprocess, name=self.spec.inputs[0].name,
                                       batch=subject.batch)
        self.source = self.studied(subject.graph)
        self.record: dict[str, Any] = {}  # what rungs have to tell beside their rows
        self.tried: list[Tried] = []

    @property
    def rungs(self) -> list[dict[str, Any]]:
        """The table: a row for each attempt, in the order they were made."""
        return [one.row for one in self.tried]

    def studied(self, graph: bytes) -> quantize.Source:
        """A float graph of the same network, seen with the calibration images."""
        return quantize.study(graph, self.reader, opset=self.scheme.get("opset", 0))

    @property
    def score_name(self) -> str:
        """What a point is of."""
        return self.subject.reference.score_name

    def climbed(self) -> Attempt | None:
        """The first attempt that is within the limits and pays; else the fastest one within the limits; else None."""
        slow: list[Attempt] = []
        for rung in rungs.in_order(self.subject.quantizer):
            if slow and not getattr(rung, "QUICKENS", False):
                continue  # it would give other answers in the same time
            attempt = rung.climb(self)
            if attempt is not None and pays(attempt.row):
                return attempt
            slow += [attempt] if attempt is not None else []
        return min(slow, key=lambda one: float(one.row["latency_s"]), default=None)

    def attempt(self, plan: Plan) -> Attempt:
        """The graph of a plan, judged; adds a row to the table."""
        return self.judge(plan, self.written(plan))

    def written(self, plan: Plan) -> quantize.Quantized:
        """The graph of a plan, before the rest of it is cast to half."""
        scheme = self.scheme_of(plan)
        groups = groups_of(plan.source, scheme) if plan.floats else {}
        return quantize.write(plan.source, scheme, method=plan.method, known=self.known(plan), steps=plan.steps,
                              floats=[node for layer in plan.floats for node in groups[layer]])

    def scheme_of(self, plan: Plan) -> dict[str, Any]:
        """The target's scheme with the plan's changes."""
        return {**self.scheme, **plan.changes}

    def known(self, plan: Plan) -> Mapping[str, tuple[float, int]]:
        """Rounding of activations that needs no calibration."""
        return self.subject.known if plan.known is None else plan.known

    def judge(self, plan: Plan, made: quantize.Quantized) -> Attempt:
        """A graph that was made by a plan, judged on the validation images; adds a row to the table."""
        subject, made = self.subject, self.finished(made)
        answered = judged(made.graph, self.spec, subject.val, subject.read, subject.preprocess, subject.threads,
                          subject.heads)
        val = judging.with_reference(answered, subject.reference)
        found = judging.compare(val, subject.reference)
        passed, timed = subject.limits.hold(found), self.pace and self.pace.beside_fp32(made.graph)
        row = {"method": plan.told, "passed": passed, "float_layers": list(plan.floats), **judging.figure(val),
               "latency_s": timed and timed.latency_s, "fp32_latency_s": timed and timed.fp32_latency_s,
               **dataclasses.asdict(found)}
        took = f", {1e3 * timed.latency_s:.2f} against {1e3 * timed.fp32_latency_s:.2f} ms" if timed else ""
        subject.note(f"{self.name}, {plan.told}: {self._sentence(found)}{took}; "
                     f"{'passed' if passed else 'outside the limits'}.")
        self.tried.append(Tried(plan, found, row))
        return Attempt(plan, found, row, made, val)

    def finished(self, made: quantize.Quantized) -> quantize.Quantized:
        """What is judged is what is shipped: the rest in half where the target wants it so."""
        remainder = self.scheme.get("remainder")
        return dataclasses.replace(made, graph=half.to_half(made.graph, remainder).graph) if remainder else made

    @functools.cached_property
    def pace(self) -> pace.Pace | None:
        """What times graphs; None where the target's backend cannot run here."""
        if self.backend is None:
            return None
        subject, image = self.subject, self.spec.inputs[0]
        shown = np.concatenate(list(evaluate.images(subject.val[:1], subject.read, subject.preprocess)))
        feeds = {image.name: np.repeat(shown, subject.batch if subject.fixed else 1, axis=0)}
        return pace.Pace(self.backend, subject.graph, subject.spec, feeds, watch=subject.watch)

    def batches(self, count: int) -> list[dict[str, Any]]:
        """About `count` calibration images, of every class, as the graph takes them."""
        size = self.subject.batch if self.subject.fixed else 1
        count = max(size, min(count, len(self.items)) // size * size)
        spread = [self.items[place * len(self.items) // count] for place in range(count)]
        reader = calibrate.Reader(spread, self.subject.read, self.subject.preprocess, name=self.spec.inputs[0].name,
                                  batch=self.subject.batch)
        return list(iter(reader.get_next, None))

    @functools.cached_property
    def _shown(self) -> list[dict[str, Any]]:
        return self.batches(RANKED_IMAGES)

    def answers(self, graph: bytes) -> NDArray[Any]:
        """Logits [n, K] of a graph on a few calibration images, by which layers are told apart."""
        session = open_session(BACKEND, graph, self.spec, threads=self.subject.threads)
        try:
            return np.concatenate([session.run(batch)[self.spec.outputs[0].name] for batch in self._shown])
        finally:
            session.close()

    def best(self) -> Tried:
        """The attempt nearest to the limits: of those that hold the one of accuracy, the one that agrees most."""
        return self._nearest(self.tried)

    def best_whole(self) -> Tried:
        """The same of those that leave no layer in float."""
        return self._nearest([one for one in self.tried if not one.plan.floats])

    def _nearest(self, tried: Sequence[Tried]) -> Tried:
        most = self.subject.limits.max_drop
        return max(tried, key=lambda one: (most is None or one.found.drop_points <= most, one.found.agreement))

    def _sentence(self, found: Judgement) -> str:
        if self.subject.limits.max_drop is not None:
            return found.sentence()
        return (f"agreement {100 * found.agreement:.2f} % of {found.n} images; one image is {found.image_points:.2f} "
                "points")

    def calibration(self, accepted: Attempt) -> dict[str, Any]:
        """How the INT8 graph was made, for the manifest: {method, images, split, seed, rounding, rungs, ...}.

        `fused` says what ONNX Runtime makes of it, on a processor of the target's kind; None on another.
        """
        # Another processor's engine fuses other kernels.
        ours = not self.judged_only and not processor.missing(self.requires)
        return {"method": accepted.plan.told, "images": len(self.items), "split": "train", "seed": self.subject.seed,
                "rounding": dict(accepted.made.rounding), "remainder": self.scheme.get("remainder", "fp32"),
                "float_layers": list(accepted.plan.floats), "rungs": self.rungs, **self.record,
                "fused": quantize.fused(accepted.made.graph) if ours else None}

    def refusal(self) -> str:
        """Why nothing was accepted."""
        best, limits = self.best().row, self.subject.limits
        at_best = f"with {100 * best['agreement']:.2f} % agreement at best ({best['method']}, {best['n']} images)"
        if limits.max_drop is None:
            return (f"{self.name} is outside the limits: it agrees with fp32 on {100 * best['agreement']:.2f} % of "
                    f"{best['n']} validation images at best ({best['method']}); at least {limits.min_agreement:g} % "
                    "are asked for")
        return (f"{self.name} is outside the limits: against fp32 it loses {best['drop_points']:.2f} points of "
                f"validation {self.score_name} (95 %: {best['drop_low']:.2f} to {best['drop_high']:.2f}) {at_best}; "
                f"allowed are {limits.max_drop:g} points and at least {limits.min_agreement:g} %")


def pays(row: Mapping[str, Any]) -> bool:
    """Whether an attempt is faster than float32, or it is not known that it is not."""
    latency_s, fp32_s = row["latency_s"], row["fp32_latency_s"]
    return latency_s is None or fp32_s < LEAST_S or latency_s < FASTER * fp32_s


def judged(graph: bytes, spec: GraphSpec, items: Sequence[Item], read: Callable[[Item], bytes],
           preprocess: Preprocess, threads: int, heads: Sequence[Head] = ()) -> Judged:
    """What a graph answers on some images, as many at a time as it takes."""
    session = twin.open_judge(graph, spec, threads=threads)
    size = spec.inputs[0].shape[0]
    answers = evaluate.session_predict(session, image=spec.inputs[0].name, logits=spec.outputs[0].name)

    def predict(images: evaluate.Images) -> NDArray[Any]:
        lacking = 0 if isinstance(size, str) else size - len(images)
        return answers(np.pad(images, ((0, lacking), (0, 0), (0, 0), (0, 0))))[:len(images)] if lacking else answers(
            images)

    try:
        return judging.evaluate(predict, items, read, preprocess, classes=int(spec.outputs[0].shape[1]), asked=heads,
                                batch=evaluate.BATCH if isinstance(size, str) else size)
    finally:
        session.close()


# ----------------------------------------------------------------------------------------------- for a bundle's variant


def build_int8(stock: Stock, target: Target, fp32: Built) -> Built | Rejected:
    """The target's INT8 variant, by the first rung that passes the gate on the validation split.

    Raises:
        DataError: there are no validation images to hold the gate with.
    """
    if fp32.val is None:
        raise DataError("There are no validation images, so the accuracy of INT8 cannot be held against its limit.",
                        hint="Give data with a val split, or train with --val-fraction above 0.")
    options = stock.options
    subject = Subject(fp32.graph, fp32.spec, stock.network.preprocess, stock.splits.train, stock.splits.val,
                      stock.data.read, fp32.val, Limits(options.max_drop, options.min_agreement),
                      options.calibration_images, options.seed, options.threads, stock.note,
                      _known_steps(stock, fp32.spec, target), options.qat_epochs, options.quantizer,
                      heads=stock.heads)
    ladder = Ladder(f"{target.name}.int8", target, subject)
    try:
        attempt = ladder.climbed()
    except GateFailed as problem:  # there is nothing to round
        return Rejected(ladder.name, tuple(ladder.rungs), f"{ladder.name} is not made: {problem.message.rstrip('.')}")
    if attempt is None:
        return Rejected(ladder.name, tuple(ladder.rungs), ladder.refusal())
    return _built(stock, target, ladder, attempt)


def _known_steps(stock: Stock, spec: GraphSpec, target: Target) -> dict[str, tuple[float, int]]:
    """The rounding of the image where it can be chosen so that a graph which takes pixels need not round them."""
    steps = quantize.pixel_steps(stock.network.preprocess)
    wanted = stock.options.embed_normalize and target.quantize["activations"] == "uint8"
    return {spec.inputs[0].name: steps} if wanted and steps is not None else {}


def _built(stock: Stock, target: Target, ladder: Ladder, attempt: Attempt) -> Built:
    graph, calibration = attempt.made.graph, ladder.calibration(attempt)
    kernels = calibration["fused"]
    if kernels is not None and kernels["float_nodes"]:
        stock.warn(f"{ladder.name}: {kernels['float_nodes']} kernels stay in float: {kernels['float_kernels']}.")
    # The difference to torch is the rounding itself, the same everywhere. Twice that and a fiftieth of the greatest
    # value leave room for a value that another processor rounds to the neighbouring step.
    allowed = variants.tolerances(stock, graph, ladder.spec, lambda difference, reach: 2 * difference + 0.02 * reach)
    variant = variants.variant_of(ladder.name, target.name, "int8", target.backends, graph, ladder.spec, target.opset)
    variant = dataclasses.replace(variant, requires=target.requires.get("int8", ()), calibration=calibration, **allowed)
    return Built(variant, graph, ladder.spec, attempt.val, attempt.found)
