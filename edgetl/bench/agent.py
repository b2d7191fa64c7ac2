"""What runs on a device while it is measured over ssh: takes files, starts workers, and leaves nothing behind.

Its source is sent to `python3` as it stands, so it imports the standard library alone. One pipe carries everything;
every message is one line of JSON:

    {"do": "settle", "folder": F}                          -> {"folder": PATH}
    {"do": "put", "name": N, "size": S, "sha256": D} and S bytes  -> {}
    {"do": "unpack", "name": N}                            -> {}
    {"do": "start", "worker": W, "module": M}              -> {}
    {"do": "tell", "worker": W, "request": {...}}          -> W and a line of the worker, as often as it answers
    {"do": "end", "worker": W, "at_once": true}            -> nothing
    {"do": "leave"}                                        -> {"left": null or why not}, and the agent ends

A worker that ends is told by {"worker": W, "code": C, "last": its last words}, what the system refused by
{"problem": sentence}. An empty line says that the other side is there. When the pipe closes, or is silent for
`SILENCE_S`, or a signal asks for it, the agent ends its workers, removes its folder and ends: whoever was connected is
gone. What an agent could not remove, because the power failed or it was killed, the next one does.

While a worker measures, the agent sleeps in the kernel.
"""

from __future__ import annotations

import compileall
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

GREETING = b"edgetl-agent "  # begins the first line; what the user's shell prints at login comes before it
PREFIX = "edgetl-device-"
YOUNG_S = 60.0  # a folder that young may be that of an agent that has not locked it yet
SILENCE_S = 120.0
GRACE_S = 10.0  # for a worker that was asked to close
CHUNK = 1 << 16
TAIL = 400  # characters of a worker's last line


class Gone(Exception):
    """Nobody is at the other end any more."""


class Child:
    """A worker: its process, what it has yet to be sent, and what it has said so far."""

    def __init__(self, module: str, folder: Path, environment: dict[str, str]) -> None:
        # A file, not a pipe: nobody has to empty it while the worker measures.
        self.stderr = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as the worker)
        # A session of its own, so that its own children can be ended with it.
        self.process = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.stderr, cwd=folder, env=environment, start_new_session=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.input, False)  # a worker that reads nothing must not keep the agent from hearing "end"
        self.unsent, self.heard = b"", b""

    def last_words(self) -> str:
        """The last line of its stderr."""
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[-TAIL:] if lines else ""

    def end(self, *, at_once: bool) -> int:
        """Exit code of the process, which is no more when this returns, nor is what it started."""
        if not at_once:
            try:
                self.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                at_once = True
        if at_once:
            self.kill()
        return self.process.wait()

    def kill(self) -> None:
        """Ends the process and its children at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def release(self) -> None:
        """Closes the pipes of a process that has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.stderr.close()


class Agent:
    """Answers one side of a pipe until it closes.

    Args:
        source: descriptor to read from.
        sink: descriptor to write to.
        silence_s: how long the other side may say nothing.
    """

    def __init__(self, source: int, sink: int, silence_s: float = SILENCE_S) -> None:
        self.source, self.sink, self.silence_s = source, sink, silence_s
        self.received = b""
        self.folder: Path | None = None
        self.lock: int | None = None
        self.children: dict[int, Child] = {}
        self.ready = selectors.DefaultSelector()
        self.ready.register(source, selectors.EVENT_READ)

    def serve(self) -> None:
        """Greets, then does what it is told until it is told to leave.

        Raises:
            Gone: the other side is.
        """
        self._write(GREETING + json.dumps(greeting()).encode() + b"\n")
        while True:
            line = self._line()
            if not line.strip():
                continue
            request = json.loads(line)
            if request["do"] == "leave":
                self._say({"left": self.clean_up()})
                return
            try:
                reply = getattr(self, f"do_{request.pop('do')}")(**request)
            except OSError as problem:
                reply = {"problem": problem.strerror or str(problem)}
            if reply is not None:
                self._say(reply)

    # ------------------------------------------------------------------------------------------------- requests

    def do_settle(self, folder: str) -> dict[str, Any]:
        """Makes a folder below that one; all that is written from now on is in there."""
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        self.lock = os.open(self.folder, os.O_RDONLY)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        (self.folder / "tmp").mkdir()
        return {"folder": str(self.folder)}

    def do_put(self, name: str, size: int, sha256: str) -> dict[str, Any]:
        """Writes the bytes that follow to a file of the folder."""
        digest, left = hashlib.sha256(), size
        refused: str | None = None
        with (self._settled() / name).open("wb", buffering=0) as file:
            for chunk in self._bytes(left):
                digest.update(chunk)
                if refused is None:  # what has been sent must be read in any case: the next request comes after it
                    refused = _write_all(file.fileno(), chunk)
        if refused is not None:
            return {"problem": refused}
        return {} if digest.hexdigest() == sha256 else {"problem": f"{name} arrived with another digest than it left"}

    def do_unpack(self, name: str) -> dict[str, Any]:
        """Unpacks the worker's modules and compiles them, so that no start pays for that."""
        archive, home = self._settled() / name, self._settled() / "code"
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(home)
        archive.unlink()
        compileall.compile_dir(str(home), quiet=2)
        return {}

    def do_start(self, worker: int, module: str) -> dict[str, Any]:
        """Starts a worker."""
        folder = self._settled()
        code = [str(folder / "code"), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, code)), "PYTHONDONTWRITEBYTECODE": "1",
               **dict.fromkeys(("TMPDIR", "EDGETL_CACHE", "XDG_CACHE_HOME"), str(folder / "tmp"))}
        child = self.children[worker] = Child(module, folder, {**os.environ, **own})
        self.ready.register(child.output, selectors.EVENT_READ, (worker, child))
        return {}

    def do_tell(self, worker: int, request: dict[str, Any]) -> None:
        """Hands a request on; its answer comes when it comes, and a worker that has ended was told already."""
        child = self.children.get(worker)
        if child is not None:
            child.unsent += json.dumps(request).encode() + b"\n"
            self._feed(worker, child)

    def do_end(self, worker: int, at_once: bool) -> None:
        """Ends a worker; one that has ended already is what was wanted."""
        if worker in self.children:
            self._bury(worker, at_once=at_once)

    def _settled(self) -> Path:
        if self.folder is None:
            raise OSError("there is no folder yet")
        return self.folder

    # ---------------------------------------------------------------------------------------------------- pipes

    def _line(self) -> bytes:
        while b"\n" not in self.received:
            self._read()
        line, _, self.received = self.received.partition(b"\n")
        return line

    def _bytes(self, size: int) -> Iterator[bytes]:
        while size > 0:
            if not self.received:
                self._read()
            chunk, self.received = self.received[:size], self.received[size:]
            size -= len(chunk)
            yield chunk

    def _read(self) -> None:
        """Waits for the other side, and serves the workers meanwhile."""
        deadline_s = time.monotonic() + self.silence_s
        while True:
            events = self.ready.select(max(0.0, deadline_s - time.monotonic()))
            if time.monotonic() > deadline_s and all(key.data is not None for key, _ in events):
                raise Gone
            for key, mask in events:
                if key.data is not None:
                    self._attend(key.data[0], key.data[1], mask)
            if any(key.data is None for key, _ in events):
                break
        found = os.read(self.source, CHUNK)
        if not found:
            raise Gone
        self.received += found

    def _attend(self, worker: int, child: Child, mask: int) -> None:
        if worker not in self.children:
            return  # it ended earlier among the same events
        if mask & selectors.EVENT_WRITE:
            self._feed(worker, child)
        if mask & selectors.EVENT_READ:
            self._listen(worker, child)

    def _feed(self, worker: int, child: Child) -> None:
        """Sends what the worker's pipe takes now; the rest follows when there is room."""
        waiting = child.input in self.ready.get_map()
        try:
            child.unsent = child.unsent[os.write(child.input, child.unsent):]
        except BlockingIOError:
            pass  # the pipe is full: the selector says when it is not
        except BrokenPipeError:
            child.unsent = b""  # its end shows on its other pipe
        if child.unsent and not waiting:
            self.ready.register(child.input, selectors.EVENT_WRITE, (worker, child))
        if not child.unsent and waiting:
            self.ready.unregister(child.input)

    def _listen(self, worker: int, child: Child) -> None:
        found = os.read(child.output, CHUNK)
        child.heard += found
        *lines, child.heard = child.heard.split(b"\n")
        for line in lines:
            self._write(b"%d %s\n" % (worker, line))
        if not found:
            last = child.last_words()
            self._say({"worker": worker, "last": last, "code": self._bury(worker, at_once=False)})

    def _bury(self, worker: int, *, at_once: bool) -> int:
        child = self.children.pop(worker)
        for pipe in (child.input, child.output):
            if pipe in self.ready.get_map():
                self.ready.unregister(pipe)
        code = child.end(at_once=at_once)
        child.release()
        return code

    def _say(self, message: dict[str, Any]) -> None:
        self._write(json.dumps(message).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self.sink, line):]
            except OSError as problem:
                raise Gone from problem

    # -------------------------------------------------------------------------------------------------- leaving

    def clean_up(self) -> str | None:
        """Ends the workers and removes the folder; None, or what is left and why."""
        for worker in list(self.children):
            self._bury(worker, at_once=True)
        folder, self.folder = self.folder, None
        problem = None if folder is None else remove(folder)
        if self.lock is not None:
            os.close(self.lock)
        self.lock = None
        return problem


def greeting() -> dict[str, Any]:
    """Who answers, and where it could write; folders that earlier agents had no time to remove are gone."""
    places = [os.environ.get("TMPDIR"), "/tmp", "/var/tmp"]
    folders = [place for place in dict.fromkeys(filter(None, places)) if os.access(place, os.W_OK | os.X_OK)]
    for folder in folders:
        sweep(Path(folder))
    return {"name": platform.node(), "python": platform.python_version(),
            "numpy": importlib.util.find_spec("numpy") is not None, "tried": list(dict.fromkeys(filter(None, places))),
            "folders": [[folder, shutil.disk_usage(folder).free] for folder in folders]}


def sweep(place: Path) -> None:
    """Removes the folders of agents that are no more: the system released their locks with them."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # somebody else's, or removed at this moment
        try:
            found = os.fstat(lock)
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > YOUNG_S:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(folder)
        except BlockingIOError:
            pass  # its agent is at work
        finally:
            os.close(lock)


def remove(folder: Path) -> str | None:
    """None when the folder is gone, else what the system said."""
    try:
        shutil.rmtree(folder)
    except OSError as problem:
        return f"{folder}: {problem.strerror or problem}"
    return None


def _write_all(file: int, chunk: bytes) -> str | None:
    try:
        while chunk:
            chunk = chunk[os.write(file, chunk):]
    except OSError as problem:
        return problem.strerror or str(problem)
    return None


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise Gone


def main() -> int:
    """Serves over stdin and stdout; 0 when the other side said that it leaves."""
    sink = os.dup(1)
    os.dup2(2, 1)  # whatever prints does not end up between the messages
    agent = Agent(0, sink)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_signal)
    try:
        agent.serve()
        return 0
    except Gone:
        return 1
    finally:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # from here on nothing keeps it from cleaning up
        agent.clean_up()


if __name__ == "__main__":
    sys.exit(main())
