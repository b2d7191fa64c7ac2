"""One ssh connection to a device, and the agent at its other end: `edgetl.bench.agent` describes the messages."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from edgetl.bench import agent, ssh
from edgetl.bench.tables import printable
from edgetl.errors import EdgetlError
from edgetl.timing import now_s

GREETING_S = 60.0  # from the call of ssh to the agent's first line
ANSWER_S = 120.0  # for the agent itself, which may have to compile modules on a slow card
LEAVE_S = 15.0  # for the agent to end its workers and to remove its folder
ALIVE_S = agent.SILENCE_S / 6
CHUNK = 1 << 18
MOST_NOISE = 1 << 16  # bytes that a login shell may print before the agent's first line
OLD = "edgetl-python "
# It is the first thing that the device's Python sees, so it must mean the same in old ones and in every shell.
BOOT = ("import sys;sys.version_info<(3,11) and sys.exit('" + OLD + "%d.%d'%sys.version_info[:2]);"
        "exec(sys.stdin.buffer.read({size}).decode(),{{'__name__':'__main__'}})")
INSTALL = "Install Python 3.11 or newer on the device, or name another there: --device-python /opt/venv/bin/python"


class Lost(EdgetlError):
    """The connection to a device is no more."""


class Connection(contextlib.AbstractContextManager["Connection"]):
    """An agent on a device, for the time of a `with`; what it has brought there is gone afterwards.

    Args:
        address: the device.
        python: how Python is called there.
    """

    def __init__(self, address: ssh.Address, python: str) -> None:
        self.address, self.python = address, python
        self.greeting: Mapping[str, Any] = {}
        self.folder: str | None = None
        self.left: str | None = None  # what the agent could not remove, once it has left
        self.replies: defaultdict[int, list[bytes]] = defaultdict(list)
        self.deaths: dict[int, Mapping[str, Any]] = {}
        self._workers = 0
        self._received = b""
        self._torn = False  # whether a message was begun and not ended
        self._sending, self._leaving = threading.Lock(), threading.Event()

    def __enter__(self) -> Connection:
        """Connects.

        Raises:
            EdgetlError: the device cannot be reached or refuses, or has no Python that will do.
        """
        source = Path(agent.__file__).read_bytes()
        # A file, not a pipe: nobody has to empty it.
        self._stderr = tempfile.TemporaryFile()
        words = ssh.command(self.address, f'exec {self.python} -c "{BOOT.format(size=len(source))}"')
        # A session of its own: Ctrl-C reaches edgetl alone, which then leaves the device in order.
        self._ssh = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
                                     start_new_session=True, bufsize=0)
        try:
            self._send(source)
            self.greeting = self._greeting()
        except BaseException:
            self._hang_up()
            raise
        threading.Thread(target=self._stay_alive, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.left = self.ask({"do": "leave"})["left"]
        except Lost:
            self.left = "the connection was lost before the device said that all is gone"
        finally:
            # After a failure it is not asked: half a message may be on its way. The closed pipe says enough.
            self._hang_up()

    # ------------------------------------------------------------------------------------------------- the agent

    def settle(self, needed: int) -> None:
        """Makes the folder that everything is written to.

        Raises:
            EdgetlError: no folder can be written to or has `needed` bytes free, or there is no numpy.
        """
        folders = self.greeting["folders"]
        if not folders:
            raise EdgetlError(f"{self.address} has no temporary folder that can be written to; tried "
                              f"{', '.join(self.greeting['tried'])}.", hint="Set TMPDIR for this user on the device.")
        room = next((folder for folder, free in folders if free >= needed), None)
        if room is None:
            free = ", ".join(f"{size(free)} in {folder}" for folder, free in folders)
            raise EdgetlError(f"{self.address} has too little room: {size(needed)} are needed, and free are {free}.",
                              hint="Make room on the device, or set TMPDIR for this user to a folder that has it.")
        if not self.greeting["numpy"]:
            raise EdgetlError(f"{self.address} has no numpy for {self.python} (Python {self.greeting['python']}).",
                              hint="On the device: pip install numpy; or name a Python that has it: --device-python")
        self.folder = self.ask({"do": "settle", "folder": room})["folder"]

    def put(self, name: str, data: bytes) -> str:
        """Where the device has these bytes, in a file of that name.

        Raises:
            EdgetlError: it could not be written.
            Lost: the connection is.
        """
        request = {"do": "put", "name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self._asked(request, data)
        return f"{self.folder}/{name}"

    def ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The agent's answer.

        Raises:
            EdgetlError: the device's system refused.
            Lost: the connection is.
        """
        return self._asked(request, b"")

    def _asked(self, request: Mapping[str, Any], data: bytes) -> Mapping[str, Any]:
        self._send(json.dumps(request).encode() + b"\n" + data)
        deadline_s = now_s() + ANSWER_S
        while (line := self._line(deadline_s)) is not None:
            answer = self._sorted(line)
            if answer is not None and "problem" in answer:
                raise EdgetlError(f"{self.address} refused to {request['do']} {request.get('name', '')}".rstrip()
                                  + f" in {self.folder or request.get('folder')}: {answer['problem']}.")
            if answer is not None:
                return answer
        raise self._lost(f"it did not answer within {ANSWER_S:g} s")

    # ----------------------------------------------------------------------------------------------- the workers

    def start(self, module: str) -> int:
        """The number of a worker that was started.

        Raises:
            EdgetlError: the device's system refused.
            Lost: the connection is.
        """
        self._workers += 1
        self.ask({"do": "start", "worker": self._workers, "module": module})
        return self._workers

    def tell(self, worker: int, request: Mapping[str, Any]) -> None:
        """Sends a request to a worker; one that is no more says so when it is heard.

        Raises:
            Lost: the connection is.
        """
        self._send(json.dumps({"do": "tell", "worker": worker, "request": request}).encode() + b"\n")

    def hear(self, worker: int, timeout_s: float) -> bytes | Mapping[str, Any] | None:
        """A line of the worker, how it ended, or None after so long.

        Raises:
            Lost: the connection is.
        """
        deadline_s = now_s() + timeout_s
        while True:
            if self.replies[worker]:
                return self.replies[worker].pop(0)
            if worker in self.deaths:
                return self.deaths[worker]
            line = self._line(deadline_s)
            if line is None:
                return None
            self._sorted(line)

    def end(self, worker: int, *, at_once: bool) -> None:
        """Ends a worker, which may have been asked to close, without waiting for it.

        On a connection that is lost, or was interrupted within a message, nothing is sent: the agent ends them all.
        """
        if not self._torn:
            # Whoever uses the connection next is told that it is lost.
            with contextlib.suppress(Lost):
                self._send(json.dumps({"do": "end", "worker": worker, "at_once": at_once}).encode() + b"\n")
        self.replies.pop(worker, None)

    def _sorted(self, line: bytes) -> Mapping[str, Any] | None:
        """The agent's own answer; None for what a worker said, which is kept for who asks for it."""
        if line[:1].isdigit():
            number, _, reply = line.partition(b" ")
            self.replies[int(number)].append(reply)
            return None
        answer: Mapping[str, Any] = json.loads(line)
        if "worker" in answer:
            self.deaths[answer["worker"]] = answer
            return None
        return answer

    # ------------------------------------------------------------------------------------------------- the pipes

    def _send(self, data: bytes) -> None:
        try:
            self._write(data)
        except BrokenPipeError as problem:
            raise self._lost() from problem

    def _write(self, data: bytes) -> None:
        assert self._ssh.stdin is not None
        view = memoryview(data)
        with self._sending:
            self._torn = True
            while view and not self._leaving.is_set():
                view = view[os.write(self._ssh.stdin.fileno(), view[:CHUNK]):]
            self._torn = False

    def _stay_alive(self) -> None:
        """Says now and then that somebody is here, so that the agent can tell when nobody is."""
        assert self._ssh.stdin is not None
        # A connection that is lost is told to whoever uses it next.
        with contextlib.suppress(BrokenPipeError):
            while not self._leaving.wait(ALIVE_S):
                with self._sending:  # between two messages
                    if not self._leaving.is_set():
                        os.write(self._ssh.stdin.fileno(), b"\n")

    def _line(self, deadline_s: float) -> bytes | None:
        """A line of the agent, or None at the deadline."""
        while b"\n" not in self._received:
            found = self._read(deadline_s)
            if found is None:
                return None
            if not found:
                raise self._lost()
            self._received += found
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _read(self, deadline_s: float) -> bytes | None:
        assert self._ssh.stdout is not None
        pipe = self._ssh.stdout.fileno()
        # select() sleeps in the kernel.
        if not select.select([pipe], [], [], max(0.0, deadline_s - now_s()))[0]:
            return None
        return os.read(pipe, 1 << 16)

    # ------------------------------------------------------------------------------------------- begin and end

    def _greeting(self) -> Mapping[str, Any]:
        """What the agent says first; lines before it are the login shell's."""
        deadline_s, noise = now_s() + GREETING_S, 0
        while noise < MOST_NOISE:
            line = self._line(deadline_s)
            if line is None:
                raise EdgetlError(f"{self.address} lets us in, but its Python does not answer within {GREETING_S:g} s.")
            _, found, greeting = line.partition(agent.GREETING)
            if found:
                values: Mapping[str, Any] = json.loads(greeting)
                return values
            noise += len(line)
        raise EdgetlError(f"{self.address} prints at login without end, so that its Python is not heard.",
                          hint="Look into the user's ~/.bashrc there: it must be silent where nobody watches.")

    def _lost(self, why: str | None = None) -> EdgetlError:
        """Why the connection is no more, or never was."""
        code = self._wait(LEAVE_S if why is None else 0.0)
        said = self._said()
        if not self.greeting:
            return self._refused(code, said)
        why = why or (said[-1] if said else "the device or the network is gone")
        return Lost(f"The connection to {self.address} was lost: {why:.300}".rstrip(".") + ".",
                    hint="What was copied there removes itself. Run the same command again.")

    def _refused(self, code: int | None, said: Sequence[str]) -> EdgetlError:
        """Why there is no agent on the device."""
        refusal = ssh.refusal(self.address, 255 if code is None else code, said)
        if refusal is not None:
            return refusal
        last = said[-1] if said else f"it ended with exit code {code}"
        old = re.search(OLD + r"([0-9.]+)", "\n".join(said))
        if old is not None:
            return EdgetlError(f"{self.python} on {self.address} is Python {old[1]}; expected 3.11 or newer.",
                               hint=INSTALL)
        # 127 is every shell's word for it but csh's, which ends with 1.
        if code == 127 or "Command not found" in last:
            return EdgetlError(f"{self.address} has no program {self.python}.", hint=INSTALL)
        return EdgetlError(f"{self.python} does not run on {self.address}: {last:.300}", hint=INSTALL)

    def _said(self) -> list[str]:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return [printable(line.strip()) for line in lines if line.strip()]

    def _wait(self, timeout_s: float) -> int | None:
        try:
            return self._ssh.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def _hang_up(self) -> None:
        """Closes the pipe, which makes the agent clean up, and waits until it has."""
        assert self._ssh.stdin is not None and self._ssh.stdout is not None
        self._leaving.set()
        # Not for ever: on a dead line a message may still be waiting to be sent.
        free = self._sending.acquire(timeout=1.0)
        try:
            if free:
                self._ssh.stdin.close()
                # Before it greets there is nothing to clean up.
                self._wait(LEAVE_S if self.greeting else 0.0)
        finally:
            if self._ssh.poll() is None:
                self._ssh.kill()
                self._ssh.wait()
            self._ssh.stdin.close()
            self._ssh.stdout.close()
            self._stderr.close()


def size(count: int) -> str:
    """Bytes in words, e.g. `4.5 MB`."""
    return f"{count / 1e6:,.1f} MB"
