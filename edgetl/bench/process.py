"""The parent's end of a worker: asks over a pipe, sleeps until the answer, and turns every death into a sentence."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import edgetl
from edgetl.errors import EdgetlError
from edgetl.timing import now_s

GRACE_S = 10.0  # for a worker that was asked to close
TAIL = 400  # characters of stderr that go into a reason


class WorkerFailed(EdgetlError):
    """A worker that crashed, hung, or answered with a failure."""


class Refused(WorkerFailed):
    """A worker that answered with a failure, and goes on."""


def no_progress(done: int) -> None:
    """The listener of requests that answer at once."""


class Process:
    """A running worker.

    Args:
        timeout_s: how long it may be silent.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        # A file, not a pipe: nobody has to empty it while the worker measures.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the worker)
        self._received = b""
        # A session of its own: Ctrl-C reaches the parent alone, which then ends its workers in order.
        self._child = subprocess.Popen([sys.executable, "-m", "edgetl.bench.worker"], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=self._stderr, env=_environment(),
                                       start_new_session=True)

    @property
    def pid(self) -> int | None:
        """Its number on this machine; None where it runs on another."""
        return self._child.pid

    def ask(self, request: Mapping[str, Any], *, extra_s: float = 0.0,
            progress: Callable[[int], None] = no_progress) -> Any:
        """The reply to a request; the parent sleeps meanwhile.

        Args:
            request: a message of `edgetl.bench.worker`.
            extra_s: how much longer than `timeout_s` this may take, where the request itself says so.
            progress: hears how many images were answered since the last time; each also resets the timeout.

        Raises:
            WorkerFailed: the worker crashed or hung; says which, with what it last wrote.
            Refused: it answered with a failure, and waits for the next request.
        """
        self._send(request)
        while True:
            reply = json.loads(self._line(self.timeout_s + extra_s))
            if "error" in reply:
                raise Refused(reply["error"])
            if "progress" not in reply:
                return reply
            progress(reply["progress"])

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError as problem:
            raise WorkerFailed(self._obituary()) from problem

    def _line(self, timeout_s: float) -> bytes:
        assert self._child.stdout is not None
        pipe, deadline_s = self._child.stdout.fileno(), now_s() + timeout_s
        while b"\n" not in self._received:
            # select() sleeps in the kernel: the parent takes no processor time from what is being measured.
            if not select.select([pipe], [], [], max(0.0, deadline_s - now_s()))[0]:
                self.kill()
                raise WorkerFailed(f"no answer within {timeout_s:g} s (--timeout-s allows more)")
            received = os.read(pipe, 1 << 16)
            if not received:
                raise WorkerFailed(self._obituary())
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _obituary(self) -> str:
        """Why the worker is no more."""
        code = self._wait()
        if code is None:
            self.kill()
            return "the worker closed its pipe and went on"
        if code < 0:
            memory = ", which is what the system does when memory runs out" if -code == signal.SIGKILL else ""
            end = f"the worker was ended by {signal.Signals(-code).name}{memory}"
        else:
            end = f"the worker stopped with exit code {code}"
        last = self._last_words()
        return f"{end}; it last wrote: {last}" if last else end

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[-TAIL:] if lines else ""

    def _wait(self) -> int | None:
        try:
            return self._child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Ends the worker at once and releases its pipes; a second call does nothing."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()

    def close(self, *, at_once: bool = False) -> None:
        """Asks the worker to end, and ends it when it does not, or `at_once`; raises nothing."""
        # Whoever is gone already is what was wanted; what was measured of it stays.
        with contextlib.suppress(WorkerFailed):
            if not at_once and self._child.poll() is None:
                self._send({"do": "close"})
                self._wait()
        self.kill()
        self._release()

    def _release(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # half a request to a worker whose death was told when it happened
            self._child.stdin.close()
        self._child.stdout.close()
        self._stderr.close()


def _environment() -> dict[str, str]:
    """The parent's variables, with the edgetl that the parent runs in front where it is not an installed one."""
    root = Path(edgetl.__file__).resolve().parents[1]
    if root.name in ("site-packages", "dist-packages"):
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))}
