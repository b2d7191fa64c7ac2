"""Runs numbered cases in a process that may crash, hang or eat memory, and says which of them did.

A worker does one case after another under a limit on its address space and tells of each on a pipe. The parent kills it
when a case takes too long, and starts another behind the case at which one died. Nothing here knows what a case is.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import select
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edgetl import timing
from edgetl.errors import EdgetlError

MEMORY_BYTES = 1 << 30  # that a case may take beyond what the worker has before the first
SLOW_S = 2.0  # of processor time from which on a case counts as hanging
GIVEN_UP_S = 30.0  # on the clock, for other work may hold a case up; whoever takes this long is killed
KEPT = 20  # failures that are written out

Case = Callable[[int], None]  # does the case of that number; returns, raises an EdgetlError, or fails


@dataclass
class Tally:
    """What became of the cases of one family."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)  # "result", or the class of the EdgetlError
    crashes: list[dict[str, Any]] = field(default_factory=list)  # the process died: signal
    hangs: list[dict[str, Any]] = field(default_factory=list)
    bugs: list[dict[str, Any]] = field(default_factory=list)  # another exception, a warning, out of memory
    slowest_s: float = 0.0
    slowest_case: int | None = None
    memory_growth_bytes: int = 0  # of a worker's resident memory at its greatest

    @property
    def failures(self) -> int:
        """Cases that were neither a result nor an EdgetlError, or took too long."""
        return len(self.crashes) + len(self.hangs) + len(self.bugs)

    def to_json(self) -> dict[str, Any]:
        """Plain values; of each kind of failure the first ones."""
        return {"cases": self.cases, "outcomes": dict(sorted(self.outcomes.items())), "crashes": len(self.crashes),
                "hangs": len(self.hangs), "bugs": len(self.bugs), "slowest_s": self.slowest_s,
                "slowest_case": self.slowest_case, "memory_growth_bytes": self.memory_growth_bytes,
                "examples": {"crashes": self.crashes[:KEPT], "hangs": self.hangs[:KEPT], "bugs": self.bugs[:KEPT]}}


def run(prepare: Callable[[], Case], count: int, *, forked: bool = False) -> Tally:
    """Does the cases 0 to `count` - 1.

    Args:
        prepare: called once in every worker, before its memory is measured.
        count: how many.
        forked: every case in a child of the worker: for cases of which many are expected to die.
    """
    tally, first = Tally(), 0
    while first < count:
        first = _worker(prepare, first, count, forked, tally)
    return tally


def _worker(prepare: Callable[[], Case], first: int, count: int, forked: bool, tally: Tally) -> int:
    """Lets one worker do what it can; returns the number of the next case."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "w", buffering=1) as pipe:
                _work(prepare, first, count, forked, pipe)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    done, silent = first, False
    for told in _lines(reader, 2 * GIVEN_UP_S if forked else GIVEN_UP_S):
        if told is None:
            silent = True
            break
        if "growth" in told:
            tally.memory_growth_bytes = max(tally.memory_growth_bytes, told["growth"])
            continue
        done = told["case"] + 1
        _note(tally, told)
    hung = silent or not _ended(child)
    if hung:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if done == count and code == 0:
        return count
    if code > 0:
        raise SystemExit(f"the worker itself failed at case {done}")
    tally.cases += 1
    (tally.hangs if hung else tally.crashes).append({"case": done, "signal": signal.Signals(-code).name})
    return done + 1


def _ended(child: int) -> bool:
    """Whether a process that has closed its pipe, which is the last thing that it does, ends soon."""
    until = timing.now_s() + GIVEN_UP_S
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if timing.now_s() > until:
            return False
        time.sleep(0.01)
    return True


def _lines(reader: int, patience_s: float) -> Iterator[dict[str, Any] | None]:
    """What the worker tells, until it ends or is silent for too long; in that case the last is None."""
    buffered = b""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], patience_s)[0]:
            data = pipe.read(65536)
            if not data:
                return
            *lines, buffered = (buffered + data).split(b"\n")
            yield from map(json.loads, lines)
        yield None


def _note(tally: Tally, told: dict[str, Any]) -> None:
    tally.cases += 1
    if told["seconds"] > tally.slowest_s:
        tally.slowest_s, tally.slowest_case = told["seconds"], told["case"]
    if "signal" in told:
        (tally.hangs if told["signal"] == "hang" else tally.crashes).append(told)
    elif told["seconds"] > SLOW_S:
        tally.hangs.append(told)
    elif "bug" in told:
        tally.bugs.append(told)
    else:
        tally.outcomes[told["outcome"]] += 1


def _work(prepare: Callable[[], Case], first: int, count: int, forked: bool, pipe: Any) -> None:
    case = prepare()
    warnings.simplefilter("error")
    faulthandler.disable()  # the parent says who died
    gc.collect()
    before = _resident_bytes()
    space = _address_space_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(first, count):
        told = _in_child(case, number) if forked else _once(case, number)
        pipe.write(json.dumps({"case": number, **told}) + "\n")
    pipe.write(json.dumps({"growth": max(0, _peak_bytes() - before)}) + "\n")


def _once(case: Case, number: int) -> dict[str, Any]:
    begin = time.process_time()
    told: dict[str, Any] = {"outcome": "result"}
    try:
        case(number)
    except EdgetlError as problem:
        told = {"outcome": type(problem).__name__}
        if "\n" in problem.message or len(problem.message) > 4000:
            told = {"bug": f"no sentence: {problem.message[:400]!r}"}
    except Exception as problem:  # noqa: BLE001  whatever it is, it is what is looked for
        told = {"bug": "".join(traceback.format_exception(problem))[-2000:]}
    return {"seconds": round(time.process_time() - begin, 4), **told}


def _in_child(case: Case, number: int) -> dict[str, Any]:
    """One case in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _silence()
            told = _once(case, number)
            os.write(writer, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(writer)
    begin = timing.now_s()
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        answered = bool(select.select([pipe], [], [], GIVEN_UP_S)[0])
        data = pipe.read() if answered else b""
    if not answered:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if data and code == 0:
        return dict(json.loads(data))
    ended = signal.Signals(-code).name if code < 0 else f"exit {code}"
    return {"seconds": round(timing.now_s() - begin, 4), "signal": "hang" if not answered else ended}


def _silence() -> None:
    """What a dying engine says is of no use to anybody."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _status_bytes(name: str) -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123  read a hundred thousand times
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(name))


def _resident_bytes() -> int:
    return _status_bytes("VmRSS:")


def _address_space_bytes() -> int:
    return _status_bytes("VmSize:")


def _peak_bytes() -> int:
    return _status_bytes("VmHWM:")
