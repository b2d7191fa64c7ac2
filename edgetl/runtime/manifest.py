"""The bundle's table of contents: plain JSON, one dataclass a table."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edgetl.errors import BundleError
from edgetl.runtime import heads as questions
from edgetl.runtime import limits, strict_json
from edgetl.runtime.fields import Table, has_control, is_list, is_whole, stays_inside, words
from edgetl.runtime.heads import Head
from edgetl.runtime.preprocess import Preprocess, from_dict, to_dict
from edgetl.runtime.processor import FEATURES
from edgetl.runtime.session import TensorSpec

SCHEMA = 3  # 2 knows no heads
SCALED = 2  # 1 knows no temperature
OLDEST = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
ROLES = ("image", "logits", "probabilities", "features")
DTYPES = ("float32", "uint8", "int64")
NAME = "letters, digits, - and _"
LAYOUTS = ("NCHW", "NHWC", "NC")
EXPORT_AGAIN = "Export the bundle again with `edgetl export`."

Value = TypeVar("Value")


@dataclass(frozen=True)
class Variant:
    """One graph of a bundle."""

    name: str  # "<target>.<precision>", e.g. "x86-vnni.int8"; the portable graph is "fp32"
    file: str
    target: str
    precision: str  # "fp32" | "fp16" | "bf16" | "int8"
    opset: int
    sha256: str
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    backends: tuple[str, ...]
    requires: tuple[str, ...] = ()  # CPU features without which the answers may be wrong, e.g. "avx512_vnni"
    embeds_preprocess: bool = False
    tolerance: float = 1e-3  # greatest |logit - golden logit| allowed on the golden images
    features_tolerance: float | None = None  # the same for the output of the role "features"; None: it has none
    # What logits are divided by before softmax, so that scores are as high as answers are right; None: nothing.
    temperature: float | None = None
    # The same of each head by itself, by its name; heads that are left as they are are not in it.
    temperatures: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    status: str = "not-measured"  # "measured" | "not-measured"
    # each {backend, split, n, accuracy, accuracy_low, accuracy_high, agreement, ece, ece_scaled, latency_s, machine};
    # with heads {score_name, score, score_low, score_high, details} in place of accuracy and calibration
    evaluations: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and how it is to be used."""

    schema: int
    name: str
    task: str  # "classify" | "multilabel" | "regress"
    labels: tuple[str, ...]  # of all outputs
    preprocess: Preprocess
    variants: tuple[Variant, ...]  # in the order of preference; variants[0] is the default
    heads: tuple[Head, ...] = ()  # what is said of an image; none: one class
    features: tuple[str, ...] = ()
    # {file, sha256, size_bytes, count, kind: "photos"|"synthetic", drawn: how many of them are no photos}
    golden: Mapping[str, Any] = field(default_factory=dict)
    # A prediction whose score (softmax probability, 0 to 1) is below it is better rejected; None: it was not asked for.
    reject_below: float | None = None
    # {target_accuracy, confidence, variant, split, n, checks: [{variant, split, n, accepted, coverage, accuracy,
    # accuracy_low, holds}]}: how reject_below was found, and what it does with every variant
    rejection: Mapping[str, Any] | None = None
    # {variant, split, count, top {mean, variance}, entropy {mean, variance}, class_counts}: for runtime.drift
    drift_reference: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def to_json(manifest: Manifest) -> str:
    """The manifest as indented JSON."""
    values = dataclasses.asdict(manifest) | {"preprocess": to_dict(manifest.preprocess)}
    # What older runtimes know nothing of stands only where there is some: bundles of one class stay what they were.
    if manifest.heads:
        values["heads"] = questions.to_json(manifest.heads)
    else:
        del values["heads"]
    for variant in values["variants"]:
        if not variant["temperatures"]:
            del variant["temperatures"]
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    # File names may hold bytes that are not UTF-8; Python's escapes for them are JSON's too.
    return text.encode(errors="backslashreplace").decode() + "\n"


def schema_of(variants: Sequence[Variant], heads: Sequence[Head] = ()) -> int:
    """The oldest schema that says all of these, so that older runtimes read what they can read rightly."""
    if heads:
        return SCHEMA
    return SCALED if any(one.temperature is not None for one in variants) else OLDEST


def from_json(text: str, *, where: str) -> Manifest:
    """The manifest in `text`.

    Args:
        text: what `to_json` wrote, or a later version of it that only added fields.
        where: what error messages call it, e.g. the path of the file.

    Raises:
        BundleError: not JSON; a field is missing or of the wrong type; the schema is too old or too new (two
            different sentences); a file path is absolute or leaves the bundle. Unknown fields are ignored.
    """
    try:
        values = strict_json.parse(text)
    except ValueError as problem:
        raise BundleError(f"{where} is not JSON: {problem}.", hint=EXPORT_AGAIN) from problem
    table = Table(values, where)
    schema = _check_schema(table)
    heads = _heads(table, schema)
    variants = tuple(_variant(one, f"{where}: variants[{index}]", schema, heads)
                     for index, one in enumerate(table.tables("variants", least=1, most=limits.VARIANTS)))
    _check_names(variants, table)
    made = Manifest(schema=schema, name=table.text("name"), task=table.text("task", choices=questions.TASKS),
                    labels=table.texts("labels", least=1, most=limits.LABELS),
                    preprocess=from_dict(table.table("preprocess"), where=f"{where}: preprocess"),
                    variants=variants, heads=heads, features=table.texts("features", ()), golden=_golden(table),
                    reject_below=_optional(table, "reject_below", lambda: table.number("reject_below", low=0, high=1)),
                    rejection=_optional(table, "rejection", lambda: _rejection(table)),
                    drift_reference=_optional(table, "drift_reference", lambda: table.table("drift_reference")),
                    provenance=table.table("provenance", {}))
    _check_labels(made, table)
    _check_features(made, table)
    _check_drift_reference(made, table)
    return made


def _check_schema(table: Table) -> int:
    schema = table.whole("schema")
    if schema > SCHEMA:
        raise BundleError(f"{table.where} has schema {schema}, newer than this edgetl can read (up to {SCHEMA}).",
                          hint="Update edgetl on this machine.")
    if schema < OLDEST:
        raise BundleError(f"{table.where} has schema {schema}, older than this edgetl can read (from {OLDEST}).",
                          hint=EXPORT_AGAIN)
    return schema


def _heads(table: Table, schema: int) -> tuple[Head, ...]:
    """The heads; a reader of an older schema would ignore them, and take labels or values for classes."""
    found = questions.read(table)
    if found and schema < SCHEMA:
        raise _too_early(table, "heads", SCHEMA, schema)
    for name in ("reject_below", "rejection", "drift_reference"):
        if found and table.values.get(name) is not None:
            raise BundleError(f"{table.where}: '{name}' is there, which is about one class an image; expected nothing "
                              f"of it beside {questions.asked(found)}.", hint=EXPORT_AGAIN)
    return found


def _too_early(table: Table, name: str, needs: int, schema: int) -> BundleError:
    return BundleError(f"{table.where}: '{name}' is there, which belongs to schema {needs}; found schema {schema}.",
                       hint=EXPORT_AGAIN)


def _variant(values: Any, where: str, schema: int, heads: Sequence[Head]) -> Variant:
    table = Table(values, where)
    return Variant(
        name=table.text("name"),
        file=_inside(table, "file"),
        target=_target(table),
        precision=table.text("precision", choices=PRECISIONS),
        opset=table.whole("opset", low=1),
        sha256=_digest(table),
        size_bytes=table.whole("size_bytes", high=limits.GRAPH_BYTES),
        inputs=_tensors(table, "inputs"),
        outputs=_tensors(table, "outputs"),
        backends=_backends(table),
        requires=_requires(table),
        embeds_preprocess=table.truth("embeds_preprocess", False),
        tolerance=table.number("tolerance", low=0),
        features_tolerance=_optional(table, "features_tolerance", lambda: table.number("features_tolerance", low=0)),
        temperature=_optional(table, "temperature", lambda: _temperature(table, schema, heads)),
        temperatures=questions.read_temperatures(table, [one.name for one in heads if one.kind == "classify"]),
        calibration=_optional(table, "calibration", lambda: table.table("calibration")),
        status=table.text("status", choices=("measured", "not-measured")),
        evaluations=tuple(_evaluation(one, f"{where}: evaluations[{index}]")
                          for index, one in enumerate(table.tables("evaluations", ()))),
    )


def _temperature(table: Table, schema: int, heads: Sequence[Head]) -> float:
    """A reader of the old schema would ignore it, and reject other predictions than were meant."""
    if schema < SCALED:
        raise _too_early(table, "temperature", SCALED, schema)
    if heads:
        raise table.wrong("temperature", f"nothing beside {questions.asked(heads)}: each head has its own in "
                                         "'temperatures'")
    return table.number("temperature", low=1 / limits.TEMPERATURE, high=limits.TEMPERATURE)


def _optional(table: Table, name: str, read: Callable[[], Value]) -> Value | None:
    """What `read` gives, or None where the field is absent or null."""
    return read() if table.values.get(name) is not None else None


def _tensors(table: Table, name: str) -> tuple[TensorSpec, ...]:
    return tuple(_tensor(one, f"{table.where}: {name}[{index}]")
                 for index, one in enumerate(table.tables(name, least=1, most=limits.TENSORS)))


def _tensor(values: Any, where: str) -> TensorSpec:
    table = Table(values, where)

    def accept(found: Any) -> bool:
        return is_list(found, lambda one: one == "N" or (is_whole(one) and 1 <= one <= limits.SIZE), 0, limits.RANK)

    expected = f'a list of at most {limits.RANK} whole numbers from 1 to {limits.SIZE} and "N"'
    shape = table.get("shape", accept, expected, None)
    layout = _optional(table, "layout", lambda: table.text("layout", choices=LAYOUTS))
    return TensorSpec(name=table.text("name"), role=table.text("role", choices=ROLES),
                      dtype=table.text("dtype", choices=DTYPES), shape=tuple(shape), layout=layout)


def _inside(table: Table, name: str) -> str:
    """A relative path that stays in the bundle; symbolic links are looked at when the file is read."""
    path = table.text(name)
    if not stays_inside(path):
        raise BundleError(f"{table.where}: '{name}' is {words(path)}, which leaves the bundle or is no name on every "
                          "system; expected a plain relative path inside it.",
                          hint="Do not use this bundle unless you know who made it.")
    return path


def _evaluation(values: Any, where: str) -> Mapping[str, Any]:
    """One row as it is, once what is shown of it was found to be numbers and texts."""
    row = Table(values, where)
    for name in ("accuracy", "accuracy_low", "accuracy_high", "agreement", "ece", "ece_scaled"):
        _optional(row, name, lambda name=name: row.number(name, low=0, high=1))  # type: ignore[misc]
    for name in ("score", "score_low", "score_high"):  # R2 may be anything below 1
        _optional(row, name, lambda name=name: row.number(name, high=1))  # type: ignore[misc]
    _optional(row, "latency_s", lambda: row.number("latency_s", low=0))
    for name in ("backend", "split", "machine", "score_name"):
        _optional(row, name, lambda name=name: row.text(name))  # type: ignore[misc]
    return row.values


def _target(table: Table) -> str:
    return str(table.get("target", lambda found: _is_name(found) and "." not in found, f"a name of {NAME}", None))


def _backends(table: Table) -> tuple[str, ...]:
    """Names; a dotted one is somebody's own module, which `choice` loads only when the user asks for it."""
    return tuple(table.get("backends", lambda found: is_list(found, _is_name, 1, limits.BACKENDS),
                           f"a list of 1 to {limits.BACKENDS} names of {NAME}", None))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w[\w-]*(\.\w+)*", value, re.ASCII) is not None


def _digest(table: Table) -> str:
    def accept(found: Any) -> bool:
        return isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) is not None

    return str(table.get("sha256", accept, "64 hexadecimal digits", None))


def _requires(table: Table) -> tuple[str, ...]:
    """An unknown requirement is refused: without it the answers may be silently wrong."""
    found = table.texts("requires", ())
    unknown = [one for one in found if one not in FEATURES]
    if unknown:
        raise BundleError(f"{table.where}: 'requires' names '{unknown[0]}', which this edgetl does not know.",
                          hint=f"Update edgetl on this machine. Known: {', '.join(FEATURES)}.")
    return found


def _golden(table: Table) -> Mapping[str, Any]:
    values = table.table("golden", {})
    if not values:
        return {}
    golden = Table(values, f"{table.where}: golden")
    return {**values, "file": _inside(golden, "file"), "sha256": _digest(golden),
            "size_bytes": golden.whole("size_bytes", high=limits.GOLDEN_BYTES),
            "count": golden.whole("count", low=1, high=limits.GOLDEN_IMAGES),
            "kind": golden.text("kind", choices=("photos", "synthetic")), **_drawn(golden)}


def _drawn(golden: Table) -> Mapping[str, int]:
    """How many golden images were drawn; bundles of edgetl's first days do not say."""
    return {"drawn": golden.whole("drawn", high=golden.whole("count"))} if "drawn" in golden.values else {}


def _rejection(table: Table) -> Mapping[str, Any]:
    """The record of a calibrated `reject_below`; what later versions add to it is kept."""
    record = Table(table.table("rejection"), f"{table.where}: rejection")
    for name in ("target_accuracy", "confidence"):
        record.number(name, above=0, high=1)
    _split_of(record)
    record.whole("n", low=1)
    for index, values in enumerate(record.tables("checks", ())):
        check = Table(values, f"{record.where}: checks[{index}]")
        _split_of(check)
        check.whole("accepted", high=check.whole("n", low=1))
        check.number("coverage", low=0, high=1)
        for name in ("accuracy", "accuracy_low"):
            if check.values.get(name) is not None:
                check.number(name, low=0, high=1)
    return record.values


def _split_of(record: Table) -> None:
    record.text("variant")
    record.text("split", choices=("train", "val", "test"))


def golden_words(golden: Mapping[str, Any]) -> str:
    """What the golden images of a manifest are, e.g. `8 photos from the training split and 3 drawn pictures`."""
    count, drawn = golden["count"], golden.get("drawn", golden["count"] if golden["kind"] == "synthetic" else 0)
    parts = [f"{count - drawn} photo{'s' * (count - drawn != 1)} from the training split"] if count > drawn else []
    parts += [f"{drawn} drawn picture{'s' * (drawn != 1)}"] if drawn else []
    return " and ".join(parts)


def features_length(manifest: Manifest) -> int | None:
    """D, how many features the bundle's variants give of an image; None where they give none."""
    lengths = [one.shape[1] for variant in manifest.variants for one in variant.outputs if one.role == "features"]
    return int(lengths[0]) if lengths else None


def rejection_words(manifest: Manifest) -> str | None:
    """What is known of the score to reject below, e.g. `0.8: at least 95 % of the rest are right (val, 300 images)`."""
    if manifest.reject_below is None:
        return None
    record = manifest.rejection or {}
    if not record:
        return f"{manifest.reject_below:.6g}"
    return (f"{manifest.reject_below:.6g}: at least {100 * record['target_accuracy']:g} % of the rest are right "
            f"({record['variant']}, {record['n']} images of {record['split']}, "
            f"{100 * record['confidence']:g} % confidence)")


def _check_names(variants: tuple[Variant, ...], table: Table) -> None:
    names = [one.name for one in variants]
    for what, found in (("name", [table.text("name")]), ("label", table.texts("labels")), ("variant", names)):
        if steering := next(filter(has_control, found), None):
            raise BundleError(f"{table.where}: the {what} {words(steering)} holds a control character; expected text.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BundleError(f"{table.where}: two variants are named '{twice[0]}'; expected different names.")


def _check_labels(made: Manifest, table: Table) -> None:
    """The classifier's output has as many columns as there are labels."""
    count = len(made.labels)
    if len(set(made.labels)) < count:
        raise BundleError(f"{table.where}: 'labels' names a label twice; expected different labels.")
    for variant in made.variants:
        wide = [one for one in variant.outputs if one.role in ("logits", "probabilities") and one.shape[1:] != (count,)]
        if wide:
            raise BundleError(f"{table.where}: output '{wide[0].name}' of variant '{variant.name}' has shape "
                              f"{list(wide[0].shape)}, but there are {count} labels.")


def _check_features(made: Manifest, table: Table) -> None:
    """Every variant that gives features gives them once, as float32 [N, D], and those of all have one length."""
    lengths = set()
    for variant in made.variants:
        found = [one for one in variant.outputs if one.role == "features"]
        fits = [one for one in found if one.dtype == "float32" and len(one.shape) == 2 and one.shape[0] == "N"
                and isinstance(one.shape[1], int)]
        if len(found) > 1 or len(fits) < len(found):
            raise BundleError(f"{table.where}: variant '{variant.name}' gives the features "
                              f"{[(one.dtype, *one.shape) for one in found]}; expected float32 [N, D], once.")
        lengths |= {one.shape[1] for one in fits}
    if len(lengths) > 1:
        raise BundleError(f"{table.where}: the variants give features of the lengths {sorted(map(int, lengths))}; "
                          "expected the same length.")


def _check_drift_reference(made: Manifest, table: Table) -> None:
    from edgetl.runtime.moments import read_counted  # not at module level, since not every device compares

    if made.drift_reference is not None:
        reference = Table(made.drift_reference, f"{table.where}: drift_reference")
        _split_of(reference)
        read_counted(reference, len(made.labels))
