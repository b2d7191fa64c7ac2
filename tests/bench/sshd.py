"""What stands for a device: a Python of its own behind a real sshd on loopback, or behind a script called ssh."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SSHD = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
WHY_NOT = None if SSHD and shutil.which("ssh") else "needs OpenSSH's client and /usr/sbin/sshd (openssh-server)"
HEAVY = ("torch", "torchvision", "timm")

# The device's Python is this one, without PyTorch and whatever else a device has not.
SITE = """
import importlib.util, sys
ABSENT = {absent!r}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ABSENT else find(name, package)
{more}
"""
# Takes the last word for the command, as ssh does, and the device's part is played by this machine's own shell.
PRETENDING = """#!/bin/sh
{first}
for last; do :; done
exec sh -c "$last"
"""


@dataclass(frozen=True)
class Device:
    """What a test knows of the device."""

    root: Path
    url: str = "ssh://pi@board"

    @property
    def tmp(self) -> Path:
        """Its only temporary folder."""
        return self.root / "tmp"

    def python(self, name: str = "python", *, absent: tuple[str, ...] = HEAVY, more: str = "", first: str = "") -> str:
        """Path of a Python that lacks these modules and runs `more` at its start, after `first` in its shell."""
        site = self.root / f"{name}-site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE.format(absent=absent, more=more))
        settings = f"export TMPDIR='{self.tmp}' PYTHONPATH='{site}'"
        return str(script(self.root / name, f"#!/bin/sh\n{first}\n{settings}\nexec '{sys.executable}' \"$@\"\n"))

    def left(self) -> list[str]:
        """What lies in its temporary folder."""
        return sorted(one.name for one in self.tmp.iterdir())


def descendants(word: str) -> list[psutil.Process]:
    """Processes that this one has started, and those that they have, with that word in their command."""
    def command(process: psutil.Process) -> str:
        try:
            return " ".join(process.cmdline())
        except psutil.Error:  # it has ended since, or is only still listed
            return ""

    return [one for one in psutil.Process().children(recursive=True) if word in command(one)]


def script(path: Path, text: str) -> Path:
    """A file that can be run."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def pretended(root: Path, first: str = "") -> Device:
    """A device behind a script `ssh` in `root`/bin, which runs `first` before it does what it was asked for."""
    (root / "tmp").mkdir()
    (root / "bin").mkdir()
    script(root / "bin" / "ssh", PRETENDING.format(first=first))
    return Device(root)


@contextlib.contextmanager
def running(root: Path) -> Iterator[Device]:
    """A device behind a real sshd of its own, unprivileged unless we are root; `root`/bin has the client's ssh."""
    (root / "tmp").mkdir()
    (root / "bin").mkdir()
    port, host, user = free_port(), make_key(root / "host"), make_key(root / "user")
    (root / "allowed").write_text(user.with_suffix(".pub").read_text())
    settings = {"Port": port, "ListenAddress": "127.0.0.1", "HostKey": host, "AuthorizedKeysFile": root / "allowed",
                "PidFile": "none", "StrictModes": "no", "UsePAM": "no", "PasswordAuthentication": "no",
                "KbdInteractiveAuthentication": "no", "PrintMotd": "no"}
    (root / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    # As the user's own ~/.ssh/config would be read.
    script(root / "bin" / "ssh", f"#!/bin/sh\nexec '{shutil.which('ssh')}' -F '{root / 'ssh_config'}' \"$@\"\n")
    (root / "ssh_config").write_text(f"Host *\n IdentityFile {user}\n IdentitiesOnly yes\n IdentityAgent none\n"
                                     f" UserKnownHostsFile {root / 'known'}\n GlobalKnownHostsFile /dev/null\n")
    trust(root, port, host)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # Debian's sshd wants it of root, even to serve root alone
    with (root / "sshd.log").open("wb") as log:
        daemon = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(root / "sshd_config")], stderr=log)
        try:
            _listening(port, daemon, root / "sshd.log")
            device = Device(root, f"ssh://{getpass.getuser()}@127.0.0.1:{port}")
            _lets_in(device, root / "sshd.log")
            yield device
        finally:
            daemon.terminate()
            daemon.wait()


def _lets_in(device: Device, log: Path) -> None:
    """Skips where the system has this user's account locked, which is no matter of edgetl's."""
    tried = subprocess.run([str(device.root / "bin" / "ssh"), "-o", "BatchMode=yes", device.url, "true"], check=False,
                           capture_output=True)
    if tried.returncode != 0:
        pytest.skip(f"sshd does not let its own user in: {log.read_text().strip()}")


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def make_key(path: Path) -> Path:
    """A private key without a passphrase; its public half lies beside it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def trust(root: Path, port: int, key: Path) -> None:
    """Makes the client take this for the device's host key."""
    kind, public = key.with_suffix(".pub").read_text().split()[:2]
    (root / "known").write_text(f"[127.0.0.1]:{port} {kind} {public}\n")


def _listening(port: int, daemon: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(6000):
        if daemon.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text().strip()}")
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 300):
            return
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not listen: {log.read_text()}")
