"""From what the command names to the cases that are measured: variant x backend x threads x batch x arrival."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl import extras, judging, plugins, recipe, rundir, weights
from edgetl.bench.report import BACK_TO_BACK
from edgetl.bench.tables import legible
from edgetl.errors import EdgetlError, UnknownName
from edgetl.runtime import choice, manifest, preprocess, telemetry
from edgetl.runtime.bundle import is_bundle, open_bundle
from edgetl.runtime.heads import Head
from edgetl.runtime.manifest import Manifest, Variant
from edgetl.runtime.preprocess import Preprocess
from edgetl.runtime.session import GraphSpec, TensorSpec

RUN_BACKEND = "torch"
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Subject:
    """A graph that can be opened, before threads and batch are chosen."""

    title: str  # name of the case, less threads and batch
    source: Path  # what the command named
    kind: str  # "bundle" | "onnx" | "run"
    backend: str
    graph: Path
    spec: GraphSpec
    variant: str | None = None
    precision: str | None = None
    parameters: int | None = None
    labels: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None
    embeds_preprocess: bool = False
    requires: tuple[str, ...] = ()
    trained_on: Mapping[str, Any] = field(default_factory=dict)  # {source, name, fingerprint, rule}, where known
    within: tuple[int, int] | None = None  # of a packed bundle: where in the file the graph begins, and its size
    heads: tuple[Head, ...] = ()  # what it says of an image; none: one class
    columns: tuple[str, ...] = ()  # of a table, that its training named; none: those of the task's own

    @property
    def size_bytes(self) -> int:
        """Of the graph or the weights."""
        return self.graph.stat().st_size if self.within is None else self.within[1]


@dataclass(frozen=True)
class Case:
    """One row of the report to be."""

    name: str
    subject: Subject
    threads: int
    batch: int
    interval: str | None = None  # from the begin of a call to the begin of the next; None is back to back

    @property
    def interval_s(self) -> float | None:
        """`interval` in seconds."""
        return interval_s(self.interval)

    @property
    def arrival(self) -> str:
        """How the calls arrive, in words."""
        return BACK_TO_BACK if self.interval is None else f"paced {self.interval}"


def find(options: recipe.Bench) -> tuple[Case, ...]:
    """Every case, in the order in which the command names them.

    Raises:
        EdgetlError: a path that is no case, a case that no chosen backend opens, a case named twice, or a wrong number.
        UnknownName: a backend or variant that does not exist.
        BundleError: a bundle is incomplete or altered.
    """
    for backend in options.backend:
        plugins.require("backends", backend)  # not loaded: that may bring its library into the parent
    titles = _titles([Path(one) for one in options.cases])
    subjects = [subject for path, title in titles.items() for subject in _subjects(path, title, options)]
    cores(options.pin)
    threads, batches = whole_numbers("threads", options.threads, low=0), whole_numbers("batch", options.batch, low=1)
    paces = intervals(options.interval)
    if options.concurrency and None not in paces:
        raise EdgetlError("--concurrency measures calls back to back, and --interval paces all of them.",
                          hint="Add none to --interval, or leave one of the two out.")
    bare = [Case("", *axes) for axes in itertools.product(subjects, threads, batches, paces)]
    return tuple(dataclasses.replace(case, name=_name(case, len(threads) > 1, len(batches) > 1, len(paces) > 1))
                 for case in bare)


def _name(case: Case, many_threads: bool, many_batches: bool, many_arrivals: bool) -> str:
    count = {0: " all threads", 1: " 1 thread"}.get(case.threads, f" {case.threads} threads") if many_threads else ""
    batch = f" batch {case.batch}" if many_batches else ""
    return case.subject.title + count + batch + (f" {case.arrival}" if many_arrivals else "")


def _titles(paths: Sequence[Path]) -> dict[Path, str]:
    """The last part of each path, and as many parts before it as tell them apart."""
    # Links are not followed: a case goes by the name that the user gave it.
    named = [path.resolve() if ".." in path.parts else path.absolute() for path in paths]
    twice = [str(path) for path, count in Counter(named).items() if count > 1]
    if twice:
        raise EdgetlError(f"{twice[0]} is named twice.", hint="Name each case once.")
    titles = {}
    for path, whole in zip(paths, named, strict=True):
        parts = (*whole.parent.parts, whole.stem if whole.is_file() else whole.name)
        others = [(*one.parent.parts, one.stem if one.is_file() else one.name) for one in named if one != whole]
        length = next((n for n in range(1, len(parts)) if all(one[-n:] != parts[-n:] for one in others)), len(parts))
        titles[path] = legible("/".join(parts[-length:]))
    return titles


def _subjects(path: Path, title: str, options: recipe.Bench) -> list[Subject]:
    found = list(_open(path, title, options))
    if not found:
        raise EdgetlError(f"{path} has nothing for the backends {', '.join(options.backend)}"
                          + (f" and the variants {', '.join(options.variant)}." if options.variant else "."),
                          hint="A RUN folder needs the backend torch; a bundle those that its variants list "
                               "(`edgetl inspect` shows them).")
    return found


def _open(path: Path, title: str, options: recipe.Bench) -> Iterator[Subject]:
    if is_bundle(path):
        return _of_bundle(path, title, options)
    if weights.is_run(path):
        return _of_run(path, title, options)
    if path.is_file() and path.suffix == ".onnx":
        return _of_onnx(path, title, options)
    found = "does not exist" if not path.exists() else "is none of them"
    raise EdgetlError(f"{path} {found}: expected a bundle (a folder with {manifest.MANIFEST}, or packed), a RUN folder "
                      f"(with {rundir.RUN}) or an .onnx file.",
                      hint="Give what `edgetl export` or `edgetl finetune` wrote.")


def _of_bundle(path: Path, title: str, options: recipe.Bench) -> Iterator[Subject]:
    opened = open_bundle(path)
    bundle = opened.manifest
    names = [variant.name for variant in bundle.variants]
    unknown = [name for name in options.variant if name not in names]
    if unknown:
        raise UnknownName(f"variant of {path}", unknown[0], names)
    for variant in bundle.variants:
        if options.variant and variant.name not in options.variant:
            continue
        opened.read(variant.file, variant.sha256, variant.size_bytes)  # refuses what is missing, altered or elsewhere
        graph, offset = opened.store.place(variant.file)
        within = None if offset is None else (offset, variant.size_bytes)
        for backend in options.backend:
            if choice.made_for(variant, backend):
                subject = of_variant(bundle, variant, backend, title=f"{title} {variant.name} {backend}", source=path,
                                     graph=Path(graph))
                yield dataclasses.replace(subject, within=within)


def of_variant(bundle: Manifest, variant: Variant, backend: str, *, title: str, source: Path, graph: Path) -> Subject:
    """A variant of a bundle on one of its backends; `graph` holds the bytes whose digest was compared."""
    run = _mapping(bundle.provenance.get("run"))
    spec = GraphSpec(variant.inputs, variant.outputs, variant.precision)
    return Subject(title, source, "bundle", backend, graph, spec, variant.name, variant.precision, _parameters(run),
                   bundle.labels, bundle.preprocess, variant.embeds_preprocess, variant.requires,
                   _mapping(run.get("data")), heads=bundle.heads)


def _of_run(path: Path, title: str, options: recipe.Bench) -> Iterator[Subject]:
    if RUN_BACKEND not in options.backend:
        return
    record = weights.read_record(path)
    wants = preprocess.from_dict(record["preprocess"], where=str(path / rundir.RUN))
    spec = GraphSpec(
        inputs=(TensorSpec("image", "image", "float32", ("N", *wants.input_shape), wants.layout),),
        outputs=(TensorSpec("logits", "logits", "float32", ("N", len(record["labels"])), "NC"),),
        extra={"run": record})
    yield Subject(f"{title} {RUN_BACKEND}", path, "run", RUN_BACKEND, path / rundir.MODEL, spec, None, "fp32",
                  _parameters(record), tuple(record["labels"]), wants, trained_on=_mapping(record.get("data")),
                  heads=judging.of_run(record), columns=tuple(record.get("label_columns", ())))


def _of_onnx(path: Path, title: str, options: recipe.Bench) -> Iterator[Subject]:
    backends = [backend for backend in options.backend if backend != RUN_BACKEND]
    if backends:
        spec = spec_of_onnx(path)
        for backend in backends:
            yield Subject(f"{title} {backend}", path, "onnx", backend, path, spec)


def spec_of_onnx(path: Path) -> GraphSpec:
    """Inputs and outputs of somebody's ONNX graph; a free first dimension of an input is the batch.

    Raises:
        MissingDependency: onnxruntime is not installed.
        EdgetlError: not an ONNX graph, or a dimension besides the batch is free.
    """
    extras.require("onnxruntime", extra="cpu", purpose="Reading the inputs of an ONNX file")
    telemetry.off()
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nothing is going to run
    quiet.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])
    except Exception as problem:  # ONNX Runtime's own exceptions share no base class
        told = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise EdgetlError(f"{path} cannot be opened as an ONNX graph: {told:.300}",
                          hint="The file is no ONNX graph, is damaged, or needs a newer ONNX Runtime.") from problem
    inputs = tuple(_tensor(one, "image", path) for one in session.get_inputs())
    outputs = tuple(_tensor(one, "logits", path) for one in session.get_outputs())
    return GraphSpec(inputs, outputs)


def _tensor(argument: Any, role: str, path: Path) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in argument.shape)
    if shape and isinstance(shape[0], str):
        shape = ("N", *shape[1:])
    free = [size for size in shape[1:] if isinstance(size, str)]
    if free and role == "image":
        raise EdgetlError(f"The input '{argument.name}' of {path} has the free dimension '{free[0]}' beside the batch.",
                          hint="Fix it: python -m onnxruntime.tools.make_dynamic_shape_fixed "
                               f"--dim_param {free[0]} --dim_value 224 IN.onnx OUT.onnx")
    return TensorSpec(argument.name, role, DTYPES.get(argument.type, argument.type), shape)


def _parameters(record: Mapping[str, Any]) -> int | None:
    found = record.get("parameters")
    return found if isinstance(found, int) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def whole_numbers(flag: str, values: Sequence[str], *, low: int) -> tuple[int, ...]:
    """Whole numbers from a flag, without repetitions.

    Raises:
        EdgetlError: one is not a whole number, or below `low`; names the flag.
    """
    for value in values:
        if not value.isascii() or not value.isdigit() or int(value) < low:
            raise EdgetlError(f"--{flag} {value}: expected a whole number of at least {low}.")
    if not values:
        raise EdgetlError(f"--{flag} is empty.", hint=f"Give at least one whole number, e.g. --{flag} 1.")
    return tuple(dict.fromkeys(int(value) for value in values))


def interval_s(text: str | None) -> float | None:
    """Seconds of a duration with a unit, e.g. `10ms`; None stays None.

    Raises:
        EdgetlError: no number, no unit, or not above 0.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise EdgetlError(f"--interval {text}: expected a duration above 0 with a unit.",
                          hint="Write 10ms, 500us or 1s.")
    return float(match[1]) * UNITS_S[match[2]]


def intervals(values: Sequence[str] | None) -> tuple[str | None, ...]:
    """The arrivals that --interval asks for, without repetitions; None is back to back.

    Raises:
        EdgetlError: see `interval_s`.
    """
    first: dict[float | None, str | None] = {}  # 10ms and .01s are one arrival
    for value in values or ("none",):
        interval = None if value.strip() == "none" else value.strip()
        first.setdefault(interval_s(interval), interval)
    return tuple(first.values())


def cores(text: str | None) -> tuple[int, ...] | None:
    """The cores of --pin, in rising order; None pins nothing.

    Raises:
        EdgetlError: a range runs backwards.
    """
    if text is None:
        return None
    asked: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise EdgetlError(f"--pin {text}: the range {part} runs backwards.", hint="Write the lower core first.")
        asked.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(asked))


def warnings(cases: Sequence[Case], missing: Callable[[tuple[str, ...]], tuple[str, ...]]) -> list[str]:
    """What the machine lacks for a variant to be trusted; `missing` is that of the host that measures."""
    found = []
    for subject in dict.fromkeys((case.subject.title, case.subject.requires) for case in cases):
        lacking = missing(subject[1])
        if lacking:
            found.append(f"{subject[0]}: this processor lacks {', '.join(lacking)}; the answers may be wrong.")
    return found


def spec_to_json(spec: GraphSpec) -> dict[str, Any]:
    """Plain JSON values for a worker."""
    return dataclasses.asdict(dataclasses.replace(spec, extra=dict(spec.extra)))
