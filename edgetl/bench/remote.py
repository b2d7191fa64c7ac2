"""Measures on a device over ssh, with the same workers, rounds and blocks as on this machine.

One ssh connection carries everything. It starts `edgetl.bench.agent` in the device's own Python, hands it the modules
of `edgetl.bench.luggage` and the graphs, has it start the workers, and speaks with them. Times are taken by the
workers, so the network is in none of them; between messages both ends sleep. Nothing is installed; what was copied is
removed at the end, and where the connection is lost by the agent alone.

Test images stay here: they are decoded and resized on this machine, and their pixels go to the device batch by batch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgetl
from edgetl import datasets, evaluate, recipe
from edgetl.bench import kernel, luggage, ssh, worker
from edgetl.bench.cases import RUN_BACKEND, Case
from edgetl.bench.connection import Connection, Lost, size
from edgetl.bench.host import HERE, Host
from edgetl.bench.instruments import Instruments
from edgetl.bench.process import Process, WorkerFailed, no_progress
from edgetl.bench.remote_worker import array, array_to_json
from edgetl.bench.sensors import Found
from edgetl.bench.tables import printable
from edgetl.bench.watch import State, Watch
from edgetl.errors import BackendUnavailable, EdgetlError
from edgetl.events import Event, Listener, ignore
from edgetl.heads import asked_of
from edgetl.runtime.preprocess import from_dict

STAGE = "bench"
MACHINE_S = 120.0  # for the first import of numpy and of the backends' libraries on a slow card
SPARE_BYTES = 16 << 20  # for what libraries write meanwhile, and for the modules' compiled form


@contextlib.contextmanager
def host(options: recipe.Bench, cases: Sequence[Case], listener: Listener = ignore) -> Iterator[Host]:
    """The machine that measures: the device of `options`, made ready and left as it was; else this one.

    Raises:
        EdgetlError: a case cannot be measured on a device; it cannot be reached, lacks Python, numpy, room or a
            runtime; or the connection is lost.
    """
    if options.device is None:
        yield HERE
        return
    address = ssh.parse(options.device)
    check(cases)
    with Connection(address, options.device_python) as connection:
        device = Device(connection, listener)
        device.settle(cases)
        yield device
    if connection.left is not None:
        text = f"Not everything could be removed from {address}: {connection.left}"
        listener(Event(STAGE, "warning", {"text": text}))


def _read(graph: Path, within: tuple[int, int] | None) -> bytes:
    """The bytes of a graph, which may lie within a packed bundle."""
    with graph.open("rb") as file:
        file.seek(within[0] if within else 0)
        return file.read(within[1] if within else -1)


def check(cases: Sequence[Case]) -> None:
    """Returns when a device can measure the cases.

    Raises:
        EdgetlError: one is a RUN folder, or of a backend that is not edgetl's own.
    """
    for case in cases:
        if case.subject.kind == "run" or case.subject.backend == RUN_BACKEND:
            raise EdgetlError(f"{case.subject.source} needs PyTorch, which --device does not take along; expected "
                              "bundles and .onnx files.", hint=f"Export it first: edgetl export {case.subject.source} "
                              "--out BUNDLE; or leave out --device.")
        if "." in case.subject.backend:
            raise EdgetlError(f"The backend '{case.subject.backend}' is a module of this machine, which --device does "
                              "not copy.", hint="Choose among edgetl's own: `edgetl list backends`")


class Device:
    """A machine behind a connection.

    Args:
        connection: open, with an agent at its other end.
        listener: hears of notes and warnings.
    """

    def __init__(self, connection: Connection, listener: Listener) -> None:
        self.connection, self.listener = connection, listener
        self.name: str | None = printable(connection.greeting["name"]) or "unnamed"
        self.machine: Mapping[str, Any] = {}
        self.said = False
        self.leader: RemoteProcess | None = None  # does on the device what the command's own process does on this one
        self.graphs: dict[tuple[str, tuple[int, int] | None], str] = {}

    def settle(self, cases: Sequence[Case]) -> None:
        """Copies the worker, asks what can run there, then copies the graphs.

        Raises:
            EdgetlError: see `host`.
        """
        graphs = {(str(case.subject.graph), case.subject.within): case.subject.size_bytes for case in cases}
        backends = tuple(dict.fromkeys(case.subject.backend for case in cases))
        code = luggage.packed(backends)
        needed = len(code) + 2 * luggage.unpacked_bytes(backends) + sum(graphs.values()) + SPARE_BYTES
        self.connection.settle(needed)
        self.connection.put("code.zip", code)
        self.connection.ask({"do": "unpack", "name": "code.zip"})
        self.machine = self._machine(backends)
        amount = size(sum(graphs.values()))
        self._tell("note", f"copying {amount} to {self.connection.address}, which calls itself {self.name}")
        for number, (graph, within) in enumerate(graphs):
            self.graphs[graph, within] = self.connection.put(f"{number}.onnx", _read(Path(graph), within))

    def _machine(self, backends: Sequence[str]) -> Mapping[str, Any]:
        """What the device is; at least one of the backends can run there."""
        process = self.launch(MACHINE_S)
        found = self._asked(process, backends)
        known = found["backends"]
        if not any(one["usable"] for one in known.values()):
            others = self._asked(process, [name for name in luggage.backends() if name not in known])["backends"]
            usable = [name for name, one in others.items() if one["usable"]]
            reasons = "; ".join(f"{name}: {one['reason']}" for name, one in known.items())
            fixes = dict.fromkeys(one["fix"] for one in known.values() if one["fix"])
            raise BackendUnavailable(f"{self.connection.address} has no runtime for {' or '.join(known)} ({reasons}); "
                                     f"backends that can run there: {', '.join(usable) or 'none'}.",
                                     hint=f"On the device: {'; '.join(fixes)}")
        process.close()
        return found

    def _asked(self, process: RemoteProcess, backends: Sequence[str]) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = process.ask({"do": "machine", "backends": list(backends)})
        except WorkerFailed as problem:
            raise EdgetlError(f"The worker does not run on {self.connection.address}: {problem.message}.") from problem
        return found

    def fingerprint(self) -> dict[str, Any]:
        """See `edgetl.bench.host.Host`."""
        found = self.machine["environment"]
        # The edgetl that measures is the one that came along, not one that may be installed there.
        return {**found, "versions": {**found["versions"], "edgetl": edgetl.__version__}}

    def missing(self, requires: tuple[str, ...]) -> tuple[str, ...]:
        """See `edgetl.bench.host.Host`."""
        return tuple(one for one in requires if one not in self.machine["features"])

    def cores(self) -> tuple[int, ...]:
        """See `edgetl.bench.host.Host`."""
        return tuple(self.machine["cores"])

    def calibrate(self) -> kernel.Block | None:
        """See `edgetl.bench.host.Host`."""
        found = self._led({"do": "calibrate"})
        return None if found is None else kernel.Block(**found)

    def instruments(self) -> Instruments:
        """See `edgetl.bench.host.Host`; sensors of energy would have to be read while the connection is silent."""
        return Instruments(Watch(self._state), find=lambda: Found((), ("those of a device are not read over ssh",)))

    def _state(self) -> State:
        """How the device is now; unknown where the process that reads it is no more."""
        found = self._led({"do": "state"})
        if found is None:
            return State(None, None, {}, None, ())
        return State(**{**found, "held_back": tuple(found["held_back"])})

    def _led(self, request: Mapping[str, Any]) -> Any:
        """The answer of the leader, or None where it is no more."""
        if self.leader is None:
            self.leader = self.launch(MACHINE_S)
        if self.leader.ended:
            return None
        try:
            return self.leader.ask(request)
        except WorkerFailed as problem:
            self.leader.kill()
            self._tell("warning", f"Calibration and watch over the device ended early: {problem.message}.")
            return None

    def launch(self, timeout_s: float) -> RemoteProcess:
        """See `edgetl.bench.host.Host`."""
        return RemoteProcess(self, timeout_s)

    def say_where_images_are(self) -> None:
        """Has the report say once what of the accuracy is not the device's own work."""
        if not self.said:
            self.said = True
            self._tell("warning", f"The test images were decoded and resized on this machine; {self.name} was sent "
                                  "their pixels, and answered them in the sessions that were timed.")

    def _tell(self, kind: str, text: str) -> None:
        self.listener(Event(STAGE, kind, {"text": text}))


class RemoteProcess(Process):
    """A worker on a device.

    Args:
        device: where.
        timeout_s: how long it may be silent.
    """

    def __init__(self, device: Device, timeout_s: float) -> None:
        self.device, self.connection, self.timeout_s = device, device.connection, timeout_s
        self.death: Mapping[str, Any] | None = None
        self.ended = False
        self.number = self.connection.start(luggage.WORKER)

    @property
    def pid(self) -> int | None:
        """See `Process`."""
        return None

    def ask(self, request: Mapping[str, Any], *, extra_s: float = 0.0,
            progress: Callable[[int], None] = no_progress) -> Any:
        """See `edgetl.bench.process.Process.ask`; graphs are named by their place here.

        Raises:
            WorkerFailed: see there.
            Lost: the connection is no more, which no other case survives.
        """
        if request["do"] == "evaluate":
            return self._evaluate(progress=progress, **{name: one for name, one in request.items() if name != "do"})
        if "graph" in request:
            request = {name: one for name, one in request.items() if name != "within"} | {
                "graph": self.device.graphs[request["graph"], request.get("within")]}
        return super().ask(request, extra_s=extra_s, progress=progress)

    def _evaluate(self, data: str, keys: str, preprocess: Mapping[str, Any], spec: Mapping[str, Any], batch: int,
                  out: str, progress: Callable[[int], None],
                  asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What `edgetl.bench.worker.Worker.evaluate` does, with the images on this side."""
        def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
            (pixels,) = feeds.values()
            request = {"do": "run", "pixels": array_to_json(pixels), "spec": spec, "preprocess": preprocess}
            return {name: array(one) for name, one in self.ask(request).items()}

        self.device.say_where_images_are()
        opened = datasets.open_data(data, asked=asked_of(asked))
        by_key = {item.key: item for item in opened.items}
        items = [by_key[key] for key in json.loads(Path(keys).read_text())]
        predict = worker.fixed_batch(Answers(run), worker.spec_from_json(spec), batch,
                                     lambda told: progress(told["progress"]))
        try:
            found = evaluate.answers(predict, items, opened.read, from_dict(preprocess, where="preprocess"),
                                      classes=len(opened.labels), batch=batch, normalized=False)
        except Lost:
            raise
        except EdgetlError as problem:
            raise WorkerFailed(problem.message) from problem
        np.savez(out, logits=found.logits, labels=found.labels, weights=[item.weight for item in items])
        return {"n": len(items)}

    def _send(self, request: Mapping[str, Any]) -> None:
        self.connection.tell(self.number, request)

    def _line(self, timeout_s: float) -> bytes:
        heard = self.connection.hear(self.number, timeout_s)
        if isinstance(heard, bytes):
            return heard
        if heard is None:
            self.kill()
            raise WorkerFailed(f"no answer within {timeout_s:g} s (--timeout-s allows more)")
        self.death = heard
        raise WorkerFailed(self._obituary())

    def _wait(self) -> int | None:
        return None if self.death is None else self.death["code"]

    def _last_words(self) -> str:
        return "" if self.death is None else str(self.death["last"])

    def kill(self) -> None:
        """See `edgetl.bench.process.Process.kill`."""
        self._end(at_once=True)

    def close(self, *, at_once: bool = False) -> None:
        """See `edgetl.bench.process.Process.close`."""
        if not at_once and self.death is None and not self.ended:
            with contextlib.suppress(Lost):  # told to whoever uses the connection next
                self._send({"do": "close"})
        self._end(at_once=at_once)

    def _end(self, *, at_once: bool) -> None:
        if not self.ended:
            self.ended = True
            self.connection.end(self.number, at_once=at_once)


class Answers:
    """A session whose calls are answered on a device.

    Args:
        run: see `edgetl.runtime.session.Session.run`.
    """

    def __init__(self, run: Callable[[worker.Feeds], dict[str, Any]]) -> None:
        self.run = run

    def close(self) -> None:
        """Does nothing: the session is the worker's."""

    def info(self) -> Mapping[str, Any]:
        """Nothing: the worker told it when it opened the session."""
        return {}
