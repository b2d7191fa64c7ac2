"""The result of a benchmark: one object, kept as versioned JSON; tables, markdown and html are drawn from it."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import rundir
from edgetl.bench import stats
from edgetl.bench.kernel import Calibration
from edgetl.bench.mlperf import Scenario
from edgetl.bench.stats import Interval
from edgetl.errors import EdgetlError

SCHEMA = 1
MARKDOWN, HTML = "report.md", "report.html"
BACK_TO_BACK = "back-to-back"  # an arrival
MEASURED, FAILED, PENDING = "measured", "failed", "pending"
COMPLETE, PARTIAL = "complete", "partial"


@dataclass(frozen=True)
class Measurement:
    """Raw steady-state latencies of one case: host array in, host array out, finished."""

    case: str
    seconds: tuple[float, ...]  # every kept call in order, round after round; empty when failed
    rounds: int  # `seconds` is so many blocks of equal length
    warmup: int  # calls dropped at the start of each block
    arrival: str  # "back-to-back" or "paced 10 ms": rows of different arrivals are never compared
    status: str  # "measured" | "failed" | "pending": of a partial report, not begun when it was written
    reason: str | None = None  # why there are no latencies

    def by_round(self) -> NDArray[np.float64]:
        """Latencies [rounds, calls] in seconds."""
        return np.asarray(self.seconds, dtype=np.float64).reshape(self.rounds, -1)


@dataclass(frozen=True)
class Mistake:
    """A test image that got a wrong answer."""

    key: str  # of the item in its data set
    label: str  # what it is
    predicted: str  # what was said
    score: float  # probability given to the wrong answer, 0..1


@dataclass(frozen=True)
class Accuracy:
    """How right the very session was that was timed; shares in 0..1, intervals at 95 %."""

    n: int
    correct: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    weighted_accuracy: float | None  # by the data's confidence in its labels; None where the data states none
    confusion: tuple[tuple[int, ...], ...]  # [true][predicted]
    mistakes: tuple[Mistake, ...]  # the most confident ones
    # Against the reference case on the same images; None for the reference itself and without one.
    agreement: float | None = None
    only_case_right: int | None = None
    only_reference_right: int | None = None
    difference: float | None = None  # accuracy minus the reference's
    difference_low: float | None = None
    difference_high: float | None = None


@dataclass(frozen=True)
class Score:
    """How right the very session was that was timed, where it says something else than one class an image.

    The score is the one that its training is judged by, with an interval of 95 % from draws of the images.
    """

    name: str  # "mAP", "R2" or "mean accuracy of the heads"
    n: int
    value: float | None  # 1 is perfect; None where these images cannot tell
    low: float | None  # None where no draw of the images differs
    high: float | None
    parts: Mapping[str, Any] = field(default_factory=dict)  # of each head, label or value, as in a manifest's `details`
    # Against the reference case on the same images; None for the reference itself and without one.
    agreement: float | None = None  # share of its answers, see docs/tasks.md
    difference: float | None = None  # score minus the reference's
    difference_low: float | None = None
    difference_high: float | None = None


@dataclass(frozen=True)
class Throughput:
    """Images a second at one batch and so many threads that call one session at the same time."""

    ips: float  # median over the rounds
    low: float | None  # its interval at 95 %; None where the rounds are too few for one
    high: float | None
    batch: int
    concurrency: int
    rounds_ips: tuple[float, ...] = ()  # one number a round


@dataclass(frozen=True)
class LayerTime:
    """A node of the graph as the engine rewrote it, in a session whose profiler was on."""

    name: str
    op: str  # what it computes, in the engine's words
    executed_as: str  # the engine's kernel
    kind: str  # its arithmetic: "integer" | "float" | "converting" | "moving" | "unknown"
    median_s: float
    share: float  # of the sum of all medians, 0..1


@dataclass(frozen=True)
class Row:
    """Everything measured of one case; what is missing is None."""

    measurement: Measurement
    source: str  # bundle, ONNX file or run as the command named it, hence maybe a path of the machine that measured
    kind: str  # "bundle" | "onnx" | "run"
    backend: str
    threads: int  # as asked; 0 is what the machine allows
    batch: int
    variant: str | None = None
    precision: str | None = None
    size_bytes: int | None = None  # of the graph or weights on disk
    parameters: int | None = None
    import_s: tuple[float, ...] = ()  # one number a fresh process
    load_s: tuple[float, ...] = ()
    first_s: tuple[float, ...] = ()
    memory_loaded_bytes: int | None = None  # peak resident memory of the process when the session is open
    memory_peak_bytes: int | None = None  # and after the last block
    late_calls: int | None = None  # paced only: calls that began late because the one before took too long
    waited_s: tuple[float, ...] = ()  # paced only: how long each call was due before it began; in no latency
    session: Mapping[str, Any] = field(default_factory=dict)  # what really ran, from Session.info()
    speedup: Interval | None = None  # time per image of the reference / of this case
    accuracy: Accuracy | None = None
    accuracy_reason: str | None = None  # why there is no accuracy
    warmup_calls: int | None = None  # calls before the first block until the case was found stable, or given up on
    warmup_s: float | None = None  # and how long they took
    warmup_reason: str | None = None  # why the case does not count as stable; None when it does
    decode_s: tuple[float, ...] = ()  # from an image file's bytes to its pixels; one number an image and round
    preprocess_s: tuple[float, ...] = ()  # from the pixels to what the graph takes
    end_to_end_s: tuple[float, ...] = ()  # from the file's bytes to the label, one image a call
    files: str | None = None  # the image files of these three, in words
    throughputs: tuple[Throughput, ...] = ()  # of this case's batch, by concurrency
    best_throughput: Throughput | None = None  # greatest of all batches and concurrencies of the same graph and threads
    gpu_memory_bytes: int | None = None  # greatest held on the GPU, where the library that holds it says so
    affinity: tuple[int, ...] = ()  # the cores that the worker was allowed to run on
    cpu_quota: float | None = None  # processors that the worker's cgroup pays for; None is no limit
    mlperf: tuple[Scenario, ...] = ()  # one a scenario that was asked for with --mode mlperf
    layers: tuple[LayerTime, ...] = ()  # in the order in which they ran, from --profile-layers
    layers_s: float | None = None  # what they add up to in a call; median over the profiled calls
    profiled_s: float | None = None  # a whole call with the profiler on, on the stopwatch; median of the same calls
    layers_reason: str | None = None  # why there are no layers, where they were asked for
    sensors: Mapping[str, Any] = field(default_factory=dict)  # {energy, energy_reason, frequency_khz, throttled, ...}
    device_s: tuple[float, ...] = ()  # of the device alone, without copies; one number a further call
    score: Score | None = None  # what stands in the place of `accuracy` where an image has not one class

    @property
    def case(self) -> str:
        """Name of the case."""
        return self.measurement.case

    @property
    def measured(self) -> bool:
        """Whether there are latencies."""
        return self.measurement.status == MEASURED


@dataclass(frozen=True)
class Data:
    """The images that accuracy was measured on."""

    name: str
    source: str  # what --data said, as `Row.source`
    labels: tuple[str, ...]
    n: int
    fingerprint: str
    rule: Mapping[str, Any]  # how the test split came about
    notes: tuple[str, ...] = ()  # licence, label mapping


@dataclass(frozen=True)
class Report:
    """One benchmark."""

    schema: int
    environment: Mapping[str, Any]
    options: Mapping[str, Any]  # of the command, resolved
    rows: tuple[Row, ...]
    reference: str | None  # the case that speed-ups and agreement refer to
    focus: str | None  # the case whose answers are shown in detail
    data: Data | None = None
    notes: tuple[str, ...] = ()
    status: str = COMPLETE  # "partial" while it is being measured, and for ever where that was broken off
    device: str | None = None  # what the machine calls itself that measured over ssh; None is where the command ran
    calibration: Calibration | None = None  # of the process that led the benchmark, a block a round

    def row(self, case: str) -> Row:
        """The row of the named case.

        Raises:
            KeyError: no such case.
        """
        return {row.case: row for row in self.rows}[case]


@dataclass(frozen=True)
class Figures:
    """What a case comes down to; what was not measured is None."""

    case: str
    median_s: float | None
    p95_s: float | None  # None also where the samples are too few for it
    throughput_ips: float | None  # images a second; None for paced calls, whose rate is the clock's
    speedup: float | None
    accuracy: float | None
    import_s: float | None  # these three are medians over the fresh processes
    load_s: float | None
    first_s: float | None
    size_bytes: int | None
    memory_peak_bytes: int | None
    mean_throughput_ips: float | None = None  # images / seconds of all calls; None for paced calls
    best_throughput_ips: float | None = None
    decode_s: float | None = None  # these three are medians
    preprocess_s: float | None = None
    end_to_end_s: float | None = None
    gpu_memory_bytes: int | None = None
    p90_s: float | None = None  # these, too, are None where the samples are too few
    p99_s: float | None = None
    p999_s: float | None = None
    device_s: float | None = None  # median
    score: float | None = None  # where an image has not one class; `accuracy` is None then


def figures(row: Row) -> Figures:
    """The summary of a row in plain numbers."""
    seconds = row.measurement.seconds
    median = stats.median_interval(seconds).value if seconds else None
    paced = row.measurement.arrival != BACK_TO_BACK
    return Figures(
        case=row.case, median_s=median, p95_s=stats.percentile(seconds, 95.0) if seconds else None,
        throughput_ips=None if median is None or paced else row.batch / median,
        speedup=row.speedup.value if row.speedup else None, accuracy=row.accuracy.accuracy if row.accuracy else None,
        import_s=_middle(row.import_s), load_s=_middle(row.load_s), first_s=_middle(row.first_s),
        size_bytes=row.size_bytes, memory_peak_bytes=row.memory_peak_bytes,
        mean_throughput_ips=None if median is None or paced else row.batch / float(np.mean(seconds)),
        best_throughput_ips=row.best_throughput.ips if row.best_throughput else None,
        decode_s=_middle(row.decode_s), preprocess_s=_middle(row.preprocess_s),
        end_to_end_s=_middle(row.end_to_end_s), gpu_memory_bytes=row.gpu_memory_bytes,
        p90_s=stats.percentile(seconds, 90.0), p99_s=stats.percentile(seconds, 99.0),
        p999_s=stats.percentile(seconds, 99.9), device_s=_middle(row.device_s),
        score=row.score.value if row.score else None)


def _middle(seconds: tuple[float, ...]) -> float | None:
    return float(np.median(seconds)) if seconds else None


def to_json(report: Report) -> dict[str, Any]:
    """Values that json can write: a summary, then all there is, with every raw sample; a missing number is null."""
    values = dataclasses.asdict(report)
    return {"schema": values.pop("schema"), "summary": [dataclasses.asdict(figures(row)) for row in report.rows],
            **values}


def from_json(values: Any, *, where: str) -> Report:
    """The report that `to_json` wrote; unknown fields are ignored.

    Raises:
        EdgetlError: the schema is too old or too new (two sentences), or a field is missing or of a wrong type.
    """
    require_schema(values, SCHEMA, where, "a benchmark report", "Give the report.json that `edgetl bench` wrote.",
                   again="Measure again with `edgetl bench`.")
    try:
        report: Report = rebuild(Report, values, "report")
    except ValueError as problem:
        raise EdgetlError(f"{where}: {problem}.", hint="The file was changed or cut; measure again.") from problem
    return report


def require_schema(values: Any, schema: int, where: str, what: str, hint: str, *, again: str) -> None:
    """Returns where a record has the schema that this version reads.

    Args:
        values: the record, of which nothing is known.
        schema: the one that is read.
        where: what sentences call the record.
        what: what it was expected to be.
        hint: what to give in place of something else.
        again: how to make anew what is too old.

    Raises:
        EdgetlError: no record at all, or one of another schema, too new or too old.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("schema"), int):
        raise EdgetlError(f"{where} is not {what}: expected an object with a whole number 'schema'.", hint=hint)
    if values["schema"] > schema:
        raise EdgetlError(f"{where} has schema {values['schema']}; this version of edgetl reads up to {schema}.",
                          hint="Update edgetl on this machine.")
    if values["schema"] < schema:
        raise EdgetlError(f"{where} has schema {values['schema']}, which this version of edgetl no longer reads.",
                          hint=again)


def read(path: Path) -> Report:
    """The report in a file, or in the folder that `edgetl bench` wrote.

    Raises:
        EdgetlError: see `from_json`; also when the file cannot be read.
    """
    file = path / rundir.REPORT if path.is_dir() else path
    return from_json(rundir.read_json(file, EdgetlError), where=str(file))


def dumps(report: Report) -> str:
    """`to_json` as text."""
    return json.dumps(to_json(report), indent=1, allow_nan=False) + "\n"


def rebuild(hint: Any, value: Any, field_name: str) -> Any:
    """`value` as the annotated type, or ValueError that names the field, what was found and what was expected."""
    if hint is Any:
        return value
    if isinstance(hint, types.UnionType):
        plain = next(one for one in typing.get_args(hint) if one is not type(None))
        return None if value is None else rebuild(plain, value, field_name)
    if dataclasses.is_dataclass(hint):
        return _rebuild_fields(hint, value, field_name)
    if typing.get_origin(hint) is tuple:
        _expect(isinstance(value, list | tuple), field_name, value, "a list")
        return tuple(rebuild(typing.get_args(hint)[0], one, f"{field_name}[{i}]") for i, one in enumerate(value))
    if typing.get_origin(hint) is Mapping:
        _expect(isinstance(value, Mapping), field_name, value, "an object")
        return dict(value)
    return _rebuild_plain(hint, value, field_name)


def _rebuild_plain(hint: Any, value: Any, field_name: str) -> Any:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    accepted = (int, float) if hint is float else hint
    _expect(isinstance(value, accepted) and isinstance(value, bool) is (hint is bool), field_name, value, words[hint])
    return hint(value)


def _rebuild_fields(hint: Any, values: Any, field_name: str) -> Any:
    _expect(isinstance(values, Mapping), field_name, values, "an object")
    hints = typing.get_type_hints(hint)
    required = {one.name for one in dataclasses.fields(hint)
                if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if missing:
        raise ValueError(f"'{field_name}.{missing[0]}' is missing")
    known = {name: value for name, value in values.items() if name in hints}
    return hint(**{name: rebuild(hints[name], value, f"{field_name}.{name}") for name, value in known.items()})


def _expect(holds: bool, field_name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"'{field_name}' is {value!r:.60}, expected {expected}")
