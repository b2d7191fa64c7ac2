"""One case while it is measured: its fresh starts, its blocks, its answers, and what became of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import recipe
from edgetl.bench import report
from edgetl.bench.cases import Case, interval_s, spec_to_json
from edgetl.bench.host import HERE, Host
from edgetl.bench.process import Process, WorkerFailed
from edgetl.evaluate import Evaluation
from edgetl.runtime import preprocess
from edgetl.timing import DROPPED


class Trial:
    """A case and what has been measured of it so far; a failed one is left alone and does not stop the others.

    Args:
        case: what to open.
        options: block, interval and timeout are used.
        from_pixels: calls begin with an image's pixels and not with the graph's input.
        host: the machine that measures.
    """

    def __init__(self, case: Case, options: recipe.Bench, *, from_pixels: bool = False, host: Host = HERE) -> None:
        self.case, self.options, self.from_pixels, self.host = case, options, from_pixels, host
        self.interval_s = interval_s(options.interval)
        self.process: Process | None = None
        self.starts: list[dict[str, Any]] = []
        self.blocks: list[dict[str, Any]] = []
        self.answers: Evaluation | None = None
        self.reason: str | None = None
        self.no_answers: str | None = None

    @property
    def alive(self) -> bool:
        """Whether it has not failed."""
        return self.reason is None

    def start(self, *, keep: bool) -> None:
        """Opens the case in a fresh process, which stays for the blocks when `keep`."""
        subject = self.case.subject
        request = {"do": "open", "backend": subject.backend, "graph": str(subject.graph),
                   "spec": spec_to_json(subject.spec), "threads": self.case.threads, "batch": self.case.batch}
        if subject.within is not None:
            request["within"] = subject.within
        if self.from_pixels and subject.preprocess is not None:
            request["pixels"] = preprocess.to_dict(subject.preprocess)
        with self._attempt():
            self.process = self.host.launch(self.options.timeout_s)
            self.starts.append(self.process.ask(request))
            if not keep:
                self.close()

    def block(self) -> None:
        """One block of steady-state calls in the process that is open."""
        if self.process is None:
            return
        request = {"do": "block", "n": self.options.block, "interval_s": self.interval_s, "drop": DROPPED}
        with self._attempt():
            self.blocks.append(self.process.ask(request, extra_s=self.options.block * (self.interval_s or 0.0)))

    def evaluate(self, data: str, keys: Path, out: Path, progress: Callable[[int], None]) -> bool:
        """Whether the session that was timed has written its answers to `out`; if not, its latencies stay."""
        subject = self.case.subject
        if self.process is None or subject.preprocess is None:
            return False
        request = {"do": "evaluate", "data": data, "keys": str(keys), "spec": spec_to_json(subject.spec),
                   "preprocess": preprocess.to_dict(subject.preprocess), "batch": self.case.batch, "out": str(out)}
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

    def close(self, *, at_once: bool = False) -> None:
        """Ends the process, if there is one."""
        if self.process is not None:
            self.process.close(at_once=at_once)
        self.process = None

    def measurement(self) -> report.Measurement:
        """The steady-state latencies, or why there are none."""
        arrival = "back-to-back" if self.options.interval is None else f"paced {self.options.interval}"
        seconds = tuple(second for block in self.blocks for second in block["seconds"]) if self.alive else ()
        status = report.MEASURED if self.alive else report.FAILED
        return report.Measurement(self.case.name, seconds, len(self.blocks) if self.alive else 0, DROPPED, arrival,
                                  status, self.reason)

    def row(self) -> report.Row:
        """Everything but what compares this case with another."""
        subject, last = self.case.subject, self.blocks[-1] if self.blocks else {}
        late = [block["late_calls"] for block in self.blocks if block["late_calls"] is not None]
        return report.Row(
            measurement=self.measurement(), source=str(subject.source), kind=subject.kind, backend=subject.backend,
            threads=self.case.threads, batch=self.case.batch, variant=subject.variant, precision=subject.precision,
            size_bytes=subject.size_bytes, parameters=subject.parameters, import_s=self._starts("import_s"),
            load_s=self._starts("load_s"), first_s=self._starts("first_s"),
            memory_loaded_bytes=_median([start["memory_loaded_bytes"] for start in self.starts]),
            memory_peak_bytes=last.get("memory_peak_bytes"), late_calls=sum(late) if late else None,
            session=self.starts[-1]["session"] if self.starts else {}, accuracy_reason=self.no_answers)

    def _starts(self, name: str) -> tuple[float, ...]:
        return tuple(start[name] for start in self.starts)


def _median(values: Sequence[int]) -> int | None:
    return int(np.median(values)) if values else None
