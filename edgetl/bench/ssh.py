"""The system's ssh client: whom it calls, how it is called, and what its refusals mean.

The user's own ~/.ssh/config, keys and agent count. Only what safety and a program without a terminal need is set above
them: host keys are checked always, nobody is asked anything, nothing is forwarded.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from edgetl import recipe_fields
from edgetl.errors import EdgetlError

CONNECT_S = 15
KEEP_ALIVE_S, KEEP_ALIVE_COUNT = 15, 4  # a link that is silent for their product is lost
OPTIONS = {
    "BatchMode": "yes", "StrictHostKeyChecking": "yes", "NoHostAuthenticationForLocalhost": "no",
    "ConnectTimeout": str(CONNECT_S), "ServerAliveInterval": str(KEEP_ALIVE_S),
    "ServerAliveCountMax": str(KEEP_ALIVE_COUNT), "LogLevel": "ERROR",
    # What the user's file may ask of a shell of his own, and would mix with the worker's lines.
    "RequestTTY": "no", "RemoteCommand": "none", "PermitLocalCommand": "no", "ClearAllForwardings": "yes",
    "ForwardAgent": "no", "ForwardX11": "no",
}
FORM = re.compile(recipe_fields.DEVICE[0], re.ASCII)
HINT = "For example ssh://pi@raspberrypi.local, or the name of a Host in ~/.ssh/config."
MOST_PORT = 65535

# What OpenSSH writes, and what to say of it; the first that is found counts. {name} is the device as the user wrote it.
REFUSALS = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED", "The host key of {name} is not the one that is known: it was installed "
     "anew, or somebody else answers.", "If the device was installed anew, remove its old key: ssh-keygen -R {entry}"),
    (r"Host key verification failed|No \S+ host key is known", "The host key of {name} is not known on this machine.",
     "Log in once by hand, compare the fingerprint that is shown with the device's, and accept it: {login}"),
    (r"Permission denied|Too many authentication failures|No supported authentication methods",
     "{name} does not accept the key of this user.", "Install it once: ssh-copy-id{port} {user_host}; a key with a "
     "passphrase must be in the agent (ssh-add), for nobody is asked."),
    (r"Could not resolve hostname", "{name} cannot be reached: its name is not known.",
     "Look for a typing error, or give the address in numbers."),
    (r"Connection refused", "{name} cannot be reached: nothing listens at that port.",
     "Start the device's ssh server, or give its port: ssh://HOST:PORT"),
    (r"Connection timed out|Operation timed out|No route to host|Network is unreachable|Host is down",
     "{name} cannot be reached: it does not answer.", "Is it switched on and in this network? Try: {login}"),
)


@dataclass(frozen=True)
class Address:
    """A device as the user named it."""

    host: str  # a name, an address in numbers, or a Host of ~/.ssh/config
    user: str | None = None  # None is what ssh's own configuration says
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return "ssh://" + (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def parse(text: str) -> Address:
    """The address in `ssh://[USER@]HOST[:PORT]`; an IPv6 address stands in brackets.

    Raises:
        EdgetlError: it has another form; or a part that ssh could take for an option.
    """
    match = FORM.fullmatch(text)
    if match is None:
        raise EdgetlError(f"--device {text!r:.80}: expected {recipe_fields.DEVICE[1]}.", hint=HINT)
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 1 <= port <= MOST_PORT:
        raise EdgetlError(f"--device {text}: the port is {port}, expected 1 to {MOST_PORT}.", hint=HINT)
    return Address(match["name"] or match["six"], match["user"], port)


def command(address: Address, remote: str) -> list[str]:
    """The words that run a command line on the device.

    Args:
        address: the device.
        remote: for the shell of the user over there, whichever it is.

    Raises:
        EdgetlError: there is no ssh client here.
    """
    client = shutil.which("ssh")
    if client is None:
        raise EdgetlError("--device needs the program ssh, which is not installed on this machine.",
                          hint="Install OpenSSH's client, e.g. apt install openssh-client")
    words = [client, "-T", *(word for name, value in OPTIONS.items() for word in ("-o", f"{name}={value}"))]
    words += ["-p", str(address.port)] if address.port else []
    words += ["-l", address.user] if address.user else []
    return [*words, "--", address.host, remote]


def refusal(address: Address, code: int, said: Sequence[str]) -> EdgetlError | None:
    """What ssh's own failure means in one sentence; None where ssh did its work and the device's command failed.

    Args:
        address: the device.
        code: exit code of ssh, which is 255 for its own failures.
        said: lines of its stderr.
    """
    if code != 255:
        return None
    words = _words(address)
    for pattern, sentence, hint in REFUSALS:
        if any(re.search(pattern, line) for line in said):
            return EdgetlError(sentence.format(**words), hint=hint.format(**words))
    last = said[-1] if said else "it gave no reason"
    return EdgetlError(f"{address} cannot be reached; ssh says: {last:.300}", hint=f"Try: {words['login']}")


def _words(address: Address) -> dict[str, str]:
    user_host = f"{address.user}@{address.host}" if address.user else address.host
    port = f" -p {address.port}" if address.port else ""
    entry = f"'[{address.host}]:{address.port}'" if address.port else address.host
    return {"name": str(address), "user_host": user_host, "port": port, "entry": entry,
            "login": f"ssh{port} {user_host}"}
