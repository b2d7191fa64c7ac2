"""The configuration: one frozen dataclass a stage. Its fields are the command's flags and the recipe's keys.

`edgetl.recipe_file` reads and writes them as TOML. All problems of a recipe are reported at once.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgetl.errors import RecipeError
from edgetl.recipe_fields import DEVICE, MOST_SEED, MOST_THREADS, REQUIRED, THREAD_COUNTS, DataFields, TrainFields, opt
from edgetl.recipe_finetune import Finetune as Finetune
from edgetl.recipe_presets import PRESETS, resolved
from edgetl.recipe_values import convert, nearest, toml_value

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Distill(TrainFields):
    """`edgetl distill`."""

    teacher: str = opt(
        REQUIRED, "MODEL[,MODEL...]: RUN folders, FAMILY/VARIANT with classes of the data's names, or onnx:FILE.",
        given=True)
    teacher_options: tuple[str, ...] = opt(
        (), "What a teacher does not say itself, [N:]key=value[;key=value...], N counts the teachers from 1; onnx:FILE "
        "knows the keys of `edgetl quantize` (mean, std, labels, ...) and output, FAMILY/VARIANT weights, labels and "
        "image-size; may be repeated.", given=True)
    teacher_mix: str = opt(
        "mean", "How several teachers become one: their mean, weighted by --teacher-weight, or for each image by who "
        "is surer of its class.", choices=("mean", "weighted", "confidence"), given=True)
    teacher_weight: tuple[str, ...] = opt(
        (), "Weights of --teacher-mix weighted, one a teacher, e.g. 2,1.", split=True, given=True,
        form=(r"(?=[^1-9]*[1-9])[0-9]+([.][0-9]+)?|[.](?=0*[1-9])[0-9]+", "numbers above 0: 2,1"))
    student: str = opt(
        "slim:0.4",
        "FAMILY/VARIANT, a RUN folder, or slim:R (the first teacher cut to the fraction R of its parameters).",
        path=True,
        form=("(?!slim:).*|slim:0?[.](?=0*[1-9])[0-9]+", "slim:R with a number R between 0 and 1, e.g. slim:0.4"))
    preset: str | None = opt(
        None, "Start from a named set of options (`edgetl list presets`); what is said beside it wins.",
        choices=tuple(PRESETS), result=False)
    loss: tuple[str, ...] = opt(
        ("labels:0.1,kd:0.9;temperature=auto",), "name[:weight][,name[:weight]...][;key=value...]; may be repeated.")
    importance: str = opt(
        "taylor", "What slim:R ranks channels by: their effect on the loss, their size, or the scale of their batch "
        "norms.", choices=("taylor", "magnitude", "bn-scale"))
    prune_cost: str = opt(
        "params", "What slim:R with importance taylor sets a channel's effect against: the parameters, the "
        "multiplications (thins the early layers too), or the shares of both that leave with it.",
        choices=("params", "macs", "params+macs"))
    round_to: int = opt(8, "slim:R keeps channel counts that are multiples of this.", low=1, high=128)
    slim_by: str = opt(
        "params", "What R of slim:R is the share of: the parameters, the multiplications of the graph, or the latency "
        "that is measured here on --slim-backend.", choices=("params", "macs", "latency"))
    slim_backend: str = opt("cpu", "Backend on which --slim-by latency measures, with one thread and one image.")
    slim_steps: int = opt(
        1, "Cuts on the way to slim:R, whose shares fall geometrically, with distillation after each.", low=1, high=32)
    slim_epochs: int = opt(2, "Epochs of distillation after each cut but the last, which gets --epochs.", low=1)
    sparsity: str = opt(
        "none", "Hold two of every four weights along the input channels at zero, which sparse tensor cores (NVIDIA "
        "Ampere and later, by TensorRT) need not multiply; after the cut, where there is one.", choices=("none", "2:4"))
    pretrained: bool = opt(True, "Start a FAMILY/VARIANT student from its published weights.")
    weights: str | None = opt(None, "File of weights for a FAMILY/VARIANT student.", path=True)
    inherit: str | None = opt(
        None, "Start a FAMILY/VARIANT student from weights chosen out of a larger model of its family: a RUN folder, a "
        "file of weights, or 'teacher' (default: not).", path=True)
    unlabeled: tuple[str, ...] = opt(
        (), "Folder of images without labels, which join the training with the teacher's answers alone; may be "
        "repeated.", path=True, result=False)
    views: int = opt(0, "Views of each image, drawn once and shown in turn, so that the teacher looks at each only "
                     "once; 0 draws new ones every epoch.", low=0, high=10_000)
    refresh_views: int = opt(
        0, "Epochs after which the views are drawn anew, and the teacher looks again; 0 never.", low=0)
    softlabels: str = opt(
        "auto", "With views, keep what the teacher said to them; 'off' asks it anew every time.",
        choices=("auto", "off"))
    teacher_engine: str = opt(
        "auto", "What runs the teacher on a CPU where only its logits count; 'auto' tries them where that can pay.",
        choices=("auto", "torch", "cpu", "openvino"))
    control: bool = opt(
        True, "Also train the same student on labels alone, for the same epochs, and state the gain; with kept views "
        "this doubles the time.")
    seeds: int = opt(
        1, "Train with so many seeds, from --seed on; OUT is the best on validation, OUT/seeds has the others, and the "
        "gain's interval covers them all.", low=1, high=100)


@dataclass(frozen=True, kw_only=True)
class Export(DataFields):
    """`edgetl export`."""

    run: str = opt(REQUIRED, "RUN folder to export.", positional=True, given=True)
    out: str = opt(REQUIRED, "Folder to write the bundle to.", given=True)
    data: str | None = opt(  # type: ignore[assignment]
        None, "The data the RUN was trained on (default: what the RUN recorded).", path=True, result=False)
    name: str | None = opt(None, "Name of the bundle (default: the name of the folder).")
    target: tuple[str, ...] = opt(
        (), "Where the bundle shall run, e.g. x86-vnni,tensorrt (default: this machine).", split=True)
    precision: tuple[str, ...] = opt(
        ("fp32", "int8"), "Precisions to export, of int8, fp16 and bf16; fp32 always comes along as the reference.",
        split=True)
    max_drop: float = opt(
        0.5, "Greatest loss of validation accuracy against fp32 in percentage points.", low=0, high=100)
    min_agreement: float = opt(
        98.0, "Least share of validation images, in percent, with the same answer as fp32.", low=0, high=100)
    quantizer: str = opt(
        "edgetl", "Who writes INT8: edgetl, or NNCF where it is installed (for processors alone).",
        choices=("edgetl", "nncf"))
    calibration_images: int = opt(256, "Training images that calibrate INT8.", low=1)
    qat_epochs: int = opt(
        2, "Epochs in which an INT8 graph is trained to answer as fp32 does, where nothing cheaper keeps the limits; "
        "0: never.", low=0, high=1000)
    golden: int = opt(8, "Images stored with their logits for `edgetl verify`.", low=1, high=256)
    golden_kind: str = opt(
        "photos", "Store training photos, or synthetic pictures where photos may not leave the house.",
        choices=("photos", "synthetic"))
    with_features: bool = opt(
        False, "Give the features too, which are what goes into the last layer, as a second output.")
    embed_normalize: bool = opt(
        False, "Put the normalisation into the graphs, which then take resized pixels, uint8 [N, H, W, C].")
    reject_accuracy: float | None = opt(
        None, "Find the score below which predictions are to be rejected so that at least so many percent of the "
        "others are right, as far as the validation images can show (default: none).", low=1, high=99.99)
    label_threshold: float = opt(
        0.5, "Probability from which a label is said to be there (RUNs of --task multilabel).", low=0.001, high=0.999)
    threads: int = opt(0, "Threads of evaluation; 0 takes what the machine allows.", low=0, high=MOST_THREADS,
                       result=False)
    seed: int = opt(0, "Seed of the choice of calibration and golden images.", low=0, high=MOST_SEED)
    overwrite: bool = opt(False, "Replace --out if it exists.", given=True)


@dataclass(frozen=True, kw_only=True)
class Bench(DataFields):
    """`edgetl bench`."""

    cases: tuple[str, ...] = opt(REQUIRED, "Bundles, ONNX files and RUN folders.", positional=True, given=True)
    out: str = opt(REQUIRED, "Folder to write the report to.", given=True)
    data: str | None = opt(  # type: ignore[assignment]
        None, "Data to measure accuracy on, test split (default: no accuracy).", path=True, result=False)
    backend: tuple[str, ...] = opt(
        ("cpu", "openvino", "torch"), "Backends to measure; each takes the cases it can open.", split=True)
    variant: tuple[str, ...] = opt((), "Variants of the bundles (default: all).", split=True)
    reference: str | None = opt(None, "Name of the case that speed-ups and agreement refer to (default: the first).")
    threads: tuple[str, ...] = opt(
        ("1",), "Thread counts of inference; 0 takes what the machine allows.", split=True,
        form=THREAD_COUNTS)
    batch: tuple[str, ...] = opt(
        ("1",), "Images a call.", split=True, form=("0*[1-9][0-9]*", "whole numbers above 0"))
    rounds: int = opt(10, "Rounds; in each, every case is measured once, in random order.", low=1)
    block: int = opt(60, "Calls of one case in one round; the first 10 are dropped.", low=50)
    interval: tuple[str, ...] | None = opt(
        (), "Pace the calls, e.g. 10ms; 'none' is back to back; each of several is a case (default: back to back).",
        split=True,
        form=(r"none|\s*(?=.*[1-9])([0-9]+([.][0-9]*)?|[.][0-9]+)\s*(us|ms|s)\s*",
              "a duration above 0 with a unit, e.g. 10ms, 500us or 1s, or 'none'"))
    warmup_s: float = opt(
        10.0, "Seconds of calls after which a case that has not become stable is measured all the same, with a note; "
        "0 is no warm-up.", low=0)
    pin: str | None = opt(
        None, "Cores that the cases may run on, e.g. 0 or 0-1,4 (default: those that this command may).",
        form=("[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*", "numbers of cores: 0 or 0-1,4"))
    spin: str | None = opt(
        None, "Whether waiting threads keep their cores busy (default: as each backend does).", choices=("on", "off"))
    concurrency: tuple[str, ...] = opt(
        (), "Measure throughput with so many threads that call one session at a time, e.g. 1,2,4 (default: not).",
        split=True, form=("0*[1-9][0-9]{0,2}", "whole numbers from 1 to 999"))
    window_s: float = opt(0.5, "Seconds of calls of each concurrency in one round.", low=0.01)
    photos: int = opt(
        4, "Image files for the times from a file to its label, which bundles have at batch 1; 0 leaves them out.",
        low=0, high=1000)
    photo_size: str = opt(
        "640x480", "Width and height of those that are drawn, where there is no --data.",
        form=("[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", "WIDTHxHEIGHT in pixels"))
    mode: str = opt(
        "standard", "'mlperf' also runs MLPerf's scenarios, by its rules; never an MLPerf result.",
        choices=("standard", "mlperf"))
    scenario: tuple[str, ...] = opt(
        ("single-stream", "multi-stream", "offline"), "Scenarios of --mode mlperf.", split=True,
        form=("single-stream|multi-stream|offline", "single-stream, multi-stream or offline"))
    min_duration_s: float = opt(600.0, "Least seconds of a scenario of --mode mlperf, whose rules ask for 600.", low=0)
    starts: int = opt(3, "Fresh processes for the import, load and first-inference times.", low=1)
    timeout_s: float = opt(300.0, "Seconds after which a silent worker is a failed row.", low=1, result=False)
    device: str | None = opt(
        None, "Measure over ssh on ssh://USER@HOST[:PORT], where nothing is installed or left (default: here).",
        given=True, form=DEVICE)
    device_python: str = opt(
        "python3", "How Python, 3.11 or newer with numpy and the runtimes, is called on the device.", given=True,
        form=("[A-Za-z0-9_./~][A-Za-z0-9_./~+-]*", "the name or path of a program"))
    profile_layers: bool = opt(
        False, "Also tell where the time goes: each layer's, from the engine's own profiler, after the timed rounds.")
    seed: int = opt(0, "Seed of the order of cases.", low=0, high=MOST_SEED)
    overwrite: bool = opt(False, "Replace --out if it exists.", given=True)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`edgetl run`: the whole path, one table a stage; `given` fields are filled in by the pipeline."""

    finetune: Mapping[str, Any]
    distill: Mapping[str, Any]
    export: Mapping[str, Any]
    bench: Mapping[str, Any]
    gate: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """`[gate]` of a recipe: what `edgetl run` insists on at the end, exit 3 otherwise; accuracy is the test's."""

    min_teacher_accuracy: float | None = opt(None, "Least accuracy of the teacher in percent.", low=0, high=100)
    max_student_drop: float | None = opt(
        None, "Most points that INT8 (where none is asked for: the default variant) may lie below the teacher.",
        low=0, high=100)


STAGES: dict[str, type[Any]] = {"finetune": Finetune, "distill": Distill, "export": Export, "bench": Bench,
                                "gate": Gate}
Stage = TypeVar("Stage")


def fields_of(stage: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """Fields by name, in the order of flags."""
    return {field.name: field for field in dataclasses.fields(stage)}


def build(stage: type[Stage], values: Mapping[str, Any], *, where: str) -> Stage:
    """The stage's dataclass from plain values.

    Raises:
        RecipeError: every unknown key, wrong type, value outside its limits and missing key at once.
    """
    problems, kept = check(stage, values)
    problems += [f"'{name}' is missing: {field.metadata['help']}" for name, field in fields_of(stage).items()
                 if field.default is REQUIRED and name not in values]
    if problems:
        raise RecipeError(problems, where=where)
    return stage(**resolved(kept))


def check(stage: type[Any], values: Mapping[str, Any], *, prefix: str = "") -> tuple[list[str], dict[str, Any]]:
    """Problems of `values`, and the values that have none, converted to the fields' types."""
    hints = typing.get_type_hints(stage)
    problems: list[str] = []
    kept: dict[str, Any] = {}
    for name, value in values.items():
        field = fields_of(stage).get(name)
        if field is None:
            problems.append(f"unknown key '{prefix}{name}'{nearest(name, list(fields_of(stage)))}")
            continue
        try:
            kept[name] = convert(value, hints[name], field)
        except ValueError as problem:
            problems.append(f"'{prefix}{name}': {problem}")
    return problems, kept


def decisive(stage: Any) -> dict[str, Any]:
    """The values that decide a stage's result, as plain JSON: two runs with the same and the same inputs are the same.

    Left out are where things lie (the data, and paths at which something is: their content counts, which the caller
    compares), what `given` fields say, and what changes no result (`result=False` in `opt`).
    """
    kept = {}
    for name, field in fields_of(type(stage)).items():
        value = getattr(stage, name)
        decides = field.metadata["result"] and not field.metadata["given"]
        if decides and not (field.metadata["path"] and value is not None and Path(value).exists()):
            kept[name] = value
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def unsaid(stage: type[Any]) -> dict[str, Any]:
    """What a record of `decisive` values means by a field that it does not name, as plain JSON.

    An older version wrote it, which had no such field and did what its default does, or what `opt(before=)` says.
    """
    said = {name: field.metadata["before"] for name, field in fields_of(stage).items()
            if field.metadata["before"] is not REQUIRED}
    plain: dict[str, Any] = json.loads(json.dumps(said))
    return plain


def to_toml(stage: Any) -> str:
    """A stage's resolved values as its table of a recipe, one key a line.

    Comments are what `edgetl run` decides by itself and refuses in a recipe, and keys that are not set.
    """
    lines = [next(f"[{name}]" for name, known in STAGES.items() if isinstance(stage, known))]
    for name, field in fields_of(type(stage)).items():
        value = getattr(stage, name)
        line = f"{name} is not set" if value is None else f"{name} = {toml_value(value)}"
        lines.append(f"# {line}" if value is None or field.metadata["given"] else line)
    return "\n".join(lines) + "\n"
