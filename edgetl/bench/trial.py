"""One case while it is measured: its fresh starts, its blocks, its answers, what else was asked, and its fate."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import recipe
from edgetl.bench import layers, report, stats
from edgetl.bench.cases import Case, cores, spec_to_json
from edgetl.bench.host import HERE, Host
from edgetl.bench.photos import Photos
from edgetl.bench.process import Process, Refused, WorkerFailed
from edgetl.bench.report import Throughput
from edgetl.bench.warmup import WarmUp, warm_up
from edgetl.heads import Asked
from edgetl.judging import Judged
from edgetl.runtime import heads, preprocess
from edgetl.timing import DROPPED

WAY = "times from the file to the label"


class Trial:
    """A case and what has been measured of it so far; a failed one is left alone and does not stop the others.

    Args:
        case: what to open.
        options: block, timeout_s, pin, spin, warmup_s and window_s are used.
        from_pixels: calls begin with an image's pixels and not with the graph's input.
        host: the machine that measures.
    """

    def __init__(self, case: Case, options: recipe.Bench, *, from_pixels: bool = False, host: Host = HERE) -> None:
        self.case, self.options, self.from_pixels, self.host = case, options, from_pixels, host
        self.interval_s = case.interval_s
        self.pin = cores(options.pin)
        self.process: Process | None = None
        self.starts: list[dict[str, Any]] = []
        self.warmth: WarmUp | None = None
        self.blocks: list[dict[str, Any]] = []
        self.rates: dict[int, list[float]] = {}  # images a second by concurrency, one a round
        self.device_s: list[float] = []  # one number a call, round after round
        self.walks: list[dict[str, Any]] = []
        self.files: str | None = None
        self.way_ended = False
        self.remarks: list[str] = []  # what could not be measured besides, and why
        self.answers: Judged | None = None
        self.reason: str | None = None
        self.no_answers: str | None = None
        self.found: dict[str, Any] = {}  # further fields of the row

    @property
    def alive(self) -> bool:
        """Whether it has not failed."""
        return self.reason is None

    def start(self, *, keep: bool) -> None:
        """Opens the case in a fresh process, which stays for the blocks when `keep`."""
        subject, request = self.case.subject, self._asked("open")
        if self.from_pixels and subject.preprocess is not None:
            request["pixels"] = preprocess.to_dict(subject.preprocess)
        with self._attempt():
            opened = self._open(request)
            if self._built_its_engine(opened):
                self.close()
                opened = self._open(request)
            self.starts.append(opened)
            if not keep:
                self.close()

    def _open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.process = self.host.launch(self.options.timeout_s)
        told: dict[str, Any] = self.process.ask(request)
        return told

    def _built_its_engine(self, opened: Mapping[str, Any]) -> bool:
        """Whether this start built what later ones find: it takes minutes, and is no load as theirs are."""
        engine = opened.get("session", {}).get("engine")
        if not isinstance(engine, Mapping) or not (engine.get("built") and engine.get("kept")):
            return False
        self.remarks.append(f"{self.case.name}: its engine had to be built first, which took "
                            f"{engine.get('build_s', opened['load_s']):.1f} s; load times are those of the kept one.")
        return True

    def _asked(self, what: str) -> dict[str, Any]:
        """A request to open the case."""
        subject = self.case.subject
        request = {"do": what, "backend": subject.backend, "graph": str(subject.graph),
                   "spec": spec_to_json(subject.spec), "threads": self.case.threads, "batch": self.case.batch}
        more = {"within": subject.within, "pin": self.pin, "spin": self.options.spin}
        return request | {name: value for name, value in more.items() if value is not None}

    def warm_up(self) -> None:
        """Calls until the case is stable, or given up on, in the process that is open."""
        if self.process is None or not self.options.warmup_s:
            return
        with self._attempt():
            self.warmth = warm_up(lambda calls: self._calls(calls, drop=0)["seconds"], interval_s=self.interval_s,
                                  first_s=self.starts[-1]["first_s"], limit_s=self.options.warmup_s)

    def block(self) -> None:
        """One block of steady-state calls in the process that is open."""
        if self.process is None:
            return
        with self._attempt():
            self.blocks.append(self._calls(self.options.block, drop=DROPPED))

    @property
    def tells_device(self) -> bool:
        """Whether it is open and tells how long the device alone takes."""
        return self.process is not None and bool(self.starts[-1].get("tells_device"))

    def device_alone(self) -> None:
        """One block of further calls, of which the device tells its own time; whatever happens, the latencies stay."""
        if self.tells_device:
            with self._besides("time of the device alone"):
                self.device_s += self._calls(self.options.block, drop=DROPPED, what="device")["device_s"]

    def _calls(self, count: int, *, drop: int, what: str = "block") -> Any:
        assert self.process is not None
        request = {"do": what, "n": count, "interval_s": self.interval_s, "drop": drop}
        return self.process.ask(request, extra_s=count * (self.interval_s or 0.0))

    def throughput(self, concurrency: int) -> None:
        """One window of calls by so many threads at a time; whatever happens, the latencies stay."""
        if self.process is None or self.interval_s is not None:
            return
        window_s = self.options.window_s
        with self._besides("throughput"):
            told = self.process.ask({"do": "crowd", "threads": concurrency, "window_s": window_s}, extra_s=window_s)
            self.rates.setdefault(concurrency, []).append(self.case.batch * told["calls_per_s"])

    def spend(self, calls: int) -> int:
        """Makes calls as those that were timed; how many, or 0 where it failed, and the latencies stay."""
        with self._besides("energy"):
            self._calls(calls, drop=0)
        return calls if self.process is not None else 0  # a worker that fails is closed

    def device(self) -> str | None:
        """What the session runs on; None where none is open or it was never timed."""
        return None if self.process is None or not self.blocks else self.starts[-1]["session"].get("device", "CPU")

    def pid(self) -> int | None:
        """Number of the worker on this machine; None where there is none."""
        return None if self.process is None else self.process.pid

    def call_s(self) -> float:
        """Median seconds from the begin of a call to the begin of the next."""
        seconds = np.median([second for block in self.blocks for second in block["seconds"]])
        return max(float(seconds), self.interval_s or 0.0)

    def profile(self) -> None:
        """Where the time of a call goes, in a process of its own that comes after the one that was timed."""
        if not self.alive or not self.blocks:
            return
        self.close()
        process = self.host.launch(self.options.timeout_s)
        try:
            self.found |= layers.fields(process.ask(self._asked("profile") | {"calls": self.options.block}))
        except WorkerFailed as problem:
            self.found["layers_reason"] = problem.message
        finally:
            process.close(at_once=True)

    def take(self, photos: Photos) -> None:
        """Hands the files over whose way to a label `walk` measures, where the case is one that goes it."""
        subject = self.case.subject
        if self.process is None or subject.kind != "bundle" or subject.preprocess is None or self.case.batch != 1:
            return
        request = {"do": "take", "files": photos.encoded, "preprocess": preprocess.to_dict(subject.preprocess),
                   "labels": subject.labels, "embeds": subject.embeds_preprocess, "spec": spec_to_json(subject.spec),
                   **({"heads": heads.to_json(subject.heads)} if subject.heads else {})}
        with self._on_the_way():
            self.process.ask(request)
            self.files = photos.described

    def walk(self) -> None:
        """Every file once from its bytes to its label, in parts and whole; whatever happens, the latencies stay."""
        if self.process is None or self.files is None or self.way_ended:
            return
        with self._on_the_way():
            self.walks.append(self.process.ask({"do": "walk", "interval_s": self.interval_s}))

    def evaluate(self, data: str, keys: Path, out: Path, progress: Callable[[int], None], asked: Asked) -> bool:
        """Whether the session that was timed has written its answers to `out`; if not, its latencies stay."""
        subject = self.case.subject
        if self.process is None or subject.preprocess is None:
            return False
        request = {"do": "evaluate", "data": data, "keys": str(keys), "spec": spec_to_json(subject.spec),
                   "preprocess": preprocess.to_dict(subject.preprocess), "batch": self.case.batch, "out": str(out),
                   **({} if asked.plain else {"asked": dataclasses.asdict(asked)})}
        try:
            self.process.ask(request, progress=progress)
        except WorkerFailed as problem:
            self.no_answers = problem.message
            return False
        return True

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """Turns the death of the worker into the reason of a failed row."""
        try:
            yield
        except WorkerFailed as problem:
            self.reason = problem.message
            self.close()

    @contextlib.contextmanager
    def _besides(self, what: str) -> Iterator[None]:
        """Turns a failure into a remark: what was measured before it holds, and nothing more is asked."""
        try:
            yield
        except WorkerFailed as problem:
            self.remarks.append(f"{self.case.name}: no {what}: {problem.message}")
            self.close(at_once=True)

    @contextlib.contextmanager
    def _on_the_way(self) -> Iterator[None]:
        """As `_besides`, but a worker that cannot read a file, or has no Pillow, is asked for other things later."""
        with self._besides(WAY):
            try:
                yield
            except Refused as problem:
                self.way_ended = True
                self.remarks.append(f"{self.case.name}: no {WAY}: {problem.message}")

    def close(self, *, at_once: bool = False) -> None:
        """Ends the process, if there is one."""
        if self.process is not None:
            self.process.close(at_once=at_once)
        self.process = None

    def measurement(self) -> report.Measurement:
        """The steady-state latencies, or why there are none."""
        status = report.FAILED if not self.alive else report.MEASURED if self.blocks else report.PENDING
        kept = self.blocks if self.alive else []
        reason = "it was broken off before the first round ended" if status == report.PENDING else self.reason
        seconds = tuple(second for block in kept for second in block["seconds"])
        return report.Measurement(self.case.name, seconds, len(kept), DROPPED, self.case.arrival, status, reason)

    def row(self) -> report.Row:
        """Everything but what compares this case with another."""
        subject, last = self.case.subject, self.blocks[-1] if self.blocks else {}
        opened = self.starts[-1] if self.starts else {}
        late = [block["late_calls"] for block in self.blocks if block["late_calls"] is not None]
        waited = tuple(second for block in self.blocks for second in block.get("waited_s") or ()) if self.alive else ()
        return report.Row(
            measurement=self.measurement(), source=str(subject.source), kind=subject.kind, backend=subject.backend,
            threads=self.case.threads, batch=self.case.batch, variant=subject.variant, precision=subject.precision,
            size_bytes=subject.size_bytes, parameters=subject.parameters, import_s=self._starts("import_s"),
            load_s=self._starts("load_s"), first_s=self._starts("first_s"),
            memory_loaded_bytes=_median([start["memory_loaded_bytes"] for start in self.starts]),
            memory_peak_bytes=last.get("memory_peak_bytes"), late_calls=sum(late) if late else None,
            waited_s=waited,
            session=opened.get("session", {}), accuracy_reason=self.no_answers, files=self.files,
            decode_s=self._walks("decode_s"), preprocess_s=self._walks("preprocess_s"),
            end_to_end_s=self._walks("end_to_end_s"), throughputs=self._throughputs(),
            gpu_memory_bytes=last.get("gpu_memory_bytes"), affinity=tuple(opened.get("affinity", ())),
            cpu_quota=opened.get("cpu_quota"), device_s=tuple(self.device_s if self.alive else ()),
            **self._warmth(), **self.found)

    def _warmth(self) -> dict[str, Any]:
        warm = self.warmth
        return {} if warm is None else {"warmup_calls": warm.calls, "warmup_s": warm.seconds,
                                        "warmup_reason": warm.reason}

    def _throughputs(self) -> tuple[Throughput, ...]:
        middles = {concurrency: stats.median_interval(rates) for concurrency, rates in self.rates.items()}
        return tuple(Throughput(found.value, found.low, found.high, self.case.batch, concurrency,
                                tuple(self.rates[concurrency])) for concurrency, found in sorted(middles.items()))

    def _walks(self, name: str) -> tuple[float, ...]:
        return tuple(second for walk in self.walks for second in walk[name])

    def _starts(self, name: str) -> tuple[float, ...]:
        return tuple(start[name] for start in self.starts)


def _median(values: Sequence[int]) -> int | None:
    return int(np.median(values)) if values else None
