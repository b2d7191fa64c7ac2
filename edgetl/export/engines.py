"""`edgetl engine`: a TensorRT engine in a file, of a variant of a bundle or of any graph in ONNX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl import extras, plugins, rundir
from edgetl.errors import EdgetlError, OutputError, UnknownName
from edgetl.events import Event, Listener, ignore
from edgetl.recipe_engine import Engine
from edgetl.runtime import choice
from edgetl.runtime.bundle import Bundle, is_bundle, open_bundle
from edgetl.runtime.manifest import Variant
from edgetl.runtime.session import GraphSpec, TensorSpec

STAGE = "engine"
BACKEND = "tensorrt"
SIDECAR = ".json"
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
DTYPES = {"FLOAT": "float32", "FLOAT16": "float16", "UINT8": "uint8", "INT64": "int64"}


@dataclass(frozen=True)
class Source:
    """A graph, and why it is this one."""

    graph: bytes
    spec: GraphSpec
    variant: str | None  # of a bundle
    why: str


@dataclass(frozen=True)
class Outcome:
    """The engine that was written."""

    out: str
    variant: str | None
    why: str  # it is this variant
    flavor: str
    title: str
    version: str
    compute_capabilities: tuple[str, ...]
    device: str | None  # None where cards were named
    driver: str | None
    batches: tuple[int, int, int] | None  # least, best and greatest; None where the graph fixes it
    size_bytes: int
    sha256: str
    precision: str | None  # of most of the layers that multiply; None where there are none
    precisions: Mapping[str, float]
    build_s: float
    timing_cache: str  # see `edgetl.backends._tensorrt_ahead.Ahead`
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def engine(options: Engine, *, listener: Listener = ignore) -> Outcome:
    """The engine of `options.source`, written to `options.out` and, what it was built from, to a file beside it.

    Args:
        options: the graph, the cards, and the limits of the build.
        listener: hears which variant was taken, and how far the build is.

    Raises:
        OutputError: `options.out` exists or cannot be written.
        BundleError: the bundle or its graph cannot be used; or TensorRT cannot parse it: names node and operator.
        BackendUnavailable: TensorRT is not installed, or cannot build that here.
        GateFailed: the variant's precision is not that of the network.
    """
    out = _place(options.out, options.overwrite, "--out")
    if options.timing_cache is not None:
        _place(options.timing_cache, True, "--timing-cache")
    bundled = is_bundle(options.source) or Path(options.source).is_dir()
    source = _from_bundle(options) if bundled else _from_file(options)
    if source.variant is not None:
        listener(Event(STAGE, "note", {"text": f"variant {source.variant}: {source.why}."}))
    backend = plugins.load("backends", BACKEND)
    batches = tuple(int(one) for one in options.batches.split(","))
    cards = tuple(sorted({*options.compute_capability}, key=float))
    how = backend.How(batches, cards, _bytes(options.workspace), options.optimization_level,
                      options.version_compatible, options.hardware_compatible)
    timing_cache = None if options.timing_cache is None else Path(options.timing_cache)
    with _Bar(listener) as bar:
        made = backend.build_ahead(source.graph, source.spec, out, flavor=options.flavor, how=how,
                                   timing_cache=timing_cache, progress=bar)
    for note in made.notes:
        listener(Event(STAGE, "warning", {"text": note}))
    free = any(one.shape[:1] == ("N",) for one in source.spec.inputs)
    told = {one.name: getattr(made, one.name) for one in dataclasses.fields(made)
            if one.name in {field.name for field in dataclasses.fields(Outcome)}}
    return Outcome(out=str(out), variant=source.variant, why=source.why, batches=how.batches if free else None,
                   precision=next(iter(made.precisions), None), **told)


def _place(name: str, overwrite: bool, flag: str) -> Path:
    """A file that can be written, before the work that takes minutes."""
    path = Path(name)
    taken = next((one for one in (path, path.with_name(path.name + SIDECAR)) if flag == "--out" and one.exists()), None)
    if path.is_dir() or (taken is not None and not overwrite):
        raise OutputError(f"{path if taken is None else taken} exists already.",
                          hint=f"Choose another {flag}" + ("." if path.is_dir() else ", or give --overwrite."))
    rundir.require_place(path)
    return path


def _bytes(size: str | None) -> int | None:
    return None if size is None else int(size[:-3]) * UNITS[size[-3:]]


# ------------------------------------------------------------------------------------------------------- of a bundle


def _from_bundle(options: Engine) -> Source:
    if options.input_size is not None:
        raise EdgetlError("--input-size is for graphs in ONNX; the variants of a bundle have their sizes.",
                          hint="Leave it out.")
    bundle = open_bundle(options.source)
    variant, why = _chosen(bundle, options.variant)
    graph = bundle.read(variant.file, variant.sha256, variant.size_bytes)
    return Source(graph, GraphSpec(variant.inputs, variant.outputs, variant.precision), variant.name, why)


def _chosen(bundle: Bundle, wanted: str | None) -> tuple[Variant, str]:
    """The variant to build, and why."""
    variants = bundle.manifest.variants
    if wanted is not None:
        named = next((one for one in variants if one.name == wanted), None)
        if named is None:
            raise UnknownName("variant", wanted, [one.name for one in variants])
        return named, "it was asked for"
    made_for_it = [one for one in variants if one.target == BACKEND]
    if made_for_it:
        why = "the first of the manifest's that is made for TensorRT" if made_for_it[1:] else (
            "it is made for TensorRT")
        return made_for_it[0], why
    portable = next((one for one in variants if one.target == choice.PORTABLE and one.precision == "fp32"), None)
    if portable is not None:
        return portable, ("none is made for TensorRT, and this one is portable; `edgetl export --target tensorrt` "
                          "adds fp16 and INT8")
    raise EdgetlError(f"{bundle.path} has no variant for TensorRT and no portable one; it has "
                      f"{', '.join(one.name for one in variants)}.",
                      hint="Export it with --target tensorrt, or name one with --variant.")


# ------------------------------------------------------------------------------------------------ of a graph in ONNX


def _from_file(options: Engine) -> Source:
    path = Path(options.source)
    if options.variant is not None:
        raise EdgetlError(f"--variant is for bundles; {path} is a file.", hint="Leave it out.")
    if not path.is_file():
        raise EdgetlError(f"{path} does not exist: expected a bundle or an .onnx file.")
    extras.require("onnx", extra="train", purpose="Reading a graph that is in no bundle")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = path.read_bytes()
        model = onnx.load_from_string(graph)
    except OSError as problem:
        raise EdgetlError(f"{path} cannot be read: {problem.strerror}.") from problem
    except DecodeError as problem:
        raise EdgetlError(f"{path} is neither a bundle nor a graph in ONNX, or is damaged.") from problem
    constants = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    if not inputs or not model.graph.output:
        raise EdgetlError(f"{path} is neither a bundle nor a graph in ONNX, or is damaged.")
    size = _size(options.input_size)
    ports = tuple(_port(one, "image", size, path) for one in inputs)
    # Its precision is what the casts and Q/DQ nodes say; nobody asked for another.
    spec = GraphSpec(ports, tuple(_port(one, "logits", (), path) for one in model.graph.output))
    return Source(graph, spec, None, "a graph in ONNX")


def _size(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _port(value: Any, role: str, size: tuple[int, ...], path: Path) -> TensorSpec:
    """An input or output; free sizes but the batch are taken from `size` in their order."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    kind = TensorProto.DataType.Name(tensor.elem_type)
    if kind not in DTYPES:
        raise EdgetlError(f"'{value.name}' of {path} is of {kind}; expected {', '.join(DTYPES)}.")
    dims = [one.dim_value if one.dim_value > 0 else one.dim_param or "?" for one in tensor.shape.dim]
    free = [place for place, dim in enumerate(dims) if place > 0 and isinstance(dim, str)]
    if size and len(free) == len(size):
        for place, value_px in zip(free, size, strict=True):
            dims[place] = value_px
    elif free and role == "image":
        raise EdgetlError(f"The input '{value.name}' of {path} has the shape [{', '.join(map(str, dims))}]: its size "
                          "is free.", hint="Say one: --input-size 224, or HEIGHTxWIDTH.")
    if dims and isinstance(dims[0], str):
        dims[0] = "N"
    return TensorSpec(value.name, role, DTYPES[kind], tuple(dims))


# -------------------------------------------------------------------------------------------------------- the bar


class _Bar:
    """One bar of a build out of TensorRT's phases within phases."""

    WHAT = "building the engine"

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._phases: list[list[Any]] = []  # name, steps done, steps in all; each lies within the one before
        self._percent: int | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *problem: object) -> None:
        if self._percent is not None:
            self._listener(Event(STAGE, "end", {"what": self.WHAT}))

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._percent is None:
            self._percent = 0
            self._listener(Event(STAGE, "begin", {"what": self.WHAT, "total": 100}))
        if done == 0:
            self._phases.append([phase, 0, total])
        place = next((place for place, one in enumerate(self._phases) if one[0] == phase), len(self._phases))
        del self._phases[place + 1:]  # what lay within it has ended
        for one in self._phases[place:]:
            one[1] = done
        percent = int(100 * self._share())
        if percent > self._percent:  # a phase may begin again; a bar does not run backwards
            self._percent = percent
            self._listener(Event(STAGE, "advance", {"done": percent}))
        if done == total:
            del self._phases[place:]

    def _share(self) -> float:
        share, weight = 0.0, 1.0
        for _, done, total in self._phases:
            weight /= max(total, 1)
            share += weight * done
        return share
